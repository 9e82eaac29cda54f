//! The meaning of every fused operation: a function over exact primitives, with the order of float work fixed.
//!
//! This is the numerics contract in code. It is also the reference of every conformance test, the fallback of a
//! backend without a kernel, and what a tracing backend records. `docs/numerics.md` gives the reasons.
//!
//! Every f32 operation here is one correctly rounded IEEE 754 operation; none may be contracted or reordered.

mod attention;
mod experts;
mod linear;
mod math;
mod norm;
mod reduce;
mod rope;
mod top_k;

pub use attention::{attention, quantize_heads, store_kv};
pub use experts::{experts, route};
pub use linear::{embedding, feed_forward, linear, linear_groups, quantize_blocks};
pub use math::{activate, exp, glu, sigmoid, soft_cap, tanh};
pub use norm::{layer_norm, rms_norm, softmax};
pub use reduce::{add_in_order, sum_last};
pub use rope::rope;
pub use top_k::top_k;
