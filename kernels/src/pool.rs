//! Threads that share out the tasks of one operation after another.
//!
//! A decoded token is some hundred operations of a few microseconds each, so handing work over must cost less than
//! that. To those who look for work a job is one number, that of the tasks not yet taken. Counting it down takes a task,
//! and gives the right to read what the job is. No lock is taken unless a thread sleeps.

use std::{
    any::Any,
    cell::UnsafeCell,
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Barrier, Condvar, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::parts::Parts;

/// How long an idle worker watches for the next job before it sleeps.
const WATCH: Duration = Duration::from_micros(50);

/// A fixed number of threads, the caller's among them.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held by the caller whose job runs; another caller works alone meanwhile.
    busy: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads`, the caller's being one.
    ///
    /// Idle workers watch for work for some tens of microseconds before they sleep; not so where there are more threads
    /// than cores.
    ///
    /// # Errors
    /// If the system starts no more threads.
    pub fn new(threads: NonZero<usize>) -> std::io::Result<Pool> {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let watch = if threads.get() <= cores { WATCH } else { Duration::ZERO };
        let shared = Arc::new(Shared::new(watch, threads.get() - 1));
        let mut pool = Pool { shared, busy: Mutex::new(()), workers: Vec::new() };
        for i in 1..threads.get() {
            let shared = pool.shared.clone();
            let worker = thread::Builder::new().name(format!("samebits-cpu-{i}"));
            pool.workers.push(worker.spawn(move || shared.attend())?);
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
    /// If a task does, after the others are done.
    pub fn run(&self, tasks: usize, run: impl Fn(usize) + Sync) {
        if tasks < 2 || self.workers.is_empty() {
            return (0..tasks).for_each(run);
        }
        match self.busy.try_lock() {
            Err(TryLockError::WouldBlock) => (0..tasks).for_each(run),
            Ok(_busy) => self.share(tasks, &run),
            Err(TryLockError::Poisoned(_busy)) => self.share(tasks, &run),
        }
    }

    /// Calls `run` once with each part and its number, as [`Pool::run`] does.
    ///
    /// # Panics
    /// If a task does.
    pub fn each<P: Parts>(&self, parts: P, run: impl Fn(usize, P::Part) + Sync) {
        // SAFETY: each number below the count is called once, and the parts are consumed.
        self.run(parts.count(), |i| run(i, unsafe { parts.part(i) }));
    }

    /// Calls `run` once on every thread, the caller's included. Not to be called from inside of a task.
    ///
    /// # Panics
    /// If `run` does.
    pub fn everywhere(&self, run: impl Fn() + Sync) {
        let all = Barrier::new(self.threads());
        let _busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        self.share(self.threads(), &|_| {
            all.wait();
            run();
        });
    }

    /// Runs tasks on all threads; the caller holds `busy`.
    fn share(&self, tasks: usize, run: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime changes. The job is read with a ticket alone, and `finish` returns when all tickets
        // have been taken and given back, which is before the borrow ends: nothing between here and there can panic.
        let run: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(std::ptr::from_ref(run)) };
        self.shared.publish(Job { run, tasks });
        self.shared.work();
        self.shared.finish(tasks);
        if self.shared.panicked.swap(false, Ordering::Relaxed)
            && let Some(payload) = lock(&self.shared.panic).take()
        {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker ends only by being told to; its tasks' panics are caught.
            let _ = worker.join();
        }
    }
}

/// Tasks and what to do with the number of each.
#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

/// Data that no other shares a cache line with; two, since they are fetched in pairs.
#[repr(align(128))]
struct Apart<T>(T);

struct Shared {
    /// Tasks not yet taken. Who counts it down holds a ticket until the task is done.
    left: Apart<AtomicUsize>,
    /// Tasks that are done.
    done: Apart<AtomicUsize>,
    /// Written when no ticket is out, read by who holds one.
    job: UnsafeCell<Job>,
    /// What a task panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    panicked: AtomicBool,
    stop: AtomicBool,
    watch: Duration,
    workers: usize,
    /// Workers that only `wake` wakes; changed under `sleep`.
    asleep: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written by the caller that holds `Pool::busy` when no ticket is out, and read only with a ticket, which
// is taken after the write became visible and given back before the next write.
unsafe impl Sync for Shared {}
// SAFETY: as above; what the job's pointer leads to is `Sync`.
unsafe impl Send for Shared {}

impl Shared {
    fn new(watch: Duration, workers: usize) -> Self {
        Shared {
            left: Apart(AtomicUsize::new(0)),
            done: Apart(AtomicUsize::new(0)),
            job: UnsafeCell::new(Job { run: &|_| (), tasks: 0 }),
            panic: Mutex::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            watch,
            workers,
            asleep: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// Lets the workers take the tasks of `job`; the last one is finished.
    fn publish(&self, job: Job) {
        self.done.0.store(0, Ordering::Relaxed);
        // SAFETY: the last job's tickets have been given back, and there are none of this one yet.
        unsafe { *self.job.get() = job };
        // Before the look at `asleep`, in one order for all: a worker counts itself in, then looks at `left`.
        self.left.0.store(job.tasks, Ordering::SeqCst);
        let asleep = self.asleep.load(Ordering::SeqCst);
        let wanted = (job.tasks - 1).saturating_sub(self.workers - asleep).min(asleep);
        if wanted > 0 {
            drop(lock(&self.sleep));
            (0..wanted).for_each(|_| self.wake.notify_one());
        }
    }

    /// Takes tasks until none is left.
    fn work(&self) {
        let take = |left: usize| left.checked_sub(1);
        while let Ok(left) = self.left.0.fetch_update(Ordering::Acquire, Ordering::Relaxed, take) {
            // SAFETY: with a ticket, the job is the one that it is of, and its caller waits.
            let (run, tasks) = unsafe { (&*(*self.job.get()).run, (*self.job.get()).tasks) };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| run(tasks - left))) {
                *lock(&self.panic) = Some(payload);
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.done.0.fetch_add(1, Ordering::Release);
        }
    }

    /// Waits until all tasks are done.
    fn finish(&self, tasks: usize) {
        let done = || self.done.0.load(Ordering::Acquire) == tasks;
        if !spin(self.watch, done) {
            while !done() {
                thread::yield_now();
            }
        }
    }

    /// A worker's life.
    fn attend(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            self.work();
            if !spin(self.watch, || self.called(Ordering::Relaxed)) {
                self.doze();
            }
        }
    }

    fn called(&self, order: Ordering) -> bool {
        self.left.0.load(order) > 0 || self.stop.load(order)
    }

    /// Sleeps until there is work.
    fn doze(&self) {
        let mut sleep = lock(&self.sleep);
        self.asleep.fetch_add(1, Ordering::SeqCst);
        while !self.called(Ordering::SeqCst) {
            sleep = self.wake.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        }
        self.asleep.fetch_sub(1, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Watches for a condition, and whether it came.
fn spin(limit: Duration, condition: impl Fn() -> bool) -> bool {
    /// Turns between looks at the clock.
    const TURNS: usize = 32;
    if condition() {
        return true;
    }
    if limit.is_zero() {
        return false;
    }
    let start = Instant::now();
    loop {
        for _ in 0..TURNS {
            std::hint::spin_loop();
            if condition() {
                return true;
            }
        }
        if start.elapsed() > limit {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> Pool {
        Pool::new(NonZero::new(threads).expect("a number")).expect("threads")
    }

    const ROUNDS: usize = if cfg!(miri) { 2 } else { 200 };

    #[test]
    fn every_task_runs_once() {
        let pool = pool(4);
        for tasks in [0, 1, 2, 3, 64] {
            for _ in 0..ROUNDS {
                let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |task| {
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.into_iter().all(|count| count.into_inner() == 1));
            }
        }
    }

    #[test]
    fn each_part_is_written_once() {
        let (pool, mut values) = (pool(3), vec![0; 100]);
        for _ in 0..ROUNDS {
            values.fill(0);
            pool.each(crate::parts::Chunks::new(&mut values, 7), |i, part| {
                part.iter_mut().for_each(|x| *x += 1 + i);
            });
            assert!(values.iter().enumerate().all(|(at, &x)| x == 1 + at / 7));
        }
    }

    #[test]
    fn workers_that_sleep_are_woken() {
        let (pool, start) = (pool(2), Barrier::new(2));
        for _ in 0..3 {
            thread::sleep(4 * WATCH);
            // Ends only if both threads are inside at once.
            pool.run(2, |_| {
                start.wait();
            });
        }
    }

    #[test]
    fn everywhere_is_every_thread_once() {
        let (pool, seen) = (pool(3), Mutex::new(Vec::new()));
        pool.everywhere(|| seen.lock().expect("a list").push(thread::current().id()));
        let seen = seen.into_inner().expect("a list");
        assert_eq!(seen.iter().collect::<std::collections::HashSet<_>>().len(), 3);
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn jobs_nest_and_callers_share() {
        let (pool, count) = (pool(2), AtomicUsize::new(0));
        let job = || {
            pool.run(4, |_| {
                pool.run(4, |_| {
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
            let panics = catch_unwind(AssertUnwindSafe(|| pool.run(8, |task| assert_ne!(task, failing))));
            let payload = panics.expect_err("a panic");
            assert!(payload.downcast_ref::<String>().is_some_and(|text| text.contains("left != right")));
        }
        let count = AtomicUsize::new(0);
        pool.run(8, |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 8);
    }
}
