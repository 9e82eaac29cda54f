//! The serving core: a pure state machine for continuous batching.
//!
//! [`Engine`] takes [`Request`]s, decides at every [`Engine::step`] which tokens of which sequences the device computes
//! next, samples from the logits that come back, and returns [`Event`]s. It knows tokens, pages and logits as host
//! numbers; tensors and devices live behind [`Runner`].
//!
//! # Architecture invariants
//!
//! - No tensors, clock, threads, entropy or I/O. A seeded simulation runs the whole engine; a failing run is one number.
//! - A request's tokens depend on its prompt, its parameters and its seed alone: not on neighbours, chunking,
//!   preemption, retries or what is cached. Random draws are keyed by (seed, absolute position), never by time.
//! - Every page is free, owned, or cached for prompts that begin with what it holds; their sum is checked whenever the engine is idle.
//! - A request's failure is its own. Outside input is refused with a typed error, or ends that request; it never ends
//!   the engine.
//! - Everything has a limit: queue, batch, stop strings, biases, output.
//!
//! # Five types
//!
//! `Sequence` holds one request's tokens and what of them is computed; [`BlockManager`] owns the pages of
//! the key-value cache; the `Scheduler` picks each step's work; the [`Sampler`] turns logits into a token; and
//! [`Engine`] drives them against a [`Runner`].
//!
//! The next step is submitted before the events of the last are returned, so the device works while the caller
//! delivers text.
#![forbid(unsafe_code)]

mod batch;
mod blocks;
mod constraint;
mod detokenize;
mod engine;
mod prefix;
mod request;
mod rng;
mod runner;
mod sampler;
mod scheduler;
mod select;
mod sequence;
mod stop;
mod weights;

pub use batch::{Batch, BatchSeq, LEADING_MAX, Wanted};
pub use blocks::{BlockManager, BlockTable, PageId, PageLeak};
pub use constraint::{Constraint, ConstraintError, TokenSet};
pub use detokenize::Detokenizer;
pub use engine::{Engine, EngineConfig, EngineError, Event, Stats};
pub use request::{
    AdmitError, FinishReason, Request, RequestError, RequestId, RequestLimits, SamplingParams, Stop,
    StopCause, TokenId, Usage, Vocabulary,
};
pub use rng::{philox4x32_10, random_bits};
pub use runner::{Limits, Logits, LogitsRow, Runner, RunnerError};
pub use sampler::{Logprobs, NumericalError, SAMPLER_VERSION, Sampled, Sampler, Scratch};
pub use select::Candidate;
pub use stop::StopMatcher;
