//! The threads of a backend.

use std::{
    env, io,
    num::NonZero,
    sync::{Mutex, PoisonError},
    thread,
};

use samebits_kernels::pool::Pool;

/// The variable that says how many threads compute where a program does not.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// A pool of threads, among them the caller's.
pub(crate) struct Threads {
    pool: Pool,
}

impl Threads {
    /// `count` threads; 0 means `RAYON_NUM_THREADS`, or else one for each core.
    pub(crate) fn new(count: usize) -> io::Result<Self> {
        let count = NonZero::new(count).or_else(asked_for).map_or_else(thread::available_parallelism, Ok)?;
        Ok(Threads { pool: Pool::new(count)? })
    }

    /// How many work at a time.
    pub(crate) fn count(&self) -> usize {
        self.pool.threads()
    }

    /// Runs every task once, in any order.
    pub(crate) fn each<T: Send>(&self, tasks: Vec<T>, run: impl Fn(T) + Sync) {
        let slots: Vec<_> = tasks.into_iter().map(|task| Mutex::new(Some(task))).collect();
        self.pool.run(slots.len(), &|i| {
            let task = slots[i].lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(task) = task {
                run(task);
            }
        });
    }

    /// Runs `f` once on every thread, the caller's included.
    pub(crate) fn everywhere(&self, f: impl Fn() + Sync) {
        self.pool.everywhere(&f);
    }
}

/// The number in [`VARIABLE`]; as for rayon, 0 and what is no number count as not given.
fn asked_for() -> Option<NonZero<usize>> {
    env::var(VARIABLE).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn each_task_is_run_once() {
        let threads = Threads::new(2).expect("threads");
        let sum = AtomicUsize::new(0);
        threads.each((0..100).collect(), |n| {
            sum.fetch_add(n, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 4950);
    }
}
