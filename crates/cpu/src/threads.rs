//! The threads of a backend.

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder, prelude::*};

/// A pool of threads, or the calling thread alone.
pub(crate) struct Threads {
    pool: Option<ThreadPool>,
}

impl Threads {
    /// `count` threads; 0 means `RAYON_NUM_THREADS`, or else one for each core.
    pub(crate) fn new(count: usize) -> Result<Self, ThreadPoolBuildError> {
        if count == 1 {
            return Ok(Threads { pool: None });
        }
        let name = |i| format!("samebits-cpu-{i}");
        let pool = ThreadPoolBuilder::new().num_threads(count).thread_name(name).build()?;
        Ok(Threads { pool: (pool.current_num_threads() > 1).then_some(pool) })
    }

    /// How many work at a time.
    pub(crate) fn count(&self) -> usize {
        self.pool.as_ref().map_or(1, ThreadPool::current_num_threads)
    }

    /// Runs `work` with this pool as the current one.
    pub(crate) fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Runs every task once, in any order.
    pub(crate) fn each<T: Send>(&self, tasks: Vec<T>, run: impl Fn(T) + Send + Sync) {
        match &self.pool {
            Some(pool) if tasks.len() > 1 => {
                pool.install(|| tasks.into_par_iter().with_max_len(1).for_each(run));
            }
            _ => tasks.into_iter().for_each(run),
        }
    }

    /// Runs `f` once on every thread of the pool, or on the caller's where there is none.
    pub(crate) fn everywhere(&self, f: impl Fn() + Sync) {
        match &self.pool {
            Some(pool) => {
                pool.broadcast(|_| f());
            }
            None => f(),
        }
    }
}
