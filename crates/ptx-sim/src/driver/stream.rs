//! Streams, their capture, and events.

use std::{
    ffi::{c_int, c_uint},
    sync::Arc,
    thread::{self, ThreadId},
    time::Instant,
};

use super::{
    Done, Driver, Handle, ILLEGAL_STATE, INVALID_HANDLE, INVALID_VALUE, STREAM_CAPTURE_INVALIDATED,
    STREAM_CAPTURE_ISOLATION, STREAM_CAPTURE_UNSUPPORTED, api, graph::Node, put, refused,
};

/// A capture that goes on.
#[derive(Debug, Clone)]
struct Capture {
    nodes: Vec<Node>,
    /// 0 forbids calls that could interfere from any thread, 1 from the one that began, 2 from none.
    mode: c_int,
    thread: ThreadId,
    /// A call broke it.
    invalid: bool,
}

impl Capture {
    /// Whether this thread must not make calls that could interfere.
    fn forbids_interference(&self) -> bool {
        self.mode == 0 || self.mode == 1 && self.thread == thread::current().id()
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Stream {
    capture: Option<Capture>,
}

impl Stream {
    pub(super) fn is_capturing(&self) -> bool {
        self.capture.is_some()
    }

    pub(super) fn record(&mut self, node: Node) {
        if let Some(capture) = &mut self.capture {
            capture.nodes.push(node);
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Event {
    recorded: Option<Instant>,
    /// The stream in whose capture it was recorded.
    captured: Option<Handle>,
}

/// The streams that there always are: the legacy one, by two names, and that of the thread.
const DEFAULT_STREAMS: [Handle; 3] = [0, 1, 2];

impl Driver {
    pub(super) fn stream(&mut self, handle: Handle) -> Done<&mut Stream> {
        if DEFAULT_STREAMS.contains(&handle) {
            return Ok(self.streams.entry(handle).or_default());
        }
        self.streams.get_mut(&handle).ok_or(INVALID_HANDLE)
    }

    /// Calls that could wait for a captured stream, or that a graph would not repeat, are not allowed while one is captured, and break
    /// it.
    pub(super) fn refuse_in_capture(&mut self) -> Done {
        let mut captures = self.streams.values_mut().filter_map(|stream| stream.capture.as_mut());
        match captures.find(|capture| capture.forbids_interference()) {
            None => Ok(()),
            Some(capture) => {
                capture.invalid = true;
                Err(STREAM_CAPTURE_UNSUPPORTED)
            }
        }
    }

    fn create_stream(&mut self) -> Handle {
        let handle = self.handle();
        self.streams.insert(handle, Stream::default());
        handle
    }

    fn event(&mut self, handle: Handle) -> Done<&mut Event> {
        self.events.get_mut(&handle).ok_or(INVALID_HANDLE)
    }

    fn elapsed_ms(&mut self, start: Handle, end: Handle) -> Done<f32> {
        let (start, end) = (self.event(start)?.recorded, self.event(end)?.recorded);
        match (start, end) {
            (Some(start), Some(end)) => Ok(end.saturating_duration_since(start).as_secs_f32() * 1e3),
            _ => Err(INVALID_HANDLE),
        }
    }
}

api! {
    Device cuStreamCreate(driver, stream: *mut Handle, _flags: c_uint) {
        driver.current()?;
        let handle = driver.create_stream();
        put(stream, handle)
    }

    Device cuStreamCreateWithPriority(driver, stream: *mut Handle, _flags: c_uint, _priority: c_int) {
        driver.current()?;
        let handle = driver.create_stream();
        put(stream, handle)
    }

    Nothing cuStreamDestroy_v2(driver, stream: Handle) {
        driver.streams.remove(&stream).map(drop).ok_or(INVALID_HANDLE)
    }

    Device cuStreamSynchronize(driver, stream: Handle) {
        match &mut driver.stream(stream)?.capture {
            None => Ok(()),
            Some(capture) => {
                capture.invalid = true;
                Err(STREAM_CAPTURE_UNSUPPORTED)
            }
        }
    }

    Device cuStreamQuery(driver, stream: Handle) {
        driver.stream(stream).map(drop)
    }

    Device cuStreamGetCtx(driver, stream: Handle, context: *mut usize) {
        driver.stream(stream)?;
        put(context, super::CURRENT.get())
    }

    Device cuStreamWaitEvent(driver, stream: Handle, event: Handle, _flags: c_uint) {
        let captured = driver.event(event)?.captured;
        let capturing = driver.stream(stream)?.is_capturing();
        match (captured, capturing) {
            (None, false) => Ok(()),
            (Some(of), true) if of == stream => Ok(()),
            // An event from outside of a capture, and a second stream that would join one.
            (None, true) => Err(STREAM_CAPTURE_ISOLATION),
            (Some(_), _) => Err(STREAM_CAPTURE_UNSUPPORTED),
        }
    }

    // The default stream cannot be captured.
    Device cuStreamBeginCapture_v2(driver, stream: Handle, mode: c_int) {
        if !(0..=2).contains(&mode) {
            return Err(INVALID_VALUE);
        }
        if DEFAULT_STREAMS.contains(&stream) {
            return Err(STREAM_CAPTURE_UNSUPPORTED);
        }
        let stream = driver.stream(stream)?;
        if stream.is_capturing() {
            return Err(ILLEGAL_STATE);
        }
        stream.capture = Some(Capture { nodes: Vec::new(), mode, thread: thread::current().id(), invalid: false });
        Ok(())
    }

    Device cuStreamEndCapture(driver, stream: Handle, graph: *mut Handle) {
        let captured = driver.stream(stream)?.capture.take().ok_or(ILLEGAL_STATE)?;
        if captured.invalid {
            put(graph, 0)?;
            return Err(STREAM_CAPTURE_INVALIDATED);
        }
        let handle = driver.handle();
        driver.graphs.insert(handle, Arc::new(captured.nodes));
        put(graph, handle)
    }

    Device cuStreamIsCapturing(driver, stream: Handle, status: *mut c_int) {
        let capture = &driver.stream(stream)?.capture;
        put(status, capture.as_ref().map_or(0, |capture| if capture.invalid { 2 } else { 1 }))
    }

    Device cuEventCreate(driver, event: *mut Handle, _flags: c_uint) {
        driver.current()?;
        let handle = driver.handle();
        driver.events.insert(handle, Event::default());
        put(event, handle)
    }

    Nothing cuEventDestroy_v2(driver, event: Handle) {
        driver.events.remove(&event).map(drop).ok_or(INVALID_HANDLE)
    }

    Device cuEventRecord(driver, event: Handle, stream: Handle) {
        let captured = driver.stream(stream)?.is_capturing().then_some(stream);
        *driver.event(event)? = Event { recorded: Some(Instant::now()), captured };
        Ok(())
    }

    Device cuEventQuery(driver, event: Handle) {
        driver.event(event).map(drop)
    }

    Device cuEventSynchronize(driver, event: Handle) {
        match driver.event(event)?.captured {
            None => Ok(()),
            Some(_) => Err(STREAM_CAPTURE_UNSUPPORTED),
        }
    }

    Device cuEventElapsedTime(driver, milliseconds: *mut f32, start: Handle, end: Handle) {
        let elapsed = driver.elapsed_ms(start, end)?;
        put(milliseconds, elapsed)
    }

    Device cuEventElapsedTime_v2(driver, milliseconds: *mut f32, start: Handle, end: Handle) {
        let elapsed = driver.elapsed_ms(start, end)?;
        put(milliseconds, elapsed)
    }

    Device cuThreadExchangeStreamCaptureMode(_driver, mode: *mut c_int) {
        put(mode, 0)
    }
}

refused! { cuStreamGetCaptureInfo_v2 cuStreamGetCaptureInfo_v3 cuStreamUpdateCaptureDependencies_v2 }
