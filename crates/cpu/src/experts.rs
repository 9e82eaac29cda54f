//! Mixtures of experts: tokens in order of their experts, so that the rows of each are read once a step.

use std::ops::Range;

use samebits_kernels::{
    cpu::{Grid, LANES, MatrixMut, add_weighed, linear_blocks, softmax},
    parts::Chunks,
};
use samebits_tensor::{
    Activation, DType, Experts, Input, Result, Routes, Routing, Tensor, Weight, decompose,
};
use smallvec::SmallVec;

use crate::{
    Cpu,
    backend::check_indices,
    feed_forward::{Gated, SCRATCH_BYTES, TOKENS},
    linear::{Operand, Rows, linears, share_of, with_scratch},
    memory::Elements,
    packed::PackedWeight,
};

/// Logits of a task of a router.
const TASK_LOGITS: usize = 1 << 12;

/// The experts of each token, and their weights.
pub(crate) fn route(cpu: &Cpu, logits: &Tensor<Cpu>, routing: Routing) -> Result<Routes<Cpu>> {
    let (t, count, top_k) = (logits.dims()[0], logits.dims()[1], routing.top_k);
    let logits = logits.data().f32("route")?;
    let mut experts = cpu.memory().elements(t * top_k);
    let mut weights = cpu.memory().elements(t * top_k);
    let tokens = TASK_LOGITS.div_ceil(count);
    let parts = (
        Chunks::new(experts.as_mut_slice(), tokens * top_k),
        Chunks::new(weights.as_mut_slice(), tokens * top_k),
    );
    cpu.threads().each(parts, |i, (experts, weights)| {
        let rows = logits[i * tokens * count..].chunks_exact(count);
        let chosen = experts.chunks_exact_mut(top_k).zip(weights.chunks_exact_mut(top_k));
        for (logits, (experts, weights)) in rows.zip(chosen) {
            with_scratch(count, |probabilities| {
                softmax(cpu.isa(), logits, count, probabilities);
                choose(probabilities, experts, weights);
            });
            if routing.normalize {
                let sum = weights[1..].iter().fold(weights[0], |sum, weight| sum + weight);
                weights.iter_mut().for_each(|weight| *weight /= sum);
            }
        }
    });
    let shape = [t, top_k];
    Ok(Routes {
        experts: Tensor::from_data(cpu, shape, DType::I32, experts.into()),
        weights: cpu.tensor(shape, weights),
    })
}

/// The greatest of `x`, as many as there is room for, and where they are. One that is not above another comes after it, as a NaN
/// does.
fn choose(x: &[f32], at: &mut [i32], greatest: &mut [f32]) {
    for (i, &x) in x.iter().enumerate() {
        let filled = i.min(greatest.len());
        let place = greatest[..filled].iter().position(|&other| other < x).unwrap_or(filled);
        if place < greatest.len() {
            let end = (filled + 1).min(greatest.len());
            greatest[place..end].rotate_right(1);
            at[place..end].rotate_right(1);
            (greatest[place], at[place]) = (x, i as i32);
        }
    }
}

/// For each token the sum of what its experts make of it, weighed, as `[t, n]`. Experts whose rows are no whole panels take the
/// decomposition.
pub(crate) fn experts(
    cpu: &Cpu,
    x: Input<'_, Cpu>,
    layer: Experts<'_, Cpu>,
    routes: &Routes<Cpu>,
) -> Result<Tensor<Cpu>> {
    let op = "experts";
    let (ids, weights) = (routes.experts.data().i32(op)?, routes.weights.data().f32(op)?);
    check_indices(op, ids, layer.count)?;
    let bank = Bank::of(layer);
    let (t, n, top_k) = (x.x.dims()[0], bank.n, routes.experts.dims()[1]);
    if bank.inner == 0 || ![bank.inner, n].into_iter().all(|rows| rows.is_multiple_of(LANES)) {
        return decompose::experts(x, layer, routes);
    }
    let order = Order::of(cpu, ids, top_k, layer.count);
    let y = match bank.weights.iter().all(|weight| weight.format().is_quantized()) {
        true => bank.of_blocks(cpu, x, &order)?,
        false => bank.one_by_one(cpu, &x.rows()?, &order)?,
    };
    let sums = cpu.rows(t * n, n, |at, out| {
        for (token, out) in (at / n..).zip(out.chunks_exact_mut(n)) {
            let choices = token * top_k..(token + 1) * top_k;
            add_weighed(cpu.isa(), &y, &order.places[choices.clone()], &weights[choices], out);
        }
    });
    Ok(cpu.tensor([t, n], sums))
}

