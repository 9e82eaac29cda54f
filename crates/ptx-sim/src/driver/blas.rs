//! cuBLASLt, as far as a product of matrices needs it: this library has its functions too, for programs that open it by path.
//!
//! What a call may ask for is what [NVIDIA's documentation](https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api) says of
//! `cublasLtMatmul`; products of other types are refused as not supported. Sums are in f64 and rounded once, where a device's order is
//! unspecified. Operands of `CUBLAS_COMPUTE_32F_FAST_TF32` are rounded to 11 significant bits.

use std::{
    collections::{HashMap, HashSet},
    ffi::{c_char, c_int, c_void},
    sync::Arc,
};

use half::{bf16, f16};

use super::{Done, Driver, Handle, Needs, Status, call, graph::Node, put};

const NOT_INITIALIZED: Status = Status(1);
const INVALID_VALUE: Status = Status(7);
const EXECUTION_FAILED: Status = Status(13);
const NOT_SUPPORTED: Status = Status(15);

const COMPUTE_32F: c_int = 68;
const COMPUTE_32F_FAST_TF32: c_int = 77;
const R_32F: c_int = 0;
const R_16F: c_int = 2;
const R_16BF: c_int = 14;
const DESC_TRANSA: c_int = 3;
const DESC_TRANSB: c_int = 4;
const OP_N: c_int = 0;
const OP_T: c_int = 1;
const PREF_MAX_WORKSPACE_BYTES: c_int = 1;

/// Of matrices, unless preferences say less, and of the workspace.
const ALIGNMENT: u64 = 256;

/// What was made and not yet destroyed.
#[derive(Debug, Default)]
pub(super) struct Blas {
    libraries: HashSet<Handle>,
    descriptions: HashMap<Handle, Description>,
    layouts: HashMap<Handle, Layout>,
    preferences: HashMap<Handle, u64>,
}

#[derive(Debug, Clone, Copy)]
struct Description {
    compute: c_int,
    scale: c_int,
    transposes: [c_int; 2],
}

/// A matrix by columns.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Layout {
    kind: c_int,
    rows: u64,
    columns: u64,
    leading: i64,
}

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
struct Heuristic {
    algorithm: [u64; 8],
    workspace_bytes: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// A product that is to be computed: `d = alpha * op(a) * op(b) + beta * c`.
#[derive(Debug)]
pub(super) struct Product {
    description: Description,
    alpha: f32,
    beta: f32,
    /// a, b, c and d.
    matrices: [(u64, Layout); 4],
}

impl Layout {
    /// Bytes of a value.
    fn size(&self) -> Done<usize> {
        match self.kind {
            R_32F => Ok(4),
            R_16F | R_16BF => Ok(2),
            _ => Err(NOT_SUPPORTED),
        }
    }

    /// Bytes from the first value to the last.
    fn bytes(&self) -> Done<usize> {
        let last = (self.columns as i64 - 1).max(0) * self.leading + self.rows as i64;
        Ok(if self.columns == 0 { 0 } else { last as usize * self.size()? })
    }

    /// As it is, or the other way round.
    fn dims(&self, transpose: c_int) -> (u64, u64) {
        if transpose == OP_T { (self.columns, self.rows) } else { (self.rows, self.columns) }
    }
}

impl Product {
    fn check(&self) -> Done {
        let Description { compute, scale, transposes } = self.description;
        let [a, b, c, d] = self.matrices.map(|(_, layout)| layout);
        let ((m, k), (k_of_b, n)) = (a.dims(transposes[0]), b.dims(transposes[1]));
        if k != k_of_b || (d.rows, d.columns) != (m, n) || c != d {
            return Err(INVALID_VALUE);
        }
        let fits =
            |layout: &Layout| layout.leading >= layout.rows as i64 && layout.rows > 0 && layout.columns > 0;
        if ![a, b, c, d].iter().all(fits) {
            return Err(INVALID_VALUE);
        }
        let types = (compute, scale, a.kind, b.kind, d.kind);
        let known = [
            (COMPUTE_32F, R_32F, R_16BF, R_16BF, R_32F),
            (COMPUTE_32F, R_32F, R_16F, R_16F, R_32F),
            (COMPUTE_32F, R_32F, R_32F, R_32F, R_32F),
            (COMPUTE_32F_FAST_TF32, R_32F, R_32F, R_32F, R_32F),
        ];
        if known.contains(&types) { Ok(()) } else { Err(NOT_SUPPORTED) }
    }

