//! Copies between the host and the device, through pinned memory.

use std::sync::Arc;

use cudarc::driver::DriverError;

use crate::driver::{Driver, Event, Pinned};

/// Bytes of each half: copies of one half go on while the host fills or empties the other.
const HALF: usize = 4 << 20;

/// What uploads start at, for accesses of the device's copy engines.
const ALIGNMENT: usize = 64;

/// What a kernel notes of an index outside of its tensor (`Fault` in `contract.cuh`): the operation, 0 if there is none;
/// the index; the rows that there are.
type Fault = [u32; 3];

/// Pinned memory in two halves, and a few bytes more for the device's note, which comes along with each download.
pub(crate) struct Staging {
    driver: Arc<Driver>,
    memory: Pinned,
    fault: u64,
    /// When the copies from a half, or to it, are done.
    events: [Event; 2],
    /// Whether a half's event marks copies that may still go on.
    is_pending: [bool; 2],
    /// The half that uploads fill, and how far.
    half: usize,
    used: usize,
}

impl Staging {
    pub(crate) fn new(driver: Arc<Driver>) -> Result<Self, DriverError> {
        let memory = driver.pinned(2 * HALF + ALIGNMENT)?;
        let events = [driver.event()?, driver.event()?];
        let fault = driver.allocate(size_of::<Fault>())?;
        let mut staging = Staging { driver, memory, fault, events, is_pending: [false; 2], half: 0, used: 0 };
        staging.upload(fault, &[0; size_of::<Fault>()])?;
        Ok(staging)
    }

    /// The address where kernels note an index outside of its tensor.
    pub(crate) fn fault(&self) -> u64 {
        self.fault
    }

    /// Issues a copy to the device. The bytes may be changed afterwards.
    pub(crate) fn upload(&mut self, mut to: u64, mut bytes: &[u8]) -> Result<(), DriverError> {
        while !bytes.is_empty() {
            if self.used == HALF {
                self.turn()?;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(HALF - self.used));
            let at = self.half * HALF + self.used;
            self.memory.as_mut_slice()[at..at + now.len()].copy_from_slice(now);
            self.driver.upload(to, &self.memory, at, now.len())?;
            self.used = (self.used + now.len()).next_multiple_of(ALIGNMENT).min(HALF);
            to += now.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Copies to the host, waits until all that was issued before is done, and returns what a kernel noted meanwhile.
    pub(crate) fn download(&mut self, from: u64, bytes: &mut [u8]) -> Result<Option<Fault>, DriverError> {
        self.download_pieces(from, bytes)?;
        let mut fault: Fault = [0; 3];
        let len = size_of_val(&fault);
        self.driver.download(self.fault, &mut self.memory, 2 * HALF, len)?;
        self.driver.synchronize()?;
        bytemuck::bytes_of_mut(&mut fault).copy_from_slice(&self.memory.as_slice()[2 * HALF..][..len]);
        (self.is_pending, self.half, self.used) = ([false; 2], 0, 0);
        if fault[0] == 0 {
            return Ok(None);
        }
        self.upload(self.fault, &vec![0; len])?;
        Ok(Some(fault))
    }

    /// Copies to the host, through one half after the other.
    fn download_pieces(&mut self, from: u64, bytes: &mut [u8]) -> Result<(), DriverError> {
        let mut pieces = bytes.chunks_mut(HALF).enumerate();
        let mut waiting: Option<(usize, &mut [u8])> = None;
        loop {
            let next = pieces.next();
            if let Some((i, piece)) = &next {
                self.driver.download(
                    from + (i * HALF) as u64,
                    &mut self.memory,
                    i % 2 * HALF,
                    piece.len(),
                )?;
                self.driver.record(&self.events[i % 2])?;
            }
            if let Some((i, piece)) = waiting {
                self.driver.wait(&self.events[i % 2])?;
                piece.copy_from_slice(&self.memory.as_slice()[i % 2 * HALF..][..piece.len()]);
            }
            waiting = next;
            if waiting.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Goes over to the other half, once nothing is copied from it.
    fn turn(&mut self) -> Result<(), DriverError> {
        self.driver.record(&self.events[self.half])?;
        self.is_pending[self.half] = true;
        self.half = 1 - self.half;
        self.used = 0;
        if self.is_pending[self.half] {
            self.driver.wait(&self.events[self.half])?;
            self.is_pending[self.half] = false;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Nobody is left to be told of an error.
        let _ = self.driver.free(self.fault);
        let _ = self.driver.free_pinned(&mut self.memory);
        for event in &self.events {
            let _ = self.driver.destroy_event(event);
        }
    }
}
