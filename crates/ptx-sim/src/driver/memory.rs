//! Memory of devices and of the host, copies and fills.

use std::{
    alloc::Layout,
    ffi::{c_int, c_uchar, c_uint, c_ushort, c_void},
};

use super::{
    CONTEXT_BASE, Done, Driver, Handle, INVALID_VALUE, OUT_OF_MEMORY, STREAM_CAPTURE_UNSUPPORTED, api,
    graph::Node, put, refused,
};

impl Driver {
    fn allocate(&mut self, bytes: usize) -> Done<u64> {
        match bytes {
            0 => Err(INVALID_VALUE),
            _ => {
                let fits = bytes as u64 <= self.memory()?.1;
                let allocated = if fits { self.arena()?.allocate(bytes as u64, false) } else { None };
                allocated.ok_or(OUT_OF_MEMORY)
            }
        }
    }

    /// The device's memory, and how much of it is free. It may be set to less than there was when the device was opened.
    fn memory(&mut self) -> Done<(u64, u64)> {
        let limit = self.settings.memory_bytes;
        let arena = self.arena()?;
        let limit = limit.min(arena.limit());
        Ok((limit, limit.saturating_sub(arena.used())))
    }

    /// An allocation in a graph is not played.
    fn allocate_on(&mut self, stream: Handle, bytes: usize) -> Done<u64> {
        self.current()?;
        match self.stream(stream)?.is_capturing() {
            true => Err(STREAM_CAPTURE_UNSUPPORTED),
            false => self.allocate(bytes),
        }
    }

    fn free(&mut self, address: u64) -> Done {
        match self.arena()?.free(address) {
            true => Ok(()),
            false => Err(INVALID_VALUE),
        }
    }

    /// Does a copy or a fill, or captures it.
    pub(super) fn transfer(&mut self, stream: Option<Handle>, node: Node) -> Done {
        self.current()?;
        if let Some(stream) = stream {
            let stream = self.stream(stream)?;
            if stream.is_capturing() {
                stream.record(node);
                return Ok(());
            }
        }
        self.execute(&node)
    }

    pub(super) fn in_bounds(&mut self, address: u64, bytes: usize) -> Done {
        match bytes == 0 || self.arena()?.find(address, bytes as u64).is_some() {
            true => Ok(()),
            false => {
                let explained = self.arena()?.explain(address, bytes.min(u32::MAX as usize) as u32);
                eprintln!("ptx-sim: a copy or a fill: {explained}");
                Err(INVALID_VALUE)
            }
        }
    }
}

fn host_layout(bytes: usize) -> Done<Layout> {
    Layout::from_size_align(bytes.max(1), 4096).map_err(|_| INVALID_VALUE)
}

fn pattern_16(value: u16) -> [u8; 4] {
    let [low, high] = value.to_le_bytes();
    [low, high, low, high]
}

