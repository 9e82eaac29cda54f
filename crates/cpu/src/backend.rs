use std::{ops::Range, sync::Arc};

use samebits_kernels::{
    cpu::{self as kernels, Isa},
    memory::Arena,
    parts::Chunks,
};
use samebits_tensor::{
    Activation, AttentionBatch, AttentionParams, Backend, BinaryOp, Bytes, Capabilities, CompareOp, DType,
    Error, Experts, FeedForward, Format, HostTensor, HostWeight, Input, KvCache, PlainWeight, Result,
    RopeTable, Routes, Routing, Scalar, Shape, Tensor, UnaryOp, Weight, contract,
};

use crate::{
    attention, experts, feed_forward,
    host::elementwise,
    host::{Buffer, host_primitives},
    linear,
    memory::{Elements, Memory},
    packed::PackedWeight,
    packed_file::Store,
    threads::Threads,
};

const NAME: &str = "cpu";

/// Values of a task of an element-wise operation: fewer are not worth another thread.
const CHUNK: usize = 1 << 14;

/// Bytes to copy that are worth a task of their own.
const COPY_BYTES: usize = 1 << 18;

/// The CPU: SIMD kernels for the fused operations, on threads of its own, and on the caller's. Cloning shares the threads
/// and the memory of tensors that are gone.
///
/// A program that computes with threads of its own gives this [`Builder::threads`] what it leaves over. Idle threads watch
/// for work for 50 microseconds and then sleep. Where two threads of the program use clones at the same time, one of them
/// has the pool and the other computes alone, so that there are never more threads at work than that.
///
/// ```
/// use samebits_cpu::{Cpu, Isa};
/// let cpu = Cpu::builder().threads(1).isa(Isa::SCALAR).build()?;
/// # Ok::<(), samebits_tensor::Error>(())
/// ```
#[derive(Clone)]
pub struct Cpu {
    shared: Arc<Shared>,
}

struct Shared {
    isa: Isa,
    threads: Threads,
    memory: Memory,
    /// Where packed weights are.
    arena: Arena,
    store: Store,
    operands: linear::Operands,
    capabilities: Capabilities,
}

/// How a [`Cpu`] is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Builder {
    threads: usize,
    pin: bool,
    isa: Option<Isa>,
}

impl Builder {
    /// How many threads compute; 0, the default, means `RAYON_NUM_THREADS`, or else one for each core.
    pub fn threads(mut self, count: usize) -> Self {
        self.threads = count;
        self
    }

    /// Whether each thread but the caller's stays on a core of its own, which steadies timings on a machine that computes
    /// nothing else. Not by default, since two programs that do so share the same cores.
    pub fn pin(mut self, pin: bool) -> Self {
        self.pin = pin;
        self
    }

    /// The instruction set; the default is what `SAMEBITS_ISA` names, or else the best.
    pub fn isa(mut self, isa: Isa) -> Self {
        self.isa = Some(isa);
        self
    }

    /// The backend.
    ///
    /// # Errors
    /// If `SAMEBITS_ISA` names no instruction set of this CPU, or threads cannot be started or pinned.
    pub fn build(self) -> Result<Cpu> {
        let error = |op, detail: String| Error::Backend { backend: NAME.into(), op, detail };
        let isa = self
            .isa
            .map_or_else(Isa::from_env, Ok)
            .map_err(|e| error("choose instructions", e.to_string()))?;
        let threads = Threads::new(self.threads).map_err(|e| error("start threads", e.to_string()))?;
        if self.pin {
            threads.pin().map_err(|detail| error("pin threads", detail))?;
        }
        let count = threads.count();
        let capabilities = Capabilities {
            name: NAME.into(),
            device: format!("{}, {count} thread{}", isa.title(), if count == 1 { "" } else { "s" }),
            numerics: contract::exact(),
            formats: Format::ALL.to_vec(),
            memory_bytes: None,
        };
        Ok(Cpu {
            shared: Arc::new(Shared {
                isa,
                threads,
                memory: Memory::pooled(),
                arena: Arena::default(),
                store: Store::default(),
                operands: linear::Operands::default(),
                capabilities,
            }),
        })
    }
}

