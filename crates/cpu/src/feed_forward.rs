//! The gated feed-forward layer: the values between its projections never leave a core's cache.

use samebits_kernels::cpu::{Activations, LANES, MatrixMut, Piece, Rows as Tokens, linear_blocks};
use samebits_tensor::{Activation, FeedForward, Input, Result, Tensor, Weight, decompose};

use crate::{
    Cpu,
    linear::{Operand, Rows, products, share, with_scratch},
    packed::PackedWeight,
};

/// Tokens of a task: enough that decoding weights, which each task does, is little beside their products.
pub(crate) const TOKENS: usize = 128;

/// Bytes of a task's rows of gate and up, which stay in a core's second cache.
pub(crate) const SCRATCH_BYTES: usize = 1 << 18;

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
    cpu.threads().each(hidden.blocks.pieces(tokens, cols), |_, piece| {
        let tokens = piece.tokens();
        gated.fill(piece, 0, |x| x.rows(tokens.clone()));
    });
    let [y] = products(cpu, x.m, [down], [&hidden]);
    cpu.operands().give(operands.into_iter().chain([hidden]));
    Ok(y)
}

/// The product of gate and up.
pub(crate) struct Gated<'a> {
    pub(crate) cpu: &'a Cpu,
    pub(crate) weights: [&'a PackedWeight; 2],
    pub(crate) operands: [&'a Operand; 2],
    pub(crate) activation: Activation,
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

    /// Fills a piece with what the rows of its tokens give with the panels from `first` on.
    pub(crate) fn fill<'x>(
        &'x self,
        piece: Piece<'_>,
        first: usize,
        rows: impl Fn(&'x Activations) -> Tokens<'x>,
    ) {
        let (m, cols) = (piece.tokens().len(), piece.cols());
        let panels = first + cols.start / LANES..first + cols.end / LANES;
        with_scratch(2 * m * cols.len(), |scratch| {
            let (gate, up) = scratch.split_at_mut(m * cols.len());
            for (which, out) in [&mut *gate, &mut *up].into_iter().enumerate() {
                let (weight, x) = (self.weights[which], rows(&self.operands[which].blocks));
                let out = MatrixMut::new(out, m, cols.len());
                linear_blocks(self.cpu.isa(), &weight.layout(), weight.panel_range(panels.clone()), x, out);
            }
            piece.quantize_glu(self.cpu.isa(), gate, up, self.activation);
        });
    }
}
