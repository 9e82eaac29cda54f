//! The engine on a thread of its own, for callers that are not a loop themselves.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
};

use samebits_engine::{AdmitError, Engine, EngineError, Event, Request, RequestId, Stats};

/// Takes the events of one request, on the engine's thread, so it must not block. Returning false cancels the
/// request: its caller is gone.
pub type Sink = Box<dyn FnMut(Event) -> bool + Send>;

/// A handle on a running engine; clones share it. The engine stops when the last one is dropped.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

struct Shared {
    commands: Sender<Command>,
    next_id: AtomicU64,
    thread: Option<JoinHandle<()>>,
}

enum Command {
    Add(Box<Request>, Sink, Sender<Result<(), AdmitError>>),
    Cancel(RequestId),
    Stats(Sender<Stats>),
    Stop,
}

/// Why a request could not be handed to the engine.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ServiceError {
    /// The engine refused it.
    #[error(transparent)]
    Refused(#[from] AdmitError),
    /// The engine's thread has ended.
    #[error("the engine has stopped; open the model again")]
    Stopped,
}

impl Service {
    /// Starts an engine on a thread.
    ///
    /// # Errors
    /// If the operating system has no thread to give.
    pub fn start(engine: Engine) -> std::io::Result<Self> {
        let (commands, inbox) = mpsc::channel();
        let worker = Worker { engine, inbox, sinks: HashMap::new() };
        let thread = std::thread::Builder::new().name("samebits-engine".into()).spawn(|| worker.run())?;
        Ok(Service {
            shared: Arc::new(Shared { commands, next_id: AtomicU64::new(0), thread: Some(thread) }),
        })
    }

    /// A request id that this service has not given before.
    pub fn next_id(&self) -> RequestId {
        RequestId(self.shared.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Queues a request, whose events go to `sink`.
    ///
    /// # Errors
    /// The engine's refusal, which names the parameter at fault; nothing goes to `sink` then.
    pub fn submit(&self, request: Request, sink: Sink) -> Result<RequestId, ServiceError> {
        let id = request.id;
        let (reply, answer) = mpsc::channel();
        self.send(Command::Add(Box::new(request), sink, reply))?;
        answer.recv().map_err(|_| ServiceError::Stopped)??;
        Ok(id)
    }

    /// Ends a request early; its last event says so. An id that is not live is passed over.
    pub fn cancel(&self, id: RequestId) {
        // A stopped engine has no live request.
        let _ = self.send(Command::Cancel(id));
    }

    /// The engine's counts at this moment.
    ///
    /// # Errors
    /// If the engine has stopped.
    pub fn stats(&self) -> Result<Stats, ServiceError> {
        let (reply, answer) = mpsc::channel();
        self.send(Command::Stats(reply))?;
        answer.recv().map_err(|_| ServiceError::Stopped)
    }

    fn send(&self, command: Command) -> Result<(), ServiceError> {
        self.shared.commands.send(command).map_err(|_| ServiceError::Stopped)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The thread may have ended by itself.
        let _ = self.commands.send(Command::Stop);
        let on_engine_thread =
            self.thread.as_ref().is_some_and(|thread| thread.thread().id() == std::thread::current().id());
        if let (Some(thread), false) = (self.thread.take(), on_engine_thread) {
            let _ = thread.join();
        }
    }
}

struct Worker {
    engine: Engine,
    inbox: Receiver<Command>,
    sinks: HashMap<RequestId, Sink>,
}

impl Worker {
    fn run(mut self) {
        while self.take_commands() {
            match self.engine.step() {
                Ok(events) => events.into_iter().for_each(|event| self.deliver(event)),
                // Every request has had its end event, and the engine refuses new ones with the reason.
                Err(EngineError::DeviceLost(_)) => self.sinks.clear(),
                Err(error) => {
                    tracing::error!(%error, "the engine cannot go on");
                    return;
                }
            }
        }
    }

    /// Takes every waiting command; waits for one while there is nothing to compute. False to stop.
    fn take_commands(&mut self) -> bool {
        loop {
            let command = match self.sinks.is_empty() && self.engine.is_idle() {
                true => self.inbox.recv().ok(),
                false => match self.inbox.try_recv() {
                    Ok(command) => Some(command),
                    Err(mpsc::TryRecvError::Empty) => return true,
                    Err(mpsc::TryRecvError::Disconnected) => None,
                },
            };
            match command {
                None | Some(Command::Stop) => return false,
                Some(command) => self.take(command),
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Add(request, sink, reply) => {
                let id = request.id;
                let answer = self.engine.add(*request);
                if answer.is_ok() {
                    self.sinks.insert(id, sink);
                }
                // A caller that does not wait for its answer is served all the same.
                let _ = reply.send(answer);
            }
            Command::Cancel(id) => {
                self.engine.cancel(id);
            }
            Command::Stats(reply) => {
                let _ = reply.send(self.engine.stats());
            }
            Command::Stop => {}
        }
    }

    fn deliver(&mut self, event: Event) {
        let (id, ended) = (event.id(), event.finish_reason().is_some());
        let Some(sink) = self.sinks.get_mut(&id) else { return };
        let wanted = sink(event);
        if ended {
            self.sinks.remove(&id);
        } else if !wanted {
            self.engine.cancel(id);
        }
    }
}
