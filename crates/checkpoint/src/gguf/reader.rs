use super::{Array, GgufError, Value};

/// Arrays inside arrays go no deeper than this; files in the wild have none.
const DEPTH_MAX: usize = 4;

/// A cursor over a file's bytes that never reads past their end, and never allocates for a count before it has
/// seen that so many elements can be left.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    /// Offset of the next byte.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of items of at least `bytes_each` bytes, all of which must be left.
    pub(super) fn count(&mut self, what: &str, bytes_each: usize) -> Result<usize, GgufError> {
        let count = self.u64(what)?;
        self.check_count(what, count, bytes_each)
    }

    pub(super) fn string(&mut self, what: &str) -> Result<String, GgufError> {
        let len = self.count(what, 1)?;
        let bytes = self.take(what, len)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(GgufError::NotUtf8 { what: what.into(), at: error.valid_up_to() }),
        }
    }

    /// A type code and a value of that type.
    pub(super) fn value(&mut self, key: &str) -> Result<Value, GgufError> {
        Ok(match self.u32(key)? {
            0 => Value::U8(u8::from_le_bytes(self.array(key)?)),
            1 => Value::I8(i8::from_le_bytes(self.array(key)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(key)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(key)?)),
            4 => Value::U32(u32::from_le_bytes(self.array(key)?)),
            5 => Value::I32(i32::from_le_bytes(self.array(key)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(key)?)),
            7 => Value::Bool(bool_of(key, self.array::<1>(key)?[0])?),
            8 => Value::String(self.string(key)?),
            9 => Value::Array(self.array_value(key, 1)?),
            10 => Value::U64(u64::from_le_bytes(self.array(key)?)),
            11 => Value::I64(i64::from_le_bytes(self.array(key)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(key)?)),
            code => return Err(GgufError::UnknownValueType { key: key.into(), code }),
        })
    }

    fn array_value(&mut self, key: &str, depth: usize) -> Result<Array, GgufError> {
        if depth > DEPTH_MAX {
            return Err(GgufError::TooDeep { key: key.into(), depth_max: DEPTH_MAX });
        }
        let code = self.u32(key)?;
        let len = self.u64(key)?;
        Ok(match code {
            0 => Array::U8(self.numbers(key, len, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(key, len, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(key, len, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(key, len, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(key, len, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(key, len, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(key, len, f32::from_le_bytes)?),
            7 => {
                let len = self.check_count(key, len, 1)?;
                Array::Bool(self.take(key, len)?.iter().map(|&b| bool_of(key, b)).collect::<Result<_, _>>()?)
            }
            8 => {
                let len = self.check_count(key, len, 8)?;
                Array::String((0..len).map(|_| self.string(key)).collect::<Result<_, _>>()?)
            }
            9 => {
                let len = self.check_count(key, len, 12)?;
                Array::Array((0..len).map(|_| self.array_value(key, depth + 1)).collect::<Result<_, _>>()?)
            }
            10 => Array::U64(self.numbers(key, len, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(key, len, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(key, len, f64::from_le_bytes)?),
            code => return Err(GgufError::UnknownValueType { key: key.into(), code }),
        })
    }

    fn numbers<T, const N: usize>(
        &mut self,
        key: &str,
        len: u64,
        decode: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, GgufError> {
        let len = self.check_count(key, len, N)?;
        let (elements, _) = self.take(key, len * N)?.as_chunks::<N>();
        Ok(elements.iter().map(|&element| decode(element)).collect())
    }

    /// `count`, if so many items of at least `bytes_each` bytes can be left.
    pub(super) fn check_count(&self, what: &str, count: u64, bytes_each: usize) -> Result<usize, GgufError> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(count) {
            Ok(count) if count <= left / bytes_each => Ok(count),
            _ => Err(GgufError::Count { what: what.into(), count, at: self.at, left }),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(what, N)?);
        Ok(array)
    }

    fn take(&mut self, what: &str, len: usize) -> Result<&'a [u8], GgufError> {
        let left = self.bytes.len() - self.at;
        if len > left {
            return Err(GgufError::Truncated { what: what.into(), at: self.at, needed: len, left });
        }
        let taken = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }
}

fn bool_of(key: &str, byte: u8) -> Result<bool, GgufError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(GgufError::Bool { key: key.into(), found }),
    }
}
