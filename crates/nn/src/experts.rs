use samebits_tensor::{Activation, Backend, Experts, Input, Result, Routing, Tensor, Weight};

use crate::{ExpertsConfig, Linear, Loader, Mlp, loader};

/// What follows attention in a layer: one feed-forward layer, or experts where the configuration has them.
#[derive(Clone)]
pub enum FeedForward<B: Backend> {
    /// One for all tokens.
    Dense(Mlp<B>),
    /// Those that the router chooses for each token.
    Sparse(SparseMoe<B>),
}

impl<B: Backend> FeedForward<B> {
    /// Loads what the configuration says.
    pub fn load(weights: &Loader<'_, B>) -> loader::Result<Self> {
        match weights.config().experts {
            None => Mlp::load(weights).map(FeedForward::Dense),
            Some(experts) => SparseMoe::load(weights, experts).map(FeedForward::Sparse),
        }
    }

    /// `x [t, hidden_size]` to the same shape.
    pub fn forward(&self, x: Input<'_, B>) -> Result<Tensor<B>> {
        match self {
            FeedForward::Dense(mlp) => mlp.forward(x),
            FeedForward::Sparse(experts) => experts.forward(x),
        }
    }
}

/// Mixture of experts: a router gives each token to some of them, and their outputs are weighed and added.
#[derive(Clone)]
pub struct SparseMoe<B: Backend> {
    /// The router, `[num_experts, hidden_size]`. Ranks that share a layer have all of it each.
    pub gate: Linear<B>,
    /// `[num_experts * intermediate_size, hidden_size]`.
    pub gate_proj: Weight<B>,
    /// `[num_experts * intermediate_size, hidden_size]`.
    pub up_proj: Weight<B>,
    /// `[num_experts * hidden_size, intermediate_size]`.
    pub down_proj: Weight<B>,
    /// How many experts there are.
    pub num_experts: usize,
    /// How the router chooses.
    pub routing: Routing,
    /// Activation of the experts' gates.
    pub activation: Activation,
}

impl<B: Backend> SparseMoe<B> {
    /// Loads `gate`, and `gate_proj`, `up_proj` and `down_proj` below `experts`.
    pub fn load(weights: &Loader<'_, B>, experts: ExpertsConfig) -> loader::Result<Self> {
        let config = weights.config();
        let (hidden, inner, count) = (config.hidden_size, config.intermediate_size, experts.num_experts);
        let of_experts = weights.at("experts");
        Ok(SparseMoe {
            gate: weights.router("gate", count, hidden)?,
            gate_proj: of_experts.experts_part("gate_proj", count, inner, hidden)?,
            up_proj: of_experts.experts_part("up_proj", count, inner, hidden)?,
            down_proj: of_experts.experts_part("down_proj", count, hidden, inner)?,
            num_experts: count,
            routing: Routing { top_k: experts.num_experts_per_tok, normalize: experts.norm_topk_prob },
            activation: config.hidden_activation,
        })
    }

    /// `x [t, hidden_size]` to the same shape.
    pub fn forward(&self, x: Input<'_, B>) -> Result<Tensor<B>> {
        // The router reads normalised rows, which serve the experts as well.
        let x = &x.rows()?;
        let logits = self.gate.forward(x)?;
        let layer = Experts {
            gate: &self.gate_proj,
            up: &self.up_proj,
            down: &self.down_proj,
            count: self.num_experts,
            activation: self.activation,
        };
        Input::from(x).experts(layer, &logits.route(self.routing)?)?.all_gather(1)
    }
}
