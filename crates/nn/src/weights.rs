//! Where a model's weights come from.

use std::sync::atomic::{AtomicUsize, Ordering};

use samebits_tensor::{Format, HostWeight};

/// Weights by their Hugging Face names (`model.layers.0.self_attn.q_proj.weight`, `lm_head.weight`), in one
/// convention whatever file they are in:
/// - matrices are `[out, in]`;
/// - the experts of a layer are one weight `[experts, out, in]`, `mlp.experts.gate_proj.weight` and the like, and their router is
///   `mlp.gate.weight`;
/// - q and k rows are in the half-split order of rotary channels;
/// - norm weights are what the normalised value is multiplied by (Gemma's added one is in them).
pub trait WeightSource: Send + Sync {
    /// The weight called `name`.
    ///
    /// # Errors
    /// [`WeightError::Missing`] if there is none, [`WeightError::Invalid`] if it cannot be brought into the
    /// convention.
    fn get(&self, name: &str) -> Result<HostWeight, WeightError>;

    /// Whether there is a weight called `name`.
    fn contains(&self, name: &str) -> bool;

    /// Every name, in the order of the file or files.
    fn names(&self) -> Vec<String>;

    /// Bytes of the weight called `name`, or `None` if there is none.
    fn size(&self, name: &str) -> Option<u64> {
        let (format, shape) = self.layout(name).ok()?;
        let values = shape.iter().try_fold(1, |values: u64, &extent| values.checked_mul(extent as u64))?;
        (values / format.block_len() as u64).checked_mul(format.block_bytes() as u64)
    }

    /// The file or directory, for errors.
    fn origin(&self) -> String;

    /// Format and shape of the weight called `name`, without reading it.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    fn layout(&self, name: &str) -> Result<(Format, Vec<usize>), WeightError> {
        self.get(name).map(|weight| (weight.format, weight.shape))
    }

    /// The weight called `name`, which must have shape `shape`, outermost extent first.
    ///
    /// # Errors
    /// As [`get`](Self::get), and [`WeightError::Shape`].
    fn get_shaped(&self, name: &str, shape: &[usize]) -> Result<HostWeight, WeightError> {
        let weight = self.get(name)?;
        if weight.shape == shape {
            return Ok(weight);
        }
        let (expected, found) = (shape.to_vec(), weight.shape);
        Err(WeightError::Shape { name: name.into(), origin: self.origin(), expected, found })
    }
}

/// What is wrong with a weight; every variant names it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WeightError {
    /// The model needs a weight that the file does not have.
    #[error("{origin}: there is no tensor `{name}`; the file is incomplete or of another architecture")]
    Missing {
        /// The weight.
        name: String,
        /// The file.
        origin: String,
    },
    /// A weight of another shape than the configuration's.
    #[error("{origin}: tensor `{name}` has shape {found:?}, but the configuration needs {expected:?}")]
    Shape {
        /// The weight.
        name: String,
        /// The file.
        origin: String,
        /// What the configuration says, outermost first.
        expected: Vec<usize>,
        /// What the file holds, outermost first.
        found: Vec<usize>,
    },
    /// A weight that cannot be brought into the convention of [`WeightSource`].
    #[error("{origin}: tensor `{name}`: {detail}")]
    Invalid {
        /// The weight.
        name: String,
        /// The file.
        origin: String,
        /// What is wrong, and what would do.
        detail: String,
    },
    /// A weight with a NaN or an infinity.
    #[error("tensor `{name}` holds {value} at element {index}; the file is damaged or its training diverged")]
    NotFinite {
        /// The weight.
        name: String,
        /// Row-major index of the element, or of the first element of the block whose scale it is.
        index: usize,
        /// The value.
        value: f32,
    },
}

/// Checks that every value of `weight` is finite, by its block scales where it has them.
///
/// # Errors
/// [`WeightError::NotFinite`] with the first index.
pub fn check_finite(weight: &HostWeight) -> Result<(), WeightError> {
    check_finite_on(weight, |tasks, run| (0..tasks).for_each(run))
}

/// [`check_finite`] in tasks, which `each` runs once for each number below the one it is given.
pub(crate) fn check_finite_on(
    weight: &HostWeight,
    each: impl FnOnce(usize, &(dyn Fn(usize) + Sync)),
) -> Result<(), WeightError> {
    let first = AtomicUsize::new(usize::MAX);
    let width = weight.format.block_bytes();
    let blocks_of_task = TASK_BYTES / width;
    let tasks: Vec<_> = weight.bytes.chunks(blocks_of_task * width).collect();
    each(tasks.len(), &|i| {
        if let Some(block) = first_bad(weight.format, tasks[i]) {
            first.fetch_min(i * blocks_of_task + block, Ordering::Relaxed);
        }
    });
    match first.into_inner() {
        usize::MAX => Ok(()),
        block => {
            let (name, index) = (weight.name.clone(), block * weight.format.block_len());
            let value = bad_value(weight, block);
            Err(WeightError::NotFinite { name, index, value })
        }
    }
}

/// Bytes that are worth a task of their own.
const TASK_BYTES: usize = 1 << 18;

