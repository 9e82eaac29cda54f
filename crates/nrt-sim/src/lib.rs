//! A stand-in for libnrt, the Neuron runtime, over a PJRT plugin for CPUs: for tests of what uses the runtime.
//!
//! Its "NEFF" is the public header of 1,024 bytes with an `HloModuleProto` behind it, which the stand-in for neuronx-cc in this
//! crate writes. Nothing here says anything of the speed, the limits or the arithmetic of a Neuron device.
//!
//! It is stricter than the real library where that would silently go on:
//!
//! - Objects are looked up by numbers, so that one that was freed, or freed twice, is `NRT_INVALID_HANDLE`, and counted
//!   ([`nrt_sim_misuses`]).
//! - Memory is filled with 0xFF, which is NaN in every type of floats, when it is allocated, and when an execution fails.
//! - An execution must bind every tensor of the program and no other, each of its size and on its core, and an output that
//!   shares an input's memory to the same tensor.
//! - An index of a gather or scatter that is out of range is `NRT_EXEC_OOB`, as on a device; XLA on CPUs would clamp it.
//! - After `NRT_EXEC_UNIT_UNRECOVERABLE` a core does nothing more.
//! - A program of several ranks runs when all of them execute it, as replicas.
//!
//! Environment variables, read at the first call:
//!
//! | variable | meaning |
//! | --- | --- |
//! | `NRT_SIM_PLUGIN` | path of the PJRT plugin; one of those that samebits-pjrt is tested with, if unset |
//! | `NRT_SIM_FAULTS` | statuses to return: see [`nrt_sim_faults`] |
//! | `NRT_SIM_PATIENCE_MS` | how long a rank waits for the others (5000); then it is `NRT_TIMEOUT` |
//! | `NRT_SIM_QUEUE_DEPTH` | executions that a core takes at once (1); one more is `NRT_QUEUE_FULL` |
//! | `NRT_SIM_BYTES` | memory of a core (16 GiB); more is `NRT_RESOURCE` |
//! | `NEURON_RT_VISIBLE_CORES`, `NEURON_RT_NUM_CORES` | as the runtime has them; 32 cores if unset |
#![allow(
    clippy::missing_safety_doc,
    reason = "the contract of each call is that of AWS's documentation of libnrt"
)]

pub mod compiler;
mod execute;
mod faults;
mod program;
mod ranks;
mod state;
mod tensors;

use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
};

pub use execute::nrt_execute;
use samebits_neuron::abi::{self, MemoryStats, Status, Version};
use samebits_tensor::Rank;
use state::State;
pub use tensors::*;

type Done<T = ()> = Result<T, Status>;

static STATE: Mutex<Option<State>> = Mutex::new(None);

/// Does something to the state of the library, and returns the status as the C API has it.
fn call(function: &'static str, work: impl FnOnce(&mut State) -> Done) -> i32 {
    status(|| {
        with(|state| {
            state.enter(function)?;
            work(state)
        })
    })
}

fn with<T>(work: impl FnOnce(&mut State) -> T) -> T {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    work(state.get_or_insert_with(State::from_environment))
}

/// A panic must not reach the caller, who may be C.
fn status(work: impl FnOnce() -> Done) -> i32 {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => 0,
        Ok(Err(status)) => status.raw(),
        Err(_) => Status::Failure.raw(),
    }
}

/// Text of a caller.
///
/// # Safety
/// `text` must be null or end with a zero.
unsafe fn text(text: *const c_char) -> Done<String> {
    if text.is_null() {
        return Err(Status::Invalid);
    }
    // SAFETY: by the contract above.
    Ok(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// Where a call returns what it has made.
///
/// # Safety
/// `target` must be null or a place for a `T`.
unsafe fn put<T>(target: *mut T, value: T) -> Done {
    if target.is_null() {
        return Err(Status::Invalid);
    }
    // SAFETY: by the contract above.
    unsafe { target.write(value) };
    Ok(())
}

/// Starts the library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_init(framework: i32, version: *const c_char, fal: *const c_char) -> i32 {
    call("nrt_init", |state| {
        // SAFETY: texts of the caller.
        unsafe { (text(version)?, text(fal)?) };
        if framework != abi::FRAMEWORK_NONE {
            return Err(state.misuse("nrt_init: a framework", Status::Invalid));
        }
        state.start()
    })
}

/// Ends the library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_close() {
    call("nrt_close", |state| {
        state.close();
        Ok(())
    });
}

/// The version of the runtime that is stood in for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_get_version(version: *mut Version, size: usize) -> i32 {
    call("nrt_get_version", |state| {
        if size != size_of::<Version>() {
            return Err(state.misuse("nrt_get_version: another size", Status::Invalid));
        }
        let (detail, hash) = ([0; 128], [0; 64]);
        let told = Version { major: 2, minor: 31, patch: 0, maintenance: 0, detail, hash };
        // SAFETY: a structure of the caller, of that size.
        unsafe { put(version, told) }
    })
}

/// Cores of the machine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_get_total_vnc_count(count: *mut u32) -> i32 {
    // SAFETY: a number of the caller.
    call("nrt_get_total_vnc_count", |_| unsafe { put(count, state::CORES) })
}

/// Cores that this process sees.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_get_visible_vnc_count(count: *mut u32) -> i32 {
    // SAFETY: a number of the caller.
    call("nrt_get_visible_vnc_count", |state| unsafe { put(count, state.cores) })
}

