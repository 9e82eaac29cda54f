use samebits_tensor::{Activation, Backend, FeedForward, Input, Result, Tensor, Weight, try_map};

use crate::{Loader, loader};

/// `y = x W^T + b`.
#[derive(Clone)]
pub struct Linear<B: Backend> {
    /// `[out, in]`.
    pub weight: Weight<B>,
    /// `[out]`.
    pub bias: Option<Tensor<B>>,
}

impl<B: Backend> Linear<B> {
    /// `x [m, in]` to `[m, out]`.
    pub fn forward(&self, x: &Tensor<B>) -> Result<Tensor<B>> {
        self.add_bias(x.linear(&self.weight)?)
    }

    /// Several layers of one input `[m, in]`.
    pub fn forward_all<const N: usize>(layers: [&Self; N], x: Input<'_, B>) -> Result<[Tensor<B>; N]> {
        let mut outputs = x.linears(layers.map(|layer| &layer.weight))?.into_iter();
        try_map(layers, |layer| layer.add_bias(outputs.next().expect("an output for each layer")))
    }

    fn add_bias(&self, y: Tensor<B>) -> Result<Tensor<B>> {
        match &self.bias {
            Some(bias) => y.add(&bias.repeat(0, y.dims()[0])?),
            None => Ok(y),
        }
    }
}

/// A table of vectors, one for each token of the vocabulary.
#[derive(Clone)]
pub struct Embedding<B: Backend> {
    /// `[vocab_size, hidden_size]`.
    pub weight: Weight<B>,
}

impl<B: Backend> Embedding<B> {
    /// Token ids `[t]` to vectors `[t, hidden_size]`.
    pub fn forward(&self, tokens: &Tensor<B>) -> Result<Tensor<B>> {
        tokens.embedding(&self.weight)
    }

    /// The table as an output layer: its transpose maps `[r, hidden_size]` to logits.
    pub fn as_linear(&self) -> Linear<B> {
        Linear { weight: self.weight.clone(), bias: None }
    }
}

/// Root-mean-square norm.
#[derive(Clone)]
pub struct RmsNorm<B: Backend> {
    /// What the normalised value is multiplied by, `[n]`.
    pub weight: Tensor<B>,
    /// Added to the mean square.
    pub eps: f32,
}

impl<B: Backend> RmsNorm<B> {
    /// Normalises the rows of `x [m, n]`.
    pub fn forward(&self, x: &Tensor<B>) -> Result<Tensor<B>> {
        x.rms_norm(&self.weight, self.eps)
    }

    /// The normalised rows of `x [m, n]` as the input of layers, which may normalise as they read.
    pub fn of<'a>(&'a self, x: &'a Tensor<B>) -> Input<'a, B> {
        Input { x, norm: Some((&self.weight, self.eps)) }
    }

    /// Normalises each head of `x [t, heads, n]`.
    pub fn forward_heads(&self, x: &Tensor<B>) -> Result<Tensor<B>> {
        let &[t, heads, n] = x.dims() else { return self.forward(x) };
        self.forward(&x.reshape([t * heads, n])?)?.reshape([t, heads, n])
    }
}

/// Gated feed-forward layer: `down(activation(gate(x)) * up(x))`.
#[derive(Clone)]
pub struct Mlp<B: Backend> {
    /// `[intermediate_size, hidden_size]`.
    pub gate_proj: Linear<B>,
    /// `[intermediate_size, hidden_size]`.
    pub up_proj: Linear<B>,
    /// `[hidden_size, intermediate_size]`.
    pub down_proj: Linear<B>,
    /// Activation of the gate.
    pub activation: Activation,
}

impl<B: Backend> Mlp<B> {
    /// Loads `gate_proj`, `up_proj` and `down_proj`.
    pub fn load(weights: &Loader<'_, B>) -> loader::Result<Self> {
        let config = weights.config();
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Mlp {
            gate_proj: weights.linear_part("gate_proj", inner, hidden, false)?,
            up_proj: weights.linear_part("up_proj", inner, hidden, false)?,
            down_proj: weights.linear_part("down_proj", hidden, inner, false)?,
            activation: config.hidden_activation,
        })
    }

    /// `x [t, hidden_size]` to the same shape.
    pub fn forward(&self, x: Input<'_, B>) -> Result<Tensor<B>> {
        let Mlp { gate_proj: gate, up_proj: up, down_proj: down, activation } = self;
        if gate.bias.is_none() && up.bias.is_none() {
            let (gate, up, activation) = (&gate.weight, &up.weight, *activation);
            let y = x.feed_forward(FeedForward { gate, up, down: &down.weight, activation })?;
            return down.add_bias(y)?.all_gather(1);
        }
        let [gate, up] = Linear::forward_all([gate, up], x)?;
        down.forward(&gate.glu(&up, *activation)?.all_gather(1)?)?.all_gather(1)
    }
}
