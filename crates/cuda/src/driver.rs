//! The calls of the driver, and nothing else: the unsafe code of this crate.
//!
//! One context and one stream. Work on a stream is done in the order in which it was given to it, and so memory may be
//! used again as soon as the last work that uses it has been issued: that is what every safe function here relies on.
#![allow(unsafe_code)]

use std::{
    cell::Cell,
    ffi::CString,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use cudarc::driver::{
    DriverError,
    result::{self, device, event, graph, module, primary_ctx, stream},
    sys::{self, CUdevice_attribute, CUevent_flags, CUfunction_attribute, CUresult, CUstreamCaptureMode},
};

use crate::{error::OpenError, lock};

/// The driver of CUDA 12.0, the first that takes the kernels' version of PTX.
const OLDEST_DRIVER: i32 = 12_000;

/// The driver of CUDA 12.8, the first with the function that tells the time between events.
const OLDEST_TIMER: i32 = 12_080;

/// The functions of the driver that are called wherever a device is opened.
const FUNCTIONS: [&str; 38] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuStreamCreate",
    "cuStreamSynchronize",
    "cuStreamDestroy_v2",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventDestroy_v2",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuModuleUnload",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGetErrorName",
    "cuGetErrorString",
];

/// A device's primary context and a stream on it.
pub(crate) struct Driver {
    /// Tells contexts apart for threads, since the driver may give out one's address again.
    number: u64,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Where work is recorded and not done, by the thread that records.
    recording: sys::CUstream,
    modules: Mutex<Vec<sys::CUmodule>>,
}

// SAFETY: the driver's calls may come from any thread, once the context is current there, which `bind` sees to.
unsafe impl Send for Driver {}
// SAFETY: as above; the driver takes calls of several threads at once.
unsafe impl Sync for Driver {}

/// What a device is.
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) capability: (i32, i32),
    pub(crate) driver_version: i32,
}

/// Blocks and threads of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) blocks: (u32, u32),
    pub(crate) threads: u32,
    /// Bytes of shared memory that each block gets beside what its kernel declares.
    pub(crate) shared: u32,
}

/// An entry of a loaded module, for as long as the driver that loaded it.
#[derive(Clone, Copy)]
pub(crate) struct Function(sys::CUfunction);

// SAFETY: a handle, which only the driver looks into.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// An event of the stream.
pub(crate) struct Event(sys::CUevent);

// SAFETY: a handle, which only the driver looks into.
unsafe impl Send for Event {}

/// Two events between which the device counts time.
pub(crate) struct Timer<'a> {
    driver: &'a Driver,
    start: Event,
    end: Event,
}

/// Recorded work.
pub(crate) struct Graph(sys::CUgraphExec);

// SAFETY: a handle, which only the driver looks into.
unsafe impl Send for Graph {}

/// Memory of the host that the device copies from and to by itself.
pub(crate) struct Pinned {
    bytes: *mut u8,
    len: usize,
}

// SAFETY: the memory is this value's alone.
unsafe impl Send for Pinned {}

static NUMBERS: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// The number of the driver whose context is current on this thread.
    static CURRENT: Cell<u64> = const { Cell::new(0) };

    /// The number of the driver whose work this thread records.
    static RECORDING: Cell<u64> = const { Cell::new(0) };
}

