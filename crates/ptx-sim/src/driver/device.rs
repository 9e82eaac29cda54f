//! Devices and their attributes.

use std::{
    collections::HashMap,
    ffi::{c_char, c_int, c_uint, c_void},
};

use super::{
    CONTEXT_BASE, CURRENT, Device, Done, Driver, INVALID_DEVICE, INVALID_VALUE, NO_DEVICE, NOT_FOUND,
    OUT_OF_MEMORY, api, put, refused,
};
use crate::{arena::Arena, settings::Settings};

impl Driver {
    fn ordinal(&self, device: c_int) -> Done<usize> {
        usize::try_from(device).ok().filter(|_| device < self.settings.devices).ok_or(INVALID_DEVICE)
    }

    /// The device's memory comes with its first context.
    fn retain(&mut self, device: c_int) -> Done<usize> {
        let index = self.ordinal(device)?;
        let bytes = self.settings.memory_bytes;
        if self.devices.len() <= index {
            self.devices.resize_with(index + 1, || None);
        }
        let slot = &mut self.devices[index];
        if slot.is_none() {
            let arena = Arena::new(bytes).ok_or(OUT_OF_MEMORY)?;
            *slot = Some(Device { arena, retained: 0, attributes: HashMap::new() });
        }
        if let Some(device) = slot {
            device.retained += 1;
        }
        Ok(CONTEXT_BASE + index)
    }
}

/// Shared memory that a block may have if it asks for it, by compute capability.
pub(super) fn shared_bytes_max(capability: u32) -> u64 {
    let kib = match capability {
        90..110 => 227,
        80 | 87 => 163,
        70..80 => 64,
        _ => 99,
    };
    kib << 10
}

/// An attribute by its number in `CUdevice_attribute`. Sizes and clocks are those of an H100, since nothing here depends on them.
fn attribute(settings: &Settings, number: c_int) -> Done<c_int> {
    let shared = shared_bytes_max(settings.capability) as c_int;
    Ok(match number {
        // Threads of a block, its dimensions, and those of a grid.
        1..=3 => 1024,
        4 => 64,
        5 => c_int::MAX,
        6 | 7 => 65535,
        // Shared memory of a block, of one that asks, of a multiprocessor, and what each block costs of it.
        8 => 48 << 10,
        97 => shared,
        81 => shared + 1024,
        111 => 1024,
        // Constant memory, lanes of a warp, registers of a block and of a multiprocessor.
        9 => 64 << 10,
        10 => 32,
        12 | 82 => 64 << 10,
        // Clock in kHz, multiprocessors, the memory's clock and the width of its bus, second cache.
        13 => 1_980_000,
        16 => 132,
        36 => 2_619_000,
        37 => 5120,
        38 => 50 << 20,
        // Threads and blocks of a multiprocessor.
        39 => 2048,
        106 => 32,
        75 => (settings.capability / 10) as c_int,
        76 => (settings.capability % 10) as c_int,
        // Host memory is mapped, kernels are concurrent, addresses unified, pools there.
        19 | 31 | 41 | 115 => 1,
        40 => 3,
        11..=150 => 0,
        _ => return Err(INVALID_VALUE),
    })
}

