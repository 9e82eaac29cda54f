//! What a device is and can do at most, and how long work takes on it: for those who judge the kernels.

use std::time::Duration;

use bytemuck::bytes_of;
use cudarc::driver::sys::CUdevice_attribute;
use samebits_tensor::{DType, Error, Result, Shape, Tensor};

use crate::{Cuda, driver::Grid, layout::extent};

/// Of the device, as the driver has it; clocks are the highest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Of the multiprocessors, kHz.
    pub clock_khz: u32,
    /// Of the memory, kHz.
    pub memory_clock_khz: u32,
    /// Wires to the memory, bits.
    pub memory_bus_bits: u32,
    /// Bytes of the second cache.
    pub l2_bytes: u32,
}

/// Rates that no kernel passes, as measured with kernels that do nothing else.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Bytes of memory read and written by a copy, a second.
    pub bytes_per_second: f64,
    /// Multiplications and additions of int8 matrix products, a second.
    pub int8_operations_per_second: f64,
}

/// Blocks that each multiprocessor gets.
const BLOCKS: u32 = 16;

/// Operations of a matrix instruction, and instructions of a warp's round, as in `probe.cu`.
const OPERATIONS: f64 = 2.0 * 16.0 * 8.0 * 32.0;
const CHAINS: f64 = 8.0;

impl Cuda {
    /// What the device is.
    ///
    /// # Errors
    /// If the driver does not say.
    pub fn hardware(&self) -> Result<Hardware> {
        use CUdevice_attribute as Attribute;
        let of = |attribute| {
            let value = self.shared.driver.attribute(attribute);
            value.map(|value| value.max(0) as u32).map_err(|error| self.failed("hardware", error))
        };
        Ok(Hardware {
            multiprocessors: of(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            clock_khz: of(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
            memory_clock_khz: of(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
            memory_bus_bits: of(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
            l2_bytes: of(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        })
    }

    /// How long the device takes for what `run` issues, by its own clock.
    ///
    /// # Errors
    /// Those of `run`, and of the device.
    pub fn timed<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
        let failed = |error| self.failed("timed", error);
        let driver = &self.shared.driver;
        let timer = driver.timer().map_err(failed)?;
        let result = run();
        let seconds = timer.stop().map_err(failed)?;
        Ok((result?, Duration::from_secs_f64(seconds)))
    }

    /// Measures the rates: copies of `bytes`, and as many `rounds` of products on every multiprocessor. The best of three.
    ///
    /// # Errors
    /// No memory for twice the bytes, an error of the device, or products that are wrong.
    pub fn rates(&self, bytes: usize, rounds: u32) -> Result<Rates> {
        let blocks = BLOCKS * self.hardware()?.multiprocessors;
        let (mut copy, mut products) = (f64::MAX, f64::MAX);
        let from = Tensor::full(self, [bytes.next_multiple_of(16)], 3i8)?;
        for _ in 0..3 {
            copy = copy.min(self.copy_seconds(&from, blocks)?);
            products = products.min(self.product_seconds(blocks, rounds)?);
        }
        let warps = f64::from(blocks) * 4.0;
        Ok(Rates {
            bytes_per_second: 2.0 * from.shape().elements() as f64 / copy,
            int8_operations_per_second: warps * f64::from(rounds) * CHAINS * OPERATIONS / products,
        })
    }

    fn copy_seconds(&self, from: &Tensor<Self>, blocks: u32) -> Result<f64> {
        let (op, shape) = ("probe", from.shape());
        let to = self.room(op, shape, DType::I8)?;
        let pieces = (shape.elements() / 16) as u64;
        let grid = Grid { blocks: (blocks, 1), threads: 256, shared: 0 };
        let arguments = [to.argument(), from.data().argument(), bytes_of(&pieces)];
        let ((), time) = self.timed(|| self.launch("probe_copy", grid, &arguments, shape))?;
        Ok(time.as_secs_f64())
    }

    fn product_seconds(&self, blocks: u32, rounds: u32) -> Result<f64> {
        let threads = 128;
        let shape = Shape::from([(blocks * threads) as usize]);
        let out = self.room("probe", &shape, DType::I32)?;
        let grid = Grid { blocks: (blocks, 1), threads, shared: 0 };
        let arguments = [out.argument(), bytes_of(&rounds)];
        let ((), time) = self.timed(|| self.launch("probe_multiply", grid, &arguments, &shape))?;
        let mut first = [0u8; 4];
        self.read(&out, &mut first)?;
        // Each of a thread's 4 elements of 8 matrices gets 32 ones a round.
        let expected = extent("probe", 32 * 32 * rounds as usize)?;
        match u32::from_le_bytes(first) == expected {
            true => Ok(time.as_secs_f64()),
            false => {
                let detail = format!("a sum of {expected} ones is {}", u32::from_le_bytes(first));
                Err(Error::Backend { backend: crate::NAME.into(), op: "probe", detail })
            }
        }
    }
}