api! {
    NoCapture cuMemAlloc_v2(driver, address: *mut u64, bytes: usize) {
        let allocated = driver.allocate(bytes)?;
        put(address, allocated)
    }

    NoCapture cuMemFree_v2(driver, address: u64) {
        if address == 0 { Ok(()) } else { driver.free(address) }
    }

    Device cuMemAllocAsync(driver, address: *mut u64, bytes: usize, stream: Handle) {
        let allocated = driver.allocate_on(stream, bytes)?;
        put(address, allocated)
    }

    Device cuMemAllocFromPoolAsync(driver, address: *mut u64, bytes: usize, _pool: Handle, stream: Handle) {
        let allocated = driver.allocate_on(stream, bytes)?;
        put(address, allocated)
    }

    Device cuMemFreeAsync(driver, address: u64, stream: Handle) {
        match driver.stream(stream)?.is_capturing() {
            true => Err(STREAM_CAPTURE_UNSUPPORTED),
            false => driver.free(address),
        }
    }

    Device cuMemGetInfo_v2(driver, free: *mut usize, total: *mut usize) {
        let (limit, left) = driver.memory()?;
        put(free, left as usize)?;
        put(total, limit as usize)
    }

    Device cuMemGetAddressRange_v2(driver, base: *mut u64, bytes: *mut usize, address: u64) {
        let found = *driver.arena()?.find(address, 1).ok_or(super::NOT_FOUND)?;
        put(base, found.start)?;
        put(bytes, found.bytes as usize)
    }

    Device cuMemHostAlloc(driver, address: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        let pointer = std::alloc::alloc(host_layout(bytes)?);
        if pointer.is_null() {
            return Err(OUT_OF_MEMORY);
        }
        driver.pinned.insert(pointer as usize, bytes);
        put(address, pointer.cast())
    }

    Device cuMemAllocHost_v2(driver, address: *mut *mut c_void, bytes: usize) {
        let pointer = std::alloc::alloc(host_layout(bytes)?);
        if pointer.is_null() {
            return Err(OUT_OF_MEMORY);
        }
        driver.pinned.insert(pointer as usize, bytes);
        put(address, pointer.cast())
    }

    Nothing cuMemFreeHost(driver, address: *mut c_void) {
        let bytes = driver.pinned.remove(&(address as usize)).ok_or(INVALID_VALUE)?;
        std::alloc::dealloc(address.cast(), host_layout(bytes)?);
        Ok(())
    }

    NoCapture cuMemcpyHtoD_v2(driver, to: u64, from: *const u8, bytes: usize) {
        driver.transfer(None, Node::Upload { to, from, bytes })
    }

    NoCapture cuMemcpyDtoH_v2(driver, to: *mut u8, from: u64, bytes: usize) {
        driver.transfer(None, Node::Download { to, from, bytes })
    }

    NoCapture cuMemcpyDtoD_v2(driver, to: u64, from: u64, bytes: usize) {
        driver.transfer(None, Node::Copy { to, from, bytes })
    }

    Device cuMemcpyHtoDAsync_v2(driver, to: u64, from: *const u8, bytes: usize, stream: Handle) {
        driver.transfer(Some(stream), Node::Upload { to, from, bytes })
    }

    Device cuMemcpyDtoHAsync_v2(driver, to: *mut u8, from: u64, bytes: usize, stream: Handle) {
        driver.transfer(Some(stream), Node::Download { to, from, bytes })
    }

    Device cuMemcpyDtoDAsync_v2(driver, to: u64, from: u64, bytes: usize, stream: Handle) {
        driver.transfer(Some(stream), Node::Copy { to, from, bytes })
    }

    NoCapture cuMemsetD8_v2(driver, to: u64, value: c_uchar, count: usize) {
        driver.transfer(None, Node::Fill { to, pattern: [value; 4], bytes: count })
    }

    Device cuMemsetD8Async(driver, to: u64, value: c_uchar, count: usize, stream: Handle) {
        driver.transfer(Some(stream), Node::Fill { to, pattern: [value; 4], bytes: count })
    }

    Device cuMemsetD16Async(driver, to: u64, value: c_ushort, count: usize, stream: Handle) {
        driver.transfer(Some(stream), Node::Fill { to, pattern: pattern_16(value), bytes: 2 * count })
    }

    Device cuMemsetD32Async(driver, to: u64, value: c_uint, count: usize, stream: Handle) {
        driver.transfer(Some(stream), Node::Fill { to, pattern: value.to_le_bytes(), bytes: 4 * count })
    }

    // Pools are what devices have: there is no memory but theirs.
    Device cuMemPoolSetAttribute(driver, pool: Handle, number: c_int, value: *const u64) {
        if value.is_null() {
            return Err(INVALID_VALUE);
        }
        // The first three are of 32 bits.
        let value = if number <= 3 { u64::from(value.cast::<u32>().read()) } else { value.read() };
        let device = driver.devices.get_mut(pool.wrapping_sub(CONTEXT_BASE)).and_then(Option::as_mut);
        match (device, number) {
            (Some(device), 1..=8) => {
                device.attributes.insert(number, value);
                Ok(())
            }
            _ => Err(INVALID_VALUE),
        }
    }

    Device cuMemPoolGetAttribute(driver, pool: Handle, number: c_int, value: *mut u64) {
        let device = driver.devices.get(pool.wrapping_sub(CONTEXT_BASE)).and_then(Option::as_ref).ok_or(INVALID_VALUE)?;
        let kept = device.attributes.get(&number).copied();
        match number {
            1..=3 => put(value.cast::<u32>(), kept.unwrap_or(1) as u32),
            4 => put(value, kept.unwrap_or(0)),
            5..=8 => put(value, device.arena.used()),
            _ => Err(INVALID_VALUE),
        }
    }

    Device cuMemPoolTrimTo(driver, pool: Handle, _bytes: usize) {
        match driver.devices.get(pool.wrapping_sub(CONTEXT_BASE)) {
            Some(Some(_)) => Ok(()),
            _ => Err(INVALID_VALUE),
        }
    }
}

refused! {
    cuMemAllocManaged cuMemAdvise_v2 cuMemPrefetchAsync_v2 cuMemcpyPeerAsync cuMemPoolCreate cuMemPoolDestroy cuStreamAttachMemAsync
    cuMemHostRegister_v2 cuMemHostUnregister cuMemHostGetDevicePointer_v2
}
