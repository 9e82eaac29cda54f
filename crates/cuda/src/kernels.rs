//! The loaded kernels and their launches.

use std::collections::HashMap;

use cudarc::driver::DriverError;
use samebits_kernels::cuda::MODULES;
use samebits_tensor::{Error, Result, Shape};

use crate::{
    NAME,
    driver::{Driver, Function, Grid},
    error::{OpenError, words},
};

/// Every kernel, by name.
pub(crate) struct Kernels(HashMap<&'static str, Kernel>);

struct Kernel {
    function: Function,
    /// Bytes of each parameter.
    parameters: Vec<usize>,
}

impl Kernels {
    /// Loads all modules, which the driver compiles the first time that it sees them.
    pub(crate) fn load(driver: &Driver) -> Result<Self, OpenError> {
        let mut kernels = HashMap::new();
        for module in MODULES {
            let entries = entries(module.ptx);
            let names: Vec<_> = entries.iter().map(|(name, _)| *name).collect();
            let functions = driver.load(module.ptx, &names).map_err(|error| OpenError::Driver {
                call: "cuModuleLoadData",
                detail: format!("module {}: {}", module.name, words(error)),
            })?;
            for ((name, parameters), function) in entries.into_iter().zip(functions) {
                kernels.insert(name, Kernel { function, parameters });
            }
        }
        Ok(Kernels(kernels))
    }

    /// Issues a kernel whose arguments are given as their bytes. `shape` is that of the result, for messages.
    ///
    /// # Errors
    /// If there is no such kernel, its parameters are others, or the driver refuses; each names the kernel and the shape.
    #[allow(unsafe_code)]
    pub(crate) fn launch(
        &self,
        driver: &Driver,
        name: &'static str,
        grid: Grid,
        arguments: &[&[u8]],
        shape: &Shape,
    ) -> Result<()> {
        let kernel = self.0.get(name).ok_or_else(|| failed(name, shape, "no such kernel"))?;
        let sizes = arguments.iter().map(|argument| argument.len());
        if !sizes.eq(kernel.parameters.iter().copied()) {
            return Err(failed(name, shape, "arguments of other sizes than its parameters"));
        }
        // SAFETY: the arguments have the parameters' sizes. They are addresses of buffers that the caller holds, which stay
        // what they are until this work is done since memory is used again by later work alone, and the extents of these.
        let result = unsafe { driver.launch(kernel.function, grid, arguments) };
        result.map_err(|error: DriverError| failed(name, shape, &words(error)))
    }
}

fn failed(op: &'static str, shape: &Shape, detail: &str) -> Error {
    Error::Backend { backend: NAME.into(), op, detail: format!("of {shape}: {detail}") }
}

/// Names and bytes of the parameters of a module's entries.
fn entries(ptx: &str) -> Vec<(&str, Vec<usize>)> {
    let entry = |text| -> Option<(&str, Vec<usize>)> {
        let (name, rest) = str::split_once(text, '(')?;
        let parameters = rest.split(')').next()?.split(',').map(str::trim).filter(|it| !it.is_empty());
        Some((name, parameters.map(parameter_bytes).collect::<Option<_>>()?))
    };
    ptx.split(".visible .entry ").skip(1).filter_map(entry).collect()
}

/// Bytes of a parameter such as `.param .u64 x` or `.param .align 8 .b8 x[104]`.
fn parameter_bytes(parameter: &str) -> Option<usize> {
    let kind = parameter.split_whitespace().rfind(|word| word.starts_with('.'))?;
    let bits: usize = kind.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().ok()?;
    let count = match parameter.split_once('[') {
        Some((_, count)) => count.trim_end_matches(']').parse().ok()?,
        None => 1,
    };
    Some(bits / 8 * count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_off_the_ptx() {
        let ptx = ".visible .entry a(\n\t.param .u64 a_0,\n\t.param .align 8 .b8 a_1[104],\n\t.param .f32 a_2,\n\
                   \t.param .u8 a_3\n)\n{\n}\n.visible .entry b()\n{\n}\n";
        assert_eq!(entries(ptx), [("a", vec![8, 104, 4, 1]), ("b", vec![])]);
    }

    #[test]
    fn every_entry_of_every_module_is_understood() {
        for module in MODULES {
            assert_eq!(
                entries(module.ptx).len(),
                module.ptx.matches(".visible .entry").count(),
                "{}",
                module.name
            );
        }
    }
}
