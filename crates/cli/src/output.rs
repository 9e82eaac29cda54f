//! What the commands print with.

use std::{cell::OnceCell, io, time::Instant};

use indicatif::{ProgressBar, ProgressStyle};
use samebits::{Builder, Model};

/// Bytes as a person reads them: `98.1 MB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let exponent = (n.max(1).ilog10() / 3).min(4);
    match exponent {
        0 => format!("{n} B"),
        _ => format!("{:.1} {}", n as f64 / 1000f64.powi(exponent as i32), UNITS[exponent as usize]),
    }
}

/// Loads a model with a progress bar on standard error, which appears only if loading takes a while.
pub(crate) fn open(builder: Builder) -> Result<Model, samebits::Error> {
    let (start, bar) = (Instant::now(), OnceCell::new());
    let progress = move |done: u64, total: u64| {
        if start.elapsed().as_millis() > 300 {
            bar.get_or_init(|| loading_bar(total)).set_position(done);
        }
    };
    builder.on_load(progress).open()
}

/// Whether the reader of standard output has gone, which is no failure of ours.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Rows of a name and a value, the values in one column.
pub(crate) fn table(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

fn loading_bar(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("loading {bar:40} {bytes}/{total_bytes}");
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_a_unit() {
        assert_eq!([0, 999, 1000, 98_123_456].map(bytes), ["0 B", "999 B", "1.0 kB", "98.1 MB"]);
    }

    #[test]
    fn a_table_is_aligned() {
        assert_eq!(table(&[("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2\n");
    }
}
