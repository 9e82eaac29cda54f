use half::{bf16, f16};
use samebits_tensor::{DType, Error, Result};

use crate::memory::{Elements, Memory};

/// Elements of one tensor in host memory. Cloning shares them; writing to shared elements copies them first.
#[derive(Clone, Debug)]
pub enum Buffer {
    /// Elements of [`DType::F32`].
    F32(Elements<f32>),
    /// Elements of [`DType::F16`].
    F16(Elements<f16>),
    /// Elements of [`DType::BF16`].
    BF16(Elements<bf16>),
    /// Elements of [`DType::I8`].
    I8(Elements<i8>),
    /// Elements of [`DType::U8`].
    U8(Elements<u8>),
    /// Elements of [`DType::I32`].
    I32(Elements<i32>),
    /// Elements of [`DType::Bool`], 0 or 1.
    Bool(Elements<u8>),
}

/// Runs one expression over the elements of a buffer, whatever their type. The expression gives the elements of a
/// new buffer of the same type.
macro_rules! map_elements {
    ($buffer:expr, $values:ident => $body:expr) => {{
        use $crate::host::Buffer;
        match $buffer {
            Buffer::F32($values) => Buffer::F32($body),
            Buffer::F16($values) => Buffer::F16($body),
            Buffer::BF16($values) => Buffer::BF16($body),
            Buffer::I8($values) => Buffer::I8($body),
            Buffer::U8($values) => Buffer::U8($body),
            Buffer::I32($values) => Buffer::I32($body),
            Buffer::Bool($values) => Buffer::Bool($body),
        }
    }};
}

/// Runs one expression over two buffers of one type, as [`map_elements`] does over one.
macro_rules! zip_elements {
    ($op:literal, $a:expr, $b:expr, ($x:ident, $y:ident) => $body:expr) => {{
        use $crate::host::Buffer;
        match ($a, $b) {
            (Buffer::F32($x), Buffer::F32($y)) => Buffer::F32($body),
            (Buffer::F16($x), Buffer::F16($y)) => Buffer::F16($body),
            (Buffer::BF16($x), Buffer::BF16($y)) => Buffer::BF16($body),
            (Buffer::I8($x), Buffer::I8($y)) => Buffer::I8($body),
            (Buffer::U8($x), Buffer::U8($y)) => Buffer::U8($body),
            (Buffer::I32($x), Buffer::I32($y)) => Buffer::I32($body),
            (Buffer::Bool($x), Buffer::Bool($y)) => Buffer::Bool($body),
            (_, other) => return Err(other.mismatch($op, "the dtype of the other operand")),
        }
    }};
}

pub(crate) use {map_elements, zip_elements};

/// A type that elements of a buffer have.
pub(crate) trait Element: bytemuck::Pod {
    /// The elements, if they are of this type; those of a mask are `u8`.
    fn of(buffer: &Buffer) -> Option<&[Self]>;
}

macro_rules! typed {
    ($($variant:ident $(| $also:ident)?, $type:ty, $get:ident, $get_mut:ident;)*) => {
        $(
            impl Element for $type {
                fn of(buffer: &Buffer) -> Option<&[Self]> {
                    match buffer {
                        Buffer::$variant(values) $(| Buffer::$also(values))? => Some(values),
                        _ => None,
                    }
                }
            }

            impl From<Elements<$type>> for Buffer {
                fn from(values: Elements<$type>) -> Self {
                    Buffer::$variant(values)
                }
            }

            impl From<Vec<$type>> for Buffer {
                fn from(values: Vec<$type>) -> Self {
                    Elements::from(values).into()
                }
            }
        )*

        impl Buffer {
            $(
                #[doc = concat!("The elements, which must be ", stringify!($type), ".")]
                ///
                /// # Errors
                /// [`Error::DType`] of `op` for elements of another type.
                pub fn $get(&self, op: &'static str) -> Result<&[$type]> {
                    match self {
                        Buffer::$variant(values) => Ok(values),
                        other => Err(other.mismatch(op, stringify!($type))),
                    }
                }

                #[doc = concat!("The elements, which must be ", stringify!($type), ", to write in place; copied first if shared.")]
                ///
                /// # Errors
                /// [`Error::DType`] of `op` for elements of another type.
                pub fn $get_mut(&mut self, op: &'static str) -> Result<&mut [$type]> {
                    match self {
                        Buffer::$variant(values) => Ok(values.as_mut_slice()),
                        other => Err(other.mismatch(op, stringify!($type))),
                    }
                }
            )*
        }
    };
}
typed! {
    F32, f32, f32, f32_mut;
    F16, f16, f16, f16_mut;
    BF16, bf16, bf16, bf16_mut;
    I8, i8, i8, i8_mut;
    U8 | Bool, u8, u8, u8_mut;
    I32, i32, i32, i32_mut;
}

impl Buffer {
    /// A copy of elements, native-endian.
    pub(crate) fn of_bytes(memory: &Memory, dtype: DType, bytes: &[u8]) -> Buffer {
        fn elements<T: bytemuck::Pod>(memory: &Memory, bytes: &[u8]) -> Elements<T> {
            let mut elements = memory.elements(bytes.len() / size_of::<T>());
            bytemuck::cast_slice_mut(elements.as_mut_slice()).copy_from_slice(bytes);
            elements
        }
        match dtype {
            DType::F32 => Buffer::F32(elements(memory, bytes)),
            DType::F16 => Buffer::F16(elements(memory, bytes)),
            DType::BF16 => Buffer::BF16(elements(memory, bytes)),
            DType::I8 => Buffer::I8(elements(memory, bytes)),
            DType::U8 => Buffer::U8(elements(memory, bytes)),
            DType::I32 => Buffer::I32(elements(memory, bytes)),
            DType::Bool => Buffer::Bool(elements(memory, bytes)),
        }
    }

    /// Bytes 0 or 1 as elements of [`DType::Bool`].
    pub fn mask(values: impl Into<Elements<u8>>) -> Buffer {
        Buffer::Bool(values.into())
    }

    /// The elements of a mask.
    ///
    /// # Errors
    /// [`Error::DType`] of `op` for elements of another type.
    pub fn bools(&self, op: &'static str) -> Result<&[u8]> {
        match self {
            Buffer::Bool(values) => Ok(values),
            other => Err(other.mismatch(op, "bool")),
        }
    }

    /// The elements, of the type that `op` expects.
    pub(crate) fn values<T: Element>(&self, op: &'static str) -> Result<&[T]> {
        T::of(self).ok_or_else(|| self.mismatch(op, "the dtype of the other operand"))
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        match self {
            Buffer::F32(_) => DType::F32,
            Buffer::F16(_) => DType::F16,
            Buffer::BF16(_) => DType::BF16,
            Buffer::I8(_) => DType::I8,
            Buffer::U8(_) => DType::U8,
            Buffer::I32(_) => DType::I32,
            Buffer::Bool(_) => DType::Bool,
        }
    }

    /// An error of `op`, which expected elements of another type than these.
    pub fn mismatch(&self, op: &'static str, expected: &'static str) -> Error {
        Error::DType { op, expected, found: self.dtype() }
    }
}

/// The elements as bytes, native-endian.
impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        match self {
            Buffer::F32(values) => bytemuck::cast_slice(values),
            Buffer::F16(values) => bytemuck::cast_slice(values),
            Buffer::BF16(values) => bytemuck::cast_slice(values),
            Buffer::I8(values) => bytemuck::cast_slice(values),
            Buffer::U8(values) | Buffer::Bool(values) => values,
            Buffer::I32(values) => bytemuck::cast_slice(values),
        }
    }
}