impl Driver {
    /// Opens a device by its number among those that are visible.
    pub(crate) fn open(ordinal: u32) -> Result<(Driver, Description), OpenError> {
        probe()?;
        let description = describe(ordinal)?;
        let failed = |call| move |error| OpenError::driver(call, error);
        let device = device::get(ordinal as i32).map_err(failed("cuDeviceGet"))?;
        // SAFETY: `device` is of cuDeviceGet.
        let context = unsafe { primary_ctx::retain(device) }.map_err(|error| match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                OpenError::OutOfMemory { device: description.name.clone(), what: "a context" }
            }
            _ => OpenError::driver("cuDevicePrimaryCtxRetain", error),
        })?;
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let none = std::ptr::null_mut();
        let mut driver =
            Driver { number, device, context, stream: none, recording: none, modules: Mutex::default() };
        driver.bind().map_err(failed("cuCtxSetCurrent"))?;
        let create = || stream::create(stream::StreamKind::NonBlocking).map_err(failed("cuStreamCreate"));
        driver.stream = create()?;
        driver.recording = create()?;
        Ok((driver, description))
    }

    /// Makes the context current on this thread.
    pub(crate) fn bind(&self) -> Result<(), DriverError> {
        if CURRENT.get() != self.number {
            // SAFETY: the context is retained until this is dropped.
            unsafe { result::ctx::set_current(self.context)? };
            CURRENT.set(self.number);
        }
        Ok(())
    }

    /// The stream that this thread's work goes to.
    pub(crate) fn stream(&self) -> sys::CUstream {
        if self.is_recording() { self.recording } else { self.stream }
    }

    /// Whether this thread's work is recorded and not done.
    pub(crate) fn is_recording(&self) -> bool {
        RECORDING.get() == self.number
    }

    /// Binds the context for a call that cannot be recorded.
    fn bind_to_do(&self) -> Result<(), DriverError> {
        match self.is_recording() {
            true => Err(DriverError(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)),
            false => self.bind(),
        }
    }

    /// Records what this thread issues in `run`, which is not done before [`Self::replay`]. Other threads' work goes on meanwhile.
    pub(crate) fn record_graph<T>(&self, run: impl FnOnce() -> T) -> Result<(T, Graph), DriverError> {
        self.bind()?;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as this, and only the thread that holds the steps records on it.
        unsafe { stream::begin_capture(self.recording, mode)? };
        RECORDING.set(self.number);
        let end = Recording(self);
        let value = run();
        let graph = end.finish()?;
        // SAFETY: the graph has just been captured; an instance of it does not need it.
        let instance = unsafe {
            let instance = graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            graph::destroy(graph).and(instance)?
        };
        Ok((value, Graph(instance)))
    }

    /// Issues recorded work.
    pub(crate) fn replay(&self, graph: &Graph) -> Result<(), DriverError> {
        self.bind_to_do()?;
        // SAFETY: the graph lives as long as its owner, who destroys it once all work is done.
        unsafe { graph::launch(graph.0, self.stream) }
    }

    /// Destroys recorded work, once all work is done.
    pub(crate) fn destroy_graph(&self, graph: &Graph) -> Result<(), DriverError> {
        self.synchronize()?;
        // SAFETY: its owner calls this once, and last.
        unsafe { graph::exec_destroy(graph.0) }
    }

    /// Bytes of the device's memory that are free.
    pub(crate) fn free_memory(&self) -> Result<usize, DriverError> {
        self.bind()?;
        result::mem_get_info().map(|(free, _)| free)
    }

    /// The address of new memory of the device, which stays until it is given to [`Self::free`].
    pub(crate) fn allocate(&self, bytes: usize) -> Result<u64, DriverError> {
        self.bind_to_do()?;
        // SAFETY: the memory is only read by kernels and copies, whose callers have written it before.
        unsafe { result::malloc_sync(bytes) }
    }

    /// Gives memory of [`Self::allocate`] back, once all work is done.
    pub(crate) fn free(&self, address: u64) -> Result<(), DriverError> {
        self.synchronize()?;
        // SAFETY: no work is left that could use it, and its owner calls this once.
        unsafe { result::memory_free(address) }
    }

    pub(crate) fn pinned(&self, len: usize) -> Result<Pinned, DriverError> {
        self.bind_to_do()?;
        // SAFETY: the memory is written before it is read, through `Pinned` or by the device.
        let bytes = unsafe { result::malloc_host(len, 0)? }.cast::<u8>();
        // SAFETY: `len` bytes were allocated at `bytes`.
        unsafe { bytes.write_bytes(0, len) };
        Ok(Pinned { bytes, len })
    }

    /// Gives pinned memory back, once all work is done.
    pub(crate) fn free_pinned(&self, memory: &mut Pinned) -> Result<(), DriverError> {
        self.synchronize()?;
        memory.len = 0;
        // SAFETY: no work is left that could use it; its length of 0 keeps everyone else from it.
        unsafe { result::free_host(memory.bytes.cast()) }
    }

    /// Issues a copy of pinned bytes to the device. They must not be changed before an event after it has happened.
    pub(crate) fn upload(&self, to: u64, from: &Pinned, at: usize, len: usize) -> Result<(), DriverError> {
        self.bind_to_do()?;
        let from = &from.as_slice()[at..at + len];
        // SAFETY: pinned memory lives until all work is done; the caller owns `len` bytes of the device at `to`.
        unsafe { result::memcpy_htod_async(to, from, self.stream) }
    }

    /// Issues a copy of the device's bytes to pinned memory, which is not to be read before an event after it.
    pub(crate) fn download(
        &self,
        from: u64,
        to: &mut Pinned,
        at: usize,
        len: usize,
    ) -> Result<(), DriverError> {
        self.bind_to_do()?;
        let to = &mut to.as_mut_slice()[at..at + len];
        // SAFETY: as in `upload`.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream) }
    }

    /// Issues a copy inside the device.
    pub(crate) fn copy(&self, to: u64, from: u64, len: usize) -> Result<(), DriverError> {
        self.bind()?;
        // SAFETY: the caller owns `len` bytes at both addresses.
        unsafe { result::memcpy_dtod_async(to, from, len, self.stream()) }
    }

    pub(crate) fn event(&self) -> Result<Event, DriverError> {
        self.bind_to_do()?;
        event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING).map(Event)
    }

    /// Marks the work issued until now.
    pub(crate) fn record(&self, event: &Event) -> Result<(), DriverError> {
        self.bind_to_do()?;
        // SAFETY: the event lives as long as its owner, and the stream as long as this.
        unsafe { event::record(event.0, self.stream) }
    }

    /// Waits for the work that an event marks.
    pub(crate) fn wait(&self, event: &Event) -> Result<(), DriverError> {
        self.bind_to_do()?;
        // SAFETY: as in `record`.
        unsafe { event::synchronize(event.0) }
    }

    pub(crate) fn destroy_event(&self, event: &Event) -> Result<(), DriverError> {
        self.bind()?;
        // SAFETY: its owner calls this once, and last.
        unsafe { event::destroy(event.0) }
    }

    /// Starts a timer of the device when it gets to what is issued next.
    pub(crate) fn timer(&self) -> Result<Timer<'_>, DriverError> {
        self.bind_to_do()?;
        let mut version = 0;
        // SAFETY: the call writes one number.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
        if version < OLDEST_TIMER {
            return Err(DriverError(CUresult::CUDA_ERROR_NOT_SUPPORTED));
        }
        let event = || event::create(CUevent_flags::CU_EVENT_DEFAULT).map(Event);
        let timer = Timer { driver: self, start: event()?, end: event()? };
        self.record(&timer.start)?;
        Ok(timer)
    }

    /// What the device says of itself.
    pub(crate) fn attribute(&self, which: CUdevice_attribute) -> Result<i32, DriverError> {
        // SAFETY: the device is of cuDeviceGet.
        unsafe { device::get_attribute(self.device, which) }
    }

    /// Waits for all work.
    pub(crate) fn synchronize(&self) -> Result<(), DriverError> {
        self.bind_to_do()?;
        // SAFETY: the stream lives as long as this.
        unsafe { stream::synchronize(self.stream) }
    }

    /// Loads a module, which stays as long as this, and finds entries of it.
    pub(crate) fn load(&self, ptx: &str, entries: &[&str]) -> Result<Vec<Function>, DriverError> {
        self.bind_to_do()?;
        let invalid = |_| DriverError(CUresult::CUDA_ERROR_INVALID_PTX);
        let text = CString::new(ptx).map_err(invalid)?;
        // SAFETY: text of PTX that ends in a zero and lives through the call.
        let module = unsafe { module::load_data(text.as_ptr().cast())? };
        lock(&self.modules).push(module);
        let find = |name: &&str| {
            let name = CString::new(*name).map_err(invalid)?;
            // SAFETY: the module has just been loaded.
            unsafe { module::get_function(module, name).map(Function) }
        };
        let functions: Vec<Function> = entries.iter().map(find).collect::<Result<_, _>>()?;
        if ptx.contains(".extern .shared") {
            functions.iter().try_for_each(|function| self.allow_shared_memory(*function))?;
        }
        Ok(functions)
    }

    /// Lets a kernel have as much shared memory as the device has for a block, which it has to be asked for.
    fn allow_shared_memory(&self, function: Function) -> Result<(), DriverError> {
        // SAFETY: the device and the function are of this value.
        unsafe {
            let most = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
            let most = device::get_attribute(self.device, most)?;
            let own = CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
            let own = result::function::get_function_attribute(function.0, own)?;
            let asked = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            result::function::set_function_attribute(function.0, asked, most - own)
        }
    }

    /// Issues a kernel. Its arguments are given as bytes, which the call copies.
    ///
    /// # Safety
    /// The arguments must be those that the kernel takes, and what it then reads and writes memory that the caller owns.
    pub(crate) unsafe fn launch(
        &self,
        function: Function,
        grid: Grid,
        arguments: &[&[u8]],
    ) -> Result<(), DriverError> {
        const MOST: usize = 24;
        self.bind()?;
        let mut pointers = [std::ptr::null_mut(); MOST];
        for (pointer, argument) in pointers[..arguments.len()].iter_mut().zip(arguments) {
            *pointer = argument.as_ptr().cast_mut().cast();
        }
        let blocks = (grid.blocks.0, grid.blocks.1, 1);
        // SAFETY: the caller's promise; the driver copies the arguments before it returns.
        unsafe {
            result::launch_kernel(
                function.0,
                blocks,
                (grid.threads, 1, 1),
                grid.shared,
                self.stream(),
                &mut pointers,
            )
        }
    }
}

