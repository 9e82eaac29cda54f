//! Products of matrices by NVIDIA's cuBLASLt, which is opened where it is asked for: the other unsafe code of this crate.
//!
//! Calls and numbers are those of <https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api>.
#![allow(unsafe_code)]

use std::{
    collections::HashMap,
    ffi::{CStr, c_char, c_int, c_void},
    path::{Path, PathBuf},
    ptr::null_mut,
    sync::{Arc, Mutex},
};

use cudarc::driver::{DriverError, sys};
use libloading::Library;

use crate::{driver::Driver, error::OpenError, lock};

/// Bytes that cuBLASLt may work in: what NVIDIA recommends for Hopper.
pub(crate) const WORKSPACE_BYTES: usize = 32 << 20;

const COMPUTE_32F: c_int = 68;
const COMPUTE_32F_FAST_TF32: c_int = 77;
const R_32F: c_int = 0;
const R_16BF: c_int = 14;
const DESC_TRANSA: c_int = 3;
const OP_T: c_int = 1;
const PREF_MAX_WORKSPACE_BYTES: c_int = 1;

/// Types of the operands, whose products are summed in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operands {
    /// bf16.
    Bf16,
    /// f32, of which the matrix units take 11 bits.
    Tf32,
}

/// Extents of a product: `out [tokens, rows]` = `x [tokens, columns]` times the transpose of `weight [rows, columns]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Extents {
    pub(crate) operands: Operands,
    pub(crate) rows: usize,
    pub(crate) tokens: usize,
    pub(crate) columns: usize,
    /// From a token's first row in `out` to the next token's.
    pub(crate) pitch: usize,
}

/// A library, and a handle of it for one device.
pub(crate) struct Blas {
    driver: Arc<Driver>,
    functions: Functions,
    handle: Handle,
    version: usize,
    /// As long as all products need it, and the caller's scratch memory behind it.
    workspace: u64,
    scratch_bytes: usize,
    plans: Mutex<HashMap<Extents, Plan>>,
    _library: Library,
}

/// An object of the library.
type Handle = *mut c_void;

/// How a product is computed: its description, layouts of weight, x and out, and the algorithm.
#[derive(Clone, Copy)]
struct Plan {
    description: Handle,
    layouts: [Handle; 3],
    algorithm: [u64; 8],
}

// SAFETY: handles are the library's, which takes calls of any thread; what is made of them is behind a mutex.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

/// Why a product was not issued.
pub(crate) enum BlasError {
    Driver(DriverError),
    /// What was called, and the library's words.
    Library(&'static str, String),
}

impl From<DriverError> for BlasError {
    fn from(error: DriverError) -> Self {
        BlasError::Driver(error)
    }
}

impl Blas {
    /// Opens a library, or the first that is found, for a device, with so many bytes of scratch memory for the caller.
    ///
    /// # Errors
    /// If there is none, it lacks a function, or refuses.
    pub(crate) fn open(
        driver: Arc<Driver>,
        path: Option<&Path>,
        scratch_bytes: usize,
    ) -> Result<Self, OpenError> {
        let (found, library) = open_library(path)?;
        let functions = Functions::of(&library)
            .map_err(|function| OpenError::BrokenBlas { library: found.clone(), function })?;
        driver.bind().map_err(|error| OpenError::driver("cuCtxSetCurrent", error))?;
        let mut handle = null_mut();
        // SAFETY: the call writes a handle; the context of the device is current.
        let status = unsafe { (functions.create)(&mut handle) };
        functions.check("cublasLtCreate", status).map_err(|error| error.of_opening(&found))?;
        // SAFETY: the call takes nothing.
        let version = unsafe { (functions.version)() };
        let allocated = driver.allocate(WORKSPACE_BYTES + scratch_bytes);
        let workspace = allocated.map_err(|error| OpenError::driver("cuMemAlloc", error))?;
        Ok(Blas {
            driver,
            functions,
            handle,
            version,
            workspace,
            scratch_bytes,
            plans: Mutex::default(),
            _library: library,
        })
    }

    /// Major, minor and patch version in two digits each.
    pub(crate) fn version(&self) -> usize {
        self.version
    }

    /// The address of the scratch memory.
    pub(crate) fn scratch(&self) -> u64 {
        self.workspace + WORKSPACE_BYTES as u64
    }

    /// How long that is.
    pub(crate) fn scratch_bytes(&self) -> usize {
        self.scratch_bytes
    }

