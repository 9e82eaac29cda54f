use std::{collections::HashMap, sync::Arc, time::Instant};

use samebits_graph::{Graph, GraphError};
use samebits_hlo::{Argument, Device, DeviceError, Program, Source, lower};

use crate::compiled::{buckets::Bucket, record::Recorder};

/// What programs take on a rank besides the inputs of a step.
pub(crate) struct Placed<D: Device> {
    /// The model's constants, by their numbers in the trace.
    pub(crate) constants: HashMap<usize, D::Buffer>,
    /// One i32 that is 0, for modules with guards.
    pub(crate) zero: D::Buffer,
}

/// A part of a model for one bucket, compiled.
pub(crate) struct Compiled<D: Device> {
    executable: Arc<D::Executable>,
    sources: Vec<Source>,
}

impl<D: Device> Clone for Compiled<D> {
    fn clone(&self) -> Self {
        Compiled { executable: self.executable.clone(), sources: self.sources.clone() }
    }
}

impl<D: Device> Compiled<D> {
    /// Runs it on the inputs of each rank and on constants of these numbers. Returns the outputs of each rank.
    pub(crate) fn run<'a>(
        &self,
        device: &D,
        inputs: impl Iterator<Item = Vec<Argument<'a, D::Buffer>>>,
        constants: &[usize],
        ranks: &'a [Placed<D>],
    ) -> Result<Vec<Vec<D::Buffer>>, DeviceError> {
        let arguments = inputs.zip(ranks).map(|(inputs, rank)| self.arguments(inputs, constants, rank));
        device.run(&self.executable, arguments.collect())
    }

    fn arguments<'a>(
        &self,
        inputs: Vec<Argument<'a, D::Buffer>>,
        constants: &[usize],
        rank: &'a Placed<D>,
    ) -> Vec<Argument<'a, D::Buffer>> {
        let mut inputs: Vec<Option<Argument<'a, D::Buffer>>> = inputs.into_iter().map(Some).collect();
        let arguments = self.sources.iter().filter_map(|source| match *source {
            Source::Input(index) => inputs[index].take(),
            Source::Constant(index) => rank.constants.get(&constants[index]).map(Argument::Kept),
            Source::Zero => Some(Argument::Kept(&rank.zero)),
        });
        arguments.collect()
    }
}

/// Layers that compute the same on other weights.
struct Kind {
    /// One of them.
    layer: usize,
    module: Vec<u8>,
}

/// The programs of a model that were compiled so far.
pub(crate) struct Programs<D: Device> {
    recorder: Recorder,
    kinds: Vec<Kind>,
    /// Kind and constants of each layer.
    layers: Vec<(usize, Vec<usize>)>,
    embed: HashMap<usize, (Compiled<D>, Vec<usize>)>,
    kind: HashMap<(usize, usize, usize), Compiled<D>>,
    head: HashMap<(usize, usize), (Compiled<D>, Vec<usize>)>,
}

/// What a step runs: a program and its constants for the embedding, each layer and, if logits are wanted, the head.
pub(crate) struct StepPrograms<D: Device> {
    pub(crate) embed: (Compiled<D>, Vec<usize>),
    pub(crate) layers: Vec<(Compiled<D>, Vec<usize>)>,
    pub(crate) head: Option<(Compiled<D>, Vec<usize>)>,
}

/// Why a part of a model could not be compiled.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CompileError {
    #[error(transparent)]
    Graph(#[from] GraphError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("layer {layer} takes other constants in another bucket; this is a defect, please report it")]
    Constants { layer: usize },
}