/// Choices in order of expert, in bands of at most [`TOKENS`] tokens of one expert.
struct Order {
    /// The token of each place in this order.
    tokens: Elements<u32>,
    /// The place of each choice.
    places: Elements<u32>,
    /// Where each band ends.
    ends: Elements<usize>,
    /// The expert of each band.
    experts: Elements<usize>,
}

impl Order {
    /// Of `ids [t, top_k]`, each below `count`.
    fn of(cpu: &Cpu, ids: &[i32], top_k: usize, count: usize) -> Self {
        let memory = cpu.memory();
        let mut starts = memory.elements::<usize>(count + 1);
        let starts = starts.as_mut_slice();
        starts.fill(0);
        ids.iter().for_each(|&expert| starts[expert as usize + 1] += 1);
        (0..count).for_each(|expert| starts[expert + 1] += starts[expert]);
        let bands = || (0..count).flat_map(|expert| bands_of(starts[expert]..starts[expert + 1], expert));
        let of_bands = |part: fn((usize, usize)) -> usize| {
            let mut elements = memory.elements(bands().count());
            elements.as_mut_slice().iter_mut().zip(bands()).for_each(|(out, band)| *out = part(band));
            elements
        };
        let (ends, experts) = (of_bands(|(end, _)| end), of_bands(|(_, expert)| expert));
        let (mut tokens, mut places) = (memory.elements(ids.len()), memory.elements(ids.len()));
        let (of_place, of_choice) = (tokens.as_mut_slice(), places.as_mut_slice());
        for (choice, &expert) in ids.iter().enumerate() {
            let place = &mut starts[expert as usize];
            (of_place[*place], of_choice[choice]) = ((choice / top_k) as u32, *place as u32);
            *place += 1;
        }
        Order { tokens, places, ends, experts }
    }

    /// The places of band `band`.
    fn band(&self, band: usize) -> Range<usize> {
        Grid::rows(&self.ends, band)
    }
}

/// Ends of the bands that some places of an expert are cut in, and the expert.
fn bands_of(places: Range<usize>, expert: usize) -> impl Iterator<Item = (usize, usize)> {
    places.clone().step_by(TOKENS).map(move |start| ((start + TOKENS).min(places.end), expert))
}

/// The weights of all experts.
struct Bank<'a> {
    /// Gate, up and down.
    weights: [&'a PackedWeight; 3],
    count: usize,
    activation: Activation,
    /// Rows of gate and of up of an expert.
    inner: usize,
    /// Rows of down of an expert.
    n: usize,
}

impl<'a> Bank<'a> {
    fn of(layer: Experts<'a, Cpu>) -> Self {
        let weights = [layer.gate, layer.up, layer.down].map(Weight::packed);
        let [inner, _, n] = weights.map(|weight| weight.rows() / layer.count);
        Bank { weights, count: layer.count, activation: layer.activation, inner, n }
    }

    /// What each place's expert makes of its token, `[places, n]`, of weights in blocks. Tokens are quantised once, and copied to
    /// where the kernels read them beside the others of their expert.
    fn of_blocks(&self, cpu: &Cpu, x: Input<'_, Cpu>, order: &Order) -> Result<Elements<f32>> {
        let [gate, up, down] = self.weights;
        let x = Rows::of(x)?;
        let (operands, served) = x.operands(cpu, [gate, up]);
        let operands = self.in_order(cpu, x, operands, order);
        let mut hidden = cpu.operands().take(cpu, order.tokens.len(), self.inner, down.format());
        let weights = [gate, up];
        let operand_of = served.map(|served| &operands[served]);
        let gated = Gated { cpu, weights, operands: operand_of, activation: self.activation };
        let pieces = hidden.blocks.bands(&order.ends, self.columns(cpu, &weights, self.inner, order));
        let across = pieces.across();
        cpu.threads().each(pieces, |i, piece| {
            let (band, first) = (order.band(i / across), order.experts[i / across] * self.inner / LANES);
            gated.fill(piece, first, |x| if x.tokens() == 1 { x.all() } else { x.band(band.clone()) });
        });
        let y = self.down(cpu, &hidden, order);
        cpu.operands().give(operands.into_iter().chain([hidden]));
        Ok(y)
    }

