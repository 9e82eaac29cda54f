use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

/// Plugins of this machine, and how each was found, in this order:
///
/// 1. `PJRT_PLUGIN_LIBRARY_PATH`: one path.
/// 2. `PJRT_NAMES_AND_LIBRARY_PATHS`: `name:path` of each, with commas between.
/// 3. `TPU_LIBRARY_PATH`: the path of `libtpu.so`.
/// 4. The places where the packages of `libtpu.so` and `libneuronpjrt.so` install them, if they are there.
///
/// What a variable names is listed even if it is not there, so that opening it says so. Plugins inside Python packages are
/// found by the variables only.
pub fn discover() -> Vec<(PathBuf, String)> {
    search(|name| env::var_os(name).filter(|value| !value.is_empty()), Path::is_file)
}

const PLACES: [&str; 5] = [
    "/lib/libtpu.so",
    "/usr/lib/libtpu.so",
    "/usr/local/lib/libtpu.so",
    "/opt/aws/neuron/lib/libneuronpjrt.so",
    "/usr/lib/libneuronpjrt.so",
];

fn search(
    variable: impl Fn(&str) -> Option<OsString>,
    exists: impl Fn(&Path) -> bool,
) -> Vec<(PathBuf, String)> {
    let mut found: Vec<(PathBuf, String)> = Vec::new();
    let mut add = |path: PathBuf, how: String| {
        if !found.iter().any(|(known, _)| *known == path) {
            found.push((path, how));
        }
    };
    let single = |name: &str| variable(name).map(PathBuf::from);
    if let Some(path) = single("PJRT_PLUGIN_LIBRARY_PATH") {
        add(path, "PJRT_PLUGIN_LIBRARY_PATH".into());
    }
    let list = variable("PJRT_NAMES_AND_LIBRARY_PATHS").unwrap_or_default();
    for entry in list.to_string_lossy().split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (name, path) = entry.split_once(':').unwrap_or(("", entry));
        add(path.into(), format!("PJRT_NAMES_AND_LIBRARY_PATHS ({name})"));
    }
    if let Some(path) = single("TPU_LIBRARY_PATH") {
        add(path, "TPU_LIBRARY_PATH".into());
    }
    for place in PLACES.iter().map(Path::new).filter(|place| exists(place)) {
        add(place.into(), "a known place".into());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_first_and_nothing_twice() {
        let variable = |name: &str| match name {
            "PJRT_PLUGIN_LIBRARY_PATH" => Some("/a.so".into()),
            "PJRT_NAMES_AND_LIBRARY_PATHS" => Some("cpu:/b.so, tpu:/lib/libtpu.so,/c.so,,again:/a.so".into()),
            _ => None,
        };
        let found = search(variable, |path| path.ends_with("libtpu.so"));
        let paths: Vec<_> = found.iter().map(|(path, _)| path.to_str().unwrap()).collect();
        let expected =
            ["/a.so", "/b.so", "/lib/libtpu.so", "/c.so", "/usr/lib/libtpu.so", "/usr/local/lib/libtpu.so"];
        assert_eq!(paths, expected);
        assert_eq!(found[2].1, "PJRT_NAMES_AND_LIBRARY_PATHS (tpu)");
        assert_eq!(found[4].1, "a known place");
    }

    #[test]
    fn a_machine_without_any_has_none() {
        assert!(search(|_| None, |_| false).is_empty());
    }
}
