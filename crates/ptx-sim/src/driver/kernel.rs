//! Functions of modules, and their launches.

use std::{
    ffi::{c_int, c_uint, c_void},
    sync::Arc,
};

use super::{
    Done, Driver, Handle, INVALID_HANDLE, INVALID_VALUE, Status, api, device::shared_bytes_max, graph::Node,
    put, refused,
};
use crate::{decode::Kernel, vm::Launch};

pub(super) struct Function {
    pub(super) kernel: Arc<Kernel>,
    /// Dynamic shared memory that a launch may have.
    dynamic_max: u64,
    shared_max: u64,
    carveout: c_int,
}

/// A launch with copies of its parameters.
#[derive(Debug)]
pub(super) struct KernelLaunch {
    kernel: Arc<Kernel>,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u64,
    parameters: Vec<u8>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Kernel({})", self.name)
    }
}

/// What a block may have without asking for more.
const SHARED_BYTES: u64 = 48 << 10;

impl Function {
    pub(super) fn new(kernel: Arc<Kernel>, capability: u32) -> Self {
        let dynamic_max = SHARED_BYTES.saturating_sub(kernel.shared_bytes);
        Function { kernel, dynamic_max, shared_max: shared_bytes_max(capability), carveout: -1 }
    }

    fn threads_max(&self) -> u32 {
        self.kernel.threads_max.map_or(1024, |sizes| sizes.iter().product::<u32>().min(1024))
    }

    /// An attribute by its number in `CUfunction_attribute`. Registers are not those of a compiled kernel.
    fn attribute(&self, number: c_int, capability: u32) -> Done<c_int> {
        Ok(match number {
            0 => self.threads_max() as c_int,
            1 => self.kernel.shared_bytes as c_int,
            2 | 7 => 0,
            3 => self.kernel.local_bytes as c_int,
            4 => (self.kernel.counts.narrow + 2 * self.kernel.counts.wide).min(255) as c_int,
            5 | 6 => capability as c_int,
            8 => self.dynamic_max as c_int,
            9 => self.carveout,
            _ => return Err(INVALID_VALUE),
        })
    }

    fn set_attribute(&mut self, number: c_int, value: c_int) -> Done {
        match number {
            8 if value >= 0 && value as u64 + self.kernel.shared_bytes <= self.shared_max => {
                self.dynamic_max = value as u64;
                Ok(())
            }
            9 if (-1..=100).contains(&value) => {
                self.carveout = value;
                Ok(())
            }
            _ => Err(INVALID_VALUE),
        }
    }

    /// Whether the device has room for a grid like this.
    fn fits(&self, grid: [u32; 3], block: [u32; 3], dynamic_shared: u64) -> bool {
        let within = |sizes: [u32; 3], most: [u32; 3]| {
            sizes.iter().zip(most).all(|(&size, most)| (1..=most).contains(&size))
        };
        let exact = !self.kernel.threads_exact || self.kernel.threads_max == Some(block);
        within(grid, [i32::MAX as u32, 65535, 65535])
            && within(block, [1024, 1024, 64])
            && block.iter().product::<u32>() <= self.threads_max()
            && exact
            && dynamic_shared <= self.dynamic_max
    }

    fn blocks_at_once(&self, threads: c_int, dynamic_shared: usize) -> Done<c_int> {
        let threads = u64::try_from(threads).ok().filter(|&threads| threads > 0).ok_or(INVALID_VALUE)?;
        if threads > self.threads_max().into() || dynamic_shared as u64 > self.shared_max {
            return Ok(0);
        }
        let shared = self.kernel.shared_bytes + dynamic_shared as u64 + 1024;
        Ok((2048 / threads.next_multiple_of(32)).min(32).min((self.shared_max + 1024) / shared) as c_int)
    }
}

impl Driver {
    fn function(&mut self, handle: Handle) -> Done<&mut Function> {
        self.functions.get_mut(&handle).ok_or(INVALID_HANDLE)
    }

    fn launch(&mut self, stream: Handle, launch: KernelLaunch) -> Done {
        self.current()?;
        let node = Node::Kernel(Arc::new(launch));
        let stream = self.stream(stream)?;
        if stream.is_capturing() {
            stream.record(node);
            return Ok(());
        }
        self.execute(&node)
    }

