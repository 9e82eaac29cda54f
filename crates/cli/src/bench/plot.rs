use std::path::Path;

use anyhow::{Context, anyhow};
use plotters::{
    coord::Shift,
    prelude::{
        ChartBuilder, Color, DrawingArea, IntoDrawingArea, LineSeries, PathElement, RGBColor, SVGBackend,
        SeriesLabelPosition, WHITE,
    },
};

use super::{
    report::{Results, Summary},
    stats::Spread,
    steps::Test,
};

/// Okabe and Ito's colours, which most eyes can tell apart.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];

/// Pixels.
const SIZE: (u32, u32) = (1080, 440);

/// A line: its name, and for each place on the axis the lower quartile, the median and the upper quartile.
struct Line {
    name: String,
    points: Vec<(f64, [f64; 3])>,
}

/// Draws what decoding costs, by batch and by context.
///
/// # Errors
/// If the file cannot be written, or nothing was decoded.
pub(crate) fn write(results: &Results, path: &Path) -> anyhow::Result<()> {
    let svg = svg(&batch_lines(results), &context_lines(results))?;
    std::fs::write(path, svg).with_context(|| format!("--plot {}", path.display()))
}

/// Tokens a second by batch, a line for each context.
fn batch_lines(results: &Results) -> Vec<Line> {
    lines(
        results,
        |batch, context| (batch, format!("context {context}")),
        |_, summary| {
            let peer = summary.peer.as_ref().map(|(speed, _)| quartiles(speed, 1.0));
            (quartiles(&summary.speed, 1.0), peer)
        },
    )
}

/// Milliseconds that a token of a sequence takes, by context, a line for each batch.
fn context_lines(results: &Results) -> Vec<Line> {
    lines(
        results,
        |batch, context| (context, format!("batch {batch}")),
        |batch, summary| {
            let [lower, median, upper] = summary
                .peer
                .as_ref()
                .map_or([0.0; 3], |(speed, _)| quartiles(speed, 1.0).map(|x| 1e3 * batch / x));
            let peer = summary.peer.as_ref().map(|_| [upper, median, lower]);
            (quartiles(&summary.step_seconds, 1e3), peer)
        },
    )
}

/// Lines over the tests that decode: `place` says where on the axis and on which line a test is, `values` its own and the
/// peer's.
fn lines(
    results: &Results,
    place: impl Fn(usize, usize) -> (usize, String),
    values: impl Fn(f64, &Summary) -> ([f64; 3], Option<[f64; 3]>),
) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for (prepared, summary) in results.summaries() {
        let Test::Decode { batch, context, .. } = prepared.test else { continue };
        let (x, name) = place(batch, context);
        let (own, peer) = values(batch as f64, &summary);
        for (name, values) in [(name.clone(), Some(own)), (format!("llama.cpp, {name}"), peer)] {
            let Some(values) = values else { continue };
            let point = (x as f64, values);
            match lines.iter_mut().find(|line| line.name == name) {
                Some(line) => line.points.push(point),
                None => lines.push(Line { name, points: vec![point] }),
            }
        }
    }
    for line in &mut lines {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    // A test alone on its line says nothing where others show a course.
    if lines.iter().any(|line| line.points.len() > 1) {
        lines.retain(|line| line.points.len() > 1);
    }
    lines
}

fn quartiles(spread: &Spread, factor: f64) -> [f64; 3] {
    [spread.lower_quartile, spread.median, spread.upper_quartile].map(|x| factor * x)
}

fn svg(by_batch: &[Line], by_context: &[Line]) -> anyhow::Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        let failed = |error| anyhow!("cannot draw: {error}");
        area.fill(&WHITE).map_err(|error| anyhow!("cannot draw: {error}"))?;
        let (left, right) = area.split_horizontally(SIZE.0 / 2);
        panel(&left, "Decoding: tokens a second", "sequences together", by_batch).map_err(failed)?;
        panel(&right, "Decoding: milliseconds a token", "tokens of context", by_context).map_err(failed)?;
        area.present().map_err(|error| anyhow!("cannot draw: {error}"))?;
    }
    Ok(text)
}

/// A chart of `lines`: medians, and a bar from quartile to quartile.
fn panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    title: &str,
    x_title: &str,
    lines: &[Line],
) -> Result<(), Box<dyn std::error::Error>> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let x_max = points().map(|point| point.0).fold(1.0, f64::max);
    let y_max = points().map(|point| point.1[2]).fold(0.0, f64::max);
    if points().next().is_none() {
        return Err("nothing was decoded; give --batch a number above 0".into());
    }
    // The legend stands above the lines.
    let headroom = 1.1 + 0.06 * lines.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(14)
        .x_label_area_size(42)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..1.04 * x_max, 0.0..headroom * y_max)?;
    let label = |x: &f64| format!("{}", (x * 1000.0).round() / 1000.0);
    let mut mesh = chart.configure_mesh();
    mesh.x_label_formatter(&label).y_label_formatter(&label);
    mesh.x_desc(x_title).light_line_style(WHITE).max_light_lines(1).draw()?;
    for (line, colour) in lines.iter().zip(COLOURS.into_iter().cycle()) {
        let style = colour.stroke_width(2);
        let medians = line.points.iter().map(|&(x, [_, median, _])| (x, median));
        chart
            .draw_series(LineSeries::new(medians, style).point_size(3))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
        let bars = line.points.iter().map(|&(x, [lower, _, upper])| vec![(x, lower), (x, upper)]);
        chart.draw_series(bars.map(|bar| PathElement::new(bar, colour.stroke_width(1))))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 13))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, points: &[(f64, f64)]) -> Line {
        let points = points.iter().map(|&(x, y)| (x, [0.9 * y, y, 1.1 * y])).collect();
        Line { name: name.into(), points }
    }

    #[test]
    fn both_panels_are_drawn() {
        let by_batch =
            [line("context 0", &[(1.0, 100.0), (4.0, 300.0)]), line("llama.cpp, context 0", &[(1.0, 50.0)])];
        let svg = svg(&by_batch, &[line("batch 1", &[(0.0, 5.0), (1024.0, 7.0)])]).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in ["tokens a second", "tokens of context", "llama.cpp, context 0", "batch 1"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(super::svg(&[], &[]).unwrap_err().to_string().contains("--batch"));
    }
}
