//! The device's memory, of which tensors are parts.

use std::sync::{Arc, Mutex};

use cudarc::driver::{DriverError, sys::CUresult};
use samebits_tensor::{Error, Result};

use crate::{NAME, driver::Driver, error::words, lock, spans::Spans};

/// Where each tensor starts is a multiple of this many bytes: what accesses of any kind want.
pub(crate) const UNIT: u64 = 256;

/// One allocation of the driver, made when the first tensor asks for memory; the driver is not asked again. What is
/// given back may be used by whatever is issued next, since the stream does it later than what came before.
pub(crate) struct Memory {
    driver: Arc<Driver>,
    bytes: u64,
    /// Whether each tensor is an allocation of its own, so that what watches memory sees where it ends.
    is_apart: bool,
    reserved: Mutex<Option<Arc<Heap>>>,
    /// Where tensors of a step that is being recorded are.
    recording: Mutex<Option<Arc<Heap>>>,
}

/// Memory that is given out in spans.
pub(crate) struct Heap {
    address: u64,
    spans: Mutex<Spans>,
    /// What this is a part of, if not the driver's allocation.
    _part_of: Option<Buffer>,
}

/// Elements of one tensor on the device. Cloning shares them.
#[derive(Clone)]
pub struct Buffer {
    region: Arc<Region>,
    address: u64,
}

struct Region {
    place: Place,
    /// The allocation goes back to the driver with the last of these.
    memory: Arc<Memory>,
}

enum Place {
    Part { heap: Arc<Heap>, start: u64, units: u64 },
    Apart { address: u64 },
}

impl Memory {
    /// Memory of which so many bytes are to be reserved, or none where each tensor is an allocation of its own.
    pub(crate) fn new(driver: Arc<Driver>, bytes: u64, is_apart: bool) -> Arc<Self> {
        Arc::new(Memory { driver, bytes, is_apart, reserved: Mutex::default(), recording: Mutex::default() })
    }

    /// Room for so many bytes, which are not written yet.
    pub(crate) fn buffer(self: &Arc<Self>, op: &'static str, bytes: usize) -> Result<Buffer> {
        let failed = |detail| Error::Backend { backend: NAME.into(), op, detail };
        if self.is_apart && !self.driver.is_recording() {
            let address = self.driver.allocate(bytes.max(1));
            let address = address.map_err(|error| failed(format!("{bytes} bytes: {}", words(error))))?;
            let region = Region { place: Place::Apart { address }, memory: self.clone() };
            return Ok(Buffer { region: Arc::new(region), address });
        }
        let heap = self.heap().map_err(|error| {
            failed(format!("{} bytes of the device could not be reserved: {}", self.bytes, words(error)))
        })?;
        let units = (bytes as u64).div_ceil(UNIT).max(1);
        let mut spans = lock(&heap.spans);
        let Some(start) = spans.take(units) else {
            return Err(failed(format!(
                "out of memory: {bytes} bytes are needed and {} of the device's {} are free; lower max_context, \
                 kv_cache_memory_bytes or max_tokens_per_step",
                spans.free() * UNIT,
                self.bytes
            )));
        };
        drop(spans);
        let address = heap.address + start * UNIT;
        let region = Region { place: Place::Part { heap: heap.clone(), start, units }, memory: self.clone() };
        Ok(Buffer { region: Arc::new(region), address })
    }

    /// Units that were taken at once at most while `run` ran, beyond those taken before.
    pub(crate) fn units_taken<T>(&self, run: impl FnOnce() -> T) -> Result<(T, u64), DriverError> {
        let heap = self.heap()?;
        lock(&heap.spans).watch();
        let before = lock(&heap.spans).free();
        let value = run();
        Ok((value, before.saturating_sub(lock(&heap.spans).fewest_free())))
    }

    /// A heap of its own for tensors that live no longer than the recording of a step.
    pub(crate) fn part(self: &Arc<Self>, op: &'static str, units: u64) -> Result<Arc<Heap>> {
        let room = self.buffer(op, (units * UNIT) as usize)?;
        let (address, spans) = (room.address, Mutex::new(Spans::new(units)));
        Ok(Arc::new(Heap { address, spans, _part_of: Some(room) }))
    }

    /// Takes the memory of tensors from a heap wherever `run` records.
    pub(crate) fn record_into<T>(&self, heap: Arc<Heap>, run: impl FnOnce() -> T) -> T {
        /// Lets go of the heap, also where what is recorded panics.
        struct End<'a>(&'a Memory);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                *lock(&self.0.recording) = None;
            }
        }
        *lock(&self.recording) = Some(heap);
        let _end = End(self);
        run()
    }

    /// Where this thread's tensors are.
    fn heap(&self) -> Result<Arc<Heap>, DriverError> {
        if self.driver.is_recording() {
            return lock(&self.recording).clone().ok_or(DriverError(CUresult::CUDA_ERROR_ILLEGAL_STATE));
        }
        // Held while the driver is asked, since there is not room for two.
        let mut reserved = lock(&self.reserved);
        if let Some(heap) = &*reserved {
            return Ok(heap.clone());
        }
        let units = self.bytes / UNIT;
        if units == 0 {
            return Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        }
        let address = self.driver.allocate((units * UNIT) as usize)?;
        let heap = Arc::new(Heap { address, spans: Mutex::new(Spans::new(units)), _part_of: None });
        Ok(reserved.insert(heap).clone())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(heap) = &*lock(&self.reserved) {
            // Nobody is left to be told of an error.
            let _ = self.driver.free(heap.address);
        }
    }
}

impl Heap {
    /// Units of it, where nothing is taken.
    pub(crate) fn units(&self) -> u64 {
        lock(&self.spans).free()
    }
}

impl Buffer {
    /// The address on the device.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// The address as a kernel's argument.
    pub(crate) fn argument(&self) -> &[u8] {
        bytemuck::bytes_of(&self.address)
    }

    /// What lies so many bytes after the start.
    pub(crate) fn after(&self, bytes: u64) -> Buffer {
        Buffer { region: self.region.clone(), address: self.address + bytes }
    }

    /// Whether no other tensor has these elements.
    pub(crate) fn is_unique(&mut self) -> bool {
        Arc::get_mut(&mut self.region).is_some()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        match &self.place {
            Place::Part { heap, start, units } => lock(&heap.spans).give(*start, *units),
            // Nobody is left to be told of an error.
            Place::Apart { address } => drop(self.memory.driver.free(*address)),
        }
    }
}
