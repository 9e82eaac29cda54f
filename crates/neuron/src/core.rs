use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        mpsc::{self, Sender},
    },
    thread,
};

use crate::{NeuronError, Runtime, runtime::TensorHandle};

/// A NeuronCore and the thread that makes every call that has to do with it, in the order in which they are asked for.
pub(crate) struct Core {
    pub(crate) runtime: Runtime,
    pub(crate) index: u32,
    jobs: Sender<Job>,
    /// Why nothing will succeed any more.
    lost: OnceLock<String>,
}

type Job = Box<dyn FnOnce(Runtime) + Send>;

/// Cores at work, by runtime and index.
static CORES: Mutex<Option<HashMap<(PathBuf, u32), Weak<Core>>>> = Mutex::new(None);

impl Core {
    /// The core of this index, with its thread.
    pub(crate) fn open(runtime: Runtime, index: u32) -> Result<Arc<Self>, NeuronError> {
        let count = runtime.core_count()?;
        if index >= count {
            return Err(NeuronError::Core { index, count });
        }
        let mut cores = CORES.lock().unwrap_or_else(PoisonError::into_inner);
        let known = cores.get_or_insert_with(HashMap::new).entry((runtime.path().into(), index)).or_default();
        if let Some(core) = known.upgrade() {
            return Ok(core);
        }
        let core = Core::start(runtime, index).map_err(|_| NeuronError::Stopped { index })?;
        let core = Arc::new(core);
        *known = Arc::downgrade(&core);
        Ok(core)
    }

    /// The thread ends when the core is dropped, after all that it was asked for.
    fn start(runtime: Runtime, index: u32) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = thread::Builder::new().name(format!("neuron-core-{index}"));
        thread.spawn(move || queue.into_iter().for_each(|job| job(runtime)))?;
        Ok(Core { runtime, index, jobs, lost: OnceLock::new() })
    }

    /// Has the core's thread do something, and waits for it.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(Runtime) -> Result<T, NeuronError> + Send + 'static,
    ) -> Result<T, NeuronError> {
        let (answer, answered) = mpsc::sync_channel(1);
        let stopped = || NeuronError::Stopped { index: self.index };
        let job: Job = Box::new(move |runtime| drop(answer.send(job(runtime))));
        self.jobs.send(job).map_err(|_| stopped())?;
        let result = answered.recv().map_err(|_| stopped())?;
        if let Err(error) = &result
            && error.is_fatal()
        {
            let _ = self.lost.set(error.to_string());
        }
        result
    }

    /// Has the core's thread do something after all that was asked for before.
    pub(crate) fn later(&self, job: impl FnOnce(Runtime) + Send + 'static) {
        // Without a thread nothing is used any more, and the process has to end.
        let _ = self.jobs.send(Box::new(job));
    }

    pub(crate) fn allocate(&self, bytes: usize) -> Result<TensorHandle, NeuronError> {
        let index = self.index;
        self.call(move |runtime| runtime.allocate(index, bytes))
    }

    /// Why nothing will succeed any more, if so.
    pub(crate) fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }
}