    /// Runs a kernel. What it does wrong is a status of the calls behind this one.
    pub(super) fn run(&mut self, launch: &KernelLaunch) -> Done {
        let index = self.current()?;
        let device = self.devices[index].as_ref().ok_or(super::INVALID_CONTEXT)?;
        if self.settings.checks.blocks && device.arena.races().is_none() {
            eprintln!("ptx-sim: no address space for the check of blocks: less PTX_SIM_BYTES needs less");
            return Err(super::OUT_OF_MEMORY);
        }
        let warps = launch.block.iter().product::<u32>().div_ceil(32) as usize;
        self.launches = self.launches.wrapping_add(1);
        let run = Launch {
            number: self.launches,
            kernel: &launch.kernel,
            grid: launch.grid,
            block: launch.block,
            dynamic_shared: launch.dynamic_shared,
            parameters: &launch.parameters,
            arena: &device.arena,
            settings: &self.settings,
            warp_order: self.settings.order.permutation(warps),
        };
        let (counted, done) = run.run();
        self.counters.add(&launch.kernel, &counted);
        if let Err(fault) = done {
            eprintln!("ptx-sim: {fault}");
            self.sticky = Some(Status(fault.kind.status()));
            self.fault.get_or_insert(*fault);
        }
        Ok(())
    }
}

/// The parameters, one behind the other as the kernel has them.
///
/// # Safety
///
/// The pointer is null or that of as many pointers as the kernel has parameters, each of as many bytes.
unsafe fn parameters(kernel: &Kernel, values: *const *const u8) -> Done<Vec<u8>> {
    let mut parameters = vec![0; kernel.parameter_bytes as usize];
    if values.is_null() && !kernel.parameters.is_empty() {
        return Err(INVALID_VALUE);
    }
    for (index, &(offset, bytes)) in kernel.parameters.iter().enumerate() {
        // SAFETY: as the caller promises.
        let value = unsafe { std::slice::from_raw_parts(*values.add(index), bytes as usize) };
        parameters[offset as usize..][..bytes as usize].copy_from_slice(value);
    }
    Ok(parameters)
}

api! {
    Device cuLaunchKernel(
        driver, function: Handle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, dynamic_shared: c_uint, stream: Handle, values: *const *const u8, extra: *const *mut c_void,
    ) {
        let function = driver.function(function)?;
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        if !extra.is_null() || !function.fits(grid, block, dynamic_shared.into()) {
            let name = &function.kernel.name;
            eprintln!("ptx-sim: {name}: a grid of {grid:?}, blocks of {block:?} and {dynamic_shared} bytes are not possible");
            return Err(INVALID_VALUE);
        }
        let kernel = function.kernel.clone();
        let parameters = parameters(&kernel, values)?;
        driver.launch(stream, KernelLaunch { kernel, grid, block, dynamic_shared: dynamic_shared.into(), parameters })
    }

    Device cuFuncGetAttribute(driver, value: *mut c_int, number: c_int, function: Handle) {
        let capability = driver.settings.capability;
        let attribute = driver.function(function)?.attribute(number, capability)?;
        put(value, attribute)
    }

    Device cuFuncSetAttribute(driver, function: Handle, number: c_int, value: c_int) {
        driver.function(function)?.set_attribute(number, value)
    }

    Device cuFuncSetCacheConfig(driver, function: Handle, _config: c_int) {
        driver.function(function).map(drop)
    }

    Device cuOccupancyMaxActiveBlocksPerMultiprocessor(driver, blocks: *mut c_int, function: Handle, threads: c_int, dynamic_shared: usize) {
        let at_once = driver.function(function)?.blocks_at_once(threads, dynamic_shared)?;
        put(blocks, at_once)
    }

    Device cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        driver, blocks: *mut c_int, function: Handle, threads: c_int, dynamic_shared: usize, _flags: c_uint,
    ) {
        let at_once = driver.function(function)?.blocks_at_once(threads, dynamic_shared)?;
        put(blocks, at_once)
    }
}

refused! {
    cuLaunchKernelEx cuLaunchCooperativeKernel cuOccupancyAvailableDynamicSMemPerBlock cuOccupancyMaxActiveClusters
    cuOccupancyMaxPotentialBlockSize cuOccupancyMaxPotentialBlockSizeWithFlags cuOccupancyMaxPotentialClusterSize
}
