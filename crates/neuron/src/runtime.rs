use std::{
    collections::HashMap,
    env,
    ffi::{CStr, CString, c_char, c_int, c_void},
    fmt, fs,
    path::{Path, PathBuf},
    ptr,
    ptr::NonNull,
    slice,
    sync::{Mutex, PoisonError},
};

use libloading::Library;
use samebits_tensor::Rank;

use crate::{
    NeuronError,
    abi::{self, MemoryStats, Status},
};

/// The Neuron runtime, loaded and initialised: `libnrt.so.1`.
///
/// It is initialised once, and closed when the process ends. Which cores there are is chosen by `NEURON_RT_VISIBLE_CORES` and
/// `NEURON_RT_NUM_CORES`, which the runtime reads itself.
#[derive(Clone, Copy)]
pub struct Runtime {
    loaded: &'static Loaded,
}

struct Loaded {
    path: PathBuf,
    functions: Functions,
    version: [u64; 3],
    /// Keeps the code in memory.
    _library: Library,
}

/// Where the runtime is looked for: by the loader, and where AWS installs it.
const PLACES: [&str; 2] = ["libnrt.so.1", "/opt/aws/neuron/lib/libnrt.so.1"];

static OPENED: Mutex<Option<HashMap<PathBuf, Runtime>>> = Mutex::new(None);

impl Runtime {
    /// Loads the runtime where AWS installs it.
    ///
    /// # Errors
    /// As [`Runtime::open`].
    pub fn installed() -> Result<Self, NeuronError> {
        match Runtime::open(PLACES[0]) {
            Err(NeuronError::Open { .. }) => Runtime::open(PLACES[1]),
            opened => opened,
        }
    }

    /// Loads the runtime at `path`, or takes it up again if this process has loaded it before.
    ///
    /// Loading runs the library's own start-up code with this process's rights: open only what you trust.
    ///
    /// # Errors
    /// If it cannot be loaded, lacks a function, is of another generation, or fails to initialise.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NeuronError> {
        let path = path.as_ref();
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.into());
        // Held while a library loads, so that two threads cannot initialise it twice.
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = opened.get_or_insert_with(HashMap::new);
        if let Some(&runtime) = opened.get(&path) {
            return Ok(runtime);
        }
        let runtime = Runtime { loaded: Box::leak(Box::new(Loaded::open(path.clone())?)) };
        opened.insert(path, runtime);
        Ok(runtime)
    }

    /// The library's path.
    pub fn path(&self) -> &'static Path {
        &self.loaded.path
    }

    /// Major, minor and patch version.
    pub fn version(&self) -> [u64; 3] {
        self.loaded.version
    }

    /// Cores that this process sees; a logical core of two physical ones is one.
    ///
    /// # Errors
    /// If the runtime cannot tell.
    pub fn core_count(&self) -> Result<u32, NeuronError> {
        let mut count = 0;
        // SAFETY: the number lives until the call ends.
        let raw = unsafe { (self.functions().nrt_get_visible_vnc_count)(&raw mut count) };
        self.check("nrt_get_visible_vnc_count", raw).map(|()| count)
    }

    /// How full a core's memory is.
    ///
    /// # Errors
    /// If there is no such core.
    pub fn memory(&self, core: u32) -> Result<MemoryStats, NeuronError> {
        let (mut stats, mut told) = (MemoryStats::default(), 0);
        let function = self.functions().nrt_get_vnc_memory_stats;
        // SAFETY: both live until the call ends, and the structure's size is told.
        let raw = unsafe { function(core, &raw mut stats, size_of::<MemoryStats>(), &raw mut told) };
        self.check("nrt_get_vnc_memory_stats", raw).map(|()| stats)
    }

    fn functions(&self) -> &'static Functions {
        &self.loaded.functions
    }

    fn check(&self, function: &'static str, raw: i32) -> Result<(), NeuronError> {
        self.functions().check(function, raw)
    }
}

