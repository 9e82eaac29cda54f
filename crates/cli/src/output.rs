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

/// Loads a model with a progress bar, and starts serving it.
pub(crate) fn open(builder: Builder) -> Result<Model, samebits::Error> {
    with_bar(builder).open()
}

/// Shows a progress bar on standard error while the model is loaded, if that takes a while.
pub(crate) fn with_bar(builder: Builder) -> Builder {
    let (start, bar) = (Instant::now(), OnceCell::new());
    let progress = move |done: u64, total: u64| {
        if start.elapsed().as_millis() > 300 {
            bar.get_or_init(|| loading_bar(total)).set_position(done);
        }
    };
    builder.on_load(progress)
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

/// Rows of cells in columns: the first one aligned to the left, the others to the right.
pub(crate) fn grid(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(i, cell)| match i {
            0 => format!("{cell:<0$}", width(0)),
            _ => format!("{cell:>0$}", width(i)),
        });
        cells.collect::<Vec<_>>().join("  ") + "\n"
    };
    rows.iter().map(line).collect()
}

/// A progress bar of shapes that are compiled.
pub(crate) fn compiling_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("compiling {bar:40} {pos}/{len} shapes, {elapsed}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A progress bar of operations that are tested.
pub(crate) fn operations_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("testing {bar:40} {pos}/{len} operations, {elapsed}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
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

    #[test]
    fn numbers_of_a_grid_end_together() {
        let row = |cells: [&str; 3]| cells.map(String::from).to_vec();
        assert_eq!(grid(&[row(["test", "a", "b"]), row(["x", "10", "2"])]), "test   a  b\nx     10  2\n");
    }
}
