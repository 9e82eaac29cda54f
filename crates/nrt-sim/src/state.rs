use std::{
    collections::{HashMap, HashSet},
    env, ptr,
    sync::{Arc, Mutex},
    time::Duration,
};

use samebits_neuron::abi::Status;
use samebits_pjrt::{Client, PjrtDevice, PjrtError, Plugin, Value, testing};
use samebits_tensor::Rank;

use crate::{
    Done,
    faults::Faults,
    program::{Compiled, Infos, Program},
    ranks::Ranks,
};

/// Cores of the machine that is stood in for.
pub(crate) const CORES: u32 = 32;

/// Everything that the library keeps.
pub(crate) struct State {
    pub(crate) tensors: HashMap<usize, Tensor>,
    pub(crate) sets: HashMap<usize, HashMap<String, usize>>,
    pub(crate) models: HashMap<usize, Arc<Program>>,
    /// What was compiled so far, by hashes of NEFFs and numbers of ranks: compiling takes the most time of a test.
    compiled: HashMap<(blake3::Hash, usize), Arc<Compiled>>,
    /// Those who load a program of ranks and are not complete, by the same.
    joining: HashMap<(blake3::Hash, usize), Arc<Ranks>>,
    patience: Duration,
    pub(crate) infos: HashMap<usize, Infos>,
    pub(crate) faults: Faults,
    pub(crate) misuses: u64,
    pub(crate) cores: u32,
    pub(crate) bytes_limit: u64,
    pub(crate) queue_depth: usize,
    /// Executions at work, by core.
    pub(crate) running: HashMap<u32, usize>,
    /// Cores that do nothing more.
    pub(crate) dead: HashSet<u32>,
    client: Option<Client>,
    phase: Phase,
    next: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    New,
    Started,
    Closed,
}

/// Memory, or a part of another tensor's.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) memory: Arc<Mutex<Vec<u8>>>,
    pub(crate) start: usize,
    pub(crate) bytes: usize,
    pub(crate) core: u32,
    /// Whether its bytes count as the core's memory.
    pub(crate) is_charged: bool,
}

/// What may be asked before `nrt_init`.
const ALWAYS: [&str; 4] =
    ["nrt_init", "nrt_get_version", "nrt_get_total_vnc_count", "nrt_get_visible_vnc_count"];

impl State {
    pub(crate) fn from_environment() -> Self {
        let number = |name: &str| env::var(name).ok().and_then(|value| value.parse().ok());
        State {
            tensors: HashMap::new(),
            sets: HashMap::new(),
            models: HashMap::new(),
            compiled: HashMap::new(),
            joining: HashMap::new(),
            patience: Duration::from_millis(number("NRT_SIM_PATIENCE_MS").unwrap_or(5000)),
            infos: HashMap::new(),
            faults: faults(),
            misuses: 0,
            cores: visible(env::var("NEURON_RT_VISIBLE_CORES").ok(), env::var("NEURON_RT_NUM_CORES").ok()),
            bytes_limit: number("NRT_SIM_BYTES").unwrap_or(16 << 30),
            queue_depth: number("NRT_SIM_QUEUE_DEPTH").unwrap_or(1) as usize,
            running: HashMap::new(),
            dead: HashSet::new(),
            client: None,
            phase: Phase::New,
            next: 1,
        }
    }

    /// Counts a call, and fails it if the library does not run or that is planned.
    pub(crate) fn enter(&mut self, function: &'static str) -> Done {
        match self.phase {
            Phase::New if !ALWAYS.contains(&function) => return Err(Status::Uninitialized),
            Phase::Closed => return Err(Status::Closed),
            _ => {}
        }
        self.faults.enter(function)
    }

    pub(crate) fn start(&mut self) -> Done {
        if self.phase == Phase::Started {
            return Err(self.misuse("nrt_init: started before", Status::Invalid));
        }
        self.phase = Phase::Started;
        Ok(())
    }

    pub(crate) fn close(&mut self) {
        self.phase = Phase::Closed;
    }

    /// The device that programs of so many ranks really run on. The plugin is opened when the first is loaded.
    fn device(&mut self, ranks: usize) -> Done<PjrtDevice> {
        let failed = |error| said("no device", &error, Status::Failure);
        let client = match &self.client {
            Some(client) => client,
            None => self.client.insert(client().map_err(failed)?),
        };
        PjrtDevice::group(client.clone(), 0..ranks).map_err(|error| match error {
            PjrtError::Device { .. } => Status::NotEnoughCores,
            error => failed(error),
        })
    }

    /// A number that nothing had before, so that what is gone is not taken for something new.
    pub(crate) fn fresh(&mut self) -> usize {
        self.next += 1;
        // As pointers are.
        self.next * 16
    }

