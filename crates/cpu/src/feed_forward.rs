//! The gated feed-forward layer: the values between its projections never leave a core's cache.

use samebits_kernels::cpu::{LANES, MatrixMut, Piece, linear_blocks};
use samebits_tensor::{Activation, FeedForward, Input, Result, Tensor, Weight, decompose};

use crate::{
    Cpu,
    linear::{Operand, Rows, products, share, with_scratch},
    packed::PackedWeight,
};

/// Tokens of a task: enough that decoding weights, which each task does, is little beside their products.
const TOKENS: usize = 128;

/// Bytes of a task's rows of gate and up, which stay in a core's second cache.
const SCRATCH_BYTES: usize = 1 << 18;

/// `down(activation(gate(x)) * up(x))` as `[m, n]`. A task computes some columns of gate and up for some tokens, and quantises
/// their product for the down projection; float weights are multiplied one after the other.
pub(crate) fn feed_forward(cpu: &Cpu, x: Input<'_, Cpu>, layer: FeedForward<'_, Cpu>) -> Result<Tensor<Cpu>> {
    let weights = [layer.gate, layer.up, layer.down].map(Weight::packed);
    let inner = layer.down.cols();
    if inner == 0 || !weights.iter().all(|weight| weight.format().is_quantized()) {
        return decompose::feed_forward(x, layer);
    }
    let [gate, up, down] = weights;
    let x = Rows::of(x)?;
    let (operands, served) = x.operands(cpu, [gate, up]);
    let mut hidden = cpu.operands().take(cpu, x.m, inner, down.format());
    let gated = Gated {
        cpu,
        weights: [gate, up],
        operands: served.map(|served| &operands[served]),
        activation: layer.activation,
    };
    let (tokens, cols) = gated.piece(x.m, inner);
    cpu.threads().each(hidden.blocks.pieces(tokens, cols), |_, piece| gated.fill(piece));
    let [y] = products(cpu, x.m, [down], [&hidden]);
    cpu.operands().give(operands.into_iter().chain([hidden]));
    Ok(y)
}

/// The product of gate and up.
struct Gated<'a> {
    cpu: &'a Cpu,
    weights: [&'a PackedWeight; 2],
    operands: [&'a Operand; 2],
    activation: Activation,
}

impl Gated<'_> {
    /// Tokens and columns of a task.
    fn piece(&self, m: usize, inner: usize) -> (usize, usize) {
        let bands = m.div_ceil(TOKENS).max(1);
        let tokens = m.div_ceil(bands).max(1);
        let room = SCRATCH_BYTES / (2 * tokens * size_of::<f32>());
        let column = self.weights.iter().map(|weight| weight.bytes()).sum::<usize>().div_ceil(inner);
        (tokens, room.min(share(self.cpu, &self.weights, m).saturating_mul(bands) / column.max(1)))
    }

    fn fill(&self, piece: Piece<'_>) {
        let len = piece.tokens().len() * piece.cols().len();
        with_scratch(2 * len, |scratch| {
            let (gate, up) = scratch.split_at_mut(len);
            self.product(0, &piece, gate);
            self.product(1, &piece, up);
            piece.quantize_glu(self.cpu.isa(), gate, up, self.activation);
        });
    }

    /// The columns of gate (0) or up (1) that a piece has.
    fn product(&self, which: usize, piece: &Piece<'_>, out: &mut [f32]) {
        let (weight, x) = (self.weights[which], self.operands[which].blocks.rows(piece.tokens()));
        let panels = piece.cols().start / LANES..piece.cols().end / LANES;
        let out = MatrixMut::new(out, piece.tokens().len(), piece.cols().len());
        linear_blocks(self.cpu.isa(), &weight.layout(), weight.panel_range(panels), x, out);
    }
}
