use std::{fmt, ops::Deref, ops::Range, sync::Arc};

use crate::{DType, Error, Format, Result, Shape, dtype::Element};

/// What owns the bytes of a [`Bytes`]: anything with a slice of them, or a mapped file.
pub trait Storage: Send + Sync {
    /// All of them.
    fn bytes(&self) -> &[u8];

    /// Says that the bytes in `range` are not needed soon. They stay what they are, but reading them may be slow.
    fn release(&self, range: Range<usize>) {
        let _ = range;
    }
}

impl<T: AsRef<[u8]> + Send + Sync> Storage for T {
    fn bytes(&self) -> &[u8] {
        self.as_ref()
    }
}

/// A cheaply cloned view of bytes that something else owns: a buffer, or a mapped file.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn Storage>,
    range: Range<usize>,
}

impl Bytes {
    /// All bytes of `owner`.
    pub fn new(owner: Arc<dyn Storage>) -> Self {
        let range = 0..owner.bytes().len();
        Bytes { owner, range }
    }

    /// The bytes in `range` of this view, or `None` where they are not all inside it.
    pub fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let start = self.range.start;
        Some(Bytes { owner: self.owner.clone(), range: start + range.start..start + range.end })
    }

    /// Says that the bytes in `range` of this view, or what of it there is, are not needed soon: the memory that a mapped file
    /// takes is given back. They can still be read.
    pub fn release(&self, range: Range<usize>) {
        let at = |i: usize| self.range.start + i.min(self.len());
        self.owner.release(at(range.start)..at(range.end));
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::new(Arc::new(bytes))
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}

/// A tensor in host memory, row-major, little-endian.
#[derive(Clone, Debug)]
pub struct HostTensor {
    shape: Shape,
    dtype: DType,
    bytes: Bytes,
}

impl HostTensor {
    /// A tensor over bytes that are there already.
    ///
    /// # Errors
    /// If the bytes do not fill the shape exactly.
    pub fn new(shape: impl Into<Shape>, dtype: DType, bytes: Bytes) -> Result<Self> {
        let shape = shape.into();
        Self::check(&shape, dtype, bytes.len())?;
        Ok(HostTensor { shape, dtype, bytes })
    }

    /// That `found` bytes fill a shape exactly.
    pub(crate) fn check(shape: &Shape, dtype: DType, found: usize) -> Result<()> {
        let expected = shape.elements() * dtype.size();
        if found == expected {
            return Ok(());
        }
        let (what, shape, dtype) = ("host tensor".into(), shape.clone(), dtype.to_string());
        Err(Error::Bytes { what, shape, dtype, expected, found })
    }

    /// A tensor of the given elements.
    ///
    /// # Errors
    /// If their number is not the shape's.
    pub fn of<T: Element>(shape: impl Into<Shape>, values: &[T]) -> Result<Self> {
        Self::new(shape, T::DTYPE, bytemuck::cast_slice(values).to_vec().into())
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The bytes, row-major.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The elements, copied out.
    ///
    /// # Errors
    /// If `T` is not the tensor's type; a `Bool` tensor reads as `u8`.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        let same = T::DTYPE == self.dtype || (self.dtype == DType::Bool && T::DTYPE == DType::U8);
        if !same {
            return Err(Error::DType { op: "to_vec", expected: T::DTYPE.name(), found: self.dtype });
        }
        Ok(bytemuck::allocation::pod_collect_to_vec(self.bytes()))
    }
}

/// A weight as its file holds it: a name, a block format, a shape, and bytes that may be mapped.
#[derive(Clone, Debug)]
pub struct HostWeight {
    /// Name in the checkpoint, in Hugging Face's spelling.
    pub name: String,
    /// How the bytes encode values.
    pub format: Format,
    /// Extents, outermost first; the last one is contiguous in memory and what blocks run along.
    pub shape: Vec<usize>,
    /// The encoded rows, one after the other.
    pub bytes: Bytes,
}

impl HostWeight {
    /// Rows and columns of a matrix.
    ///
    /// # Errors
    /// If the weight is not a matrix, or its bytes do not fill it.
    pub fn matrix(&self) -> Result<(usize, usize)> {
        let &[rows, cols] = self.shape.as_slice() else {
            return Err(self.error(format!("shape {:?} is not a matrix", self.shape)));
        };
        let expected = self.format.row_bytes(cols)? * rows;
        if self.bytes.len() != expected {
            return Err(Error::Bytes {
                what: self.name.clone(),
                shape: [rows, cols].into(),
                dtype: self.format.to_string(),
                expected,
                found: self.bytes.len(),
            });
        }
        Ok((rows, cols))
    }

    /// Some rows of a matrix; the bytes are shared.
    ///
    /// # Errors
    /// As [`HostWeight::matrix`], or if there are not that many rows.
    pub fn rows(&self, range: Range<usize>) -> Result<HostWeight> {
        let (rows, cols) = self.matrix()?;
        let row_bytes = self.format.row_bytes(cols)?;
        let bytes = self.bytes.slice(range.start * row_bytes..range.end * row_bytes);
        let bytes = bytes.ok_or_else(|| self.error(format!("rows {range:?} of {rows}")))?;
        Ok(HostWeight { shape: vec![range.len(), cols], bytes, ..self.clone() })
    }

    /// The values as f32, row-major (block formats dequantised in the contract's order).
    ///
    /// # Errors
    /// If the bytes do not fill the shape.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let cols = self.shape.last().copied().unwrap_or(1);
        let rows = self.shape.iter().product::<usize>().checked_div(cols).unwrap_or(0);
        let flat = HostWeight { shape: vec![rows, cols], ..self.clone() };
        flat.matrix()?;
        let row_bytes = self.format.row_bytes(cols)?;
        let mut values = vec![0.0; rows * cols];
        if cols > 0 {
            for (row, out) in self.bytes.chunks_exact(row_bytes).zip(values.chunks_exact_mut(cols)) {
                crate::dequantize_row(self.format, row, out);
            }
        }
        Ok(values)
    }

    fn error(&self, detail: String) -> Error {
        Error::Weight { name: self.name.clone(), detail }
    }
}