    /// The operands of all tokens as those of all places; a single token serves every place as it is.
    fn in_order(
        &self,
        cpu: &Cpu,
        x: Rows<'_>,
        operands: SmallVec<[Operand; 2]>,
        order: &Order,
    ) -> SmallVec<[Operand; 2]> {
        if x.m == 1 {
            return operands;
        }
        let in_order = operands.iter().map(|all| {
            let mut operand = cpu.operands().take(cpu, order.tokens.len(), x.k, all.format());
            cpu.threads().each(operand.blocks.bands(&order.ends, x.k), |band, piece| {
                piece.copy(&all.blocks, &order.tokens[order.band(band)]);
            });
            operand
        });
        let in_order = in_order.collect();
        cpu.operands().give(operands);
        in_order
    }

    /// The rows of `hidden [places, inner]` times the down projection of each place's expert.
    fn down(&self, cpu: &Cpu, hidden: &Operand, order: &Order) -> Elements<f32> {
        let ([_, _, down], places) = (self.weights, order.tokens.len());
        let mut y = cpu.memory().elements(places * self.n);
        let matrix = MatrixMut::new(y.as_mut_slice(), places, self.n);
        let cols = self.columns(cpu, &[down], self.n, order);
        let grid = Grid::new(matrix, &order.ends, cols);
        let across = grid.across();
        cpu.threads().each(grid, |i, out| {
            let (band, start) = (i / across, order.experts[i / across] * self.n + i % across * cols);
            let panels = start / LANES..(start + out.cols()) / LANES;
            let x = hidden.blocks.band(order.band(band));
            linear_blocks(cpu.isa(), &down.layout(), down.panel_range(panels), x, out);
        });
        y
    }

    /// Columns of a task, of weights with `rows` rows of an expert each: whole panels.
    fn columns(&self, cpu: &Cpu, weights: &[&PackedWeight], rows: usize, order: &Order) -> usize {
        let of_panel: usize = weights.iter().map(|weight| weight.panel_bytes()).sum();
        let read = of_panel * (rows / LANES) * order.experts.len();
        let widest = (0..order.experts.len()).map(|band| order.band(band).len()).max().unwrap_or(1);
        let room = SCRATCH_BYTES / (2 * widest.max(1) * size_of::<f32>()) / LANES;
        let tokens = order.tokens.len() / order.experts.len().max(1);
        LANES * (share_of(cpu, read, tokens) / of_panel.max(1)).clamp(1, room.max(1))
    }

    /// As [`Bank::of_blocks`], one expert after the other: float weights, alone or beside others.
    fn one_by_one(&self, cpu: &Cpu, x: &Tensor<Cpu>, order: &Order) -> Result<Elements<f32>> {
        let (k, n) = (x.dims()[1], self.n);
        let values = x.data().f32("experts")?;
        let mut y = cpu.memory().elements(order.tokens.len() * n);
        for (band, &expert) in order.experts.iter().enumerate() {
            let band = order.band(band);
            let mut rows = cpu.memory().elements(band.len() * k);
            for (out, &token) in rows.as_mut_slice().chunks_exact_mut(k).zip(&order.tokens[band.clone()]) {
                out.copy_from_slice(&values[token as usize * k..][..k]);
            }
            let rows = cpu.tensor([band.len(), k], rows);
            let [gate, up, down] = self.weights.map(|weight| {
                let panels = weight.panels() / self.count;
                weight.of_panels(expert * panels..(expert + 1) * panels)
            });
            let [gate, up] = linears(cpu, (&rows).into(), [&gate, &up])?;
            let [out] = linears(cpu, (&gate.glu(&up, self.activation)?).into(), [&down])?;
            y.as_mut_slice()[band.start * n..band.end * n].copy_from_slice(out.data().f32("experts")?);
        }
        Ok(y)
    }
}
