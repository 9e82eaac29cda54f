use std::{
    collections::HashMap,
    ffi::{c_char, c_void},
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use libloading::Library;

use crate::{
    Client, PjrtError,
    ffi::{self, Api},
};

/// A library that implements the PJRT C API, loaded and initialised.
///
/// Plugins cannot be unloaded, so each is kept until the process ends, and opening it again is free.
#[derive(Clone, Debug)]
pub struct Plugin {
    library: &'static Loaded,
}

/// A plugin as it is kept for the process.
#[derive(Debug)]
struct Loaded {
    path: PathBuf,
    api: Api,
    /// Keeps the code in memory.
    _library: Library,
}

/// A plugin's option or attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text.
    String(String),
    /// A 64-bit integer.
    Int64(i64),
    /// A list of 64-bit integers.
    Int64List(Vec<i64>),
    /// A 32-bit float.
    Float(f32),
    /// True or false.
    Bool(bool),
}

impl Plugin {
    /// Loads the plugin at `path`, or takes it up again if this process has loaded it before.
    ///
    /// Loading runs the library's own start-up code with this process's rights: open only what you trust.
    ///
    /// # Errors
    /// If the file cannot be loaded, is not a plugin, or speaks a version that is not understood, or if it fails to
    /// initialise.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, PjrtError> {
        let failed = |why: io::Error| PjrtError::Open { path: path.as_ref().into(), why: why.to_string() };
        let path = fs::canonicalize(path.as_ref()).map_err(failed)?;
        // Held while a library loads, so that two threads cannot initialise it twice.
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = opened.get_or_insert_with(HashMap::new);
        if let Some(&library) = opened.get(&path) {
            return Ok(Plugin { library });
        }
        let library = &*Box::leak(Box::new(Loaded::open(path.clone())?));
        opened.insert(path, library);
        Ok(Plugin { library })
    }

    /// The library's path, without links.
    pub fn path(&self) -> &Path {
        &self.library.path
    }

    /// Major and minor version of the PJRT API that the plugin was built with.
    pub fn api_version(&self) -> (u32, u32) {
        let (major, minor) = self.library.api.version();
        (major.unsigned_abs(), minor.unsigned_abs())
    }

    /// What the plugin says about itself, such as `xla_version`; nothing if it says nothing.
    ///
    /// # Errors
    /// If the plugin fails to tell.
    pub fn attributes(&self) -> Result<Vec<(String, Value)>, PjrtError> {
        if !self.api().has::<ffi::PluginAttributes>() {
            return Ok(Vec::new());
        }
        // SAFETY: there are no arguments; what is returned lives as long as the process.
        unsafe {
            let told = self.api().call(ffi::PluginAttributes::default())?;
            Ok(read_values(told.attributes, told.count))
        }
    }

    /// Creates a client of the plugin's devices, with options such as `cpu_device_count`.
    ///
    /// # Errors
    /// If there is no such device, it is in use, or an option is unknown.
    pub fn client(&self, options: &[(&str, Value)]) -> Result<Client, PjrtError> {
        Client::create(self.clone(), options)
    }

    pub(crate) fn api(&self) -> Api {
        self.library.api
    }
}

static OPENED: Mutex<Option<HashMap<PathBuf, &'static Loaded>>> = Mutex::new(None);

impl Loaded {
    fn open(path: PathBuf) -> Result<Self, PjrtError> {
        // SAFETY: the caller of `Plugin::open` trusts the library's start-up code; it is never unloaded.
        let library = unsafe { Library::new(&path) };
        let library = library.map_err(|why| PjrtError::Open { path: path.clone(), why: explain(&why) })?;
        let not_a_plugin = |why| PjrtError::NotAPlugin { path: path.clone(), why };
        // SAFETY: a library that exports this name does so with this type, by the PJRT convention. The table that it
        // returns is constant, and the library is kept for the process.
        let api = unsafe {
            let entry = library.get::<unsafe extern "C" fn() -> *const c_void>(b"GetPjrtApi\0");
            Api::new(entry.map_err(|_| not_a_plugin("no `GetPjrtApi`"))?())
        };
        let api = api.ok_or_else(|| not_a_plugin("`GetPjrtApi` returned null"))?;
        let (major, minor) = api.version();
        if major != 0 || minor < ffi::OLDEST_MINOR {
            return Err(PjrtError::Version { path, major, minor, oldest: ffi::OLDEST_MINOR });
        }
        // SAFETY: there are no arguments, and nothing else of this library has been called.
        unsafe { api.call(ffi::PluginInitialize::default()) }?;
        Ok(Loaded { path, api, _library: library })
    }
}

