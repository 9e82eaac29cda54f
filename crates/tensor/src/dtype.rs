use std::fmt;

use half::{bf16, f16};

/// Type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16; storage of weights.
    F16,
    /// bfloat16; storage of weights.
    BF16,
    /// Signed byte: quantised values.
    I8,
    /// Unsigned byte: slices of attention weights.
    U8,
    /// Signed 32-bit: indices, positions and exact sums.
    I32,
    /// One byte, 0 or 1: masks.
    Bool,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::I8 | DType::U8 | DType::Bool => 1,
        }
    }

    /// Lower-case name, as it appears in dumps and errors.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I8 => "i8",
            DType::U8 => "u8",
            DType::I32 => "i32",
            DType::Bool => "bool",
        }
    }

    /// Every dtype.
    pub const ALL: [DType; 7] =
        [DType::F32, DType::F16, DType::BF16, DType::I8, DType::U8, DType::I32, DType::Bool];
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One value, with its type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// A binary32 value.
    F32(f32),
    /// A signed 32-bit value.
    I32(i32),
    /// A signed byte.
    I8(i8),
}

impl Scalar {
    /// The dtype of a tensor filled with this value.
    pub fn dtype(self) -> DType {
        match self {
            Scalar::F32(_) => DType::F32,
            Scalar::I32(_) => DType::I32,
            Scalar::I8(_) => DType::I8,
        }
    }
}

impl From<f32> for Scalar {
    fn from(value: f32) -> Self {
        Scalar::F32(value)
    }
}

impl From<i32> for Scalar {
    fn from(value: i32) -> Self {
        Scalar::I32(value)
    }
}

impl From<i8> for Scalar {
    fn from(value: i8) -> Self {
        Scalar::I8(value)
    }
}

/// A Rust type that is the element of a host tensor.
pub trait Element: bytemuck::Pod {
    /// The dtype of this type.
    const DTYPE: DType;
}

macro_rules! element {
    ($($type:ty => $dtype:ident),*) => {
        $(impl Element for $type { const DTYPE: DType = DType::$dtype; })*
    };
}
element!(f32 => F32, f16 => F16, bf16 => BF16, i8 => I8, u8 => U8, i32 => I32);