impl Loaded {
    fn open(path: PathBuf) -> Result<Self, NeuronError> {
        let rounding = env::var_os("NEURON_RT_STOCHASTIC_ROUNDING_EN").unwrap_or_default();
        if !(rounding.is_empty() || rounding == "0") {
            return Err(NeuronError::Rounding { value: rounding.to_string_lossy().into() });
        }
        // SAFETY: the caller of `Runtime::open` trusts the library's start-up code; it is never unloaded.
        let library = unsafe { Library::new(&path) };
        let library = library.map_err(|why| NeuronError::Open { path: path.clone(), why: explain(&why) })?;
        // SAFETY: a library that exports these names does so with these types, by AWS's headers.
        let functions = unsafe { Functions::find(&library) };
        let functions =
            functions.map_err(|function| NeuronError::Missing { path: path.clone(), function })?;
        let version = functions.version()?;
        if version[0] != 2 {
            let [major, minor, patch] = version;
            return Err(NeuronError::Version { path, found: format!("{major}.{minor}.{patch}") });
        }
        // SAFETY: the texts are constant; this is called once for each library, by the lock in `Runtime::open`.
        let raw = unsafe { (functions.nrt_init)(abi::FRAMEWORK_NONE, c"".as_ptr(), c"".as_ptr()) };
        functions.check("nrt_init", raw)?;
        Ok(Loaded { path, functions, version, _library: library })
    }
}

/// The loader's words; libloading's own message hides them.
fn explain(error: &libloading::Error) -> String {
    use std::error::Error;
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// A loaded program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModelHandle(NonNull<abi::Model>);

/// Memory on a core.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorHandle(NonNull<abi::Tensor>);

// SAFETY: the runtime lets any thread use a program; it is followed by the runtime only.
unsafe impl Send for ModelHandle {}
// SAFETY: as above.
unsafe impl Sync for ModelHandle {}
// SAFETY: as above, for memory.
unsafe impl Send for TensorHandle {}
// SAFETY: as above.
unsafe impl Sync for TensorHandle {}

/// What a loaded program says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorInfo {
    pub(crate) name: String,
    pub(crate) is_output: bool,
    pub(crate) bytes: usize,
}

impl Runtime {
    pub(crate) fn load(&self, neff: &[u8], core: u32) -> Result<ModelHandle, NeuronError> {
        let mut model = ptr::null_mut();
        let function = self.functions().nrt_load;
        // SAFETY: the bytes live until the call ends; -1 is for all cores that the program asks for.
        let raw = unsafe { function(neff.as_ptr().cast(), neff.len(), core as i32, -1, &raw mut model) };
        self.check("nrt_load", raw)?;
        Ok(ModelHandle(self.made("nrt_load", model)?))
    }

    /// Loads the program of one of several ranks.
    pub(crate) fn load_rank(&self, neff: &[u8], core: u32, rank: Rank) -> Result<ModelHandle, NeuronError> {
        let mut model = ptr::null_mut();
        let function = self.functions().nrt_load_collectives;
        let (index, count) = (rank.index as u32, rank.count as u32);
        let (bytes, size) = (neff.as_ptr().cast(), neff.len());
        // SAFETY: as above.
        let raw = unsafe { function(bytes, size, core as i32, -1, index, count, &raw mut model) };
        self.check("nrt_load_collectives", raw)?;
        Ok(ModelHandle(self.made("nrt_load_collectives", model)?))
    }

    /// # Safety
    /// The program must be loaded, and not be used again.
    pub(crate) unsafe fn unload(&self, model: ModelHandle) -> Result<(), NeuronError> {
        // SAFETY: by the contract above.
        let raw = unsafe { (self.functions().nrt_unload)(model.0.as_ptr()) };
        self.check("nrt_unload", raw)
    }

    /// # Safety
    /// The program must be loaded.
    pub(crate) unsafe fn tensor_infos(&self, model: ModelHandle) -> Result<Vec<TensorInfo>, NeuronError> {
        let mut infos = ptr::null_mut();
        let function = self.functions().nrt_get_model_tensor_info;
        // SAFETY: the program is loaded by the contract above.
        let raw = unsafe { function(model.0.as_ptr(), &raw mut infos) };
        self.check("nrt_get_model_tensor_info", raw)?;
        let infos = self.made("nrt_get_model_tensor_info", infos)?.as_ptr();
        // SAFETY: the array has as many parts as it tells, which are copied before it is freed, once. The first part is
        // reached from the array's own address, so that the rest may be too.
        let (copied, raw) = unsafe {
            let first = infos.cast::<u8>().add(std::mem::offset_of!(abi::TensorInfos, first)).cast();
            let parts: &[abi::TensorInfo] = slice::from_raw_parts(first, (*infos).count as usize);
            let copied: Vec<_> = parts.iter().map(info).collect();
            (copied, (self.functions().nrt_free_model_tensor_info)(infos))
        };
        self.check("nrt_free_model_tensor_info", raw).map(|()| copied)
    }

