//! Steps that are recorded once, as a graph of the driver, and then done again by one call.

use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard},
};

use cudarc::driver::DriverError;
use samebits_tensor::{DType, Dims, Result, Shape, StepInput, StepKey, Tensor};

use crate::{
    Buffer, Cuda,
    driver::{Driver, Graph},
    lock,
    memory::{Heap, UNIT},
};

/// Steps that are kept; that which was not done for longest goes first.
const KEPT: usize = 64;

/// Memory that recorded steps have of their own, in terms of what the largest takes: spans are of other lengths there, and leave
/// gaps.
pub const RECORDED_STEPS: u64 = 2;

/// How often memory that did not suffice is doubled.
const ATTEMPTS: u32 = 3;

/// What is known of steps.
#[derive(Default)]
pub(crate) struct Steps {
    known: HashMap<Key, Known>,
    /// Memory for what a recorded step makes and drops, which all of them share since none begins before another ends.
    heap: Option<Arc<Heap>>,
    /// How many steps were done.
    clock: u64,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    step: StepKey,
    /// Extents of all inputs, one after the other.
    dims: Shape,
}

enum Known {
    /// It was run once, and took so many units of memory at most. Recordings that failed.
    Run {
        units: u64,
        failures: u32,
    },
    Recorded(Recorded),
}

struct Recorded {
    driver: Arc<Driver>,
    graph: Graph,
    inputs: Buffer,
    /// Where the result is until the next step.
    result: u64,
    shape: Shape,
    dtype: DType,
    _heap: Arc<Heap>,
    last_done: u64,
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // Nobody is left to be told of an error.
        let _ = self.driver.destroy_graph(&self.graph);
    }
}

