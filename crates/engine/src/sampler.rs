//! From a row of logits to a token.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::{
    SamplingParams, TokenId,
    rng::uniform,
    select::{Candidate, SPAN, Weigher, arg_max, leading},
};

/// Names the rules of [`Sampler::sample`]; a change of any chosen token is a new version.
pub const SAMPLER_VERSION: u32 = 1;

/// Chooses the tokens of one sequence.
///
/// The rules, in order. `l` is a logit (f32, each operation rounded once), `c` the token's count in the output:
///
/// 1. log-probabilities, if asked for, are the log-softmax of the logits as they came: `l - m - ln(sum exp(l - m))`,
///    in f64, rounded to f32 (OpenAI's `logprobs`, vLLM's `raw_logprobs`);
/// 2. tokens that may not be sampled yet get -inf (vLLM's `min_tokens`);
/// 3. `l + bias` (OpenAI's `logit_bias`);
/// 4. repetition penalty `r` for tokens of prompt or output: `l * r` if `l < 0`, else `l / r` (Keskar et al. 2019,
///    Hugging Face's `RepetitionPenaltyLogitsProcessor`);
/// 5. `(l - frequency * c) - presence` for tokens of the output (OpenAI's penalties);
/// 6. at temperature 0 the greatest, the lowest id of equals;
/// 7. otherwise weights `w = exp((l - greatest) * (1 / temperature))` in f64;
/// 8. top-k keeps the k first in descending order (equal logits: lowest id first);
/// 9. top-p keeps the shortest beginning of that order whose weights sum to at least `p` of all weights that are left
///    (Holtzman et al. 2020, at least one token);
/// 10. min-p keeps weights of at least `min_p` (the greatest weight is 1; Nguyen et al. 2024);
/// 11. a draw: with `u` from (seed, position), the first token at which the running sum of weights exceeds
///     `u * total`.
///
/// Sums over a cut set run in descending order. The sum over a whole row, and the draw from it, run in ascending order of
/// token, in spans of 1024 whose sums are added in order; so no row is ever sorted whole to draw from it.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    /// Tokens a penalty applies to; empty when there is no penalty.
    seen: BTreeMap<TokenId, Seen>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    in_output: u32,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: TokenId,
    /// Its log-probability and the greatest ones, when asked for.
    pub logprobs: Option<Logprobs>,
}

/// Log-probabilities (natural logarithm) at one position, before any rule changed the logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// The most likely tokens and theirs, in descending order.
    pub top: Vec<(TokenId, f32)>,
}

/// Why a row of logits gives no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NumericalError {
    /// A logit is NaN.
    #[error("the logit of token {token} is NaN")]
    NotANumber {
        /// The first such token.
        token: TokenId,
    },
    /// A logit is positive infinity.
    #[error("the logit of token {token} is +inf")]
    Infinite {
        /// The first such token.
        token: TokenId,
    },
    /// Every logit is negative infinity.
    #[error("no token has a logit above -inf")]
    NoCandidate,
}

/// Memory that [`Sampler::sample`] uses again and again; its content between calls means nothing.
#[derive(Debug, Default)]
pub struct Scratch {
    candidates: Vec<Candidate>,
    weights: Vec<f64>,
}

impl Sampler {
    /// A sampler for a sequence that begins with `prompt`.
    pub fn new(params: SamplingParams, prompt: &[TokenId]) -> Self {
        let mut sampler = Self { params, seen: BTreeMap::new() };
        if sampler.params.repetition_penalty != 1.0 {
            sampler.seen.extend(prompt.iter().map(|&token| (token, Seen::default())));
        }
        sampler
    }

    /// Takes note of an output token, for the penalties.
    pub fn observe(&mut self, token: TokenId) {
        let SamplingParams { repetition_penalty, frequency_penalty, presence_penalty, .. } = self.params;
        if repetition_penalty != 1.0 || frequency_penalty != 0.0 || presence_penalty != 0.0 {
            self.seen.entry(token).or_default().in_output += 1;
        }
    }

    /// Chooses the token at absolute `position` from `logits`, which it may change; never one of `banned`. Tokens past
    /// the row are ignored.
    ///
    /// # Errors
    /// When a logit is NaN or +inf, before or after the rules above, or none is above -inf.
    pub fn sample(
        &self,
        logits: &mut [f32],
        position: u64,
        banned: &[TokenId],
        scratch: &mut Scratch,
    ) -> Result<Sampled, NumericalError> {
        let Some(top) = self.params.logprobs else {
            let token = self.choose(logits, position, banned, scratch)?;
            return Ok(Sampled { token, logprobs: None });
        };
        let raw = RawRow::new(logits, top, scratch)?;
        let original = logits.to_vec();
        let token = self.choose(logits, position, banned, scratch)?;
        let logprobs = Some(Logprobs { chosen: raw.logprob(original[token as usize]), top: raw.top });
        Ok(Sampled { token, logprobs })
    }

    /// Rules 2 to 11.
    fn choose(
        &self,
        logits: &mut [f32],
        position: u64,
        banned: &[TokenId],
        scratch: &mut Scratch,
    ) -> Result<TokenId, NumericalError> {
        self.adjust(logits, banned);
        let greatest = arg_max(logits)?;
        if self.params.temperature == 0.0 {
            return Ok(greatest as TokenId);
        }
        let weigher = Weigher::new(logits[greatest], self.params.temperature);
        let u = uniform(self.params.seed, position);
        let SamplingParams { top_k, top_p, min_p, .. } = self.params;
        if (top_k == 0 || top_k >= logits.len()) && top_p == 1.0 && min_p == 0.0 {
            return Ok(draw_from_row(logits, weigher, u, &mut scratch.weights));
        }
        self.cut(logits, weigher, scratch);
        Ok(draw(&scratch.candidates, &scratch.weights, u))
    }

