use std::{path::PathBuf, sync::mpsc, thread, time::Duration};

use hf_hub::{
    HFClientSync, HFError,
    progress::{DownloadEvent, ProgressEvent, ProgressHandler},
    repository::RepoTreeEntry,
};
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    HubId, Resolver,
    select::{Selection, select},
};

/// How long the hub may take to list a repository.
const LISTING_TIME_MAX: Duration = Duration::from_secs(5);

/// Downloads what `id` selects into the hub's cache; files that are there already are only checked for.
pub(super) fn download(resolver: &Resolver, id: &HubId) -> Result<PathBuf, String> {
    let client = hf_hub::HFClient::builder()
        .endpoint(&resolver.endpoint)
        .cache_dir(&resolver.hub_cache)
        .user_agent(concat!("samebits/", env!("CARGO_PKG_VERSION")))
        .retry_max_attempts(1)
        .build_sync()
        .map_err(|error| reason(id, &error))?;
    let files = list(&client, id)?;
    match select(&files, id.selector)? {
        Selection::Gguf(file) => fetch(&client, id, &file),
        Selection::Directory(files) => {
            let mut directory = PathBuf::new();
            for file in &files {
                directory =
                    fetch(&client, id, file)?.parent().ok_or("the hub's cache has no directory")?.into();
            }
            Ok(directory)
        }
    }
}

/// The repository's files. Asked on a thread of its own: a network that drops packets would otherwise hold the
/// program for minutes.
fn list(client: &HFClientSync, id: &HubId) -> Result<Vec<String>, String> {
    let (sender, receiver) = mpsc::channel();
    let repository = client.model(id.owner, id.name);
    thread::spawn(move || sender.send(repository.list_tree().recursive(true).send()));
    let listed = receiver.recv_timeout(LISTING_TIME_MAX);
    let listed = listed.map_err(|_| format!("no answer within {} s", LISTING_TIME_MAX.as_secs()))?;
    let entries = listed.map_err(|error| reason(id, &error))?;
    let files = entries.into_iter().filter_map(|entry| match entry {
        RepoTreeEntry::File { path, .. } => Some(path),
        RepoTreeEntry::Directory { .. } => None,
    });
    Ok(files.collect())
}

fn fetch(client: &HFClientSync, id: &HubId, file: &str) -> Result<PathBuf, String> {
    let repository = client.model(id.owner, id.name);
    let download = repository.download_file().filename(file).progress(Bar::new(file));
    download.send().map_err(|error| format!("{file}: {}", reason(id, &error)))
}

/// What a failure means for the user.
fn reason(id: &HubId, error: &HFError) -> String {
    let repository = id.repository();
    match status(error) {
        Some(404) => {
            format!("{repository} does not have it; check the name, or set HF_TOKEN if it is private")
        }
        Some(401) => format!("{repository} does not exist or is private; check the name, or set HF_TOKEN"),
        Some(403) => {
            format!("the token may not read {repository}; its licence may have to be accepted first")
        }
        Some(429) => "the hub limits the rate of requests; wait, or set HF_TOKEN".into(),
        _ => failure(error),
    }
}

/// Status of the answer, where there was one.
fn status(error: &HFError) -> Option<u16> {
    match error {
        HFError::RepoNotFound { .. } | HFError::RevisionNotFound { .. } | HFError::EntryNotFound { .. } => {
            Some(404)
        }
        HFError::AuthRequired { .. } => Some(401),
        HFError::Forbidden { .. } => Some(403),
        HFError::RateLimited { .. } => Some(429),
        HFError::Http { context } => Some(context.status.as_u16()),
        _ => None,
    }
}

fn failure(error: &HFError) -> String {
    match error {
        HFError::Request { source, .. } if source.is_timeout() => "the connection timed out".into(),
        HFError::Request { source, .. } => format!("no connection: {}", innermost(source)),
        other => other.to_string(),
    }
}

/// The first cause, which is the one that says something (such as a name that does not resolve).
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Shows a download's progress on a terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new(file: &str) -> Self {
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Bar(ProgressBar::new(0).with_style(style).with_message(file.to_owned()))
    }
}

impl ProgressHandler for Bar {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        match event {
            DownloadEvent::Start { total_bytes, .. } => self.0.set_length(*total_bytes),
            DownloadEvent::Progress { files } => {
                if let Some(file) = files.last() {
                    self.0.set_position(file.bytes_completed);
                }
            }
            DownloadEvent::AggregateProgress { bytes_completed, .. } => self.0.set_position(*bytes_completed),
            DownloadEvent::Complete => self.0.finish_and_clear(),
        }
    }
}
