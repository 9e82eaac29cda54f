use std::{ffi::c_void, fmt, ptr};

use crate::{Client, PjrtError, ffi};

/// Work of a device that will end, well or with an error.
pub struct Event {
    client: Client,
    raw: *mut ffi::Event,
}

// SAFETY: the PJRT API lets any thread ask and wait for an event, and several at once.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// Takes over an event.
    ///
    /// # Safety
    /// `raw` must be an event of the client that nobody else destroys, or null, for what has ended.
    pub(crate) unsafe fn new(client: Client, raw: *mut ffi::Event) -> Self {
        Event { client, raw }
    }

    /// Whether the work has ended.
    ///
    /// # Errors
    /// If the plugin fails to tell; the work's own failure is told by [`wait`](Self::wait).
    pub fn is_ready(&self) -> Result<bool, PjrtError> {
        if self.raw.is_null() {
            return Ok(true);
        }
        let arguments = ffi::EventIsReady { event: self.raw, ..Default::default() };
        // SAFETY: the event is alive.
        Ok(unsafe { self.client.api().call(arguments) }?.is_ready[0] != 0)
    }

    /// Waits until the work has ended.
    ///
    /// # Errors
    /// With which the work ended.
    pub fn wait(&self) -> Result<(), PjrtError> {
        if self.raw.is_null() {
            return Ok(());
        }
        let arguments = ffi::EventAwait { event: self.raw, ..Default::default() };
        // SAFETY: the event is alive.
        unsafe { self.client.api().call(arguments) }.map(drop)
    }

    /// Runs `then` once the work has ended, on a thread of the plugin; here and now if that cannot be arranged.
    pub(crate) fn on_ready(&self, then: impl FnOnce() + Send + 'static) {
        let task = Box::new(Task { api: self.client.api(), then: Box::new(then) });
        let task = Box::into_raw(task);
        let arguments = ffi::EventOnReady {
            event: self.raw,
            callback: Some(run_task),
            user: task.cast::<c_void>(),
            ..Default::default()
        };
        // SAFETY: the event is alive, and the task until it has run.
        let arranged = !self.raw.is_null() && unsafe { self.client.api().call(arguments) }.is_ok();
        if !arranged {
            // The work must have ended before the task runs; how it ended is for others to ask.
            let _ = self.wait();
            // SAFETY: the plugin did not take the task, so it is run here, once.
            unsafe { run_task(ptr::null_mut(), task.cast()) };
        }
    }
}

struct Task {
    api: ffi::Api,
    then: Box<dyn FnOnce() + Send>,
}

/// Runs a task that `on_ready` made.
///
/// # Safety
/// `user` must be a task that has not run, and `error` null or an error that is given away.
unsafe extern "C" fn run_task(error: *mut ffi::Error, user: *mut c_void) {
    // SAFETY: by the contract above.
    let task = unsafe { Box::from_raw(user.cast::<Task>()) };
    // SAFETY: by the contract above. Whoever waits for the event is told of the error.
    let _ = unsafe { task.api.check("PJRT_Event_OnReady", error) };
    (task.then)();
}

impl Drop for Event {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            let arguments = ffi::EventDestroy { event: self.raw, ..Default::default() };
            // SAFETY: the event is alive and not used again; a failure leaves nothing to do.
            let _ = unsafe { self.client.api().call(arguments) };
        }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("ready", &self.is_ready().ok()).finish()
    }
}