impl Cpu {
    /// The best instruction set on all cores.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Choices before the start.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.shared.isa
    }

    /// Runs `f` once on every thread that computes, as a test does that changes the threads' floating-point mode.
    pub fn on_every_thread(&self, f: impl Fn() + Sync) {
        self.threads().everywhere(f);
    }

    pub(crate) fn threads(&self) -> &Threads {
        &self.shared.threads
    }

    pub(crate) fn store(&self) -> &Store {
        &self.shared.store
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.shared.memory
    }

    /// Quantised activations of steps before, whose memory is used again.
    pub(crate) fn operands(&self) -> &linear::Operands {
        &self.shared.operands
    }

    /// A tensor of this backend.
    pub(crate) fn tensor(&self, shape: impl Into<Shape>, values: Elements<f32>) -> Tensor<Self> {
        Tensor::from_data(self, shape, DType::F32, values.into())
    }

    /// Fills a tensor like `x`, as [`Self::rows`] does.
    fn in_rows(&self, x: &Tensor<Self>, n: usize, run: impl Fn(usize, &mut [f32]) + Sync) -> Tensor<Self> {
        self.tensor(x.shape(), self.rows(x.shape().elements(), n, run))
    }

    /// `len` values, filled whole rows of `n` values at a time: `run` is given where a piece starts and the piece.
    pub(crate) fn rows(&self, len: usize, n: usize, run: impl Fn(usize, &mut [f32]) + Sync) -> Elements<f32> {
        let mut out = self.memory().elements(len);
        if !out.is_empty() {
            let piece = CHUNK.max(len.div_ceil(4 * self.threads().count())).next_multiple_of(n);
            self.threads().each(Chunks::new(out.as_mut_slice(), piece), |i, out| run(i * piece, out));
        }
        out
    }
}

impl Backend for Cpu {
    type Data = Buffer;
    type Weight = PackedWeight;

    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    host_primitives!();

    fn download_bytes(&self, x: &Tensor<Self>, out: &mut [u8]) -> Result<()> {
        let bytes: &[u8] = x.data().as_ref();
        self.threads().each(Chunks::new(out, COPY_BYTES), |i, out| {
            out.copy_from_slice(&bytes[i * COPY_BYTES..][..out.len()]);
        });
        Ok(())
    }

