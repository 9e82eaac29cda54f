use std::ops::Range;

use bytemuck::bytes_of;
use samebits_tensor::{
    Activation, AttentionBatch, AttentionParams, Backend, BinaryOp, Capabilities, CompareOp, DType, Error,
    Experts, FeedForward, Heads, HostTensor, HostWeight, Input, KvCache, PlainWeight, Result, RopeTable,
    Routes, Routing, Scalar, Shape, StepInput, StepKey, Tensor, UnaryOp, Weight,
};

use crate::{Buffer, Cuda, PackedWeight};

impl Backend for Cuda {
    type Data = Buffer;
    type Weight = PackedWeight;

    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    fn is_asynchronous(&self) -> bool {
        true
    }

    fn records_steps(&self) -> bool {
        true
    }

    fn step<const N: usize>(
        &self,
        key: Option<StepKey>,
        inputs: [StepInput<'_>; N],
        run: impl FnMut(&[Tensor<Self>; N]) -> Result<Tensor<Self>>,
    ) -> Result<Tensor<Self>> {
        self.run_step(key, inputs, run)
    }

    fn forget_steps(&self, owner: u64) {
        self.forget(owner);
    }

    fn upload(&self, host: &HostTensor) -> Result<Buffer> {
        self.upload_bytes(host.shape(), host.dtype(), host.bytes())
    }

    fn upload_bytes(&self, shape: &Shape, dtype: DType, bytes: &[u8]) -> Result<Buffer> {
        let out = self.room("upload", shape, dtype)?;
        self.write(&out, bytes)?;
        Ok(out)
    }

    fn download(&self, x: &Tensor<Self>) -> Result<HostTensor> {
        let mut bytes = vec![0; x.shape().elements() * x.dtype().size()];
        self.download_bytes(x, &mut bytes)?;
        HostTensor::new(x.shape(), x.dtype(), bytes.into())
    }

    fn download_bytes(&self, x: &Tensor<Self>, out: &mut [u8]) -> Result<()> {
        self.read(x.data(), out)
    }

    fn full(&self, shape: &Shape, value: Scalar) -> Result<Buffer> {
        self.fill(shape, value)
    }

    fn iota(&self, shape: &Shape, axis: usize) -> Result<Buffer> {
        self.count_up(shape, axis)
    }

    fn reshape(&self, x: &Tensor<Self>, _: &Shape) -> Result<Buffer> {
        Ok(x.data().clone())
    }

    fn permute(&self, x: &Tensor<Self>, axes: &[usize], shape: &Shape) -> Result<Buffer> {
        self.permuted(x, axes, shape)
    }

    fn slice(&self, x: &Tensor<Self>, ranges: &[Range<usize>], shape: &Shape) -> Result<Buffer> {
        self.sliced(x, ranges, shape)
    }

    fn broadcast(&self, x: &Tensor<Self>, shape: &Shape) -> Result<Buffer> {
        self.broadcasted(x, shape)
    }

    fn concat(&self, xs: &[&Tensor<Self>], axis: usize, shape: &Shape) -> Result<Buffer> {
        self.joined(xs, axis, shape)
    }

    fn cast(&self, x: &Tensor<Self>, dtype: DType) -> Result<Buffer> {
        // A mask is bytes of 0 and 1.
        if (x.dtype(), dtype) == (DType::Bool, DType::U8) {
            return Ok(x.data().clone());
        }
        self.mapped(cast(x.dtype(), dtype)?, &[x], dtype, &[])
    }

    fn bitcast(&self, x: &Tensor<Self>, _: DType) -> Result<Buffer> {
        Ok(x.data().clone())
    }

    fn unary(&self, op: UnaryOp, x: &Tensor<Self>) -> Result<Buffer> {
        self.mapped(unary(op, x.dtype()), &[x], x.dtype(), &[])
    }

    fn binary(&self, op: BinaryOp, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Buffer> {
        self.mapped(binary(op, a.dtype())?, &[a, b], a.dtype(), &[])
    }

    fn compare(&self, op: CompareOp, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Buffer> {
        self.mapped(compare(op, a.dtype()), &[a, b], DType::Bool, &[])
    }

    fn select(&self, condition: &Tensor<Self>, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Buffer> {
        let kernel = match a.dtype().size() {
            1 => "select_1",
            2 => "select_2",
            _ => "select_4",
        };
        self.mapped(kernel, &[condition, a, b], a.dtype(), &[])
    }

    fn max_reduce(&self, x: &Tensor<Self>, shape: &Shape) -> Result<Buffer> {
        self.row_maxima(x, shape)
    }

    fn matmul_exact(&self, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Buffer> {
        self.exact_product(a, b)
    }

    fn gather(&self, x: &Tensor<Self>, indices: &Tensor<Self>) -> Result<Buffer> {
        self.gathered(x, indices)
    }

    fn scatter(
        &self,
        x: &mut Buffer,
        x_shape: &Shape,
        indices: &Tensor<Self>,
        rows: &Tensor<Self>,
    ) -> Result<()> {
        self.scattered(x, x_shape, indices, rows)
    }

    fn pack(&self, weight: &HostWeight) -> Result<PackedWeight> {
        PackedWeight::pack(self, weight)
    }

    fn plain(&self, weight: &Weight<Self>) -> Result<PlainWeight<Self>> {
        weight.packed().plain(self)
    }

    fn linear(&self, x: &Tensor<Self>, weight: &Weight<Self>) -> Result<Tensor<Self>> {
        self.products(Input::from(x), [weight]).map(|[product]| product)
    }

    fn linears<const N: usize>(
        &self,
        x: Input<'_, Self>,
        weights: [&Weight<Self>; N],
    ) -> Result<[Tensor<Self>; N]> {
        self.products(x, weights)
    }

    fn feed_forward(&self, x: Input<'_, Self>, layer: FeedForward<'_, Self>) -> Result<Tensor<Self>> {
        self.gated(x, layer)
    }

    fn route(&self, logits: &Tensor<Self>, routing: Routing) -> Result<Routes<Self>> {
        self.routed(logits, routing)
    }

    fn experts(
        &self,
        x: Input<'_, Self>,
        layer: Experts<'_, Self>,
        routes: &Routes<Self>,
    ) -> Result<Tensor<Self>> {
        self.mixed(x, layer, routes)
    }

    fn embedding(&self, ids: &Tensor<Self>, weight: &Weight<Self>) -> Result<Tensor<Self>> {
        self.embedded(ids, weight.packed())
    }

    fn rms_norm(&self, x: &Tensor<Self>, weight: &Tensor<Self>, eps: f32) -> Result<Tensor<Self>> {
        self.norm(x, weight, None, eps)
    }

    fn layer_norm(
        &self,
        x: &Tensor<Self>,
        weight: &Tensor<Self>,
        bias: &Tensor<Self>,
        eps: f32,
    ) -> Result<Tensor<Self>> {
        self.norm(x, weight, Some(bias), eps)
    }

    fn rope(
        &self,
        x: &Tensor<Self>,
        positions: &Tensor<Self>,
        table: &RopeTable<Self>,
    ) -> Result<Tensor<Self>> {
        self.rotated(x, positions, table)
    }

    fn store_kv(
        &self,
        cache: &mut KvCache<Self>,
        k: &Tensor<Self>,
        v: &Tensor<Self>,
        slots: &Tensor<Self>,
    ) -> Result<()> {
        self.store(cache, k, v, slots)
    }

    fn rotate_and_store(
        &self,
        cache: &mut KvCache<Self>,
        heads: Heads<'_, Self>,
        table: &RopeTable<Self>,
    ) -> Result<Tensor<Self>> {
        self.rotated_and_stored(cache, heads, table)
    }

    fn attention(
        &self,
        q: &Tensor<Self>,
        cache: &KvCache<Self>,
        batch: &AttentionBatch<Self>,
        params: &AttentionParams,
    ) -> Result<Tensor<Self>> {
        self.attended(q, cache, batch, params)
    }

    fn glu(&self, gate: &Tensor<Self>, up: &Tensor<Self>, activation: Activation) -> Result<Tensor<Self>> {
        let kernel = match activation {
            Activation::Silu => "glu_silu",
            Activation::GeluTanh => "glu_gelu_tanh",
        };
        Ok(self.floats(gate.shape(), self.mapped(kernel, &[gate, up], DType::F32, &[])?))
    }

    fn activate(&self, x: &Tensor<Self>, activation: Activation) -> Result<Tensor<Self>> {
        let kernel = match activation {
            Activation::Silu => "activate_silu",
            Activation::GeluTanh => "activate_gelu_tanh",
        };
        Ok(self.floats(x.shape(), self.mapped(kernel, &[x], DType::F32, &[])?))
    }

    fn softmax(&self, x: &Tensor<Self>) -> Result<Tensor<Self>> {
        self.row_softmax(x)
    }

    fn soft_cap(&self, x: &Tensor<Self>, cap: f32) -> Result<Tensor<Self>> {
        Ok(self.floats(x.shape(), self.mapped("soft_cap", &[x], DType::F32, &[cap, 1.0 / cap])?))
    }

    fn top_k(&self, x: &Tensor<Self>, k: usize) -> Result<Tensor<Self>> {
        self.greatest(x, k)
    }
}

impl Cuda {
    /// Issues an element-wise kernel, whose arguments are the result, the operands, how many elements they have, and numbers.
    pub(crate) fn mapped(
        &self,
        kernel: &'static str,
        operands: &[&Tensor<Self>],
        dtype: DType,
        numbers: &[f32],
    ) -> Result<Buffer> {
        let shape = operands[0].shape();
        let out = self.room(kernel, shape, dtype)?;
        let n = shape.elements() as u64;
        let mut arguments = vec![out.argument()];
        arguments.extend(operands.iter().map(|x| x.data().argument()));
        arguments.push(bytes_of(&n));
        arguments.extend(numbers.iter().map(bytes_of));
        // A thread moves up to 16 bytes of the widest operand.
        let widest = operands.iter().map(|x| x.dtype().size()).fold(dtype.size(), usize::max);
        let threads = if operands.len() == 3 { n } else { n.div_ceil(16 / widest as u64) };
        self.launch(kernel, self.each(threads as usize), &arguments, shape)?;
        Ok(out)
    }
}

fn unary(op: UnaryOp, dtype: DType) -> &'static str {
    match (op, dtype) {
        (UnaryOp::Neg, DType::I32) => "neg_i32",
        (UnaryOp::Neg, _) => "neg_f32",
        (UnaryOp::Abs, _) => "abs_f32",
        (UnaryOp::Sqrt, _) => "sqrt_f32",
        (UnaryOp::RoundEven, _) => "round_even_f32",
    }
}

fn binary(op: BinaryOp, dtype: DType) -> Result<&'static str> {
    Ok(match (op, dtype) {
        (BinaryOp::Add, DType::F32) => "add_f32",
        (BinaryOp::Sub, DType::F32) => "sub_f32",
        (BinaryOp::Mul, DType::F32) => "mul_f32",
        (BinaryOp::Div, DType::F32) => "div_f32",
        (BinaryOp::Max, DType::F32) => "max_f32",
        (BinaryOp::Add, DType::I32) => "add_i32",
        (BinaryOp::Sub, DType::I32) => "sub_i32",
        (BinaryOp::Mul, DType::I32) => "mul_i32",
        (BinaryOp::Max, DType::I32) => "max_i32",
        (BinaryOp::And, DType::I32) => "and_i32",
        (BinaryOp::Or, DType::I32) => "or_i32",
        (BinaryOp::Shl, DType::I32) => "shl_i32",
        (BinaryOp::Shr, DType::I32) => "shr_i32",
        (BinaryOp::And, DType::Bool) => "and_bool",
        (BinaryOp::Or, DType::Bool) => "or_bool",
        (_, found) => {
            return Err(Error::DType { op: "binary", expected: "another type for this operation", found });
        }
    })
}

fn compare(op: CompareOp, dtype: DType) -> &'static str {
    match (op, dtype) {
        (CompareOp::Lt, DType::I32) => "lt_i32",
        (CompareOp::Le, DType::I32) => "le_i32",
        (CompareOp::Eq, DType::I32) => "eq_i32",
        (CompareOp::Lt, _) => "lt_f32",
        (CompareOp::Le, _) => "le_f32",
        (CompareOp::Eq, _) => "eq_f32",
    }
}

/// The kernel of a cast between two types. A mask is made by a comparison, not by a cast.
fn cast(from: DType, to: DType) -> Result<&'static str> {
    macro_rules! from {
        ($from:literal) => {
            match to {
                DType::F32 => concat!("cast_", $from, "_f32"),
                DType::F16 => concat!("cast_", $from, "_f16"),
                DType::BF16 => concat!("cast_", $from, "_bf16"),
                DType::I8 => concat!("cast_", $from, "_i8"),
                DType::U8 => concat!("cast_", $from, "_u8"),
                DType::I32 => concat!("cast_", $from, "_i32"),
                DType::Bool => {
                    let expected = "a comparison, where a mask is wanted";
                    return Err(Error::DType { op: "cast", expected, found: from });
                }
            }
        };
    }
    Ok(match from {
        DType::F32 => from!("f32"),
        DType::F16 => from!("f16"),
        DType::BF16 => from!("bf16"),
        DType::I8 => from!("i8"),
        DType::U8 | DType::Bool => from!("u8"),
        DType::I32 => from!("i32"),
    })
}
