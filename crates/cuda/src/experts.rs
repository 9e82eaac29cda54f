//! Mixtures of experts, whose kernels are in `experts.cu`, and in `rows.cu` and `dense.cu`.

use bytemuck::bytes_of;
use samebits_tensor::{
    Backend, DType, Error, Experts, Input, Result, Routes, Routing, Shape, Tensor, Weight, decompose,
};

use crate::{
    Buffer, Cuda, dense, driver::Grid, indexed, layout::extent, linear, linear::Quantized, rows::row_blocks,
    weight::Held,
};

const OP: &str = "experts";

/// Pairs of a group, and rows of a block that computes it.
const GROUP: usize = 64;

/// Pairs of an expert on average, and in all, up to which each pair has blocks of its own: groups of more read weights fewer times.
const FEW_OF_EXPERT: usize = 2;
const FEW: usize = 16;

/// Blocks that a grid may have in its second direction.
const DOWN_MAX: usize = 65_535;

/// Pairs of a token and one of its choices.
struct Pairs<'a> {
    /// The expert of each, i32 `[tokens, choices]`.
    experts: &'a Tensor<Cuda>,
    /// How many experts there are.
    count: u32,
    /// None where each pair has blocks of its own.
    order: Option<Order>,
}

/// Pairs in the order of their experts.
struct Order {
    /// The token of each, i32 `[pairs]`.
    tokens: Tensor<Cuda>,
    /// Where each pair is.
    places: Buffer,
    /// Room for as many of `Group` in `experts.cuh` as there may be.
    groups: Buffer,
    count: u32,
}

/// Rows that weights are multiplied with.
enum Operand {
    Blocks(Quantized),
    Floats(Tensor<Cuda>),
}

/// The kernels of a layer, and what they take.
struct Layer<'a> {
    /// Of the rows.
    inputs: Vec<Option<Buffer>>,
    /// Of the weight.
    parts: Vec<&'a [u8]>,
    /// For pairs alone and for groups of them.
    kernels: [&'static str; 2],
    /// Rows of a block, and bytes of its shared memory, where it has a pair.
    rows: usize,
    shared: usize,
}

impl Cuda {
    /// See [`decompose::route`].
    pub(crate) fn routed(&self, logits: &Tensor<Self>, routing: Routing) -> Result<Routes<Self>> {
        let op = "route";
        let (t, count) = (logits.dims()[0], logits.dims()[1]);
        let shape = Shape::from([t, routing.top_k]);
        let (experts, weights) = (self.room(op, &shape, DType::I32)?, self.room(op, &shape, DType::F32)?);
        let probabilities = self.room(op, logits.shape(), DType::F32)?;
        let extents = [extent(op, count)?, extent(op, routing.top_k)?, routing.normalize.into()];
        let tensors = [&experts, &weights, &probabilities, logits.data()].map(Buffer::argument);
        let arguments: Vec<&[u8]> = tensors.into_iter().chain(extents.iter().map(bytes_of)).collect();
        self.launch(op, row_blocks(op, t)?, &arguments, &shape)?;
        let experts = Tensor::from_data(self, &shape, DType::I32, experts);
        Ok(Routes { experts, weights: self.floats(&shape, weights) })
    }

    /// See [`decompose::experts`]. Tokens are quantised once, and the products of gate and up as they are computed.
    pub(crate) fn mixed(
        &self,
        x: Input<'_, Self>,
        layer: Experts<'_, Self>,
        routes: &Routes<Self>,
    ) -> Result<Tensor<Self>> {
        let Experts { gate, up, down, count, activation } = layer;
        if ![gate, up, down].into_iter().all(has_kernels) {
            return decompose::experts(x, layer, routes);
        }
        let pairs = self.pairs(&routes.experts, count)?;
        let per_row = if pairs.order.is_some() { 1 } else { extent(OP, routes.experts.dims()[1])? };
        let mut operand = self.in_order(self.operand(x, gate)?, &pairs)?;
        let of_gate = self.product_of_experts(&mut operand, per_row, gate, &pairs)?;
        if !have_one_operand(gate, up) {
            operand = self.in_order(self.operand(x, up)?, &pairs)?;
        }
        let of_up = self.product_of_experts(&mut operand, per_row, up, &pairs)?;
        let mut hidden = match down.packed().held {
            Held::Blocks(_) => {
                let block_len = down.format().block_len();
                let (q, scale) = self.quantize_glu(&of_gate, &of_up, activation, block_len)?;
                Operand::Blocks(Quantized::new(block_len, q, scale))
            }
            Held::Dense(_) => self.operand(Input::from(&self.glu(&of_gate, &of_up, activation)?), down)?,
        };
        drop((of_gate, of_up, operand));
        let outputs = self.product_of_experts(&mut hidden, 1, down, &pairs)?;
        self.sum_of_experts(&outputs, &routes.weights, &pairs)
    }