/// How full a core's memory is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_get_vnc_memory_stats(
    core: u32,
    stats: *mut MemoryStats,
    size: usize,
    written: *mut usize,
) -> i32 {
    call("nrt_get_vnc_memory_stats", |state| {
        state.check_core(core)?;
        if size < size_of::<MemoryStats>() {
            return Err(state.misuse("nrt_get_vnc_memory_stats: too small a structure", Status::Invalid));
        }
        let told = MemoryStats { bytes_used: state.used(core), bytes_limit: state.bytes_limit };
        // SAFETY: a structure and a number of the caller.
        unsafe { put(stats, told).and(put(written, size_of::<MemoryStats>())) }
    })
}

/// Compiles and keeps a program.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_load(
    neff: *const c_void,
    size: usize,
    core: i32,
    core_count: i32,
    model: *mut *mut abi::Model,
) -> i32 {
    // SAFETY: by the contract of the caller.
    call("nrt_load", |state| unsafe { load(state, neff, size, core, core_count, Rank::ALONE, model) })
}

/// Compiles and keeps a program for one of several ranks, which execute it together.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_load_collectives(
    neff: *const c_void,
    size: usize,
    core: i32,
    core_count: i32,
    rank: u32,
    rank_count: u32,
    model: *mut *mut abi::Model,
) -> i32 {
    let rank = Rank { index: rank as usize, count: rank_count as usize };
    // SAFETY: by the contract of the caller.
    call("nrt_load_collectives", |state| unsafe { load(state, neff, size, core, core_count, rank, model) })
}

/// # Safety
/// As many bytes at `neff` as told, and a place for a pointer at `model`, or null.
unsafe fn load(
    state: &mut State,
    neff: *const c_void,
    size: usize,
    core: i32,
    core_count: i32,
    rank: Rank,
    model: *mut *mut abi::Model,
) -> Done {
    let core = u32::try_from(core).map_err(|_| Status::Invalid)?;
    state.check_core(core)?;
    if neff.is_null() || core_count != -1 || rank.index >= rank.count {
        return Err(state.misuse("nrt_load: arguments", Status::Invalid));
    }
    // SAFETY: by the contract above.
    let neff = unsafe { std::slice::from_raw_parts(neff.cast::<u8>(), size) };
    let number = state.load(neff, core, rank)?;
    // SAFETY: by the contract above.
    unsafe { put(model, state::pointer(number)) }
}

/// Forgets a program.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_unload(model: *mut abi::Model) -> i32 {
    call("nrt_unload", |state| match state.models.remove(&state::number(model)) {
        Some(_) => Ok(()),
        None => Err(state.misuse("nrt_unload: a program that is not loaded", Status::InvalidHandle)),
    })
}

/// What a program says of its tensors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_get_model_tensor_info(
    model: *mut abi::Model,
    infos: *mut *mut abi::TensorInfos,
) -> i32 {
    call("nrt_get_model_tensor_info", |state| {
        let told = state.model(state::number(model))?.ranks.compiled.infos();
        let address = told.address();
        state.infos.insert(address as usize, told);
        // SAFETY: a pointer of the caller.
        unsafe { put(infos, address) }
    })
}

/// Frees what [`nrt_get_model_tensor_info`] made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_free_model_tensor_info(infos: *mut abi::TensorInfos) -> i32 {
    call("nrt_free_model_tensor_info", |state| match state.infos.remove(&(infos as usize)) {
        Some(_) => Ok(()),
        None => Err(state.misuse("nrt_free_model_tensor_info: freed before", Status::InvalidHandle)),
    })
}

/// The name of a status.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_get_status_as_str(raw: i32) -> *const c_char {
    static NAMES: Mutex<Option<HashMap<i32, CString>>> = Mutex::new(None);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let name = || Status::of(raw).map_or("NRT_SUCCESS".into(), |status| status.to_string());
    let names = names.get_or_insert_with(HashMap::new);
    // A name is never removed, and its text stays where it is when the map grows.
    names.entry(raw).or_insert_with(|| CString::new(name()).unwrap_or_default()).as_ptr()
}

/// Of this stand-in only: the statuses that calls from now on return, such as `nrt_execute:3=7,nrt_load:*=4` for the third
/// execution and every load. All counts start at 1 again.
///
/// # Safety
/// `plan` must end with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_sim_faults(plan: *const c_char) -> i32 {
    status(|| {
        // SAFETY: by the contract above.
        let plan = unsafe { text(plan) }?;
        let faults = plan.parse().map_err(|_| Status::Invalid)?;
        with(|state| state.faults = faults);
        Ok(())
    })
}

/// Of this stand-in only: calls of a function since the last [`nrt_sim_faults`].
///
/// # Safety
/// `function` must end with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_sim_calls(function: *const c_char) -> u64 {
    // SAFETY: by the contract above.
    let function = unsafe { text(function) }.unwrap_or_default();
    with(|state| state.faults.calls(&function))
}

/// Of this stand-in only: how often something was used that is gone, or otherwise than it may be.
#[unsafe(no_mangle)]
pub extern "C" fn nrt_sim_misuses() -> u64 {
    with(|state| state.misuses)
}

/// Of this stand-in only: tensors, sets and programs of a core that are there.
#[unsafe(no_mangle)]
pub extern "C" fn nrt_sim_live(core: u32) -> u64 {
    with(|state| state.live(core))
}
