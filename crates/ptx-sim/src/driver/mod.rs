//! The driver API, as far as it is played: what `cu…` functions do to the state of the process.
//!
//! Work is done when it is asked for. A fault of a kernel is returned from the next call on, as a real driver does, and from all
//! that follow.

mod blas;
mod context;
mod control;
mod device;
mod graph;
mod kernel;
mod memory;
mod module;
mod plan;
mod status;
mod stream;

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use blas::Blas;
use graph::Node;
use kernel::Function;
use module::LoadedModule;
use plan::Plan;
pub(crate) use status::*;
use stream::{Event, Stream};

use crate::{arena::Arena, counters::Counters, fault::Fault, settings::Settings};

type Done<T = ()> = Result<T, Status>;

/// A number that stands for an object.
type Handle = usize;

struct Device {
    arena: Arena,
    retained: u32,
    attributes: HashMap<i32, u64>,
}

/// The state of the process.
struct Driver {
    settings: Settings,
    initialised: bool,
    devices: Vec<Option<Device>>,
    next: Handle,
    modules: HashMap<Handle, LoadedModule>,
    functions: HashMap<Handle, Function>,
    streams: HashMap<Handle, Stream>,
    events: HashMap<Handle, Event>,
    blas: Blas,
    graphs: HashMap<Handle, Arc<Vec<Node>>>,
    executables: HashMap<Handle, Arc<Vec<Node>>>,
    /// Memory of the host by address, with its bytes.
    pinned: BTreeMap<usize, usize>,
    /// What every call returns from now on.
    sticky: Option<Status>,
    fault: Option<Fault>,
    /// Why a module was refused.
    refused: Option<String>,
    launches: u32,
    plan: Plan,
    counters: Counters,
    /// What was counted before the last reset.
    counted_before: Counters,
}

impl Driver {
    fn new() -> Self {
        let settings = Settings::from_environment();
        Driver {
            settings,
            initialised: false,
            devices: Vec::new(),
            next: 0x1000,
            modules: HashMap::new(),
            functions: HashMap::new(),
            streams: HashMap::new(),
            events: HashMap::new(),
            blas: Blas::default(),
            graphs: HashMap::new(),
            executables: HashMap::new(),
            pinned: BTreeMap::new(),
            sticky: None,
            fault: None,
            refused: None,
            launches: 0,
            plan: Plan::from_environment(),
            counters: Counters::default(),
            counted_before: Counters::default(),
        }
    }

    fn handle(&mut self) -> Handle {
        self.next += 0x10;
        self.next
    }

    /// The device of the current context.
    fn current(&mut self) -> Done<usize> {
        match CURRENT.get() {
            0 => Err(INVALID_CONTEXT),
            context => Ok(context - CONTEXT_BASE),
        }
    }

    fn device(&mut self) -> Done<&mut Device> {
        let index = self.current()?;
        self.devices.get_mut(index).and_then(Option::as_mut).ok_or(INVALID_CONTEXT)
    }

    fn arena(&mut self) -> Done<&mut Arena> {
        Ok(&mut self.device()?.arena)
    }
}

/// Contexts are the devices' primary ones: this plus the number of the device.
const CONTEXT_BASE: usize = 0x100;

thread_local! {
    /// The context of this thread, or 0.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);

fn driver() -> MutexGuard<'static, Option<Driver>> {
    let mut driver = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
    if driver.is_none() {
        *driver = Some(Driver::new());
        control::report_at_exit();
    }
    driver
}

/// What a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Nothing, not even `cuInit`.
    Nothing,
    /// `cuInit`, and a device that has no error.
    Device,
    /// That, and that nothing is captured in a mode in which the call is not allowed.
    NoCapture,
}

/// Does something to the state, and returns the status as the API has it.
fn call(name: &'static str, needs: Needs, work: impl FnOnce(&mut Driver) -> Done) -> i32 {
    let done = catch_unwind(AssertUnwindSafe(|| {
        let mut guard = driver();
        let driver = guard.as_mut().ok_or(UNKNOWN)?;
        if let Some((status, sticky)) = driver.plan.call(name) {
            if sticky {
                driver.sticky = Some(status);
            }
            return Err(status);
        }
        if needs != Needs::Nothing {
            if !driver.initialised {
                return Err(NOT_INITIALIZED);
            }
            if let Some(status) = driver.sticky {
                return Err(status);
            }
        }
        if needs == Needs::NoCapture {
            driver.refuse_in_capture()?;
        }
        work(driver)
    }));
    match done {
        Ok(Ok(())) => 0,
        Ok(Err(status)) => status.0,
        Err(_) => UNKNOWN.0,
    }
}

/// Puts a result where the caller wants it.
///
/// # Safety
///
/// The pointer is null or that of a place for a value.
unsafe fn put<T>(to: *mut T, value: T) -> Done {
    if to.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: as the caller promises.
    unsafe { to.write(value) };
    Ok(())
}

/// Defines functions of the API: what each needs, its parameters, and what it does to the state.
macro_rules! api {
    ($($needs:ident $name:ident($driver:ident $(, $argument:ident: $type:ty)* $(,)?) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        #[doc = concat!("`", stringify!($name), "` of the CUDA driver API.")]
        unsafe extern "C" fn $name($($argument: $type),*) -> i32 {
            crate::driver::call(stringify!($name), crate::driver::Needs::$needs, |$driver| {
                // SAFETY: the caller keeps to the documentation of the driver API: pointers are null or valid for what they are for.
                #[allow(unused_unsafe, reason = "some bodies use no pointer")]
                unsafe { $body }
            })
        }
    )*};
}
use api;

/// Defines functions that a caller finds, and that are not played.
macro_rules! refused {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        #[doc = concat!("`", stringify!($name), "`, which is not played: `CUDA_ERROR_NOT_SUPPORTED`.")]
        extern "C" fn $name() -> i32 {
            crate::driver::call(stringify!($name), crate::driver::Needs::Nothing, |_| Err(crate::driver::NOT_SUPPORTED))
        }
    )*};
}
use refused;