impl Cuda {
    /// Runs a step, or does again what was recorded of it. The first time it is run, the second time recorded.
    pub(crate) fn run_step<const N: usize>(
        &self,
        key: Option<StepKey>,
        inputs: [StepInput<'_>; N],
        mut run: impl FnMut(&[Tensor<Self>; N]) -> Result<Tensor<Self>>,
    ) -> Result<Tensor<Self>> {
        let packed = Packed::of(inputs);
        let tokens = inputs.first().map_or(0, |tokens| tokens.values.len());
        // cuBLASLt plans its products while a step is issued, which is not to be recorded.
        let Some(step) = key.filter(|_| !self.may_be_fast(tokens)) else {
            return self.run_now(&packed, run);
        };
        let key = Key { step, dims: packed.dims() };
        let mut steps = lock(&self.shared.steps);
        match steps.known.get(&key) {
            Some(Known::Recorded(_)) => {}
            Some(&Known::Run { units, failures }) if failures < ATTEMPTS => {
                if !self.try_to_record(&mut steps, &key, units, failures, &packed, &mut run)? {
                    drop(steps);
                    return self.run_now(&packed, run);
                }
            }
            Some(Known::Run { .. }) => {
                drop(steps);
                return self.run_now(&packed, run);
            }
            None => {
                drop(steps);
                let (result, units) = self.units_taken(|| self.run_now(&packed, run))?;
                lock(&self.shared.steps).known.insert(key, Known::Run { units, failures: 0 });
                return result;
            }
        }
        self.replay(steps, &key, &packed.bytes)
    }

    fn run_now<const N: usize>(
        &self,
        packed: &Packed<'_, N>,
        mut run: impl FnMut(&[Tensor<Self>; N]) -> Result<Tensor<Self>>,
    ) -> Result<Tensor<Self>> {
        let block = self.buffer("step", packed.bytes.len())?;
        self.write(&block, &packed.bytes)?;
        run(&packed.tensors(self, &block))
    }

    /// Records a step that took so many units of memory, or counts one more failure.
    fn try_to_record<const N: usize>(
        &self,
        steps: &mut Steps,
        key: &Key,
        units: u64,
        failures: u32,
        packed: &Packed<'_, N>,
        run: &mut impl FnMut(&[Tensor<Self>; N]) -> Result<Tensor<Self>>,
    ) -> Result<bool> {
        let block = self.buffer("step", packed.bytes.len())?;
        let tensors = packed.tensors(self, &block);
        let recorded = self.record(steps, (units * RECORDED_STEPS) << failures, block, || run(&tensors));
        let is_recorded = recorded.is_ok();
        match recorded {
            Ok(recorded) => steps.keep(key.clone(), recorded),
            Err(_) => _ = steps.known.insert(key.clone(), Known::Run { units, failures: failures + 1 }),
        }
        Ok(is_recorded)
    }

    /// Records `run`, whose tensors have so many units of memory.
    fn record(
        &self,
        steps: &mut Steps,
        units: u64,
        inputs: Buffer,
        run: impl FnOnce() -> Result<Tensor<Self>>,
    ) -> Result<Recorded> {
        let heap = match &steps.heap {
            Some(heap) if heap.units() >= units => heap.clone(),
            _ => self.shared.memory.part("record a step", units)?,
        };
        steps.heap = Some(heap.clone());
        let record = || self.shared.driver.record_graph(run);
        let recorded = self.shared.memory.record_into(heap.clone(), record);
        let (result, graph) = recorded.map_err(|error| self.failed("record a step", error))?;
        let result = result.inspect_err(|_| _ = self.shared.driver.destroy_graph(&graph))?;
        Ok(Recorded {
            driver: self.shared.driver.clone(),
            graph,
            inputs,
            result: result.data().address(),
            shape: result.shape().clone(),
            dtype: result.dtype(),
            _heap: heap,
            last_done: 0,
        })
    }

    /// Does a recorded step with other inputs.
    fn replay(&self, mut steps: MutexGuard<'_, Steps>, key: &Key, inputs: &[u8]) -> Result<Tensor<Self>> {
        steps.clock += 1;
        let clock = steps.clock;
        let Some(Known::Recorded(step)) = steps.known.get_mut(key) else { unreachable!("a step just found") };
        step.last_done = clock;
        self.write(&step.inputs, inputs)?;
        self.note("recorded step", &step.shape);
        self.shared.driver.replay(&step.graph).map_err(|error| self.failed("step", error))?;
        let out = self.room("step", &step.shape, step.dtype)?;
        let bytes = step.shape.elements() * step.dtype.size();
        self.copy_from(&out, step.result, bytes)?;
        Ok(Tensor::from_data(self, &step.shape, step.dtype, out))
    }

    fn units_taken<T>(&self, run: impl FnOnce() -> T) -> Result<(T, u64)> {
        let taken: Result<_, DriverError> = self.shared.memory.units_taken(run);
        taken.map_err(|error| self.failed("step", error))
    }

    /// Forgets the steps of an owner.
    pub(crate) fn forget(&self, owner: u64) {
        lock(&self.shared.steps).known.retain(|key, _| key.step.owner != owner);
    }
}

impl Steps {
    fn keep(&mut self, key: Key, recorded: Recorded) {
        let kept = self.known.iter().filter_map(|(key, known)| match known {
            Known::Recorded(recorded) => Some((recorded.last_done, key)),
            Known::Run { .. } => None,
        });
        if kept.clone().count() >= KEPT {
            let oldest = kept.min_by_key(|(last_done, _)| *last_done).map(|(_, key)| key.clone());
            oldest.and_then(|oldest| self.known.remove(&oldest));
        }
        self.known.insert(key, Known::Recorded(recorded));
    }
}

/// The inputs of a step in one piece, so that they take one copy.
struct Packed<'a, const N: usize> {
    inputs: [StepInput<'a>; N],
    bytes: Vec<u8>,
    starts: [u64; N],
}

impl<'a, const N: usize> Packed<'a, N> {
    fn of(inputs: [StepInput<'a>; N]) -> Self {
        let mut bytes = Vec::new();
        let starts = inputs.map(|input| {
            bytes.resize(bytes.len().next_multiple_of(UNIT as usize), 0);
            let start = bytes.len() as u64;
            bytes.extend_from_slice(bytemuck::cast_slice(input.values));
            start
        });
        Packed { inputs, bytes, starts }
    }

    /// Extents of all inputs, one after the other.
    fn dims(&self) -> Shape {
        self.inputs.iter().flat_map(|input| input.dims).copied().collect::<Dims>().into()
    }

    /// The inputs, where they lie on the device.
    fn tensors(&self, cuda: &Cuda, block: &Buffer) -> [Tensor<Cuda>; N] {
        std::array::from_fn(|i| {
            let elements = block.after(self.starts[i]);
            Tensor::from_data(cuda, self.inputs[i].dims, DType::I32, elements)
        })
    }
}
