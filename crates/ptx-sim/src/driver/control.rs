//! What tests ask of the library beyond the driver API: [`Sim`](crate::Sim) is the other side.

use std::{
    env,
    ffi::{CStr, c_char},
    fs,
};

use super::{Done, Driver, INVALID_VALUE, Status, driver};
use crate::settings::Settings;

/// Changes the state; the status is 0, or that of an error.
fn change(work: impl FnOnce(&mut Driver) -> Done) -> i32 {
    match driver().as_mut().map(work) {
        Some(Ok(())) => 0,
        Some(Err(Status(status))) => status,
        None => super::UNKNOWN.0,
    }
}

/// # Safety
///
/// The pointer is that of a text that ends with 0.
unsafe fn text<'a>(pointer: *const c_char) -> Done<&'a str> {
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(pointer) }.to_str().map_err(|_| INVALID_VALUE)
}

/// Copies as much of a text as there is room for, and returns its length.
///
/// # Safety
///
/// There are `room` bytes behind the pointer.
unsafe fn copy(text: &str, to: *mut u8, room: usize) -> usize {
    // SAFETY: as the caller promises.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), to, text.len().min(room)) };
    text.len()
}

/// Sets what a line of `name=value` says, for the names of [`Settings::set`].
///
/// # Safety
///
/// The pointer is that of a text that ends with 0.
#[unsafe(no_mangle)]
unsafe extern "C" fn ptx_sim_set(line: *const c_char) -> i32 {
    // SAFETY: as the caller promises.
    let line = unsafe { text(line) };
    change(|driver| {
        let (name, value) = line?.split_once('=').ok_or(INVALID_VALUE)?;
        let mut settings = driver.settings.clone();
        settings.set(name, value).map_err(|_| INVALID_VALUE)?;
        driver.adopt(settings)
    })
}

/// Plans statuses of calls instead of those before; counts of calls begin anew.
///
/// # Safety
///
/// The pointer is that of a text that ends with 0.
#[unsafe(no_mangle)]
unsafe extern "C" fn ptx_sim_faults(plan: *const c_char) -> i32 {
    // SAFETY: as the caller promises.
    let plan = unsafe { text(plan) };
    change(|driver| {
        driver.plan = plan?.parse().map_err(|_| INVALID_VALUE)?;
        Ok(())
    })
}

/// Forgets the error of the device, the fault and the counters, and takes the settings of the environment again. Memory stays.
#[unsafe(no_mangle)]
extern "C" fn ptx_sim_reset() -> i32 {
    change(|driver| {
        driver.plan = Default::default();
        (driver.sticky, driver.fault, driver.refused) = (None, None, None);
        let counters = std::mem::take(&mut driver.counters);
        if env::var_os("PTX_SIM_REPORT").is_some() {
            driver.counted_before.absorb(counters);
        }
        for stream in driver.streams.values_mut() {
            *stream = Default::default();
        }
        driver.adopt(Settings::from_environment())
    })
}

/// The first fault of a kernel as text; its length, 0 if there was none.
///
/// # Safety
///
/// There are `room` bytes behind the pointer.
#[unsafe(no_mangle)]
unsafe extern "C" fn ptx_sim_fault(to: *mut u8, room: usize) -> usize {
    let fault = driver().as_ref().and_then(|driver| driver.fault.as_ref().map(ToString::to_string));
    // SAFETY: as the caller promises.
    unsafe { copy(&fault.unwrap_or_default(), to, room) }
}

/// Why a module was refused last, as text; its length, 0 if none was.
///
/// # Safety
///
/// There are `room` bytes behind the pointer.
#[unsafe(no_mangle)]
unsafe extern "C" fn ptx_sim_refused(to: *mut u8, room: usize) -> usize {
    let refused = driver().as_ref().and_then(|driver| driver.refused.clone());
    // SAFETY: as the caller promises.
    unsafe { copy(&refused.unwrap_or_default(), to, room) }
}

/// The counters as JSON; its length.
///
/// # Safety
///
/// There are `room` bytes behind the pointer.
#[unsafe(no_mangle)]
unsafe extern "C" fn ptx_sim_report(to: *mut u8, room: usize) -> usize {
    let report = driver().as_ref().map(|driver| driver.counters.json().to_string());
    // SAFETY: as the caller promises.
    unsafe { copy(&report.unwrap_or_default(), to, room) }
}

/// The name of the check that found the first fault of a kernel; its length, 0 if there was none.
///
/// # Safety
///
/// There are `room` bytes behind the pointer.
#[unsafe(no_mangle)]
unsafe extern "C" fn ptx_sim_fault_name(to: *mut u8, room: usize) -> usize {
    let name = driver().as_ref().and_then(|driver| driver.fault.as_ref().map(|fault| fault.kind.name()));
    // SAFETY: as the caller promises.
    unsafe { copy(name.unwrap_or_default(), to, room) }
}

/// The lines that were executed of each kernel since the last reset, as JSON; its length.
///
/// # Safety
///
/// There are `room` bytes behind the pointer.
#[unsafe(no_mangle)]
unsafe extern "C" fn ptx_sim_lines(to: *mut u8, room: usize) -> usize {
    let lines = driver().as_ref().map(|driver| driver.counters.lines().to_string());
    // SAFETY: as the caller promises.
    unsafe { copy(&lines.unwrap_or_default(), to, room) }
}

/// How often a function was called since its plan.
///
/// # Safety
///
/// The pointer is that of a text that ends with 0.
#[unsafe(no_mangle)]
unsafe extern "C" fn ptx_sim_calls(function: *const c_char) -> u64 {
    // SAFETY: as the caller promises.
    let function = unsafe { text(function) }.unwrap_or_default();
    driver().as_ref().map_or(0, |driver| driver.plan.calls(function))
}

/// Allocations of device memory that are not freed.
#[unsafe(no_mangle)]
extern "C" fn ptx_sim_live() -> u64 {
    let driver = driver();
    let devices = driver.iter().flat_map(|driver| driver.devices.iter().flatten());
    devices.map(|device| device.arena.live() as u64).sum()
}

/// Writes the counters where `PTX_SIM_REPORT` says, when the process ends.
pub(super) fn report_at_exit() {
    unsafe extern "C" {
        fn atexit(function: extern "C" fn()) -> i32;
    }
    extern "C" fn report() {
        let Some(path) = env::var_os("PTX_SIM_REPORT") else { return };
        let report = driver().as_mut().map(|driver| {
            let counters = std::mem::take(&mut driver.counters);
            driver.counted_before.absorb(counters);
            driver.counted_before.json()
        });
        if let Some(report) = report
            && let Err(error) = fs::write(&path, format!("{report:#}\n"))
        {
            eprintln!("ptx-sim: {}: {error}", path.display());
        }
    }
    if env::var_os("PTX_SIM_REPORT").is_some() {
        // SAFETY: the function is there as long as the library, which is never unloaded.
        unsafe { atexit(report) };
    }
}