    /// Issues a product of matrices at these addresses, multiples of 256.
    ///
    /// # Errors
    /// If the library or the driver refuses.
    ///
    /// # Safety
    /// The caller owns the matrices until work that is issued after this is done.
    pub(crate) unsafe fn multiply(
        &self,
        of: Extents,
        weight: u64,
        x: u64,
        out: u64,
    ) -> Result<(), BlasError> {
        self.driver.bind()?;
        let Plan { description, layouts: [weights, xs, outs], algorithm } = self.plan(of)?;
        let (one, zero) = (1.0f32, 0.0f32);
        // SAFETY: the library reads the numbers and the algorithm before it returns; the caller owns the matrices, and the
        // workspace is used by this one stream.
        let status = unsafe {
            (self.functions.multiply)(
                self.handle,
                description,
                (&raw const one).cast(),
                weight as *const c_void,
                weights,
                x as *const c_void,
                xs,
                (&raw const zero).cast(),
                out as *const c_void,
                outs,
                out as *mut c_void,
                outs,
                &algorithm,
                self.workspace as *mut c_void,
                WORKSPACE_BYTES,
                self.driver.stream(),
            )
        };
        self.functions.check("cublasLtMatmul", status)
    }

    fn plan(&self, of: Extents) -> Result<Plan, BlasError> {
        let mut plans = lock(&self.plans);
        if let Some(plan) = plans.get(&of) {
            return Ok(*plan);
        }
        let plan = self.make_plan(of)?;
        plans.insert(of, plan);
        Ok(plan)
    }

    /// The library's matrices are by columns, and so are the transposes of these: weight is taken as transposed again.
    fn make_plan(&self, of: Extents) -> Result<Plan, BlasError> {
        let functions = &self.functions;
        let (compute, kind) = match of.operands {
            Operands::Bf16 => (COMPUTE_32F, R_16BF),
            Operands::Tf32 => (COMPUTE_32F_FAST_TF32, R_32F),
        };
        let mut description = null_mut();
        // SAFETY: the call writes a handle.
        let status = unsafe { (functions.describe)(&mut description, compute, R_32F) };
        functions.check("cublasLtMatmulDescCreate", status)?;
        let transposed = OP_T;
        // SAFETY: the attribute is a number of this size.
        let status = unsafe {
            (functions.set_description)(
                description,
                DESC_TRANSA,
                (&raw const transposed).cast(),
                size_of::<c_int>(),
            )
        };
        functions.check("cublasLtMatmulDescSetAttribute", status)?;
        let weights = self.layout(kind, of.columns, of.rows, of.columns)?;
        let xs = self.layout(kind, of.columns, of.tokens, of.columns)?;
        let outs = self.layout(R_32F, of.rows, of.tokens, of.pitch)?;
        let algorithm = self.algorithm(description, [weights, xs, outs])?;
        Ok(Plan { description, layouts: [weights, xs, outs], algorithm })
    }

    fn layout(&self, kind: c_int, rows: usize, columns: usize, leading: usize) -> Result<Handle, BlasError> {
        let mut layout = null_mut();
        // SAFETY: the call writes a handle.
        let status = unsafe {
            (self.functions.lay_out)(&mut layout, kind, rows as u64, columns as u64, leading as i64)
        };
        self.functions.check("cublasLtMatrixLayoutCreate", status)?;
        Ok(layout)
    }

