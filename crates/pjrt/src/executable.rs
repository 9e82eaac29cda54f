use std::{ffi::c_char, fmt, ptr};

use crate::{
    Buffer, Client, ElementType, PjrtError, Signature,
    event::Event,
    ffi::{self, Api},
    proto,
};

/// A compiled program on its devices.
pub struct Executable {
    // Before the client, so that they are destroyed before it can be.
    handles: Handles,
    client: Client,
    devices: Vec<usize>,
    outputs: Vec<Signature>,
    parameters: Option<Vec<Signature>>,
}

/// A buffer for a parameter of a program.
#[derive(Debug)]
pub enum Argument<'a> {
    /// Read, and still there afterwards. Where the program aliases the parameter to an output it is copied, which some
    /// plugins refuse if the program demands the alias.
    Borrowed(&'a Buffer),
    /// Given away: where the program aliases the parameter to an output, its memory becomes the output's; it is freed
    /// otherwise.
    Donated(Buffer),
}

/// A program at work: its results, which may be used before it has ended.
#[derive(Debug)]
pub struct Execution {
    /// For each device, in the order of [`Executable::devices`], one buffer for each output.
    pub outputs: Vec<Vec<Buffer>>,
    /// For each device, the end of its work.
    pub done: Vec<Event>,
}

impl Execution {
    /// Waits for all devices, and returns their outputs.
    ///
    /// # Errors
    /// The first device's that failed.
    pub fn wait(self) -> Result<Vec<Vec<Buffer>>, PjrtError> {
        self.done.iter().try_for_each(Event::wait)?;
        Ok(self.outputs)
    }
}

impl Executable {
    /// Takes over a loaded executable.
    ///
    /// # Safety
    /// `loaded` must be an executable of the client that nobody else destroys.
    pub(crate) unsafe fn new(client: Client, loaded: *mut ffi::LoadedExecutable) -> Result<Self, PjrtError> {
        let api = client.api();
        let mut handles = Handles { api, loaded, executable: ptr::null_mut() };
        let arguments = ffi::LoadedGetExecutable { loaded, ..Default::default() };
        // SAFETY: the executable is alive, and so is its list of devices, which is copied.
        let devices = unsafe {
            handles.executable = api.call(arguments)?.executable;
            let told = api.call(ffi::LoadedDevices { executable: loaded, ..Default::default() })?;
            client.places(ffi::list(told.devices, told.count))
        };
        let (outputs, parameters) = (handles.outputs()?, handles.parameters());
        Ok(Executable { client, handles, devices, outputs, parameters })
    }

    /// The client it runs on.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The devices it runs on, by their places in [`Client::devices`]; arguments and outputs come in this order.
    pub fn devices(&self) -> &[usize] {
        &self.devices
    }

    /// Type and dimensions of each output of a device.
    pub fn outputs(&self) -> &[Signature] {
        &self.outputs
    }

    /// Type and dimensions of each parameter of a device; nothing if the plugin does not tell, and then only the plugin
    /// itself checks arguments.
    pub fn parameters(&self) -> Option<&[Signature]> {
        self.parameters.as_deref()
    }

    /// The program as compiled, for [`Client::load`] of the same plugin on the same kind of device.
    ///
    /// # Errors
    /// If the plugin cannot.
    pub fn serialise(&self) -> Result<Vec<u8>, PjrtError> {
        let arguments =
            ffi::ExecutableSerialize { executable: self.handles.executable, ..Default::default() };
        // SAFETY: the executable is alive; the bytes are copied before their owner is deleted, once.
        unsafe {
            let told = self.handles.api.call(arguments)?;
            let bytes = ffi::list(told.bytes.cast::<u8>(), told.size).to_vec();
            if let Some(delete) = told.delete {
                delete(told.owner);
            }
            Ok(bytes)
        }
    }

    /// Starts the program on all its devices, with a list of arguments for each, and returns before it has ended.
    ///
    /// Buffers may be results of work that has not ended, and borrowed ones may be dropped at once. Donated ones are gone
    /// even if this fails.
    ///
    /// # Errors
    /// If the arguments do not fit the program or the devices, or the plugin refuses them. What fails later is told by
    /// [`Execution::done`] and by downloading.
    pub fn execute(&self, arguments: Vec<Vec<Argument<'_>>>) -> Result<Execution, PjrtError> {
        self.check(&arguments)?;
        let not_donated = borrowed(&arguments);
        let inputs: Vec<Vec<_>> = arguments
            .iter()
            .map(|list| list.iter().map(|argument| argument.buffer().raw()).collect())
            .collect();
        let mut outputs = vec![vec![ptr::null_mut(); self.outputs.len()]; self.devices.len()];
        let mut done = vec![ptr::null_mut(); self.devices.len()];
        // SAFETY: every buffer is alive and of this client, and the lists of outputs and events have room for what the
        // program returns on its devices.
        unsafe { self.start(&inputs, &not_donated, &mut outputs, &mut done) }?;
        let client = || self.client.clone();
        let own = |(list, &device): (Vec<*mut ffi::Buffer>, &usize)| {
            let pairs = list.into_iter().zip(&self.outputs);
            // SAFETY: the buffers are new, and nobody else's.
            pairs
                .map(|(raw, signature)| unsafe { Buffer::new(client(), raw, signature.clone(), device) })
                .collect()
        };
        let outputs = outputs.into_iter().zip(&self.devices).map(own).collect();
        // SAFETY: the events are new, and nobody else's.
        let done = done.into_iter().map(|raw| unsafe { Event::new(client(), raw) }).collect();
        Ok(Execution { outputs, done })
    }