impl Timer<'_> {
    /// Seconds from its start until the device has done what was issued up to now.
    pub(crate) fn stop(&self) -> Result<f64, DriverError> {
        self.driver.record(&self.end)?;
        self.driver.wait(&self.end)?;
        // SAFETY: both events have happened, and live as long as this.
        let milliseconds = unsafe { event::elapsed(self.start.0, self.end.0)? };
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        for event in [&self.start, &self.end] {
            // Nobody is left to be told of an error.
            let _ = self.driver.destroy_event(event);
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // What fails here has nobody to be told; the driver ends what is left with the process.
        let _ = self.bind();
        for stream in [self.stream, self.recording].into_iter().filter(|stream| !stream.is_null()) {
            // SAFETY: the stream is this value's, and this is its last use.
            let _ = unsafe { stream::synchronize(stream) };
            // SAFETY: as above.
            let _ = unsafe { stream::destroy(stream) };
        }
        for module in lock(&self.modules).drain(..) {
            // SAFETY: loaded by this value, whose work is done.
            let _ = unsafe { module::unload(module) };
        }
        // SAFETY: retained once, in `open`.
        let _ = unsafe { primary_ctx::release(self.device) };
    }
}

/// Ends this thread's recording, also where what is recorded panics.
struct Recording<'a>(&'a Driver);

