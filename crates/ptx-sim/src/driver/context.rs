//! Contexts: what they set is accepted where nothing here depends on it.

use std::ffi::{c_char, c_int, c_uint, c_void};

use libloading::os::unix::{Library, RTLD_NOW};

use super::{INVALID_VALUE, api, put};

/// Finds a function of this library by its name.
fn function(name: &std::ffi::CStr) -> Option<*mut c_void> {
    // Only what is loaded already: this library, by the name that it carries.
    const RTLD_NOLOAD: c_int = 4;
    // SAFETY: nothing is loaded, so nothing is run.
    let library = unsafe { Library::open(Some("libcuda.so"), RTLD_NOW | RTLD_NOLOAD) }.ok()?;
    let names = ["", "_v2", "_v3", "_v4"].map(|suffix| [name.to_bytes(), suffix.as_bytes(), b"\0"].concat());
    // SAFETY: the address is only handed on.
    let address =
        |name: &Vec<u8>| unsafe { library.get::<*mut c_void>(name.as_slice()).ok()?.as_raw_ptr().into() };
    names.iter().find_map(address)
}

api! {
    Device cuCtxSynchronize(driver) {
        driver.current()?;
        driver.refuse_in_capture()
    }

    Device cuCtxSetFlags(driver, _flags: c_uint) {
        driver.current().map(drop)
    }

    Device cuCtxGetCacheConfig(_driver, config: *mut c_int) {
        put(config, 0)
    }

    Device cuCtxSetCacheConfig(_driver, _config: c_int) {
        Ok(())
    }

    Device cuCtxGetStreamPriorityRange(_driver, least: *mut c_int, greatest: *mut c_int) {
        put(least, 0)?;
        put(greatest, -5)
    }

    Device cuCtxGetLimit(_driver, bytes: *mut usize, limit: c_int) {
        match limit {
            // Stack of a thread, and the others that there are.
            0 => put(bytes, 1024),
            1..=6 => put(bytes, 0),
            _ => Err(INVALID_VALUE),
        }
    }

    Device cuCtxSetLimit(_driver, limit: c_int, _bytes: usize) {
        if (0..=6).contains(&limit) { Ok(()) } else { Err(INVALID_VALUE) }
    }

    Nothing cuGetProcAddress_v2(_driver, name: *const c_char, address: *mut *mut c_void, _version: c_int, _flags: u64, found: *mut c_int) {
        if name.is_null() {
            return Err(INVALID_VALUE);
        }
        let symbol = function(std::ffi::CStr::from_ptr(name));
        if !found.is_null() {
            // Success, or a symbol that is not there.
            found.write(if symbol.is_some() { 0 } else { 1 });
        }
        put(address, symbol.unwrap_or(std::ptr::null_mut()))?;
        symbol.map(drop).ok_or(super::NOT_FOUND)
    }
}
