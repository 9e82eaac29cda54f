use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    time::Duration,
};

use crate::program::{Compiled, Failed, Outcome};

/// Ranks that run a program together, each on its own tensors.
pub(crate) struct Ranks {
    pub(crate) compiled: Arc<Compiled>,
    pub(crate) count: usize,
    patience: Duration,
    /// Ranks that the program is loaded for.
    loaded: Mutex<HashSet<usize>>,
    waiting: Mutex<Vec<Waiting>>,
}

/// A rank that waits for the others.
struct Waiting {
    rank: usize,
    inputs: Vec<Vec<u8>>,
    answer: Sender<Outcome>,
}

impl Ranks {
    pub(crate) fn new(compiled: Arc<Compiled>, count: usize, patience: Duration) -> Self {
        let (loaded, waiting) = Default::default();
        Ranks { compiled, count, patience, loaded, waiting }
    }

    /// Whether a rank was not among them, and is now.
    pub(crate) fn join(&self, rank: usize) -> bool {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).insert(rank)
    }

    /// Runs the program when all ranks have come, and fails if they do not in time.
    pub(crate) fn run(&self, rank: usize, inputs: Vec<Vec<u8>>) -> Outcome {
        let (answer, answered) = mpsc::channel();
        let all = {
            let mut waiting = self.waiting();
            waiting.push(Waiting { rank, inputs, answer });
            (waiting.len() == self.count).then(|| std::mem::take(&mut *waiting))
        };
        if let Some(all) = all {
            self.run_all(all);
        }
        match answered.recv_timeout(self.patience) {
            Err(RecvTimeoutError::Timeout) if self.leave(rank) => Err(Failed::Timeout),
            // They have all come meanwhile, and the program runs.
            Err(_) => answered.recv().unwrap_or(Err(Failed::Timeout)),
            Ok(outcome) => outcome,
        }
    }

    fn run_all(&self, mut all: Vec<Waiting>) {
        all.sort_by_key(|waiting| waiting.rank);
        let inputs = all.iter_mut().map(|waiting| std::mem::take(&mut waiting.inputs)).collect();
        let outcomes = self.compiled.run(inputs);
        for (waiting, outcome) in all.into_iter().zip(outcomes) {
            // Each rank waits for its own.
            let _ = waiting.answer.send(outcome);
        }
    }

    /// Waits no longer. Returns whether the rank did wait.
    fn leave(&self, rank: usize) -> bool {
        let mut waiting = self.waiting();
        let before = waiting.len();
        waiting.retain(|waiting| waiting.rank != rank);
        waiting.len() < before
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