impl<'a> Recording<'a> {
    fn finish(self) -> Result<sys::CUgraph, DriverError> {
        let driver = self.0;
        std::mem::forget(self);
        Self::end(driver)
    }

    fn end(driver: &Driver) -> Result<sys::CUgraph, DriverError> {
        RECORDING.set(0);
        // SAFETY: a capture was begun on this stream by this thread.
        unsafe { stream::end_capture(driver.recording) }
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if let Ok(graph) = Self::end(self.0) {
            // SAFETY: the graph was just captured. Nobody is left to be told of an error.
            let _ = unsafe { graph::destroy(graph) };
        }
    }
}

impl Pinned {
    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes at `bytes` are this value's, and were written when it was made.
        unsafe { std::slice::from_raw_parts(self.bytes, self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.bytes, self.len) }
    }
}

/// That the library is there and has what is called, since cudarc panics where it has not.
fn probe() -> Result<(), OpenError> {
    let names = ["cuda", "nvcuda"].into_iter().flat_map(cudarc::get_lib_name_candidates).collect::<Vec<_>>();
    // SAFETY: the driver's initialisers need nothing from this process.
    let open = |name: &String| unsafe { libloading::Library::new(name) }.ok().map(|it| (name.clone(), it));
    let Some((library, found)) = names.iter().find_map(open) else {
        let unversioned = names.first().cloned().unwrap_or_default();
        return Err(OpenError::NoDriver { looked_for: format!("{unversioned}, {unversioned}.1") });
    };
    for function in FUNCTIONS {
        // SAFETY: the symbol is looked for and not used.
        if unsafe { found.get::<unsafe extern "C" fn()>(function.as_bytes()) }.is_err() {
            return Err(OpenError::BrokenDriver { library, function });
        }
    }
    Ok(())
}

/// What a device is, and that it and the driver will do.
fn describe(ordinal: u32) -> Result<Description, OpenError> {
    let failed = |call| move |error| OpenError::driver(call, error);
    let none =
        |count| OpenError::NoDevice { ordinal, count, visible: std::env::var("CUDA_VISIBLE_DEVICES").ok() };
    let mut driver_version = 0;
    // SAFETY: the call writes one number.
    let status = unsafe { sys::cuDriverGetVersion(&mut driver_version) };
    status.result().map_err(failed("cuDriverGetVersion"))?;
    if driver_version < OLDEST_DRIVER {
        return Err(OpenError::OldDriver { found: version(driver_version), needed: version(OLDEST_DRIVER) });
    }
    result::init().map_err(|error| match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => none(0),
        _ => OpenError::driver("cuInit", error),
    })?;
    let count = device::get_count().map_err(failed("cuDeviceGetCount"))? as u32;
    if ordinal >= count {
        return Err(none(count));
    }
    let device = device::get(ordinal as i32).map_err(failed("cuDeviceGet"))?;
    let name = device::get_name(device).map_err(failed("cuDeviceGetName"))?;
    // SAFETY: `device` is of cuDeviceGet.
    let attribute =
        |which| unsafe { device::get_attribute(device, which) }.map_err(failed("cuDeviceGetAttribute"));
    let capability = (
        attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    if capability < (8, 0) {
        let found = format!("{}.{}", capability.0, capability.1);
        return Err(OpenError::Architecture { device: name, found });
    }
    Ok(Description { name, capability, driver_version })
}

/// A version as people write it: 12040 is 12.4.
pub(crate) fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}
