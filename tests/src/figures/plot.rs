//! A picture of the figures: a bar each, and one below it for the peer.

use std::fmt::Write;

use super::Measurement;

const LEFT: f64 = 330.0;
const WIDTH: f64 = 360.0;
const BAR: f64 = 14.0;
const ROW: f64 = 44.0;

/// The picture. Each unit has a scale of its own.
pub fn svg(measurements: &[Measurement]) -> String {
    let height = 20.0 + ROW * measurements.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n"
    );
    out += "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n";
    for (row, measurement) in measurements.iter().enumerate() {
        let top = 10.0 + ROW * row as f64;
        text(&mut out, LEFT - 8.0, top + 12.0, "end", &measurement.name);
        let scale = WIDTH / largest(measurements, &measurement.unit);
        bar(
            &mut out,
            top,
            scale,
            measurement.value,
            "#2f6f9f",
            &format!("{:.2} {}", measurement.value, measurement.unit),
        );
        if let Some((peer, value)) = &measurement.peer {
            bar(
                &mut out,
                top + BAR + 3.0,
                scale,
                *value,
                "#b0b0b0",
                &format!("{value:.2} {} {peer}", measurement.unit),
            );
        }
    }
    out + "</svg>\n"
}

fn largest(measurements: &[Measurement], unit: &str) -> f64 {
    let values = measurements
        .iter()
        .filter(|measurement| measurement.unit == unit);
    let both = values.flat_map(|m| [m.value, m.peer.as_ref().map_or(0.0, |(_, value)| *value)]);
    both.fold(f64::MIN_POSITIVE, f64::max)
}

fn bar(out: &mut String, top: f64, scale: f64, value: f64, colour: &str, label: &str) {
    let width = value * scale;
    let _ = writeln!(
        out,
        "<rect x=\"{LEFT}\" y=\"{top}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>"
    );
    text(out, LEFT + width + 6.0, top + 12.0, "start", label);
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    );
}