/// The first block in `bytes` with a value that is not finite.
fn first_bad(format: Format, bytes: &[u8]) -> Option<usize> {
    match format {
        Format::F32 => first_position(bytes, |b: &[u8; 4]| u32_at(b, 0) & 0x7f80_0000 == 0x7f80_0000),
        Format::F16 => first_position(bytes, |b: &[u8; 2]| !f16_is_finite(b, 0)),
        Format::BF16 => first_position(bytes, |b: &[u8; 2]| u16_at(b, 0) & 0x7f80 == 0x7f80),
        // Code 255 of a power-of-two scale is NaN (OCP Microscaling 1.0, section 5.4.1).
        Format::Mxfp4 => first_position(bytes, |b: &[u8; 17]| b[0] == 255),
        Format::Q4_0 | Format::Iq4Nl => first_bad_scale::<18, 1>(format, bytes),
        Format::Q5_0 => first_bad_scale::<22, 1>(format, bytes),
        Format::Q8_0 => first_bad_scale::<34, 1>(format, bytes),
        Format::Q4_1 => first_bad_scale::<20, 2>(format, bytes),
        Format::Q5_1 => first_bad_scale::<24, 2>(format, bytes),
        Format::Q2K => first_bad_scale::<84, 2>(format, bytes),
        Format::Q3K => first_bad_scale::<110, 1>(format, bytes),
        Format::Q4K => first_bad_scale::<144, 2>(format, bytes),
        Format::Q5K => first_bad_scale::<176, 2>(format, bytes),
        Format::Q6K => first_bad_scale::<210, 1>(format, bytes),
    }
}

/// The same for blocks of `BYTES` bytes with `SCALES` scales and minima.
fn first_bad_scale<const BYTES: usize, const SCALES: usize>(format: Format, bytes: &[u8]) -> Option<usize> {
    let scales: [usize; SCALES] = scale_offsets(format).try_into().expect("the scales of the format");
    first_position(bytes, |block: &[u8; BYTES]| scales.iter().any(|&at| !f16_is_finite(block, at)))
}

/// Byte offsets of the f16 scales and minima in a block (`ggml-common.h`).
fn scale_offsets(format: Format) -> &'static [usize] {
    match format {
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::Iq4Nl => &[0],
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
        Format::Q2K => &[80, 82],
        Format::Q3K => &[108],
        Format::Q6K => &[208],
        Format::F32 | Format::F16 | Format::BF16 | Format::Mxfp4 => &[],
    }
}

fn first_position<const N: usize>(bytes: &[u8], is_bad: impl Fn(&[u8; N]) -> bool) -> Option<usize> {
    const GROUP: usize = 256;
    let mut groups = bytes.as_chunks::<N>().0.chunks(GROUP).enumerate();
    // A group is looked through to its end, which the compiler can do for many blocks at a time.
    let (i, group) = groups.find(|(_, group)| group.iter().fold(false, |found, b| found | is_bad(b)))?;
    group.iter().position(is_bad).map(|block| i * GROUP + block)
}

fn bad_value(weight: &HostWeight, block: usize) -> f32 {
    let width = weight.format.block_bytes();
    let bytes = &weight.bytes[block * width..(block + 1) * width];
    match weight.format {
        Format::F32 => f32::from_bits(u32_at(bytes, 0)),
        Format::BF16 => f32::from_bits(u32::from(u16_at(bytes, 0)) << 16),
        Format::Mxfp4 => f32::NAN,
        Format::F16 => f16_not_finite(bytes, 0),
        format => {
            let at = scale_offsets(format).iter().find(|&&at| !f16_is_finite(bytes, at));
            at.map_or(f32::NAN, |&at| f16_not_finite(bytes, at))
        }
    }
}

fn f16_is_finite(bytes: &[u8], at: usize) -> bool {
    u16_at(bytes, at) & 0x7c00 != 0x7c00
}

fn f16_not_finite(bytes: &[u8], at: usize) -> f32 {
    match u16_at(bytes, at) {
        0x7c00 => f32::INFINITY,
        0xfc00 => f32::NEG_INFINITY,
        _ => f32::NAN,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(format: Format, bytes: Vec<u8>) -> HostWeight {
        let elements = bytes.len() / format.block_bytes() * format.block_len();
        HostWeight { name: "w".into(), format, shape: vec![elements], bytes: bytes.into() }
    }

    #[test]
    fn a_bad_float_is_found_at_its_index() {
        let floats = [1.0f32, -2.0, f32::NEG_INFINITY, f32::NAN];
        let bytes = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
        let error = check_finite(&weight(Format::F32, bytes)).unwrap_err();
        let value = f32::NEG_INFINITY;
        assert_eq!(error, WeightError::NotFinite { name: "w".into(), index: 2, value });
    }

    #[test]
    fn a_bad_scale_is_found_in_every_block_format() {
        for format in [
            Format::F16,
            Format::Q4_0,
            Format::Q4_1,
            Format::Q5_0,
            Format::Q5_1,
            Format::Q8_0,
            Format::Q2K,
            Format::Q3K,
            Format::Q4K,
            Format::Q5K,
            Format::Q6K,
            Format::Iq4Nl,
        ] {
            let width = format.block_bytes();
            let offsets = if format == Format::F16 { &[0] } else { scale_offsets(format) };
            for &at in offsets {
                let mut bytes = vec![0; width * 3];
                assert_eq!(check_finite(&weight(format, bytes.clone())), Ok(()));
                bytes[width + at + 1] = 0x7c;
                let (name, index, value) = ("w".into(), format.block_len(), f32::INFINITY);
                let found = check_finite(&weight(format, bytes));
                assert_eq!(found, Err(WeightError::NotFinite { name, index, value }), "{format}");
            }
        }
    }

    #[test]
    fn nan_in_bf16_and_mxfp4_is_found() {
        assert!(check_finite(&weight(Format::BF16, vec![0, 0, 0xc0, 0x7f])).is_err());
        let mut block = vec![127; Format::Mxfp4.block_bytes()];
        assert!(check_finite(&weight(Format::Mxfp4, block.clone())).is_ok());
        block[0] = 255;
        assert!(check_finite(&weight(Format::Mxfp4, block)).is_err());
    }
}
