//! Threads that share out the tasks of one operation after another.
//!
//! A decoded token is some hundred operations of a few microseconds each, so handing work over must cost less than
//! that: idle workers first watch for the next job, and sleep only when none comes; the caller works too.

use std::{
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Barrier, Condvar, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

/// Turns of watching for work before a worker sleeps, some tens of microseconds.
const WATCH: usize = 1000;

/// A fixed number of threads, the caller's among them.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held by the caller whose job runs; another caller works alone meanwhile.
    busy: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    /// Counts jobs, for workers that watch without the lock.
    epoch: AtomicU64,
}

struct State {
    job: Option<Job>,
    stop: bool,
    /// Workers that only [`Shared::wake`] wakes.
    asleep: usize,
}

/// A job, valid until its caller has closed it and no worker is inside.
#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize) + Sync),
    progress: *const Progress,
}

// SAFETY: what the pointers lead to is `Sync`, and outlives every use as `Pool::run` explains.
unsafe impl Send for Job {}

/// How far a job is.
struct Progress {
    tasks: usize,
    next: AtomicUsize,
    /// Workers that may still touch the job.
    inside: AtomicUsize,
    panicked: AtomicBool,
}

impl Pool {
    /// A pool of `threads`, the caller's being one.
    ///
    /// # Errors
    /// If the system starts no more threads.
    pub fn new(threads: NonZero<usize>) -> std::io::Result<Pool> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State { job: None, stop: false, asleep: 0 }),
            wake: Condvar::new(),
            epoch: AtomicU64::new(0),
        });
        let mut pool = Pool { shared, busy: Mutex::new(()), workers: Vec::new() };
        for i in 1..threads.get() {
            let shared = pool.shared.clone();
            let worker = thread::Builder::new().name(format!("samebits-cpu-{i}"));
            pool.workers.push(worker.spawn(move || shared.work())?);
        }
        Ok(pool)
    }

    /// How many threads work on a job.
    pub fn threads(&self) -> usize {
        1 + self.workers.len()
    }

    /// Calls `run` once for each number below `tasks`, in any order, and returns when all calls have. A call from inside of a
    /// task, or while another thread's job runs, does its tasks alone.
    ///
    /// # Panics
    /// If a task does.
    pub fn run(&self, tasks: usize, run: &(dyn Fn(usize) + Sync)) {
        if tasks < 2 || self.workers.is_empty() {
            return (0..tasks).for_each(run);
        }
        match self.busy.try_lock() {
            Err(TryLockError::WouldBlock) => (0..tasks).for_each(run),
            Ok(_busy) => self.share(tasks, run),
            Err(TryLockError::Poisoned(_busy)) => self.share(tasks, run),
        }
    }

    /// Calls `run` once on every thread, the caller's included. Not to be called from inside of a task.
    ///
    /// # Panics
    /// If `run` does.
    pub fn everywhere(&self, run: &(dyn Fn() + Sync)) {
        let all = Barrier::new(self.threads());
        let _busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        self.share(self.threads(), &|_| {
            all.wait();
            run();
        });
    }

    /// Runs tasks on all threads; the caller holds `busy`.
    fn share(&self, tasks: usize, run: &(dyn Fn(usize) + Sync)) {
        let progress = Progress {
            tasks,
            next: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
        };
        // SAFETY: only the lifetime changes. Workers reach the job through `State::job` alone, and enter it under
        // the lock, counting themselves in; `Open` takes it away under the lock and waits until none is inside, and does
        // so before this frame ends, even by a panic. Thus no worker has a pointer once the borrows end.
        let run: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(std::ptr::from_ref(run)) };
        let open = self.open(Job { run, progress: &progress });
        // SAFETY: as above; the borrow that `run` came from is still alive.
        progress.work(unsafe { &*run });
        drop(open);
        assert!(!progress.panicked.load(Ordering::Relaxed), "a task on another thread panicked");
    }

    fn open(&self, job: Job) -> Open<'_> {
        self.shared.announce(|state| state.job = Some(job));
        Open { shared: &self.shared, progress: job.progress }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.announce(|state| state.stop = true);
        for worker in self.workers.drain(..) {
            // A worker ends only by being told to; its tasks' panics are caught.
            let _ = worker.join();
        }
    }
}

/// A job that workers may enter; closed on drop.
struct Open<'a> {
    shared: &'a Shared,
    progress: *const Progress,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.shared.lock().job = None;
        // SAFETY: the job's caller keeps its progress until this returns.
        let inside = unsafe { &(*self.progress).inside };
        let mut turns = 0;
        while inside.load(Ordering::Acquire) > 0 {
            turns += 1;
            if turns < WATCH { std::hint::spin_loop() } else { thread::yield_now() }
        }
    }
}

impl Progress {
    /// Takes tasks until none is left.
    fn work(&self, run: &(dyn Fn(usize) + Sync)) {
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= self.tasks {
                return;
            }
            run(task);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state for all workers to see.
    fn announce(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        // Under the lock, so that no worker falls asleep between its last look and this.
        self.epoch.fetch_add(1, Ordering::Release);
        if state.asleep > 0 {
            self.wake.notify_all();
        }
    }

    /// A worker's life.
    fn work(&self) {
        let mut seen = 0;
        loop {
            self.watch(seen);
            let mut state = self.lock();
            while self.epoch.load(Ordering::Acquire) == seen {
                state.asleep += 1;
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.asleep -= 1;
            }
            seen = self.epoch.load(Ordering::Acquire);
            if state.stop {
                return;
            }
            let Some(job) = state.job else { continue };
            // SAFETY: the job is open as long as the lock is held.
            let (progress, run) = unsafe { (&*job.progress, &*job.run) };
            progress.inside.fetch_add(1, Ordering::Relaxed);
            drop(state);
            if catch_unwind(AssertUnwindSafe(|| progress.work(run))).is_err() {
                progress.panicked.store(true, Ordering::Relaxed);
            }
            progress.inside.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits a while for the next job.
    fn watch(&self, seen: u64) {
        for _ in 0..WATCH {
            if self.epoch.load(Ordering::Acquire) != seen {
                return;
            }
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> Pool {
        Pool::new(NonZero::new(threads).expect("a number")).expect("threads")
    }

    #[test]
    fn every_task_runs_once() {
        let pool = pool(4);
        for tasks in [0, 1, 2, 3, 64] {
            for _ in 0..if cfg!(miri) { 2 } else { 200 } {
                let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|task| {
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.into_iter().all(|count| count.into_inner() == 1));
            }
        }
    }

    #[test]
    fn everywhere_is_every_thread_once() {
        let (pool, seen) = (pool(3), Mutex::new(Vec::new()));
        pool.everywhere(&|| seen.lock().expect("a list").push(thread::current().id()));
        let mut seen = seen.into_inner().expect("a list");
        seen.dedup();
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn jobs_nest_and_callers_share() {
        let (pool, count) = (pool(2), AtomicUsize::new(0));
        let job = || {
            pool.run(4, &|_| {
                pool.run(4, &|_| {
                    count.fetch_add(1, Ordering::Relaxed);
                });
            });
        };
        thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(job))));
        assert_eq!(count.into_inner(), 3 * 16);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_pool_usable() {
        let pool = pool(2);
        for failing in 0..8 {
            let panics = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|task| assert_ne!(task, failing))));
            assert!(panics.is_err());
        }
        let count = AtomicUsize::new(0);
        pool.run(8, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 8);
    }
}