    /// Puts pairs in order, if they are many.
    fn pairs<'a>(&self, experts: &'a Tensor<Self>, count: usize) -> Result<Pairs<'a>> {
        let (tokens, choices) = (experts.dims()[0], experts.dims()[1]);
        let pairs = tokens * choices;
        let experts_count = extent(OP, count)?;
        if pairs <= FEW.max(FEW_OF_EXPERT * count) && pairs <= DOWN_MAX {
            return Ok(Pairs { experts, count: experts_count, order: None });
        }
        let groups = pairs / GROUP + count;
        if groups > DOWN_MAX {
            return Err(Error::shape(OP, format!("{tokens} tokens of {choices} experts each, of {count}")));
        }
        let shape = Shape::from([pairs]);
        let [sorted, places] = [self.room(OP, &shape, DType::I32)?, self.room(OP, &shape, DType::I32)?];
        let room = self.buffer(OP, groups * 3 * size_of::<u32>())?;
        let extents = [extent(OP, pairs)?, extent(OP, choices)?, experts_count, indexed(OP)];
        let tensors = [&sorted, &places, &room, experts.data()].map(Buffer::argument);
        let arguments: Vec<&[u8]> =
            tensors.into_iter().chain(extents.iter().map(bytes_of)).chain([self.fault()]).collect();
        let grid = Grid { blocks: (experts_count, 1), threads: linear::THREADS, shared: 0 };
        self.launch("experts_sort", grid, &arguments, &shape)?;
        let tokens = Tensor::from_data(self, &shape, DType::I32, sorted);
        let order = Order { tokens, places, groups: room, count: extent(OP, groups)? };
        Ok(Pairs { experts, count: experts_count, order: Some(order) })
    }

    /// Rows as a weight takes them.
    fn operand(&self, x: Input<'_, Self>, weight: &Weight<Self>) -> Result<Operand> {
        match &weight.packed().held {
            Held::Blocks(_) => self.quantized(x, weight).map(Operand::Blocks),
            Held::Dense(values) => self.dense_operands(&x.rows()?, values.dtype()).map(Operand::Floats),
        }
    }

    /// The rows of tokens as those of pairs in order, if they are in order.
    fn in_order(&self, operand: Operand, pairs: &Pairs<'_>) -> Result<Operand> {
        let Some(order) = &pairs.order else { return Ok(operand) };
        let gathered = |x: &Tensor<Self>| -> Result<Tensor<Self>> {
            let shape = x.shape().with(0, order.tokens.dims()[0]);
            Ok(Tensor::from_data(self, &shape, x.dtype(), self.gathered(x, &order.tokens)?))
        };
        Ok(match operand {
            Operand::Blocks(Quantized { block_len, q, scale, .. }) => {
                Operand::Blocks(Quantized::new(block_len, gathered(&q)?, gathered(&scale)?))
            }
            Operand::Floats(x) => Operand::Floats(gathered(&x)?),
        })
    }

    /// Of each pair, its row times the transpose of its expert's weights: `[pairs, n]`. Without an order `per_row` pairs have a row.
    fn product_of_experts(
        &self,
        x: &mut Operand,
        per_row: u32,
        weight: &Weight<Self>,
        pairs: &Pairs<'_>,
    ) -> Result<Tensor<Self>> {
        let (count, n) = (pairs.experts.shape().elements(), weight.rows() / pairs.count as usize);
        let shape = Shape::from([count, n]);
        let out = self.room(OP, &shape, DType::F32)?;
        let layer = self.layer(x, weight, pairs)?;
        let mut arguments = vec![out.argument()];
        arguments.extend(
            layer.inputs.iter().map(|input| input.as_ref().map_or(bytes_of(&0u64), Buffer::argument)),
        );
        arguments.extend(layer.parts);
        let (number, extents) = (indexed(OP), [extent(OP, n)?, extent(OP, weight.cols())?]);
        let extents = extents.iter().map(bytes_of);
        let grid = |rows: usize, down: u32, shared: usize| -> Result<Grid> {
            let blocks = (extent(OP, n.div_ceil(rows))?, down);
            Ok(Grid { blocks, threads: linear::THREADS, shared: extent(OP, shared)? })
        };
        if let Some(order) = &pairs.order {
            arguments.extend([order.groups.argument()].into_iter().chain(extents));
            self.launch(layer.kernels[1], grid(GROUP, order.count, 0)?, &arguments, &shape)?;
        } else {
            arguments.extend([pairs.experts.data().argument(), bytes_of(&per_row), bytes_of(&pairs.count)]);
            arguments.extend(extents.chain([bytes_of(&number), self.fault()]));
            let grid = grid(layer.rows, extent(OP, count)?, layer.shared)?;
            self.launch(layer.kernels[0], grid, &arguments, &shape)?;
        }
        Ok(self.floats(&shape, out))
    }

    fn layer<'a>(&self, x: &mut Operand, weight: &'a Weight<Self>, pairs: &Pairs<'_>) -> Result<Layer<'a>> {
        Ok(match (x, &weight.packed().held) {
            (Operand::Blocks(x), Held::Blocks(blocks)) => Layer {
                inputs: match pairs.order {
                    Some(_) => x.of_tiles(self, blocks.format())?.into(),
                    None => [&x.q, &x.scale].map(|part| Some(part.data().clone())).into(),
                },
                parts: blocks.arguments().collect(),
                kernels: linear::Kernels::of(blocks.format()).experts,
                rows: linear::FEW[0].1,
                shared: 0,
            },
            (Operand::Floats(x), Held::Dense(values)) => Layer {
                inputs: vec![Some(x.data().clone())],
                parts: vec![values.data().argument()],
                kernels: dense::of_experts(values.dtype()),
                rows: dense::WARP,
                shared: dense::shared_bytes(1),
            },
            _ => unreachable!("rows as the weight takes them"),
        })
    }

    /// Adds the outputs of each token's pairs, weighted, in the order of its choices.
    fn sum_of_experts(
        &self,
        outputs: &Tensor<Self>,
        weights: &Tensor<Self>,
        pairs: &Pairs<'_>,
    ) -> Result<Tensor<Self>> {
        let (tokens, choices, n) = (weights.dims()[0], weights.dims()[1], outputs.dims()[1]);
        let shape = Shape::from([tokens, n]);
        let out = self.room(OP, &shape, DType::F32)?;
        let places = pairs.order.as_ref().map_or(bytes_of(&0u64), |order| order.places.argument());
        let extents = [extent(OP, tokens * n)?, extent(OP, choices)?, extent(OP, n)?];
        let tensors = [out.argument(), outputs.data().argument(), weights.data().argument(), places];
        let arguments: Vec<&[u8]> = tensors.into_iter().chain(extents.iter().map(bytes_of)).collect();
        self.launch("experts_sum", self.each(tokens * n), &arguments, &shape)?;
        Ok(self.floats(&shape, out))
    }
}

/// Whether there are kernels for a weight of experts.
fn has_kernels(weight: &Weight<Cuda>) -> bool {
    weight.cols() > 0 && (weight.format().is_quantized() || weight.cols().is_multiple_of(dense::EACH))
}

/// Whether both weights take the same of an input.
fn have_one_operand(a: &Weight<Cuda>, b: &Weight<Cuda>) -> bool {
    let (a, b) = (a.format(), b.format());
    a == b || a.is_quantized() && b.is_quantized() && a.block_len() == b.block_len()
}
