use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
};

use crate::{NeuronError, Runtime, abi::Status, runtime::TensorHandle};

/// A NeuronCore and the thread that makes every call that has to do with it, in the order in which they are asked for.
pub(crate) struct Core {
    pub(crate) runtime: Runtime,
    pub(crate) index: u32,
    thread: Option<(Sender<Job>, JoinHandle<()>)>,
    /// Why nothing will succeed any more.
    lost: OnceLock<String>,
    /// Memory that is free for the next tensor of its size, so that a step like one before it allocates nothing.
    free: Mutex<HashMap<usize, Vec<TensorHandle>>>,
}

type Job = Box<dyn FnOnce(Runtime) + Send>;

/// By runtime and index.
type Cores = HashMap<(PathBuf, u32), Weak<Core>>;

/// Cores at work.
static CORES: Mutex<Option<Cores>> = Mutex::new(None);

impl Core {
    /// The core of this index, with its thread.
    pub(crate) fn open(runtime: Runtime, index: u32) -> Result<Arc<Self>, NeuronError> {
        let count = runtime.core_count()?;
        if index >= count {
            return Err(NeuronError::Core { index, count });
        }
        let mut cores = locked(&CORES);
        let known = cores.get_or_insert_default().entry((runtime.path().into(), index)).or_default();
        if let Some(core) = known.upgrade() {
            return Ok(core);
        }
        let core = Core::start(runtime, index).map_err(|_| NeuronError::Stopped { index })?;
        let core = Arc::new(core);
        *known = Arc::downgrade(&core);
        Ok(core)
    }

    fn start(runtime: Runtime, index: u32) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = thread::Builder::new().name(format!("neuron-core-{index}"));
        let thread = thread.spawn(move || queue.into_iter().for_each(|job| job(runtime)))?;
        let (lost, free) = Default::default();
        Ok(Core { runtime, index, thread: Some((jobs, thread)), lost, free })
    }

    /// Has the core's thread do something, and waits for it. Nothing is done any more once a failure was fatal.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(Runtime) -> Result<T, NeuronError> + Send + 'static,
    ) -> Result<T, NeuronError> {
        self.ask(job)?.wait()
    }

    /// Has the core's thread do something; [`Answer::wait`] waits for it.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(Runtime) -> Result<T, NeuronError> + Send + 'static,
    ) -> Result<Answer<'_, T>, NeuronError> {
        if let Some(why) = self.lost.get() {
            return Err(NeuronError::Lost { index: self.index, why: why.clone() });
        }
        let (answer, answered) = mpsc::sync_channel(1);
        self.later(move |runtime| drop(answer.send(job(runtime))));
        Ok(Answer { core: self, answered })
    }

    /// Has the threads of several cores do something at once, which may need each other, and waits for all of them. Two such
    /// requests are done in the same order by all threads.
    pub(crate) fn call_all<
        T: Send + 'static,
        F: FnOnce(Runtime) -> Result<T, NeuronError> + Send + 'static,
    >(
        jobs: impl Iterator<Item = (Arc<Core>, F)>,
    ) -> Vec<Result<T, NeuronError>> {
        static ORDER: Mutex<()> = Mutex::new(());
        let jobs: Vec<_> = jobs.collect();
        let (cores, jobs): (Vec<_>, Vec<_>) = jobs.into_iter().unzip();
        let order = locked(&ORDER);
        let asked: Vec<_> = cores.iter().zip(jobs).map(|(core, job)| core.ask(job)).collect();
        drop(order);
        asked.into_iter().map(|asked| asked?.wait()).collect()
    }

    /// Has the core's thread do something after all that was asked for before.
    pub(crate) fn later(&self, job: impl FnOnce(Runtime) + Send + 'static) {
        if let Some((jobs, _)) = &self.thread {
            // A thread that has ended does nothing more, and whoever waits for it is told so.
            let _ = jobs.send(Box::new(job));
        }
    }

    /// Memory of the core, with anything in it.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<TensorHandle, NeuronError> {
        if let Some(handle) = locked(&self.free).get_mut(&bytes).and_then(Vec::pop) {
            return Ok(handle);
        }
        let index = self.index;
        let allocate = || self.call(move |runtime| runtime.allocate(index, bytes));
        match allocate() {
            Err(error) if error.status() == Some(Status::Resource) && self.trim() => allocate(),
            allocated => allocated,
        }
    }

    /// Takes memory back.
    ///
    /// # Safety
    /// The tensor must be there, of this size, and not be used again.
    pub(crate) unsafe fn release(&self, handle: TensorHandle, bytes: usize) {
        locked(&self.free).entry(bytes).or_default().push(handle);
    }

    /// Why nothing will succeed any more, if so.
    pub(crate) fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }

    /// Frees what was taken back. Returns whether there was any.
    fn trim(&self) -> bool {
        let free: Vec<TensorHandle> = locked(&self.free).drain().flat_map(|(_, handles)| handles).collect();
        let any = !free.is_empty();
        // SAFETY: whoever released them does not use them again.
        self.later(move |runtime| free.into_iter().for_each(|handle| unsafe { runtime.free(handle) }));
        any
    }
}

/// What a core's thread will have done.
pub(crate) struct Answer<'a, T> {
    core: &'a Core,
    answered: Receiver<Result<T, NeuronError>>,
}

impl<T> Answer<'_, T> {
    pub(crate) fn wait(self) -> Result<T, NeuronError> {
        let index = self.core.index;
        let result = self.answered.recv().map_err(|_| NeuronError::Stopped { index })?;
        if let Err(error) = &result
            && error.is_fatal()
        {
            let _ = self.core.lost.set(error.to_string());
        }
        result
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.trim();
        if let Some((jobs, thread)) = self.thread.take() {
            drop(jobs);
            // A thread that has panicked has nothing more to do either.
            let _ = thread.join();
        }
    }
}

/// What a lock holds; no panic can leave it half-changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
