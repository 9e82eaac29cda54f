//! The threads of a backend.

use std::{
    env, io,
    num::NonZero,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use samebits_kernels::{parts::Parts, pool::Pool};

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

    /// Keeps every thread but the caller's on a core of its own, the second of those that the process may use and on.
    pub(crate) fn pin(&self) -> Result<(), String> {
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        if cores.len() < self.count() {
            return Err(format!("{} threads and {} cores to pin them to", self.count(), cores.len()));
        }
        let (caller, next, failed) = (thread::current().id(), AtomicUsize::new(1), AtomicUsize::new(0));
        self.everywhere(|| {
            if thread::current().id() != caller
                && !core_affinity::set_for_current(cores[next.fetch_add(1, Ordering::Relaxed)])
            {
                failed.fetch_add(1, Ordering::Relaxed);
            }
        });
        match failed.into_inner() {
            0 => Ok(()),
            failed => Err(format!("the system pins {failed} of {} threads not", self.count())),
        }
    }

    /// How many work at a time.
    pub(crate) fn count(&self) -> usize {
        self.pool.threads()
    }

    /// Runs `run` once for each number below `tasks`, in any order.
    pub(crate) fn run(&self, tasks: usize, run: impl Fn(usize) + Sync) {
        self.pool.run(tasks, run);
    }

    /// Runs `run` once with each part and its number, in any order.
    pub(crate) fn each<P: Parts>(&self, parts: P, run: impl Fn(usize, P::Part) + Sync) {
        self.pool.each(parts, run);
    }

    /// Runs `f` once on every thread, the caller's included.
    pub(crate) fn everywhere(&self, f: impl Fn() + Sync) {
        self.pool.everywhere(f);
    }
}

/// The number in [`VARIABLE`]; as for rayon, 0 and what is no number count as not given.
fn asked_for() -> Option<NonZero<usize>> {
    env::var(VARIABLE).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use samebits_kernels::parts::Chunks;

    use super::*;

    #[test]
    fn each_part_is_written_once() {
        let (threads, mut values) = (Threads::new(2).expect("threads"), vec![0; 100]);
        threads.each(Chunks::new(&mut values, 3), |i, part| part.iter_mut().for_each(|x| *x += 1 + i));
        assert!(values.iter().enumerate().all(|(at, &x)| x == 1 + at / 3));
    }

    #[test]
    fn threads_are_pinned_to_cores_there_are() {
        let cores = core_affinity::get_core_ids().unwrap_or_default().len();
        assert_eq!(Threads::new(1).expect("threads").pin().is_ok(), cores >= 1);
        assert!(Threads::new(cores + 1).expect("threads").pin().is_err());
    }
}