    /// Calls the plugin.
    ///
    /// # Safety
    /// One list of inputs and outputs and one event for each device, all of the same lengths; inputs alive and of this
    /// client; as many outputs as the program has.
    unsafe fn start(
        &self,
        inputs: &[Vec<*mut ffi::Buffer>],
        not_donated: &[i64],
        outputs: &mut [Vec<*mut ffi::Buffer>],
        done: &mut [*mut ffi::Event],
    ) -> Result<(), PjrtError> {
        let inputs_raw: Vec<_> = inputs.iter().map(|list| list.as_ptr()).collect();
        let outputs_raw: Vec<_> = outputs.iter_mut().map(|list| list.as_mut_ptr()).collect();
        let mut options = ffi::Roomy::new(ffi::ExecuteOptions {
            struct_size: self.handles.api.size(ffi::ExecuteOptions::size_in),
            not_donated: not_donated.as_ptr(),
            not_donated_count: not_donated.len(),
            ..Default::default()
        });
        let arguments = ffi::LoadedExecute {
            executable: self.handles.loaded,
            options: &raw mut options.value,
            arguments: inputs_raw.as_ptr(),
            device_count: inputs.len(),
            argument_count: inputs.first().map_or(0, Vec::len),
            outputs: outputs_raw.as_ptr(),
            complete: done.as_mut_ptr(),
            ..Default::default()
        };
        // SAFETY: by the contract above; the lists and options live until the call ends.
        unsafe { self.handles.api.call(arguments) }.map(drop)
    }

    /// Whether there is one buffer for each parameter on each device, of the right client, device, type and dimensions.
    fn check(&self, arguments: &[Vec<Argument<'_>>]) -> Result<(), PjrtError> {
        let wrong = |why: String| Err(PjrtError::Arguments { why });
        let (found, devices) = (arguments.len(), self.devices.len());
        if found != devices {
            return wrong(format!("arguments for {found} devices, the program runs on {devices}"));
        }
        let first = arguments.first().map_or(&[][..], Vec::as_slice);
        let expected = self.parameters.as_ref().map_or(first.len(), Vec::len);
        for (list, &device) in arguments.iter().zip(&self.devices) {
            if list.len() != expected {
                return wrong(format!("{} arguments for device {device}, expected {expected}", list.len()));
            }
            for (index, (argument, on_first)) in list.iter().zip(first).enumerate() {
                if let Some(why) = self.misfit(index, argument, device) {
                    return wrong(format!("argument {index} of device {device} is {why}"));
                }
                if argument.is_donated() != on_first.is_donated() {
                    let why = "is donated on some devices and borrowed on others";
                    return wrong(format!("argument {index} of device {device} {why}"));
                }
            }
        }
        Ok(())
    }

    /// Why an argument does not fit its parameter.
    fn misfit(&self, index: usize, argument: &Argument<'_>, device: usize) -> Option<String> {
        let buffer = argument.buffer();
        if !buffer.client().is(&self.client) {
            return Some("a buffer of another client".into());
        }
        if buffer.device() != device {
            return Some(format!("on device {}", buffer.device()));
        }
        let expected = self.parameters.as_ref()?.get(index)?;
        (buffer.signature() != expected).then(|| format!("{}, expected {expected}", buffer.signature()))
    }
}

/// Parameters that must not be taken over, which PJRT wants for all devices at once.
fn borrowed(arguments: &[Vec<Argument<'_>>]) -> Vec<i64> {
    let first = arguments.first().map_or(&[][..], Vec::as_slice);
    (0..).zip(first).filter(|(_, argument)| !argument.is_donated()).map(|(index, _)| index).collect()
}

impl Argument<'_> {
    fn buffer(&self) -> &Buffer {
        match self {
            Argument::Borrowed(buffer) => buffer,
            Argument::Donated(buffer) => buffer,
        }
    }

    fn is_donated(&self) -> bool {
        matches!(self, Argument::Donated(_))
    }
}

impl<'a> From<&'a Buffer> for Argument<'a> {
    fn from(buffer: &'a Buffer) -> Self {
        Argument::Borrowed(buffer)
    }
}