/// The loader's words; libloading's own message hides them.
fn explain(error: &libloading::Error) -> String {
    use std::error::Error;
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// Options as the C API takes them; the pointers are into `self.options`, which must not move away before the call.
pub(crate) struct RawValues<'a> {
    raw: Vec<ffi::NamedValue>,
    _options: &'a [(&'a str, Value)],
}

impl<'a> RawValues<'a> {
    pub(crate) fn new(options: &'a [(&'a str, Value)]) -> Self {
        RawValues {
            raw: options.iter().map(|(name, value)| raw_value(name, value)).collect(),
            _options: options,
        }
    }

    pub(crate) fn as_slice(&self) -> &[ffi::NamedValue] {
        &self.raw
    }
}

fn raw_value(name: &str, value: &Value) -> ffi::NamedValue {
    let (kind, value, size) = match value {
        Value::String(text) => (0, text.as_ptr() as u64, text.len()),
        Value::Int64(value) => (1, *value as u64, 1),
        Value::Int64List(list) => (2, list.as_ptr() as u64, list.len()),
        Value::Float(value) => (3, u64::from(value.to_bits()), 1),
        Value::Bool(value) => (4, u64::from(*value), 1),
    };
    ffi::NamedValue {
        struct_size: ffi::NamedValue::size_in(0),
        name: name.as_ptr().cast(),
        name_size: name.len(),
        kind: [kind, 0],
        value,
        value_size: size,
        ..Default::default()
    }
}

/// Copies a plugin's values; those of an unknown kind are left out.
///
/// # Safety
/// `values` must be null or point to `count` named values of the plugin.
unsafe fn read_values(values: *const ffi::NamedValue, count: usize) -> Vec<(String, Value)> {
    // SAFETY: by the contract above. A longer structure of a newer plugin would shift the list, so it is read by the
    // size that the plugin tells.
    let stride = unsafe { ffi::list(values, count.min(1)) }.first().map_or(0, |first| first.struct_size);
    let known = stride >= size_of::<ffi::NamedValue>();
    let at = |index: usize| values.cast::<u8>().wrapping_add(index * stride).cast::<ffi::NamedValue>();
    let indices = if known { 0..count } else { 0..0 };
    // SAFETY: each is within the plugin's list, and its pointers are as long as it tells.
    indices.filter_map(|index| unsafe { read_value(&*at(index)) }).collect()
}

/// Copies one value of a plugin.
///
/// # Safety
/// Its pointers must be as long as it tells.
unsafe fn read_value(raw: &ffi::NamedValue) -> Option<(String, Value)> {
    // SAFETY: by the contract above; the kind says which of the two `value` is.
    let (name, value) = unsafe {
        let value = match raw.kind[0] {
            0 => Value::String(ffi::text(raw.value as *const c_char, raw.value_size)),
            1 => Value::Int64(raw.value as i64),
            2 => Value::Int64List(ffi::list(raw.value as *const i64, raw.value_size).into()),
            3 => Value::Float(f32::from_bits(raw.value as u32)),
            4 => Value::Bool(raw.value as u8 != 0),
            _ => return None,
        };
        (ffi::text(raw.name, raw.name_size), value)
    };
    Some((name, value))
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::String(text) => f.write_str(text),
            Value::Int64(value) => write!(f, "{value}"),
            Value::Int64List(list) => write!(f, "{list:?}"),
            Value::Float(value) => write!(f, "{value}"),
            Value::Bool(value) => write!(f, "{value}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_back_as_they_went() {
        let options = [
            ("name", Value::String("text".into())),
            ("", Value::String(String::new())),
            ("count", Value::Int64(-2)),
            ("list", Value::Int64List(vec![1, -1])),
            ("ratio", Value::Float(-0.5)),
            ("flag", Value::Bool(true)),
        ];
        let raw = RawValues::new(&options);
        // SAFETY: the list and what it points to live in `options`.
        let read = unsafe { read_values(raw.as_slice().as_ptr(), raw.as_slice().len()) };
        let expected: Vec<_> =
            options.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        assert_eq!(read, expected);
    }
}