    /// The one that the library recommends first.
    fn algorithm(
        &self,
        description: Handle,
        [weights, xs, outs]: [Handle; 3],
    ) -> Result<[u64; 8], BlasError> {
        let functions = &self.functions;
        let (mut preference, mut found, mut count) = (null_mut(), Heuristic::default(), 0);
        let most = WORKSPACE_BYTES as u64;
        // SAFETY: the calls write a handle, a result and a count, and read a number of this size; the preference is destroyed
        // once, and last.
        unsafe {
            let status = (functions.prefer)(&mut preference);
            functions.check("cublasLtMatmulPreferenceCreate", status)?;
            let set = (functions.set_preference)(
                preference,
                PREF_MAX_WORKSPACE_BYTES,
                (&raw const most).cast(),
                size_of::<u64>(),
            );
            let status = (functions.recommend)(
                self.handle,
                description,
                weights,
                xs,
                outs,
                outs,
                preference,
                1,
                &mut found,
                &mut count,
            );
            (functions.destroy_preference)(preference);
            functions.check("cublasLtMatmulPreferenceSetAttribute", set)?;
            functions.check("cublasLtMatmulAlgoGetHeuristic", status)?;
        }
        functions.check("cublasLtMatmulAlgoGetHeuristic", found.state)?;
        if count < 1 {
            let detail = "no algorithm for this product".into();
            return Err(BlasError::Library("cublasLtMatmulAlgoGetHeuristic", detail));
        }
        Ok(found.algorithm)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // What fails here has nobody to be told.
        let _ = self.driver.free(self.workspace);
        let plans = std::mem::take(&mut *lock(&self.plans));
        // SAFETY: all were made by this value, which waited for all work, and this is their last use.
        unsafe {
            for Plan { description, layouts, .. } in plans.into_values() {
                (self.functions.destroy_description)(description);
                for layout in layouts {
                    (self.functions.destroy_layout)(layout);
                }
            }
            (self.functions.destroy)(self.handle);
        }
    }
}

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Default)]
struct Heuristic {
    algorithm: [u64; 8],
    workspace_bytes: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

macro_rules! functions {
    ($($field:ident: $symbol:literal fn($($argument:ty),* $(,)?) -> $result:ty,)*) => {
        struct Functions {
            $($field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Functions {
            /// The library's functions, or the name of the first that it lacks.
            fn of(library: &Library) -> Result<Self, &'static str> {
                Ok(Functions {
                    // SAFETY: the types are those of the documentation.
                    $($field: *unsafe { library.get($symbol.as_bytes()) }.map_err(|_| $symbol)?,)*
                })
            }
        }
    };
}

functions! {
    version: "cublasLtGetVersion" fn() -> usize,
    words: "cublasLtGetStatusString" fn(c_int) -> *const c_char,
    create: "cublasLtCreate" fn(*mut Handle) -> c_int,
    destroy: "cublasLtDestroy" fn(Handle) -> c_int,
    describe: "cublasLtMatmulDescCreate" fn(*mut Handle, c_int, c_int) -> c_int,
    set_description: "cublasLtMatmulDescSetAttribute" fn(Handle, c_int, *const c_void, usize) -> c_int,
    destroy_description: "cublasLtMatmulDescDestroy" fn(Handle) -> c_int,
    lay_out: "cublasLtMatrixLayoutCreate" fn(*mut Handle, c_int, u64, u64, i64) -> c_int,
    destroy_layout: "cublasLtMatrixLayoutDestroy" fn(Handle) -> c_int,
    prefer: "cublasLtMatmulPreferenceCreate" fn(*mut Handle) -> c_int,
    set_preference: "cublasLtMatmulPreferenceSetAttribute" fn(Handle, c_int, *const c_void, usize) -> c_int,
    destroy_preference: "cublasLtMatmulPreferenceDestroy" fn(Handle) -> c_int,
    recommend: "cublasLtMatmulAlgoGetHeuristic"
        fn(
            Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Heuristic, *mut c_int,
        ) -> c_int,
    multiply: "cublasLtMatmul"
        fn(
            Handle, Handle, *const c_void, *const c_void, Handle, *const c_void, Handle, *const c_void,
            *const c_void, Handle, *mut c_void, Handle, *const [u64; 8], *mut c_void, usize, sys::CUstream,
        ) -> c_int,
}

impl Functions {
    fn check(&self, call: &'static str, status: c_int) -> Result<(), BlasError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the call returns text that ends in a zero and stays.
        let words = unsafe { CStr::from_ptr((self.words)(status)) };
        Err(BlasError::Library(call, format!("{} (status {status})", words.to_string_lossy())))
    }
}

impl BlasError {
    fn of_opening(self, library: &str) -> OpenError {
        match self {
            BlasError::Driver(error) => OpenError::driver("cuBLASLt", error),
            BlasError::Library(call, detail) => {
                OpenError::Blas { library: library.to_owned(), detail: format!("{call}: {detail}") }
            }
        }
    }
}

/// The library of a path, or of a name that the system knows.
fn open_library(path: Option<&Path>) -> Result<(String, Library), OpenError> {
    let names = [
        "libcublasLt.so",
        "libcublasLt.so.13",
        "libcublasLt.so.12",
        "cublasLt64_13.dll",
        "cublasLt64_12.dll",
    ];
    let places: Vec<PathBuf> = match path {
        Some(path) => vec![path.into()],
        None => names.map(PathBuf::from).into(),
    };
    // SAFETY: the library's initialisers need nothing from this process.
    let open =
        |place: &PathBuf| unsafe { Library::new(place) }.ok().map(|it| (place.display().to_string(), it));
    places.iter().find_map(open).ok_or_else(|| OpenError::NoBlas {
        looked_for: places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", "),
    })
}