    pub(crate) fn allocate(&self, core: u32, bytes: usize) -> Result<TensorHandle, NeuronError> {
        let mut tensor = ptr::null_mut();
        let function = self.functions().nrt_tensor_allocate;
        // SAFETY: the name is constant.
        let raw = unsafe {
            function(abi::PLACEMENT_DEVICE, core as c_int, bytes, c"samebits".as_ptr(), &raw mut tensor)
        };
        self.check("nrt_tensor_allocate", raw)?;
        Ok(TensorHandle(self.made("nrt_tensor_allocate", tensor)?))
    }

    /// # Safety
    /// The tensor must be there, and not be used again.
    pub(crate) unsafe fn free(&self, tensor: TensorHandle) {
        let mut tensor = tensor.0.as_ptr();
        // SAFETY: by the contract above.
        unsafe { (self.functions().nrt_tensor_free)(&raw mut tensor) };
    }

    /// # Safety
    /// The tensor must be there.
    pub(crate) unsafe fn write(&self, tensor: TensorHandle, bytes: &[u8]) -> Result<(), NeuronError> {
        let function = self.functions().nrt_tensor_write;
        // SAFETY: the bytes live until the call ends, which has copied them then.
        let raw = unsafe { function(tensor.0.as_ptr(), bytes.as_ptr().cast(), 0, bytes.len()) };
        self.check("nrt_tensor_write", raw)
    }

    /// # Safety
    /// The tensor must be there.
    pub(crate) unsafe fn read(&self, tensor: TensorHandle, bytes: &mut [u8]) -> Result<(), NeuronError> {
        let function = self.functions().nrt_tensor_read;
        // SAFETY: the bytes live until the call ends, and are nobody else's.
        let raw = unsafe { function(tensor.0.as_ptr(), bytes.as_mut_ptr().cast(), 0, bytes.len()) };
        self.check("nrt_tensor_read", raw)
    }

    /// Runs a program to its end.
    ///
    /// # Safety
    /// The program must be loaded, and all tensors there.
    pub(crate) unsafe fn execute(
        &self,
        model: ModelHandle,
        inputs: &TensorSet,
        outputs: &TensorSet,
    ) -> Result<(), NeuronError> {
        let function = self.functions().nrt_execute;
        // SAFETY: by the contract above; the sets are alive.
        let raw = unsafe { function(model.0.as_ptr(), inputs.raw.as_ptr(), outputs.raw.as_ptr()) };
        self.check("nrt_execute", raw)
    }

    /// What a successful call has made; a runtime that made nothing is said to have failed.
    fn made<T>(&self, function: &'static str, raw: *mut T) -> Result<NonNull<T>, NeuronError> {
        let detail = "nothing was made".to_owned();
        NonNull::new(raw).ok_or(NeuronError::Call { function, status: Status::Failure, detail })
    }
}

fn info(raw: &abi::TensorInfo) -> TensorInfo {
    TensorInfo { name: abi::text(&raw.name), is_output: raw.usage == abi::USAGE_OUTPUT, bytes: raw.size }
}

/// Tensors by name, for one execution.
pub(crate) struct TensorSet {
    runtime: Runtime,
    raw: NonNull<abi::TensorSet>,
}

impl TensorSet {
    /// # Safety
    /// The tensors must be there as long as the set.
    pub(crate) unsafe fn new<'a>(
        runtime: Runtime,
        tensors: impl Iterator<Item = (&'a CString, TensorHandle)>,
    ) -> Result<Self, NeuronError> {
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer lives until the call ends.
        let status = unsafe { (runtime.functions().nrt_allocate_tensor_set)(&raw mut raw) };
        runtime.check("nrt_allocate_tensor_set", status)?;
        let set = TensorSet { runtime, raw: runtime.made("nrt_allocate_tensor_set", raw)? };
        for (name, tensor) in tensors {
            let function = runtime.functions().nrt_add_tensor_to_tensor_set;
            // SAFETY: the set is alive, the name is copied, and the tensor is there by the contract above.
            let status = unsafe { function(set.raw.as_ptr(), name.as_ptr(), tensor.0.as_ptr()) };
            runtime.check("nrt_add_tensor_to_tensor_set", status)?;
        }
        Ok(set)
    }
}

impl Drop for TensorSet {
    fn drop(&mut self) {
        let mut raw = self.raw.as_ptr();
        // SAFETY: the set is alive and not used again.
        unsafe { (self.runtime.functions().nrt_destroy_tensor_set)(&raw mut raw) };
    }
}