    fn binary(&self, op: BinaryOp, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Buffer> {
        match (op, a.data(), b.data()) {
            (BinaryOp::Add, Buffer::F32(x), Buffer::F32(y)) => Ok(self
                .in_rows(a, 16, |at, out| elementwise::add(&x[at..at + out.len()], &y[at..], out))
                .data()
                .clone()),
            _ => elementwise::binary(self.memory(), op, a.data(), b.data()),
        }
    }

    fn pack(&self, weight: &HostWeight) -> Result<PackedWeight> {
        let packed = PackedWeight::pack(self.threads(), &self.shared.arena, weight)?;
        self.store().packed(&weight.name, &packed);
        Ok(packed)
    }

    fn stored(&self, name: &str) -> Option<(PackedWeight, Format, usize, usize)> {
        let packed = self.store().weight(name)?;
        let (format, rows, cols) = (packed.format(), packed.rows(), packed.cols());
        Some((packed, format, rows, cols))
    }

    fn on_host(&self, tasks: usize, run: impl Fn(usize) + Sync) {
        self.threads().run(tasks, run);
    }

    fn plain(&self, weight: &Weight<Self>) -> Result<PlainWeight<Self>> {
        linear::plain(self, weight.packed())
    }

    fn linear(&self, x: &Tensor<Self>, weight: &Weight<Self>) -> Result<Tensor<Self>> {
        let [y] = linear::linears(self, x.into(), [weight.packed()])?;
        Ok(y)
    }

    fn linears<const N: usize>(
        &self,
        x: Input<'_, Self>,
        weights: [&Weight<Self>; N],
    ) -> Result<[Tensor<Self>; N]> {
        linear::linears(self, x, weights.map(Weight::packed))
    }

    fn feed_forward(&self, x: Input<'_, Self>, layer: FeedForward<'_, Self>) -> Result<Tensor<Self>> {
        feed_forward::feed_forward(self, x, layer)
    }

    fn route(&self, logits: &Tensor<Self>, routing: Routing) -> Result<Routes<Self>> {
        experts::route(self, logits, routing)
    }

    fn experts(
        &self,
        x: Input<'_, Self>,
        layer: Experts<'_, Self>,
        routes: &Routes<Self>,
    ) -> Result<Tensor<Self>> {
        experts::experts(self, x, layer, routes)
    }

    fn embedding(&self, ids: &Tensor<Self>, weight: &Weight<Self>) -> Result<Tensor<Self>> {
        linear::embedding(self, ids, weight.packed())
    }

    fn rms_norm(&self, x: &Tensor<Self>, weight: &Tensor<Self>, eps: f32) -> Result<Tensor<Self>> {
        let op = "rms_norm";
        let (values, weight) = (x.data().f32(op)?, weight.data().f32(op)?);
        Ok(self.in_rows(x, weight.len(), |at, out| {
            kernels::rms_norm(self.isa(), &values[at..at + out.len()], weight, eps, out);
        }))
    }

    fn layer_norm(
        &self,
        x: &Tensor<Self>,
        weight: &Tensor<Self>,
        bias: &Tensor<Self>,
        eps: f32,
    ) -> Result<Tensor<Self>> {
        let op = "layer_norm";
        let (values, weight, bias) = (x.data().f32(op)?, weight.data().f32(op)?, bias.data().f32(op)?);
        Ok(self.in_rows(x, weight.len(), |at, out| {
            kernels::layer_norm(self.isa(), &values[at..at + out.len()], weight, bias, eps, out);
        }))
    }

    fn rope(
        &self,
        x: &Tensor<Self>,
        positions: &Tensor<Self>,
        table: &RopeTable<Self>,
    ) -> Result<Tensor<Self>> {
        let op = "rope";
        let &[_, heads, head_dim] = x.dims() else {
            return Err(Error::Shape { op, detail: format!("x {}", x.shape()) });
        };
        let (values, positions) = (x.data().f32(op)?, positions.data().i32(op)?);
        let (cos, sin) = (table.cos.data().f32(op)?, table.sin.data().f32(op)?);
        let half = table.cos.dims()[1];
        check_indices(op, positions, table.cos.dims()[0])?;
        let width = heads * head_dim;
        Ok(self.in_rows(x, width, |at, out| {
            let rows = out.chunks_exact_mut(width).zip(values[at..].chunks_exact(width));
            for ((out, x), &position) in rows.zip(&positions[at / width..]) {
                let angles = position as usize * half..(position as usize + 1) * half;
                kernels::rope(self.isa(), x, head_dim, &cos[angles.clone()], &sin[angles], out);
            }
        }))
    }

    fn store_kv(
        &self,
        cache: &mut KvCache<Self>,
        k: &Tensor<Self>,
        v: &Tensor<Self>,
        slots: &Tensor<Self>,
    ) -> Result<()> {
        attention::store_kv(self, cache, k, v, slots)
    }

    fn attention(
        &self,
        q: &Tensor<Self>,
        cache: &KvCache<Self>,
        batch: &AttentionBatch<Self>,
        params: &AttentionParams,
    ) -> Result<Tensor<Self>> {
        attention::attention(self, q, cache, batch, params)
    }

    fn glu(&self, gate: &Tensor<Self>, up: &Tensor<Self>, activation: Activation) -> Result<Tensor<Self>> {
        let (values, up) = (gate.data().f32("glu")?, up.data().f32("glu")?);
        Ok(self.in_rows(gate, 16, |at, out| {
            let piece = at..at + out.len();
            kernels::glu(self.isa(), &values[piece.clone()], &up[piece], activation, out);
        }))
    }

    fn activate(&self, x: &Tensor<Self>, activation: Activation) -> Result<Tensor<Self>> {
        let values = x.data().f32("activate")?;
        Ok(self.in_rows(x, 16, |at, out| {
            kernels::activate(self.isa(), &values[at..at + out.len()], activation, out);
        }))
    }

    fn softmax(&self, x: &Tensor<Self>) -> Result<Tensor<Self>> {
        let (values, n) = (x.data().f32("softmax")?, x.dims()[1]);
        Ok(self.in_rows(x, n, |at, out| {
            kernels::softmax(self.isa(), &values[at..at + out.len()], n, out);
        }))
    }

    fn soft_cap(&self, x: &Tensor<Self>, cap: f32) -> Result<Tensor<Self>> {
        let values = x.data().f32("soft_cap")?;
        Ok(self.in_rows(x, 16, |at, out| {
            kernels::soft_cap(self.isa(), &values[at..at + out.len()], cap, out);
        }))
    }
}

/// That every index is one of `len` rows.
pub(crate) fn check_indices(op: &'static str, indices: &[i32], len: usize) -> Result<()> {
    let outside = |&&index: &&i32| !usize::try_from(index).is_ok_and(|index| index < len);
    match indices.iter().find(outside) {
        Some(&index) => Err(Error::Index { op, index: index.into(), len }),
        None => Ok(()),
    }
}