    /// Rules 2 to 5. Each token is its own, so their order does not matter.
    fn adjust(&self, logits: &mut [f32], banned: &[TokenId]) {
        for &token in banned {
            if let Some(logit) = logits.get_mut(token as usize) {
                // A NaN stays: it is an error of the model, not a choice.
                *logit = if *logit < f32::INFINITY { f32::NEG_INFINITY } else { *logit };
            }
        }
        for &(token, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        for (&token, seen) in &self.seen {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = self.penalised(*logit, *seen);
            }
        }
    }

    /// Rules 4 and 5.
    fn penalised(&self, mut logit: f32, seen: Seen) -> f32 {
        let SamplingParams { repetition_penalty, frequency_penalty, presence_penalty, .. } = self.params;
        if repetition_penalty != 1.0 {
            logit = if logit < 0.0 { logit * repetition_penalty } else { logit / repetition_penalty };
        }
        if seen.in_output > 0 {
            logit = (logit - frequency_penalty * seen.in_output as f32) - presence_penalty;
        }
        logit
    }

    /// Rules 8 to 10: leaves in `scratch` the candidates that are kept, in descending order, and their weights.
    ///
    /// Without top-k the length of the kept beginning is not known before; ever longer beginnings are tried.
    fn cut(&self, logits: &[f32], weigher: Weigher, scratch: &mut Scratch) {
        let SamplingParams { top_k, top_p, min_p, .. } = self.params;
        let top_p = f64::from(top_p);
        let all = if top_k == 0 { logits.len() } else { top_k.min(logits.len()) };
        let mut length = if top_k == 0 { all.min(128) } else { all };
        let row_mass =
            if top_k == 0 && top_p < 1.0 { weigher.sum(logits, &mut scratch.weights) } else { f64::INFINITY };
        loop {
            leading(logits, length, &mut scratch.candidates);
            scratch.weights.clear();
            scratch.weights.extend(scratch.candidates.iter().map(|&(_, logit)| weigher.weight(logit)));
            let mass = if top_k == 0 { row_mass } else { scratch.weights.iter().fold(0.0, |a, b| a + b) };
            let enough = if top_p < 1.0 { top_p * mass } else { f64::INFINITY };
            let kept = kept(&scratch.weights, enough, f64::from(min_p));
            if kept.is_some() || scratch.candidates.len() < length || length == all {
                scratch.weights.truncate(kept.unwrap_or(usize::MAX));
                scratch.candidates.truncate(scratch.weights.len());
                return;
            }
            length = (length * 8).min(all);
        }
    }
}

/// How many of the descending `weights` are kept: up to the first at which their sum is `enough`, and before the first
/// below `least`. None when neither comes.
fn kept(weights: &[f64], enough: f64, least: f64) -> Option<usize> {
    let mut sum = 0.0;
    for (index, &weight) in weights.iter().enumerate() {
        if weight < least {
            return Some(index);
        }
        sum += weight;
        if sum >= enough {
            return Some(index + 1);
        }
    }
    None
}

/// Rule 11 over a cut set. Rounding may leave the running sum at the total or below; then the last is drawn.
fn draw(candidates: &[Candidate], weights: &[f64], u: f64) -> TokenId {
    let target = u * weights.iter().fold(0.0, |sum, weight| sum + weight);
    let mut sum = 0.0;
    let drawn = weights.iter().position(|weight| {
        sum += weight;
        sum > target
    });
    candidates[drawn.unwrap_or(candidates.len() - 1)].0
}

/// Rule 11 over a whole row: first the span, then the token in it.
fn draw_from_row(logits: &[f32], weigher: Weigher, u: f64, spans: &mut Vec<f64>) -> TokenId {
    let target = u * weigher.sum(logits, spans);
    let mut before = 0.0;
    let mut last = 0;
    for (index, &span) in spans.iter().enumerate() {
        if span == 0.0 {
            continue;
        }
        last = index;
        if before + span > target {
            break;
        }
        before += span;
    }
    draw_from_span(&logits[last * SPAN..], weigher, target - before, last * SPAN)
}

/// The token of a span's running sum that exceeds `target`; the last of any weight if rounding lets none.
fn draw_from_span(logits: &[f32], weigher: Weigher, target: f64, first: usize) -> TokenId {
    let mut sum = 0.0;
    let mut drawn = 0;
    for (offset, &logit) in logits.iter().take(SPAN).enumerate() {
        let weight = weigher.weight(logit);
        if weight > 0.0 {
            drawn = offset;
            sum += weight;
            if sum > target {
                break;
            }
        }
    }
    (first + drawn) as TokenId
}

/// A row before any rule: what log-probabilities are made of.
struct RawRow {
    greatest: f64,
    log_sum: f64,
    top: Vec<(TokenId, f32)>,
}

impl RawRow {
    fn new(logits: &[f32], top: usize, scratch: &mut Scratch) -> Result<Self, NumericalError> {
        let greatest = logits[arg_max(logits)?];
        let sum = Weigher::new(greatest, 1.0).sum(logits, &mut scratch.weights);
        let mut row = Self { greatest: f64::from(greatest), log_sum: libm::log(sum), top: Vec::new() };
        leading(logits, top, &mut scratch.candidates);
        row.top = scratch.candidates.iter().map(|&(token, logit)| (token, row.logprob(logit))).collect();
        Ok(row)
    }

    fn logprob(&self, logit: f32) -> f32 {
        ((f64::from(logit) - self.greatest) - self.log_sum) as f32
    }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
