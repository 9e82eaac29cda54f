use std::fmt;

use half::{bf16, f16};
use samebits_tensor::{DType, HostTensor};

/// Where two results of one case differ first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Number of results, shape or dtype.
    Kind {
        /// Of the reference.
        expected: String,
        /// Of the subject.
        found: String,
    },
    /// Bits of elements.
    Bits {
        /// Which result.
        output: usize,
        /// Its shape.
        shape: Vec<usize>,
        /// The first differing element, row-major.
        index: usize,
        /// Differing elements.
        count: usize,
        /// Bits and value of the reference.
        expected: String,
        /// Bits and value of the subject.
        found: String,
    },
}

/// The first difference between results, or `None` where the bits are the same. A NaN equals any NaN; the sign of
/// zero counts unless it is open.
pub fn compare(expected: &[HostTensor], found: &[HostTensor], zero_sign_is_open: bool) -> Option<Difference> {
    let kinds = |tensors: &[HostTensor]| {
        let kinds = tensors.iter().map(|x| format!("{} {}", x.dtype(), x.shape()));
        kinds.collect::<Vec<_>>().join(", ")
    };
    if kinds(expected) != kinds(found) {
        return Some(Difference::Kind { expected: kinds(expected), found: kinds(found) });
    }
    let pairs = expected.iter().zip(found).enumerate();
    pairs
        .into_iter()
        .find_map(|(output, (expected, found))| compare_bits(output, expected, found, zero_sign_is_open))
}

/// The bits of every element as the suite compares them: each NaN the same, and -0 as +0 where its sign is open.
pub fn canonical_bits(x: &HostTensor, zero_sign_is_open: bool) -> Vec<u32> {
    let open = |bits: u32, sign: u32| if zero_sign_is_open && bits == sign { 0 } else { bits };
    let words = |size: usize| x.bytes().chunks_exact(size);
    let half = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
    let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let nan = |is_nan: bool, bits: u32| if is_nan { u32::MAX } else { bits };
    match x.dtype() {
        DType::F32 => {
            words(4).map(word).map(|bits| nan(f32::from_bits(bits).is_nan(), open(bits, 1 << 31))).collect()
        }
        DType::F16 => words(2)
            .map(half)
            .map(|bits| nan(f16::from_bits(bits).is_nan(), open(bits.into(), 1 << 15)))
            .collect(),
        DType::BF16 => words(2)
            .map(half)
            .map(|bits| nan(bf16::from_bits(bits).is_nan(), open(bits.into(), 1 << 15)))
            .collect(),
        DType::I32 => words(4).map(word).collect(),
        DType::I8 | DType::U8 | DType::Bool => x.bytes().iter().map(|&byte| byte.into()).collect(),
    }
}

fn compare_bits(
    output: usize,
    expected: &HostTensor,
    found: &HostTensor,
    zero_sign_is_open: bool,
) -> Option<Difference> {
    let a = canonical_bits(expected, zero_sign_is_open);
    let b = canonical_bits(found, zero_sign_is_open);
    let differing = || a.iter().zip(&b).enumerate().filter(|(_, (a, b))| a != b).map(|(index, _)| index);
    let index = differing().next()?;
    Some(Difference::Bits {
        output,
        shape: expected.shape().dims().to_vec(),
        index,
        count: differing().count(),
        expected: element(expected.dtype(), a[index]),
        found: element(expected.dtype(), b[index]),
    })
}

fn element(dtype: DType, bits: u32) -> String {
    match dtype {
        DType::F32 => format!("{bits:#010x} ({:e})", f32::from_bits(bits)),
        DType::F16 => format!("{bits:#06x} ({:e})", f16::from_bits(bits as u16).to_f32()),
        DType::BF16 => format!("{bits:#06x} ({:e})", bf16::from_bits(bits as u16).to_f32()),
        DType::I32 => format!("{}", bits.cast_signed()),
        DType::I8 => format!("{}", (bits as u8).cast_signed()),
        DType::U8 | DType::Bool => format!("{bits}"),
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Kind { expected, found } => write!(f, "expected [{expected}], found [{found}]"),
            Difference::Bits { output, shape, index, count, expected, found } => {
                let total: usize = shape.iter().product();
                write!(
                    f,
                    "output {output} {shape:?}: {count} of {total} differ, first at {:?}: expected {expected}, found {found}",
                    coordinates(shape, *index)
                )
            }
        }
    }
}

fn coordinates(shape: &[usize], mut index: usize) -> Vec<usize> {
    let mut coordinates: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&extent| {
            let coordinate = index % extent;
            index /= extent;
            coordinate
        })
        .collect();
    coordinates.reverse();
    coordinates
}