impl From<Buffer> for Argument<'_> {
    fn from(buffer: Buffer) -> Self {
        Argument::Donated(buffer)
    }
}

impl fmt::Debug for Executable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Executable");
        debug.field("devices", &self.devices).field("parameters", &self.parameters);
        debug.field("outputs", &self.outputs).finish()
    }
}

/// The plugin's two views of an executable, both destroyed here.
struct Handles {
    api: Api,
    loaded: *mut ffi::LoadedExecutable,
    executable: *mut ffi::Executable,
}

// SAFETY: the PJRT API lets any thread use an executable, and several at once.
unsafe impl Send for Handles {}
// SAFETY: as above.
unsafe impl Sync for Handles {}

impl Handles {
    /// The outputs' signatures, checked for consistency since rooms for outputs are counted by them.
    fn outputs(&self) -> Result<Vec<Signature>, PjrtError> {
        let executable = self.executable;
        // SAFETY: the executable is alive, and so are the lists, whose lengths the plugin tells.
        unsafe {
            let count = self.api.call(ffi::ExecutableNumOutputs { executable, ..Default::default() })?.count;
            let types = self.api.call(ffi::ExecutableOutputTypes { executable, ..Default::default() })?;
            let dims = self.api.call(ffi::ExecutableOutputDimensions { executable, ..Default::default() })?;
            let types = ffi::list(types.types, types.count.min(count));
            let dim_counts = ffi::list(dims.dim_counts, dims.count.min(count));
            let mut rest = ffi::list(dims.dims, dim_counts.iter().sum());
            let mut outputs = Vec::with_capacity(count);
            for (&element, &dim_count) in types.iter().zip(dim_counts) {
                let (dims, after) = rest.split_at(dim_count.min(rest.len()));
                rest = after;
                outputs.push(Signature::from_raw(element, dims)?);
            }
            if outputs.len() == count {
                return Ok(outputs);
            }
            let message = format!("{count} outputs, but types or dimensions of {}", outputs.len());
            Err(PjrtError::Call {
                function: "PJRT_Executable_OutputDimensions",
                code: crate::Code::Internal,
                message,
            })
        }
    }

    /// The parameters' signatures, from the program as the compiler left it.
    fn parameters(&self) -> Option<Vec<Signature>> {
        let (code, with_config) = self.optimised()?;
        // `HloModuleProtoWithConfig.hlo_module` is field 1, `HloModuleProto.host_program_shape` 4,
        // `ProgramShapeProto.parameters` 1, `ShapeProto.element_type` 2 and `dimensions` 3.
        let module = if with_config { proto::message(&code, 1)? } else { &code };
        let shape = proto::message(module, 4)?;
        let parameter = |shape| {
            let element = ElementType::from_primitive(*proto::integers(shape, 2).last()?)?;
            let dims: Vec<i64> = proto::integers(shape, 3).iter().map(|&dim| dim as i64).collect();
            Signature::from_raw(element.raw(), &dims).ok()
        };
        proto::messages(shape, 1).map(parameter).collect()
    }

    /// The optimised program, and whether its configuration is around it; nothing if the plugin does not tell.
    fn optimised(&self) -> Option<(Vec<u8>, bool)> {
        let mut program = ffi::Roomy::new(ffi::Program {
            struct_size: self.api.size(ffi::Program::size_in),
            ..Default::default()
        });
        let mut code = Vec::<u8>::new();
        // Asked twice: for the length, then for the bytes.
        for _ in 0..2 {
            let arguments = ffi::ExecutableOptimizedProgram {
                executable: self.executable,
                program: &raw mut program.value,
                ..Default::default()
            };
            // SAFETY: the executable and the program are alive, and `code` has room for the length told before.
            unsafe { self.api.call(arguments) }.ok()?;
            if code.is_empty() {
                code.resize(program.value.code_size, 0);
                program.value.code = code.as_mut_ptr().cast::<c_char>();
            }
        }
        // SAFETY: the format is text of the plugin.
        match unsafe { ffi::text(program.value.format, program.value.format_size) }.as_str() {
            "hlo" => Some((code, false)),
            "hlo_with_config" => Some((code, true)),
            _ => None,
        }
    }
}

impl Drop for Handles {
    fn drop(&mut self) {
        // SAFETY: both are alive or null, which is allowed, and not used again; work under way holds what it needs. A
        // failure leaves nothing to do.
        unsafe {
            let executable = ffi::ExecutableDestroy { executable: self.executable, ..Default::default() };
            let _ = self.api.call(executable);
            let _ = self.api.call(ffi::LoadedDestroy { executable: self.loaded, ..Default::default() });
        }
    }
}

// The plugins that others publish are for this alone.
#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod tests;
