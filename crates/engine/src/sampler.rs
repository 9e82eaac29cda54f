//! From a row of logits to a token.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::{
    LEADING_MAX, SamplingParams, TokenId, TokenSet, Wanted,
    rng::random_bits,
    select::{Candidate, arg_max, descending, keep_mass, leading},
    weights::{UNIT, Weigher, fraction, pick},
};

/// Names the rules of [`Sampler::sample`]; a change of any chosen token is a new version.
pub const SAMPLER_VERSION: u32 = 1;

/// Chooses the tokens of one sequence.
///
/// The rules, in order. `l` is a logit (f32, each operation rounded once), `c` the token's count in the output:
///
/// 1. log-probabilities, if asked for, are the log-softmax of the logits as they came, `l - m - ln(sum exp(l - m))` with
///    `m` the greatest, in f64, rounded to f32 (OpenAI's `logprobs`, vLLM's `raw_logprobs`).
///    Under a [`Constraint`](crate::Constraint) tokens that it does not allow have -inf before this rule already, as in
///    vLLM;
/// 2. tokens that may not be sampled yet get -inf (vLLM's `min_tokens`);
/// 3. `l + bias` (OpenAI's `logit_bias`);
/// 4. repetition penalty `r` for tokens of prompt or output: `l * r` if `l < 0`, else `l / r` (Keskar et al. 2019,
///    Hugging Face's `RepetitionPenaltyLogitsProcessor`);
/// 5. `(l - frequency * c) - presence` for tokens of the output (OpenAI's penalties);
/// 6. at temperature 0 the greatest, the lowest id of equals;
/// 7. otherwise weights `w = round(2^40 * exp((l - m) * (1 / temperature)))`, the exponential in f64 by a fixed
///    polynomial. They are integers, so their sums are exact and no rule below depends on the order of a sum;
/// 8. top-k keeps the k first in descending order (equal logits: lowest id first);
/// 9. top-p keeps the shortest beginning of that order whose weights sum to at least `ceil(p * w)`, `w` the sum of all
///    that are left (Holtzman et al. 2020; Hugging Face's and vLLM's `top_p`), at least one token;
/// 10. min-p keeps tokens with `(l - m) * (1 / temperature) >= ln(min_p)`: those at least `min_p` times as likely as the
///     most likely (Nguyen et al. 2024, Hugging Face's `MinPLogitsWarper`);
/// 11. a draw: of 64 bits from (seed, position) and the sum `w` of all weights that are left, the target is
///     `floor(bits * w / 2^64)`; the first token, in ascending order of id, at which the running sum of weights exceeds
///     the target.
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
    pub(crate) allowed: TokenSet,
    candidates: Vec<Candidate>,
    spans: Vec<u64>,
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
        let adjusted: Vec<Candidate> = self.adjusted(logits).collect();
        let token = self.choose(logits, position, banned, scratch)?;
        let original = adjusted.iter().find(|candidate| candidate.0 == token);
        let logit = original.map_or(logits[token as usize], |candidate| candidate.1);
        Ok(Sampled { token, logprobs: Some(Logprobs { chosen: raw.logprob(logit), top: raw.top }) })
    }

    /// What [`Sampler::sample`] needs of a row, of which `banned` may not be sampled: the greatest logits alone, where no rule
    /// changes a logit and no more of them can be chosen.
    pub fn wanted(&self, banned: &[TokenId]) -> Wanted {
        let SamplingParams { temperature, top_k, logprobs, ref logit_bias, .. } = self.params;
        let is_as_it_came = banned.is_empty() && logit_bias.is_empty() && self.seen.is_empty();
        match if temperature == 0.0 { 1 } else { top_k } {
            count @ 1..=LEADING_MAX if is_as_it_came && logprobs.is_none() => Wanted::Leading(count),
            _ => Wanted::Row,
        }
    }

    /// Chooses as [`Sampler::sample`] does of the whole row, of which these are the greatest in descending order: at least as many
    /// as [`Sampler::wanted`] says, or all.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn sample_leading(
        &self,
        leading: &[Candidate],
        position: u64,
        scratch: &mut Scratch,
    ) -> Result<Sampled, NumericalError> {
        let (token, greatest) = first_of(leading)?;
        if self.params.temperature == 0.0 {
            return Ok(Sampled { token, logprobs: None });
        }
        let weigher = Weigher::new(greatest, self.params.temperature);
        let kept = &mut scratch.candidates;
        kept.clear();
        let possible =
            leading.iter().take(self.params.top_k).filter(|candidate| candidate.1 > f32::NEG_INFINITY);
        kept.extend(possible);
        self.trim(weigher, kept);
        Ok(Sampled { token: self.draw(weigher, position, kept), logprobs: None })
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
        let SamplingParams { seed, top_k, top_p, min_p, .. } = self.params;
        if (top_k == 0 || top_k >= logits.len()) && top_p == 1.0 && min_p == 0.0 {
            let bits = random_bits(seed, position);
            return Ok(weigher.draw(logits, bits, &mut scratch.spans) as TokenId);
        }
        self.cut(logits, weigher, &mut scratch.candidates);
        Ok(self.draw(weigher, position, &mut scratch.candidates))
    }

    /// Rule 11, of the candidates that are left.
    fn draw(&self, weigher: Weigher, position: u64, kept: &mut [Candidate]) -> TokenId {
        kept.sort_unstable_by_key(|&(token, _)| token);
        let target = fraction(random_bits(self.params.seed, position), mass(weigher, kept));
        kept[pick(kept.iter().map(|&(_, logit)| weigher.weight(logit)), target).0].0
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

    /// The tokens whose logits rules 3 to 5 change, and those logits.
    fn adjusted(&self, logits: &[f32]) -> impl Iterator<Item = Candidate> {
        let tokens = self.params.logit_bias.iter().map(|&(token, _)| token).chain(self.seen.keys().copied());
        tokens.filter_map(|token| Some((token, *logits.get(token as usize)?)))
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

    /// Rules 8 to 10: leaves in `kept` the candidates to draw from.
    fn cut(&self, logits: &[f32], weigher: Weigher, kept: &mut Vec<Candidate>) {
        let SamplingParams { top_k, top_p, min_p, .. } = self.params;
        let least = libm::log(f64::from(min_p));
        if top_k > 0 {
            leading(logits, top_k, kept);
            return self.trim(weigher, kept);
        }
        if top_p < 1.0 {
            let enough = enough(top_p, weigher.mass(logits));
            leading_mass(logits, weigher, enough, kept);
            keep_mass(kept, enough, |candidates| mass(weigher, candidates));
        } else {
            kept.clear();
            kept.extend(
                (0..).zip(logits.iter().copied()).filter(|&(_, logit)| weigher.exponent(logit) >= least),
            );
        }
        kept.retain(|&(_, logit)| weigher.exponent(logit) >= least);
    }

    /// Rules 9 and 10, of what top-k has left.
    fn trim(&self, weigher: Weigher, kept: &mut Vec<Candidate>) {
        let SamplingParams { top_p, min_p, .. } = self.params;
        if top_p < 1.0 {
            let enough = enough(top_p, mass(weigher, kept));
            keep_mass(kept, enough, |candidates| mass(weigher, candidates));
        }
        let least = libm::log(f64::from(min_p));
        kept.retain(|&(_, logit)| weigher.exponent(logit) >= least);
    }
}

/// The greatest of a row.
///
/// # Errors
/// When it is NaN, +inf or -inf: where a logit is NaN or +inf, the first such comes first.
fn first_of(leading: &[Candidate]) -> Result<Candidate, NumericalError> {
    match leading.first() {
        Some(&(token, logit)) if logit.is_nan() => Err(NumericalError::NotANumber { token }),
        Some(&(token, f32::INFINITY)) => Err(NumericalError::Infinite { token }),
        Some(&greatest) if greatest.1 > f32::NEG_INFINITY => Ok(greatest),
        _ => Err(NumericalError::NoCandidate),
    }
}

/// `top_p` of a mass, for rule 9.
fn enough(top_p: f32, mass: u64) -> u64 {
    ((f64::from(top_p) * mass as f64).ceil() as u64).clamp(1, mass)
}

/// A beginning of the descending order, in no order itself, of at least the mass `enough`. Most often it is short, so
/// ever longer ones are tried.
fn leading_mass(logits: &[f32], weigher: Weigher, enough: u64, kept: &mut Vec<Candidate>) {
    let mut length = 128;
    leading(logits, length, kept);
    while length < logits.len() && mass(weigher, kept) < enough {
        length *= 16;
        leading(logits, length, kept);
    }
}

fn mass(weigher: Weigher, candidates: &[Candidate]) -> u64 {
    candidates.iter().map(|&(_, logit)| weigher.weight(logit)).sum()
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
        let sum = Weigher::new(greatest, 1.0).mass(logits) as f64 / UNIT as f64;
        let mut row = Self { greatest: f64::from(greatest), log_sum: libm::log(sum), top: Vec::new() };
        leading(logits, top, &mut scratch.candidates);
        scratch.candidates.sort_unstable_by(descending);
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