    pub(crate) fn check_core(&mut self, core: u32) -> Done {
        if core >= self.cores {
            return Err(self.misuse("a core that is not visible", Status::Invalid));
        }
        if self.dead.contains(&core) { Err(Status::Unrecoverable) } else { Ok(()) }
    }

    /// Bytes of a core's memory that are in use.
    pub(crate) fn used(&self, core: u32) -> u64 {
        let tensors = self.tensors.values().filter(|tensor| tensor.core == core && tensor.is_charged);
        tensors.map(|tensor| tensor.bytes as u64).sum()
    }

    pub(crate) fn live(&self, core: u32) -> u64 {
        let tensors = self.tensors.values().filter(|tensor| tensor.core == core).count();
        let models = self.models.values().filter(|model| model.core == core).count();
        (tensors + models) as u64
    }

    pub(crate) fn tensor(&mut self, number: usize) -> Done<Tensor> {
        let found = self.tensors.get(&number).cloned();
        found.ok_or_else(|| self.misuse("a tensor that is not there", Status::InvalidHandle))
    }

    pub(crate) fn set(&mut self, number: usize) -> Done<HashMap<String, usize>> {
        let found = self.sets.get(&number).cloned();
        found.ok_or_else(|| self.misuse("a set that is not there", Status::InvalidHandle))
    }

    pub(crate) fn model(&mut self, number: usize) -> Done<Arc<Program>> {
        let found = self.models.get(&number).cloned();
        found.ok_or_else(|| self.misuse("a program that is not loaded", Status::InvalidHandle))
    }

    pub(crate) fn load(&mut self, neff: &[u8], core: u32, rank: Rank) -> Done<usize> {
        let ranks = self.ranks(neff, rank)?;
        let number = self.fresh();
        self.models.insert(number, Arc::new(Program { core, rank: rank.index, ranks }));
        Ok(number)
    }

    /// Those who load the same program, with this rank among them.
    fn ranks(&mut self, neff: &[u8], rank: Rank) -> Done<Arc<Ranks>> {
        let key = (blake3::hash(neff), rank.count);
        if let Some(ranks) = self.joining.get(&key).filter(|ranks| ranks.join(rank.index)) {
            return Ok(ranks.clone());
        }
        let ranks = Arc::new(Ranks::new(self.compiled(neff, key)?, rank.count, self.patience));
        ranks.join(rank.index);
        self.joining.insert(key, ranks.clone());
        Ok(ranks)
    }

    fn compiled(&mut self, neff: &[u8], key: (blake3::Hash, usize)) -> Done<Arc<Compiled>> {
        if let Some(known) = self.compiled.get(&key) {
            return Ok(known.clone());
        }
        let compiled = Arc::new(Compiled::new(self.device(key.1)?, neff)?);
        Ok(self.compiled.entry(key).or_insert(compiled).clone())
    }

    /// Counts a mistake of the caller.
    pub(crate) fn misuse(&mut self, what: &str, status: Status) -> Status {
        self.misuses += 1;
        said("misuse", &what, status)
    }
}

/// Says why on the standard error stream, as libnrt does.
pub(crate) fn said(what: &str, why: &dyn std::fmt::Display, status: Status) -> Status {
    eprintln!("nrt-sim: {what}: {why} ({status})");
    status
}

/// Devices that stand in for cores that run a program together.
const MOST_RANKS: i64 = 8;

fn client() -> Result<Client, PjrtError> {
    let named = env::var_os("NRT_SIM_PLUGIN").filter(|path| !path.is_empty());
    let path = named.map_or_else(testing::cpu_plugin, Into::into);
    Plugin::open(path)?.client(&[("cpu_device_count", Value::Int64(MOST_RANKS))])
}

pub(crate) fn pointer<T>(number: usize) -> *mut T {
    ptr::without_provenance_mut(number)
}

pub(crate) fn number<T>(pointer: *const T) -> usize {
    pointer.addr()
}

fn faults() -> Faults {
    let plan = env::var("NRT_SIM_FAULTS").unwrap_or_default();
    plan.parse().unwrap_or_else(|()| panic!("NRT_SIM_FAULTS is no plan: {plan:?}"))
}

/// How many cores a list such as `0-3` or `0,2`, or a number of them, leaves.
fn visible(list: Option<String>, number: Option<String>) -> u32 {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last && last < CORES).then(|| last - first + 1)
    };
    match (list, number) {
        (Some(list), _) => list.split(',').map(range).sum::<Option<u32>>().unwrap_or(0),
        (None, Some(number)) => number.parse().unwrap_or(0).min(CORES),
        (None, None) => CORES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_those_that_are_listed() {
        let list = |text: &str| visible(Some(text.into()), None);
        assert_eq!((list("0-3"), list("5"), list("0,2, 4-5")), (4, 1, 4));
        assert_eq!((list("3-1"), list("40"), list("x")), (0, 0, 0));
        assert_eq!((visible(None, Some("2".into())), visible(None, None)), (2, CORES));
    }
}
