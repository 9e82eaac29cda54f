//! A backend over [candle](https://github.com/huggingface/candle), with two numerics.
//!
//! [`Candle::exact`] implements the contract's primitives over candle's tensors and overrides nothing: a second,
//! independent implementation, which must give the same bits as every other backend. Where candle has no such
//! operation, or one with another meaning, the element-wise functions of the contract run over candle's storage:
//!
//! | primitive | candle's own | so here |
//! | --- | --- | --- |
//! | rounding | `round` takes ties away from zero | ties to even |
//! | `max`, `max_reduce` | a NaN on the right is lost | candle's maximum, NaN put back |
//! | i32 arithmetic | panics on overflow in a checked build | wraps |
//! | casts to i8 and u8 | no i8 at all | saturating from f32, low bits from integers |
//! | bit-casts, shifts, bit-wise and, or | none | element-wise functions |
//! | `gather`, `scatter` | the largest u32 means "skip" | indices are checked first |
//!
//! [`Candle::float`] runs the same model text in plain f32: weights are dequantised to f32, activations and the
//! cache are not quantised, and the fused operations are candle's and candle-nn's own. It is what the quality of
//! the exact numerics is measured against, and it promises nothing about bits.
//!
//! Both hold i8 and u8 values as f32, which is what candle multiplies: a weight takes four bytes an element.
//! The features `metal` and `cuda` pass through to candle, whose devices this crate takes like any other. On
//! them the element-wise functions above copy to the host and back. They have never been run here: an exact
//! backend on such a device is one only once the conformance suite has passed on it.
#![forbid(unsafe_code)]

mod backend;
mod data;
mod elementwise;
mod float;

pub use candle_core::Device;
pub use data::Data;

use std::sync::Arc;

use samebits_tensor::{Capabilities, Error, Format, Result, contract};

/// A candle device under one of two numerics.
#[derive(Clone, Debug)]
pub struct Candle {
    device: Device,
    numerics: Numerics,
    /// Shared, because every tensor holds a backend.
    capabilities: Arc<Capabilities>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Numerics {
    Exact,
    Float,
}

impl Candle {
    /// The contract's numerics on `device`.
    pub fn exact(device: Device) -> Self {
        Self::new(device, Numerics::Exact, "candle")
    }

    /// Plain f32 on `device`: no quantised activation, no quantised cache, no promise about bits.
    ///
    /// A [`samebits_tensor::KvCache`] then holds unquantised f32 rows in the tensors that are declared i8, and its
    /// scales stay zero. Such rows can be gathered and scattered, and are refused by a download.
    pub fn float(device: Device) -> Self {
        Self::new(device, Numerics::Float, "candle-float")
    }

    fn new(device: Device, numerics: Numerics, name: &str) -> Self {
        let capabilities = Capabilities {
            name: name.into(),
            device: format!("candle {:?}", device.location()),
            numerics: match numerics {
                Numerics::Exact => contract::exact(),
                Numerics::Float => "candle-float".into(),
            },
            formats: Format::ALL.to_vec(),
            memory_bytes: None,
        };
        Candle { device, numerics, capabilities: capabilities.into() }
    }
}

/// Names the operation in which candle failed.
trait During<T> {
    fn during(self, op: &'static str) -> Result<T>;
}

impl<T> During<T> for candle_core::Result<T> {
    fn during(self, op: &'static str) -> Result<T> {
        self.map_err(|error| Error::Backend { backend: "candle".into(), op, detail: error.to_string() })
    }
}