    /// The value of a row and a column of an operand as it is multiplied.
    ///
    /// # Safety
    ///
    /// The matrix is in memory.
    unsafe fn value(&self, which: usize, row: u64, column: u64) -> f64 {
        let (address, layout) = self.matrices[which];
        let transpose = if which < 2 { self.description.transposes[which] } else { OP_N };
        let (row, column) = if transpose == OP_T { (column, row) } else { (row, column) };
        let index = (column as i64 * layout.leading) as usize + row as usize;
        // SAFETY: as the caller promises; addresses of the device are the host's here, and allocations are aligned.
        unsafe {
            match layout.kind {
                R_16BF => f64::from(*(address as *const bf16).add(index)),
                R_16F => f64::from(*(address as *const f16).add(index)),
                _ => {
                    let value = *(address as *const f32).add(index);
                    f64::from(if self.description.compute == COMPUTE_32F_FAST_TF32 {
                        tf32(value)
                    } else {
                        value
                    })
                }
            }
        }
    }
}

/// To 11 significant bits, ties away from zero, as `cvt.rna.tf32.f32` does.
fn tf32(x: f32) -> f32 {
    if x.is_finite() { f32::from_bits((x.to_bits() + (1 << 12)) & !((1 << 13) - 1)) } else { x }
}

impl Driver {
    pub(super) fn multiply(&mut self, product: &Product) -> Done {
        for (address, layout) in product.matrices {
            self.in_bounds(address, layout.bytes()?)?;
        }
        let [(_, a), _, (_, c), (to, d)] = product.matrices;
        let (m, k) = a.dims(product.description.transposes[0]);
        for column in 0..d.columns {
            for row in 0..m {
                // SAFETY: all matrices lie in allocations, and no kernel runs while the state is locked.
                unsafe {
                    let terms = (0..k).map(|i| product.value(0, row, i) * product.value(1, i, column));
                    let mut value = f64::from(product.alpha) * terms.sum::<f64>();
                    if product.beta != 0.0 {
                        value += f64::from(product.beta) * product.value(2, row, column);
                    }
                    *(to as *mut f32).add((column as i64 * d.leading) as usize + row as usize) = value as f32;
                }
            }
            let start = to + (column as i64 * c.leading * 4) as u64;
            self.arena()?.written(start, m * 4);
        }
        Ok(())
    }
}

/// Does something to the state, and returns a status of cuBLAS.
fn blas(name: &'static str, work: impl FnOnce(&mut Driver) -> Done) -> c_int {
    call(name, Needs::Nothing, |driver| match (driver.initialised, driver.sticky) {
        (false, _) => Err(NOT_INITIALIZED),
        (_, Some(_)) => Err(EXECUTION_FAILED),
        _ => work(driver),
    })
}

macro_rules! functions {
    ($($name:ident($driver:ident $(, $argument:ident: $type:ty)* $(,)?) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        #[doc = concat!("`", stringify!($name), "` of cuBLASLt.")]
        unsafe extern "C" fn $name($($argument: $type),*) -> c_int {
            blas(stringify!($name), |$driver| {
                // SAFETY: the caller keeps to the documentation: pointers are null or valid for what they are for.
                #[allow(unused_unsafe, reason = "some bodies use no pointer")]
                unsafe { $body }
            })
        }
    )*};
}

/// The version that is played: 12.8.4.
#[unsafe(no_mangle)]
extern "C" fn cublasLtGetVersion() -> usize {
    120_804
}

/// A status in words.
#[unsafe(no_mangle)]
extern "C" fn cublasLtGetStatusString(status: c_int) -> *const c_char {
    let text = match status {
        0 => c"success",
        1 => c"the library was not initialized",
        7 => c"an unsupported value or parameter was passed to the function",
        13 => c"the function failed to launch on the GPU",
        15 => c"the requested functionality is not supported",
        _ => c"unknown error",
    };
    text.as_ptr()
}

functions! {
    cublasLtCreate(driver, library: *mut Handle) {
        driver.current().map_err(|_| NOT_INITIALIZED)?;
        let handle = driver.handle();
        driver.blas.libraries.insert(handle);
        put(library, handle)
    }

    cublasLtDestroy(driver, library: Handle) {
        if driver.blas.libraries.remove(&library) { Ok(()) } else { Err(NOT_INITIALIZED) }
    }

    cublasLtMatmulDescCreate(driver, description: *mut Handle, compute: c_int, scale: c_int) {
        let handle = driver.handle();
        driver.blas.descriptions.insert(handle, Description { compute, scale, transposes: [OP_N; 2] });
        put(description, handle)
    }

    cublasLtMatmulDescSetAttribute(driver, description: Handle, attribute: c_int, value: *const c_int, bytes: usize) {
        let description = driver.blas.descriptions.get_mut(&description).ok_or(INVALID_VALUE)?;
        let which = match attribute {
            DESC_TRANSA => 0,
            DESC_TRANSB => 1,
            _ => return Err(NOT_SUPPORTED),
        };
        if bytes != size_of::<c_int>() || value.is_null() || ![OP_N, OP_T].contains(&*value) {
            return Err(INVALID_VALUE);
        }
        description.transposes[which] = *value;
        Ok(())
    }

    cublasLtMatmulDescDestroy(driver, description: Handle) {
        driver.blas.descriptions.remove(&description).map(drop).ok_or(INVALID_VALUE)
    }

    cublasLtMatrixLayoutCreate(driver, layout: *mut Handle, kind: c_int, rows: u64, columns: u64, leading: i64) {
        let handle = driver.handle();
        driver.blas.layouts.insert(handle, Layout { kind, rows, columns, leading });
        put(layout, handle)
    }

    cublasLtMatrixLayoutDestroy(driver, layout: Handle) {
        driver.blas.layouts.remove(&layout).map(drop).ok_or(INVALID_VALUE)
    }

    cublasLtMatmulPreferenceCreate(driver, preference: *mut Handle) {
        let handle = driver.handle();
        driver.blas.preferences.insert(handle, 0);
        put(preference, handle)
    }

    cublasLtMatmulPreferenceSetAttribute(
        driver, preference: Handle, attribute: c_int, value: *const u64, bytes: usize,
    ) {
        let preference = driver.blas.preferences.get_mut(&preference).ok_or(INVALID_VALUE)?;
        if attribute != PREF_MAX_WORKSPACE_BYTES {
            return Err(NOT_SUPPORTED);
        }
        if bytes != size_of::<u64>() || value.is_null() {
            return Err(INVALID_VALUE);
        }
        *preference = value.read();
        Ok(())
    }

    cublasLtMatmulPreferenceDestroy(driver, preference: Handle) {
        driver.blas.preferences.remove(&preference).map(drop).ok_or(INVALID_VALUE)
    }

    cublasLtMatmulAlgoGetHeuristic(
        driver, library: Handle, description: Handle, a: Handle, b: Handle, c: Handle, d: Handle, preference: Handle,
        asked: c_int, results: *mut Heuristic, found: *mut c_int,
    ) {
        let workspace = *driver.blas.preferences.get(&preference).ok_or(INVALID_VALUE)?;
        let product = driver.product(library, description, [a, b, c, d].map(|layout| (0, layout)), [1.0, 0.0])?;
        product.check()?;
        if asked < 1 {
            return Err(INVALID_VALUE);
        }
        // Half of what may be taken, so that taking all of it shows.
        let workspace_bytes = workspace as usize / 2;
        let algorithm = product.description.compute as u64;
        let algorithm = [algorithm, workspace_bytes as u64, 0, 0, 0, 0, 0, 0];
        put(results, Heuristic { algorithm, workspace_bytes, state: 0, waves: 1.0, reserved: [0; 4] })?;
        put(found, 1)
    }

    cublasLtMatmul(
        driver, library: Handle, description: Handle, alpha: *const f32, a: u64, a_layout: Handle, b: u64,
        b_layout: Handle, beta: *const f32, c: u64, c_layout: Handle, d: u64, d_layout: Handle,
        algorithm: *const [u64; 8], workspace: *mut c_void, workspace_bytes: usize, stream: Handle,
    ) {
        if alpha.is_null() || beta.is_null() || algorithm.is_null() {
            return Err(INVALID_VALUE);
        }
        let matrices = [(a, a_layout), (b, b_layout), (c, c_layout), (d, d_layout)];
        let product = driver.product(library, description, matrices, [*alpha, *beta])?;
        product.check()?;
        let [compute, needed, ..] = *algorithm;
        let workspace = workspace as usize;
        if compute != product.description.compute as u64
            || (workspace_bytes as u64) < needed
            || !workspace.is_multiple_of(ALIGNMENT as usize)
            || !product.matrices.iter().all(|(address, _)| address.is_multiple_of(ALIGNMENT))
        {
            return Err(INVALID_VALUE);
        }
        driver.in_bounds(workspace as u64, workspace_bytes).map_err(|_| INVALID_VALUE)?;
        driver.transfer(Some(stream), Node::Product(Arc::new(product))).map_err(|_| EXECUTION_FAILED)
    }
}

impl Driver {
    fn product(
        &self,
        library: Handle,
        description: Handle,
        matrices: [(u64, Handle); 4],
        [alpha, beta]: [f32; 2],
    ) -> Done<Product> {
        self.blas.libraries.get(&library).ok_or(NOT_INITIALIZED)?;
        let description = *self.blas.descriptions.get(&description).ok_or(INVALID_VALUE)?;
        let mut found = [(0, Layout { kind: 0, rows: 0, columns: 0, leading: 0 }); 4];
        for (found, (address, layout)) in found.iter_mut().zip(matrices) {
            *found = (address, *self.blas.layouts.get(&layout).ok_or(INVALID_VALUE)?);
        }
        Ok(Product { description, alpha, beta, matrices: found })
    }
}