impl<D: Device> Programs<D> {
    /// Finds the kinds of a model's layers by recording each for the smallest bucket.
    pub(crate) fn new(
        device: &D,
        recorder: Recorder,
        layers: usize,
        smallest: Bucket,
    ) -> Result<Self, GraphError> {
        let mut programs = Programs {
            recorder,
            kinds: Vec::new(),
            layers: Vec::new(),
            embed: HashMap::new(),
            kind: HashMap::new(),
            head: HashMap::new(),
        };
        for layer in 0..layers {
            let graph = programs.recorder.layer(layer, smallest)?;
            let module = layer_program(device, &graph, layer, "layer".into()).bytes();
            let known = programs.kinds.iter().position(|kind| kind.module == module);
            let kind = known.unwrap_or_else(|| {
                programs.kinds.push(Kind { layer, module });
                programs.kinds.len() - 1
            });
            programs.layers.push((kind, constants(&graph)));
        }
        Ok(programs)
    }

    /// The programs of a bucket, compiled now where they were not before.
    pub(crate) fn step(&mut self, device: &D, bucket: Bucket) -> Result<StepPrograms<D>, CompileError> {
        let embed = self.embed(device, bucket)?;
        let mut kinds = Vec::with_capacity(self.kinds.len());
        for kind in 0..self.kinds.len() {
            kinds.push(self.kind(device, kind, bucket)?);
        }
        let layers = self.layers.iter().map(|(kind, constants)| (kinds[*kind].clone(), constants.clone()));
        let layers = layers.collect();
        let head = if bucket.logits == 0 { None } else { Some(self.head(device, bucket)?) };
        Ok(StepPrograms { embed, layers, head })
    }

    fn embed(&mut self, device: &D, bucket: Bucket) -> Result<(Compiled<D>, Vec<usize>), CompileError> {
        if let Some(known) = self.embed.get(&bucket.tokens) {
            return Ok(known.clone());
        }
        let graph = self.recorder.embed(bucket)?;
        let name = format!("embed_t{}", bucket.tokens);
        let compiled = compile(device, &lower(&graph, &device.options(name)))?;
        let entry = self.embed.entry(bucket.tokens).or_insert((compiled, constants(&graph)));
        Ok(entry.clone())
    }

    fn kind(&mut self, device: &D, kind: usize, bucket: Bucket) -> Result<Compiled<D>, CompileError> {
        let key = (kind, bucket.tokens, bucket.context);
        if let Some(known) = self.kind.get(&key) {
            return Ok(known.clone());
        }
        let layer = self.kinds[kind].layer;
        let graph = self.recorder.layer(layer, bucket)?;
        if constants(&graph) != self.layers[layer].1 {
            return Err(CompileError::Constants { layer });
        }
        let name = format!("layer{kind}_t{}_c{}", bucket.tokens, bucket.context);
        let compiled = compile(device, &layer_program(device, &graph, layer, name))?;
        Ok(self.kind.entry(key).or_insert(compiled).clone())
    }

    fn head(&mut self, device: &D, bucket: Bucket) -> Result<(Compiled<D>, Vec<usize>), CompileError> {
        let key = (bucket.tokens, bucket.logits);
        if let Some(known) = self.head.get(&key) {
            return Ok(known.clone());
        }
        let graph = self.recorder.head(bucket)?;
        let name = format!("head_t{}_r{}", bucket.tokens, bucket.logits);
        let compiled = compile(device, &lower(&graph, &device.options(name)))?;
        Ok(self.head.entry(key).or_insert((compiled, constants(&graph))).clone())
    }
}

fn layer_program<D: Device>(device: &D, graph: &Graph, layer: usize, name: String) -> Program {
    let mut options = device.options(name);
    options.relative_to = Some(format!("model.layers.{layer}."));
    lower(graph, &options)
}

fn compile<D: Device>(device: &D, program: &Program) -> Result<Compiled<D>, DeviceError> {
    let start = Instant::now();
    let executable = Arc::new(device.compile(program)?);
    let (module, seconds) = (program.module.name.as_str(), start.elapsed().as_secs_f64());
    let instructions: usize = program.module.computations.iter().map(|it| it.instructions.len()).sum();
    tracing::info!(module, instructions, device = device.name(), seconds, "compiled");
    Ok(Compiled { executable, sources: program.parameters.iter().map(|it| it.source).collect() })
}

fn constants(graph: &Graph) -> Vec<usize> {
    graph.constants().iter().map(|constant| constant.number).collect()
}