/// Declares the table of functions, and how each is found by its name.
macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        #[derive(Clone, Copy)]
        struct Functions {
            $($name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            /// Not in every runtime.
            nrt_get_status_as_str: Option<unsafe extern "C" fn(i32) -> *const c_char>,
        }

        impl Functions {
            /// The functions of a library, or the name of the first that is missing.
            ///
            /// # Safety
            /// The library must be libnrt, and stay loaded.
            unsafe fn find(library: &Library) -> Result<Self, &'static str> {
                // SAFETY: the names and types are those of AWS's headers.
                unsafe {
                    Ok(Functions {
                        $($name: *library
                            .get(concat!(stringify!($name), "\0").as_bytes())
                            .map_err(|_| stringify!($name))?,)*
                        nrt_get_status_as_str: library.get(b"nrt_get_status_as_str\0").ok().map(|it| *it),
                    })
                }
            }
        }
    };
}

functions! {
    nrt_init: fn(i32, *const c_char, *const c_char) -> i32;
    nrt_get_version: fn(*mut abi::Version, usize) -> i32;
    nrt_get_visible_vnc_count: fn(*mut u32) -> i32;
    nrt_get_vnc_memory_stats: fn(u32, *mut MemoryStats, usize, *mut usize) -> i32;
    nrt_load: fn(*const c_void, usize, i32, i32, *mut *mut abi::Model) -> i32;
    nrt_load_collectives: fn(*const c_void, usize, i32, i32, u32, u32, *mut *mut abi::Model) -> i32;
    nrt_unload: fn(*mut abi::Model) -> i32;
    nrt_execute: fn(*mut abi::Model, *const abi::TensorSet, *mut abi::TensorSet) -> i32;
    nrt_get_model_tensor_info: fn(*mut abi::Model, *mut *mut abi::TensorInfos) -> i32;
    nrt_free_model_tensor_info: fn(*mut abi::TensorInfos) -> i32;
    nrt_allocate_tensor_set: fn(*mut *mut abi::TensorSet) -> i32;
    nrt_destroy_tensor_set: fn(*mut *mut abi::TensorSet);
    nrt_add_tensor_to_tensor_set: fn(*mut abi::TensorSet, *const c_char, *mut abi::Tensor) -> i32;
    nrt_tensor_allocate: fn(i32, c_int, usize, *const c_char, *mut *mut abi::Tensor) -> i32;
    nrt_tensor_free: fn(*mut *mut abi::Tensor);
    nrt_tensor_read: fn(*const abi::Tensor, *mut c_void, usize, usize) -> i32;
    nrt_tensor_write: fn(*mut abi::Tensor, *const c_void, usize, usize) -> i32;
}

impl Functions {
    fn version(&self) -> Result<[u64; 3], NeuronError> {
        let mut version = std::mem::MaybeUninit::<abi::Version>::zeroed();
        let size = size_of::<abi::Version>();
        // SAFETY: the structure lives until the call ends, and its size is told.
        let raw = unsafe { (self.nrt_get_version)(version.as_mut_ptr(), size) };
        self.check("nrt_get_version", raw)?;
        // SAFETY: every bit pattern is a version, and all bytes were zeroed before.
        let version = unsafe { version.assume_init() };
        Ok([version.major, version.minor, version.patch])
    }

    fn check(&self, function: &'static str, raw: i32) -> Result<(), NeuronError> {
        let Some(status) = Status::of(raw) else { return Ok(()) };
        let detail = self.words(raw).unwrap_or_else(|| format!("status {raw}"));
        Err(NeuronError::Call { function, status, detail })
    }

    /// The runtime's own word for a status.
    fn words(&self, raw: i32) -> Option<String> {
        // SAFETY: the function takes any number, and returns null or a constant text.
        unsafe {
            let text = (self.nrt_get_status_as_str?)(raw);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("path", &self.path()).field("version", &self.version()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_none_is_named() {
        let error = Runtime::open("/nowhere/libnrt.so.1").unwrap_err();
        assert!(matches!(error, NeuronError::Open { .. }), "{error}");
        assert!(error.to_string().contains("/nowhere/libnrt.so.1"), "{error}");
    }

    #[test]
    fn another_library_lacks_functions() {
        let error = Runtime::open("libm.so.6").unwrap_err();
        assert!(matches!(error, NeuronError::Missing { function: "nrt_init", .. }), "{error}");
    }
}
