/// Which of a repository's files make a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// One GGUF file.
    Gguf(String),
    /// The files of a model directory.
    Directory(Vec<String>),
}

/// Chooses the file that `selector` names, by its name or by its quantisation; without one, safetensors with
/// their configuration, or the only GGUF file.
pub(super) fn select(files: &[String], selector: Option<&str>) -> Result<Selection, String> {
    let ggufs: Vec<&String> = files.iter().filter(|file| file.ends_with(".gguf")).collect();
    if let Some(selector) = selector {
        let found: Vec<_> = ggufs.iter().filter(|file| is_selected(file, selector)).collect();
        return match found.as_slice() {
            [file] => Ok(Selection::Gguf((**file).clone())),
            [] => Err(format!("no GGUF file matches `{selector}`; {}", listed(&ggufs))),
            _ => Err(format!("several GGUF files match `{selector}`; {}", listed(&ggufs))),
        };
    }
    let has_config = files.iter().any(|file| file == "config.json");
    if has_config && files.iter().any(|file| is_weights(file)) {
        return Ok(Selection::Directory(
            files.iter().filter(|file| is_part_of_directory(file)).cloned().collect(),
        ));
    }
    match ggufs.as_slice() {
        [only] => Ok(Selection::Gguf((*only).clone())),
        [] => Err("it holds neither config.json with model.safetensors nor a .gguf file".into()),
        _ => Err(format!("it holds several GGUF files: add `:` and a quantisation; {}", listed(&ggufs))),
    }
}

/// Whether `selector` is the file's name, or its quantisation: what its stem ends with after a dot or a dash.
fn is_selected(file: &str, selector: &str) -> bool {
    let stem = file.strip_suffix(".gguf").unwrap_or(file).to_lowercase();
    let selector = selector.to_lowercase();
    let before = stem.strip_suffix(selector.strip_suffix(".gguf").unwrap_or(&selector));
    before.is_some_and(|before| before.is_empty() || before.ends_with(['.', '-', '/']))
}

fn is_weights(file: &str) -> bool {
    file == "model.safetensors" || (file.starts_with("model-") && file.ends_with(".safetensors"))
}

fn is_part_of_directory(file: &str) -> bool {
    const BESIDES_WEIGHTS: [&str; 7] = [
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "chat_template.json",
    ];
    is_weights(file) || BESIDES_WEIGHTS.contains(&file)
}

fn listed(files: &[&String]) -> String {
    const NAMES_MAX: usize = 30;
    let mut names: Vec<_> = files.iter().take(NAMES_MAX).map(|file| file.as_str()).collect();
    if files.len() > NAMES_MAX {
        names.push("…");
    }
    if names.is_empty() { "it has none".into() } else { format!("it has {}", names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn a_quantisation_selects_its_file_whatever_the_spelling() {
        let files = files(&["README.md", "M-Q4_K_M.gguf", "M-Q4_K_S.gguf", "M.Q8_0.gguf", "sub/M-F16.gguf"]);
        for (selector, file) in [
            ("Q4_K_M", "M-Q4_K_M.gguf"),
            ("q8_0", "M.Q8_0.gguf"),
            ("F16", "sub/M-F16.gguf"),
            ("M-Q4_K_S.gguf", "M-Q4_K_S.gguf"),
        ] {
            assert_eq!(select(&files, Some(selector)), Ok(Selection::Gguf(file.into())), "{selector}");
        }
        let error = select(&files, Some("K_M")).unwrap_err();
        assert!(error.contains("no GGUF file matches `K_M`") && error.contains("M.Q8_0.gguf"), "{error}");
        assert!(select(&files, None).unwrap_err().contains("several GGUF files"));
    }

    #[test]
    fn a_directory_is_its_weights_and_what_reads_them() {
        let files = files(&[
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "pytorch_model.bin",
            "consolidated.safetensors",
        ]);
        let Ok(Selection::Directory(chosen)) = select(&files, None) else { panic!() };
        assert_eq!(chosen, files[..5]);
    }

    #[test]
    fn nothing_to_run_is_said() {
        assert!(select(&files(&["pytorch_model.bin", "config.json"]), None).unwrap_err().contains("neither"));
        assert_eq!(select(&files(&["a.gguf"]), None), Ok(Selection::Gguf("a.gguf".into())));
    }
}
