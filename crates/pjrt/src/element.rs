use std::fmt;

use crate::PjrtError;

/// Type of a tensor's elements: those of XLA that are whole bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// One byte, 0 or 1.
    Pred,
    /// Signed, 8 bits.
    S8,
    /// Signed, 16 bits.
    S16,
    /// Signed, 32 bits.
    S32,
    /// Signed, 64 bits.
    S64,
    /// Unsigned, 8 bits.
    U8,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 64 bits.
    U64,
    /// IEEE 754 binary16.
    F16,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
    /// bfloat16.
    Bf16,
    /// 8 bits, 5 of exponent.
    F8E5M2,
    /// 8 bits, 4 of exponent, finite.
    F8E4M3Fn,
    /// 8 bits, 4 of exponent, with infinities.
    F8E4M3,
    /// 8 bits, 3 of exponent.
    F8E3M4,
    /// A power of two.
    F8E8M0Fnu,
}

/// Each type, its value in `PJRT_Buffer_Type`, its value in `xla.PrimitiveType`, bytes and XLA's name.
const TYPES: [(ElementType, i32, u64, usize, &str); 18] = [
    (ElementType::Pred, 1, 1, 1, "pred"),
    (ElementType::S8, 2, 2, 1, "s8"),
    (ElementType::S16, 3, 3, 2, "s16"),
    (ElementType::S32, 4, 4, 4, "s32"),
    (ElementType::S64, 5, 5, 8, "s64"),
    (ElementType::U8, 6, 6, 1, "u8"),
    (ElementType::U16, 7, 7, 2, "u16"),
    (ElementType::U32, 8, 8, 4, "u32"),
    (ElementType::U64, 9, 9, 8, "u64"),
    (ElementType::F16, 10, 10, 2, "f16"),
    (ElementType::F32, 11, 11, 4, "f32"),
    (ElementType::F64, 12, 12, 8, "f64"),
    (ElementType::Bf16, 13, 16, 2, "bf16"),
    (ElementType::F8E5M2, 16, 19, 1, "f8e5m2"),
    (ElementType::F8E4M3Fn, 17, 20, 1, "f8e4m3fn"),
    (ElementType::F8E4M3, 26, 28, 1, "f8e4m3"),
    (ElementType::F8E3M4, 27, 29, 1, "f8e3m4"),
    (ElementType::F8E8M0Fnu, 28, 33, 1, "f8e8m0fnu"),
];

impl ElementType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        self.row().3
    }

    pub(crate) fn raw(self) -> i32 {
        self.row().1
    }

    pub(crate) fn from_raw(raw: i32) -> Result<Self, PjrtError> {
        let row = TYPES.iter().find(|row| row.1 == raw);
        row.map(|row| row.0).ok_or(PjrtError::Element { raw })
    }

    /// From `xla.PrimitiveType`, as modules have it.
    pub(crate) fn from_primitive(primitive: u64) -> Option<Self> {
        TYPES.iter().find(|row| row.2 == primitive).map(|row| row.0)
    }

    fn row(self) -> &'static (ElementType, i32, u64, usize, &'static str) {
        &TYPES[self as usize]
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().4)
    }
}

/// Element type and dimensions of a tensor, row-major.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Signature {
    /// Type of the elements.
    pub element: ElementType,
    /// The dimensions, the slowest first; none for a scalar.
    pub dims: Vec<usize>,
}

impl Signature {
    /// A tensor's type.
    ///
    /// # Errors
    /// [`PjrtError::TooLarge`] if its bytes cannot be counted.
    pub fn new(element: ElementType, dims: &[usize]) -> Result<Self, PjrtError> {
        let bytes = dims.iter().try_fold(element.bytes(), |product, &dim| product.checked_mul(dim));
        let fits = bytes.is_some_and(|bytes| isize::try_from(bytes).is_ok());
        let dims_fit = dims.iter().all(|&dim| i64::try_from(dim).is_ok());
        if fits && dims_fit {
            return Ok(Signature { element, dims: dims.into() });
        }
        Err(PjrtError::TooLarge { dims: dims.into() })
    }

    /// Bytes of the tensor.
    pub fn bytes(&self) -> usize {
        self.element.bytes() * self.dims.iter().product::<usize>()
    }

    pub(crate) fn raw_dims(&self) -> Vec<i64> {
        self.dims.iter().map(|&dim| dim as i64).collect()
    }

    /// From a plugin's figures.
    pub(crate) fn from_raw(element: i32, dims: &[i64]) -> Result<Self, PjrtError> {
        let dims: Vec<usize> = dims.iter().map(|&dim| usize::try_from(dim).unwrap_or(usize::MAX)).collect();
        Signature::new(ElementType::from_raw(element)?, &dims)
    }

    pub(crate) fn check_bytes(&self, what: &'static str, found: usize) -> Result<(), PjrtError> {
        let expected = self.bytes();
        if found == expected {
            return Ok(());
        }
        Err(PjrtError::Bytes { what, element: self.element, dims: self.dims.clone(), expected, found })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.element, self.dims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_types() {
        for (index, row) in TYPES.iter().enumerate() {
            assert_eq!(row.0 as usize, index, "{}", row.0);
        }
    }

    #[test]
    fn what_cannot_be_addressed_is_refused() {
        let error = Signature::new(ElementType::F32, &[usize::MAX, 2]).unwrap_err();
        assert!(matches!(error, PjrtError::TooLarge { .. }), "{error}");
        assert_eq!(Signature::new(ElementType::F32, &[0, 5]).unwrap().bytes(), 0);
        assert_eq!(Signature::new(ElementType::F64, &[]).unwrap().bytes(), 8);
    }
}
