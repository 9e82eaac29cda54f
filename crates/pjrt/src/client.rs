use std::{fmt, ptr, sync::Arc};

use crate::{
    Buffer, CompileOptions, ElementType, Executable, Format, PjrtError, Plugin, Signature, Value,
    event::Event,
    ffi::{self, Api},
    plugin::RawValues,
};

/// The devices of a plugin that this process may use. Clones are the same client; it ends when the last of them and of
/// its buffers and executables is dropped.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    plugin: Plugin,
    raw: *mut ffi::Client,
    platform: String,
    platform_version: String,
    devices: Vec<Device>,
}

// SAFETY: the PJRT API lets any thread use a client, and several at once; nothing else is changed after creation.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// A device of a client.
#[derive(Clone, Debug)]
pub struct Device {
    raw: *mut ffi::Device,
    /// The plugin's number of it, which need not count from 0.
    pub id: i32,
    /// What it is, in the vendor's words.
    pub kind: String,
    /// The same for people, with its number.
    pub description: String,
}

// SAFETY: a device belongs to its client, which any thread may use; the pointer is followed through the client only.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// Bytes of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryStats {
    /// In use now.
    pub in_use: u64,
    /// The most that was in use, if told.
    pub peak_in_use: Option<u64>,
    /// The most that may be in use, if told.
    pub limit: Option<u64>,
}

impl Client {
    pub(crate) fn create(plugin: Plugin, options: &[(&str, Value)]) -> Result<Self, PjrtError> {
        let api = plugin.api();
        let values = RawValues::new(options);
        let arguments = ffi::ClientCreate {
            options: values.as_slice().as_ptr(),
            option_count: values.as_slice().len(),
            ..Default::default()
        };
        // SAFETY: the options live until the call ends; no callback is given.
        let raw = unsafe { api.call(arguments) }?.client;
        // From here on `inner` destroys the client if anything fails.
        let mut inner = Inner {
            plugin,
            raw,
            platform: String::new(),
            platform_version: String::new(),
            devices: Vec::new(),
        };
        inner.describe(api)?;
        Ok(Client { inner: Arc::new(inner) })
    }

    /// The plugin it was made of.
    pub fn plugin(&self) -> &Plugin {
        &self.inner.plugin
    }

    /// The platform, such as `cpu` or `tpu`.
    pub fn platform(&self) -> &str {
        &self.inner.platform
    }

    /// The platform's version, in the plugin's words.
    pub fn platform_version(&self) -> &str {
        &self.inner.platform_version
    }

    /// The devices; where a device is asked for, it is by its place here.
    pub fn devices(&self) -> &[Device] {
        &self.inner.devices
    }

    /// How full a device's memory is; nothing if the plugin does not tell.
    ///
    /// # Errors
    /// If there is no such device, or the plugin fails otherwise than by not telling.
    pub fn memory_stats(&self, device: usize) -> Result<Option<MemoryStats>, PjrtError> {
        let arguments = ffi::DeviceMemoryStats { device: self.device(device)?.raw, ..Default::default() };
        // SAFETY: the device is this client's.
        let told = match unsafe { self.api().call(arguments) } {
            Err(PjrtError::Missing { .. } | PjrtError::Call { code: crate::Code::Unimplemented, .. }) => {
                return Ok(None);
            }
            told => told?,
        };
        let count = |value: i64| u64::try_from(value).unwrap_or(0);
        let optional = |stat: ffi::Stat| (stat.is_set[0] != 0).then(|| count(stat.value));
        Ok(Some(MemoryStats {
            in_use: count(told.in_use),
            peak_in_use: optional(told.peak_in_use),
            limit: optional(told.limit),
        }))
    }

    /// Compiles a program for devices of this client, and loads it there.
    ///
    /// # Errors
    /// If the options contradict each other, or the plugin refuses the program.
    pub fn compile(
        &self,
        program: &[u8],
        format: Format,
        options: &CompileOptions,
    ) -> Result<Executable, PjrtError> {
        let options = self.encode(options)?;
        let name = format.name();
        let program = ffi::Roomy::new(ffi::Program {
            struct_size: self.api().size(ffi::Program::size_in),
            code: program.as_ptr().cast_mut().cast(),
            code_size: program.len(),
            format: name.as_ptr().cast(),
            format_size: name.len(),
            ..Default::default()
        });
        let arguments = ffi::ClientCompile {
            client: self.raw(),
            program: &raw const program.value,
            options: options.as_ptr().cast(),
            options_size: options.len(),
            ..Default::default()
        };
        // SAFETY: the program, its format and the options live until the call ends, and the plugin only reads them.
        let loaded = unsafe { self.api().call(arguments) }?.executable;
        // SAFETY: the executable is new, and nobody else's.
        unsafe { Executable::new(self.clone(), loaded) }
    }

    /// Loads what [`Executable::serialise`] returned, for the devices it was compiled for.
    ///
    /// The bytes are machine code: load only what you trust, and what the same plugin on the same kind of machine wrote.
    ///
    /// # Errors
    /// If the plugin refuses the bytes.
    pub fn load(&self, serialised: &[u8]) -> Result<Executable, PjrtError> {
        let arguments = ffi::ExecutableDeserialize {
            client: self.raw(),
            bytes: serialised.as_ptr().cast(),
            size: serialised.len(),
            ..Default::default()
        };
        // SAFETY: the bytes live until the call ends.
        let loaded = unsafe { self.api().call(arguments) }?.loaded;
        // SAFETY: the executable is new, and nobody else's.
        unsafe { Executable::new(self.clone(), loaded) }
    }