api! {
    Nothing cuInit(driver, flags: c_uint) {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        if driver.settings.devices == 0 {
            return Err(NO_DEVICE);
        }
        driver.initialised = true;
        Ok(())
    }

    Nothing cuDriverGetVersion(driver, version: *mut c_int) {
        put(version, driver.settings.driver_version)
    }

    Device cuDeviceGet(driver, device: *mut c_int, ordinal: c_int) {
        put(device, driver.ordinal(ordinal)? as c_int)
    }

    Device cuDeviceGetCount(driver, count: *mut c_int) {
        put(count, driver.settings.devices)
    }

    Device cuDeviceGetName(driver, name: *mut c_char, length: c_int, device: c_int) {
        driver.ordinal(device)?;
        let text = b"PTX interpreter\0";
        if name.is_null() || (length as usize) < text.len() {
            return Err(INVALID_VALUE);
        }
        std::ptr::copy_nonoverlapping(text.as_ptr(), name.cast(), text.len());
        Ok(())
    }

    Device cuDeviceGetUuid_v2(driver, uuid: *mut [u8; 16], device: c_int) {
        let mut bytes = *b"ptx-interpreter\0";
        bytes[15] = driver.ordinal(device)? as u8;
        put(uuid, bytes)
    }

    Device cuDeviceGetUuid(driver, uuid: *mut [u8; 16], device: c_int) {
        let mut bytes = *b"ptx-interpreter\0";
        bytes[15] = driver.ordinal(device)? as u8;
        put(uuid, bytes)
    }

    Device cuDeviceTotalMem_v2(driver, bytes: *mut usize, device: c_int) {
        driver.ordinal(device)?;
        put(bytes, driver.settings.memory_bytes as usize)
    }

    Device cuDeviceGetAttribute(driver, value: *mut c_int, number: c_int, device: c_int) {
        driver.ordinal(device)?;
        put(value, attribute(&driver.settings, number)?)
    }

    Device cuDeviceCanAccessPeer(driver, can: *mut c_int, device: c_int, peer: c_int) {
        driver.ordinal(device)?;
        driver.ordinal(peer)?;
        put(can, 0)
    }

    Device cuDevicePrimaryCtxRetain(driver, context: *mut usize, device: c_int) {
        let retained = driver.retain(device)?;
        put(context, retained)
    }

    // Devices keep their memory: a later context of the process finds what leaked.
    Nothing cuDevicePrimaryCtxRelease_v2(driver, device: c_int) {
        let index = driver.ordinal(device)?;
        match driver.devices.get_mut(index).and_then(Option::as_mut) {
            Some(device) if device.retained > 0 => {
                device.retained -= 1;
                Ok(())
            }
            _ => Err(super::INVALID_CONTEXT),
        }
    }

    Device cuDevicePrimaryCtxGetState(driver, device: c_int, flags: *mut c_uint, active: *mut c_int) {
        let index = driver.ordinal(device)?;
        put(flags, 0)?;
        put(active, driver.devices.get(index).and_then(Option::as_ref).is_some_and(|device| device.retained > 0).into())
    }

    Device cuDevicePrimaryCtxSetFlags_v2(driver, device: c_int, _flags: c_uint) {
        driver.ordinal(device).map(drop)
    }

    Device cuDeviceGetDefaultMemPool(driver, pool: *mut usize, device: c_int) {
        put(pool, CONTEXT_BASE + driver.ordinal(device)?)
    }

    Device cuDeviceGetMemPool(driver, pool: *mut usize, device: c_int) {
        put(pool, CONTEXT_BASE + driver.ordinal(device)?)
    }

    // NVRTC asks for tables, and goes on without.
    Nothing cuGetExportTable(_driver, table: *mut *const c_void, _id: *const [u8; 16]) {
        put(table, std::ptr::null())?;
        Err(NOT_FOUND)
    }

    Device cuCtxGetDevice(driver, device: *mut c_int) {
        put(device, driver.current()? as c_int)
    }

    Nothing cuCtxGetCurrent(_driver, context: *mut usize) {
        put(context, CURRENT.get())
    }

    Device cuCtxSetCurrent(driver, context: usize) {
        if context != 0 && driver.devices.get(context.wrapping_sub(CONTEXT_BASE)).is_none_or(Option::is_none) {
            return Err(super::INVALID_CONTEXT);
        }
        CURRENT.set(context);
        Ok(())
    }
}

refused! {
    cuCtxCreate_v2 cuCtxCreate_v3 cuCtxCreate_v4 cuCtxDestroy_v2 cuDeviceSetMemPool cuDevicePrimaryCtxReset_v2
    cuImportExternalMemory cuDestroyExternalMemory cuExternalMemoryGetMappedBuffer cuProfilerStart cuProfilerStop
}
