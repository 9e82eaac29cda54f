//! The device's memory, of which tensors are parts.

use std::sync::{Arc, Mutex, OnceLock};

use cudarc::driver::{DriverError, sys::CUresult};
use samebits_tensor::{Error, Result};

use crate::{NAME, driver::Driver, error::words, lock, spans::Spans};

/// Where each tensor starts is a multiple of this many bytes: what accesses of any kind want.
const UNIT: u64 = 256;

/// One allocation of the driver, made when the first tensor asks for memory; the driver is not asked again. What is
/// given back may be used by whatever is issued next, since the stream does it later than what came before.
pub(crate) struct Memory {
    driver: Arc<Driver>,
    bytes: u64,
    reserved: OnceLock<Reserved>,
}

struct Reserved {
    address: u64,
    spans: Mutex<Spans>,
}

/// Elements of one tensor on the device. Cloning shares them.
#[derive(Clone)]
pub struct Buffer(Arc<Region>);

struct Region {
    memory: Arc<Memory>,
    address: u64,
    units: u64,
}

impl Memory {
    /// Memory of which so many bytes are to be reserved.
    pub(crate) fn new(driver: Arc<Driver>, bytes: u64) -> Arc<Self> {
        Arc::new(Memory { driver, bytes, reserved: OnceLock::new() })
    }

    /// Room for so many bytes, which are not written yet.
    pub(crate) fn buffer(self: &Arc<Self>, op: &'static str, bytes: usize) -> Result<Buffer> {
        let failed = |detail| Error::Backend { backend: NAME.into(), op, detail };
        let reserved = self.reserved().map_err(|error| {
            failed(format!("{} bytes of the device could not be reserved: {}", self.bytes, words(error)))
        })?;
        let units = (bytes as u64).div_ceil(UNIT).max(1);
        let mut spans = lock(&reserved.spans);
        let Some(start) = spans.take(units) else {
            return Err(failed(format!(
                "out of memory: {bytes} bytes are needed and {} of the device's {} are free; lower max_context, \
                 kv_cache_memory_bytes or max_tokens_per_step",
                spans.free() * UNIT,
                self.bytes
            )));
        };
        Ok(Buffer(Arc::new(Region { memory: self.clone(), address: reserved.address + start * UNIT, units })))
    }

    fn reserved(&self) -> Result<&Reserved, DriverError> {
        if self.reserved.get().is_none() {
            let units = self.bytes / UNIT;
            if units == 0 {
                return Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
            }
            let address = self.driver.allocate((units * UNIT) as usize)?;
            let reserved = Reserved { address, spans: Mutex::new(Spans::new(units)) };
            if self.reserved.set(reserved).is_err() {
                // Another thread was first.
                self.driver.free(address)?;
            }
        }
        Ok(self.reserved.get().expect("memory reserved above"))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(reserved) = self.reserved.get() {
            // Nobody is left to be told of an error.
            let _ = self.driver.free(reserved.address);
        }
    }
}

impl Buffer {
    /// The address on the device.
    pub(crate) fn address(&self) -> u64 {
        self.0.address
    }

    /// The address as a kernel's argument.
    pub(crate) fn argument(&self) -> &[u8] {
        bytemuck::bytes_of(&self.0.address)
    }

    /// Whether no other tensor has these elements.
    pub(crate) fn is_unique(&mut self) -> bool {
        Arc::get_mut(&mut self.0).is_some()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some(reserved) = self.memory.reserved.get() {
            lock(&reserved.spans).give((self.address - reserved.address) / UNIT, self.units);
        }
    }
}