    /// Copies a row-major tensor to a device. The bytes are taken when it returns; the device may still be at work.
    ///
    /// # Errors
    /// If there is no such device, the bytes do not fill the dimensions, or the plugin fails.
    pub fn upload(
        &self,
        device: usize,
        bytes: &[u8],
        element: ElementType,
        dims: &[usize],
    ) -> Result<Buffer, PjrtError> {
        let (buffer, done) = self.start_upload(device, bytes, element, dims, TAKEN_DURING_CALL)?;
        drop(done);
        Ok(buffer)
    }

    /// As [`upload`](Self::upload), without waiting for the bytes to be taken: their owner is kept until then.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    pub fn upload_owned<T>(
        &self,
        device: usize,
        owner: T,
        element: ElementType,
        dims: &[usize],
    ) -> Result<Buffer, PjrtError>
    where
        T: AsRef<[u8]> + Send + 'static,
    {
        // Boxed first, so that bytes within the owner itself do not move after their address is taken.
        let owner = Box::new(owner);
        let bytes: &[u8] = (*owner).as_ref();
        let (buffer, done) = self.start_upload(device, bytes, element, dims, TAKEN_BEFORE_DONE)?;
        done.on_ready(move || drop(owner));
        Ok(buffer)
    }

    fn start_upload(
        &self,
        device: usize,
        bytes: &[u8],
        element: ElementType,
        dims: &[usize],
        semantics: i32,
    ) -> Result<(Buffer, Event), PjrtError> {
        let signature = Signature::new(element, dims)?;
        signature.check_bytes("upload", bytes.len())?;
        let raw_dims = signature.raw_dims();
        let arguments = ffi::BufferFromHost {
            client: self.raw(),
            data: bytes.as_ptr().cast(),
            element_type: [element.raw(), 0],
            dims: raw_dims.as_ptr(),
            dim_count: raw_dims.len(),
            semantics: [semantics, 0],
            device: self.device(device)?.raw,
            ..Default::default()
        };
        // SAFETY: the device is this client's; the dimensions live until the call ends, and the bytes as long as the
        // semantics ask, which the two callers see to.
        let made = unsafe { self.api().call(arguments) }?;
        // SAFETY: both are new, and nobody else's.
        unsafe {
            Ok((
                Buffer::new(self.clone(), made.buffer, signature, device),
                Event::new(self.clone(), made.done),
            ))
        }
    }

    /// The options as the plugin takes them.
    pub(crate) fn encode(&self, options: &CompileOptions) -> Result<Vec<u8>, PjrtError> {
        let ids: Vec<i32> = self.devices().iter().map(|device| device.id).collect();
        options.encode(&ids)
    }

    pub(crate) fn api(&self) -> Api {
        self.inner.plugin.api()
    }

    pub(crate) fn raw(&self) -> *mut ffi::Client {
        self.inner.raw
    }

    pub(crate) fn is(&self, other: &Client) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Places of the plugin's devices in [`devices`](Self::devices).
    pub(crate) fn places(&self, raw: &[*mut ffi::Device]) -> Vec<usize> {
        let place = |raw| self.devices().iter().position(|device| ptr::eq(device.raw, raw));
        raw.iter().filter_map(|&raw| place(raw)).collect()
    }

    fn device(&self, index: usize) -> Result<&Device, PjrtError> {
        let count = self.devices().len();
        self.devices().get(index).ok_or(PjrtError::Device { index, count })
    }
}

/// `PJRT_HostBufferSemantics_kImmutableOnlyDuringCall`.
const TAKEN_DURING_CALL: i32 = 0;
/// `PJRT_HostBufferSemantics_kImmutableUntilTransferCompletes`.
const TAKEN_BEFORE_DONE: i32 = 1;

impl Inner {
    /// Fills in what does not change.
    fn describe(&mut self, api: Api) -> Result<(), PjrtError> {
        let client = self.raw;
        // SAFETY: the client is alive, and so is the text, which is copied.
        unsafe {
            let name = api.call(ffi::ClientPlatformName { client, ..Default::default() })?;
            self.platform = ffi::text(name.name, name.size);
            let version = api.call(ffi::ClientPlatformVersion { client, ..Default::default() })?;
            self.platform_version = ffi::text(version.version, version.size);
            let devices = api.call(ffi::ClientDevices { client, ..Default::default() })?;
            let devices = ffi::list(devices.devices, devices.count);
            self.devices = devices.iter().map(|&raw| Device::read(api, raw)).collect::<Result<_, _>>()?;
        }
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let arguments = ffi::ClientDestroy { client: self.raw, ..Default::default() };
        // SAFETY: whatever belongs to the client holds the `Arc` around it, so nothing is left; a failure to shut down
        // leaves nothing to do.
        let _ = unsafe { self.plugin.api().call(arguments) };
    }
}

impl Device {
    /// Reads what a device says about itself.
    ///
    /// # Safety
    /// It must be a device of a client that is alive.
    unsafe fn read(api: Api, raw: *mut ffi::Device) -> Result<Self, PjrtError> {
        // SAFETY: the device is alive, and its description and texts live as long.
        unsafe {
            let description =
                api.call(ffi::DeviceGetDescription { device: raw, ..Default::default() })?.description;
            let id = api.call(ffi::DeviceId { description, ..Default::default() })?.id[0];
            let kind = api.call(ffi::DeviceKind { description, ..Default::default() })?;
            let string = api.call(ffi::DeviceToString { description, ..Default::default() })?;
            Ok(Device {
                raw,
                id,
                kind: ffi::text(kind.kind, kind.size),
                description: ffi::text(string.string, string.size),
            })
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Client");
        debug.field("plugin", &self.inner.plugin.path()).field("platform", &self.inner.platform);
        debug.field("devices", &self.inner.devices).finish()
    }
}
