use std::collections::BTreeMap;

use super::GgufError;

/// One metadata value, of GGUF's thirteen types.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of one element type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Value {
    /// The type's name in the format's specification.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::U8(_) => "uint8",
            Value::I8(_) => "int8",
            Value::U16(_) => "uint16",
            Value::I16(_) => "int16",
            Value::U32(_) => "uint32",
            Value::I32(_) => "int32",
            Value::F32(_) => "float32",
            Value::Bool(_) => "bool",
            Value::String(_) => "string",
            Value::Array(array) => array.type_name(),
            Value::U64(_) => "uint64",
            Value::I64(_) => "int64",
            Value::F64(_) => "float64",
        }
    }

    /// The value of any integer type.
    pub fn to_i128(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }
}

impl Array {
    /// The type's name, as in [`Value::type_name`].
    pub fn type_name(&self) -> &'static str {
        match self {
            Array::U8(_) => "array of uint8",
            Array::I8(_) => "array of int8",
            Array::U16(_) => "array of uint16",
            Array::I16(_) => "array of int16",
            Array::U32(_) => "array of uint32",
            Array::I32(_) => "array of int32",
            Array::F32(_) => "array of float32",
            Array::Bool(_) => "array of bool",
            Array::String(_) => "array of string",
            Array::Array(_) => "array of arrays",
            Array::U64(_) => "array of uint64",
            Array::I64(_) => "array of int64",
            Array::F64(_) => "array of float64",
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::Array(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F64(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The key-value pairs of a GGUF file, with reads that name the key when its type is not the wanted one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    values: BTreeMap<String, Value>,
}

impl Metadata {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Every pair, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Adds a pair; the value that `key` had before, if any.
    pub fn insert(&mut self, key: impl Into<String>, value: Value) -> Option<Value> {
        self.values.insert(key.into(), value)
    }

    /// A string.
    ///
    /// # Errors
    /// [`GgufError::ValueType`] if `key` is there with another type; so all reads below.
    pub fn str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.read(key, "string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// An integer of any type, that fits a `u64`.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.read(key, "unsigned integer", |value| value.to_i128().and_then(|v| v.try_into().ok()))
    }

    /// An integer of any type, that fits a `u32`.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.read(key, "unsigned 32-bit integer", |value| value.to_i128().and_then(|v| v.try_into().ok()))
    }

    /// A float of either type, or an integer.
    pub fn f64(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.read(key, "number", |value| match *value {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            ref value => value.to_i128().map(|v| v as f64),
        })
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.read(key, "bool", |value| match *value {
            Value::Bool(v) => Some(v),
            _ => None,
        })
    }

    /// Strings.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, GgufError> {
        self.read(key, "array of string", |value| match value {
            Value::Array(Array::String(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// Floats.
    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>, GgufError> {
        self.read(key, "array of float32", |value| match value {
            Value::Array(Array::F32(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// Integers of any type that fits an `i64`.
    pub fn i64s(&self, key: &str) -> Result<Option<Vec<i64>>, GgufError> {
        self.read(key, "array of integers", |value| match value {
            Value::Array(Array::U8(v)) => Some(v.iter().map(|&v| v.into()).collect()),
            Value::Array(Array::I8(v)) => Some(v.iter().map(|&v| v.into()).collect()),
            Value::Array(Array::U16(v)) => Some(v.iter().map(|&v| v.into()).collect()),
            Value::Array(Array::I16(v)) => Some(v.iter().map(|&v| v.into()).collect()),
            Value::Array(Array::U32(v)) => Some(v.iter().map(|&v| v.into()).collect()),
            Value::Array(Array::I32(v)) => Some(v.iter().map(|&v| v.into()).collect()),
            Value::Array(Array::I64(v)) => Some(v.clone()),
            _ => None,
        })
    }

    fn read<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(GgufError::ValueType { key: key.into(), expected, found: value.type_name() }),
        }
    }
}

macro_rules! from {
    ($($type:ty => $variant:ident),*) => { $(
        impl From<$type> for Value {
            fn from(value: $type) -> Self { Value::$variant(value) }
        }
        impl From<Vec<$type>> for Value {
            fn from(values: Vec<$type>) -> Self { Value::Array(Array::$variant(values)) }
        }
    )* };
}
from!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, bool => Bool);
from!(String => String, u64 => U64, i64 => I64, f64 => F64);

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::String(value.into())
    }
}
