use samebits_nn::ConfigError;
use serde_json::{Map, Value};

/// Reads of a JSON object's fields that name the field when its type is wrong. A null is an absent field.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// Where the object is, as a prefix of its fields' names: empty, or with a dot at its end.
    prefix: &'static str,
}

impl<'a> Fields<'a> {
    pub(super) fn new(map: &'a Map<String, Value>) -> Self {
        Fields { map, prefix: "" }
    }

    /// The fields of an object inside this one, if it is there.
    pub(super) fn object(&self, field: &str, prefix: &'static str) -> Result<Option<Self>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| self.wrong(field, value, "an object"))?;
        Ok(Some(Fields { map, prefix }))
    }

    pub(super) fn name(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }

    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// Whether the field is there, be it as null.
    pub(super) fn has(&self, field: &str) -> bool {
        self.map.contains_key(field)
    }

    pub(super) fn size(&self, field: &str) -> Result<Option<usize>, ConfigError> {
        self.read(field, "a whole number", |value| value.as_u64().and_then(|n| n.try_into().ok()))
    }

    pub(super) fn number(&self, field: &str) -> Result<Option<f64>, ConfigError> {
        self.read(field, "a number", Value::as_f64)
    }

    pub(super) fn bool(&self, field: &str) -> Result<Option<bool>, ConfigError> {
        self.read(field, "true or false", Value::as_bool)
    }

    pub(super) fn str(&self, field: &str) -> Result<Option<&'a str>, ConfigError> {
        self.read(field, "a string", Value::as_str)
    }

    pub(super) fn strings(&self, field: &str) -> Result<Option<Vec<&'a str>>, ConfigError> {
        self.read(field, "a list of strings", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    pub(super) fn floats(&self, field: &str) -> Result<Option<Vec<f32>>, ConfigError> {
        self.read(field, "a list of numbers", |value| {
            value.as_array()?.iter().map(|v| v.as_f64().map(|v| v as f32)).collect()
        })
    }

    /// One token or a list of them.
    pub(super) fn tokens(&self, field: &str) -> Result<Option<Vec<u32>>, ConfigError> {
        let token = |value: &Value| value.as_u64().and_then(|id| id.try_into().ok());
        self.read(field, "a token id or a list of them", |value| match value {
            Value::Array(ids) => ids.iter().map(token).collect(),
            id => Some(vec![token(id)?]),
        })
    }

    fn read<T>(
        &self,
        field: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.wrong(field, value, expected))
    }

    fn wrong(&self, field: &str, value: &Value, expected: &str) -> ConfigError {
        ConfigError::invalid(self.name(field), shorten(value.to_string()), expected)
    }
}

/// A value's text, cut where it is too long for an error.
fn shorten(text: String) -> String {
    const CHARS_MAX: usize = 60;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
