//! Plot of latency against load.

use plotters::prelude::*;

/// Measurement at one rate: requests a second, and milliseconds at the median and the 99th
/// percentile.
pub type Point = (f64, f64, f64);

/// Draws each curve, as SVG.
pub fn svg(curves: &[(&str, Vec<Point>)]) -> String {
    let points = || curves.iter().flat_map(|(_, points)| points);
    let most = points().map(|point| point.0).fold(0.0, f64::max);
    let (least, latest) = points().fold((f64::MAX, 0.0_f64), |(least, latest), point| {
        (least.min(point.1), latest.max(point.2))
    });
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (800, 480)).into_drawing_area();
        area.fill(&WHITE).unwrap();
        let mut chart = ChartBuilder::on(&area)
            .margin(16)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..most * 1.05, (least / 2.0..latest * 2.0).log_scale())
            .unwrap();
        let mut mesh = chart.configure_mesh();
        let mesh = mesh.x_desc("requests a second").y_desc("ms");
        mesh.light_line_style(TRANSPARENT).draw().unwrap();
        for ((name, points), color) in curves.iter().zip([BLUE, RED]) {
            let median = points.iter().map(|point| (point.0, point.1));
            let late = points.iter().map(|point| (point.0, point.2));
            for (what, line, width) in [
                ("p50", LineSeries::new(median, color.stroke_width(1)), 1),
                ("p99", LineSeries::new(late, color.stroke_width(3)), 3),
            ] {
                let key = move |(x, y)| {
                    PathElement::new([(x, y), (x + 24, y)], color.stroke_width(width))
                };
                let drawn = chart.draw_series(line).unwrap();
                drawn.label(format!("{name}, {what}")).legend(key);
            }
        }
        let mut labels = chart.configure_series_labels();
        let labels = labels
            .position(SeriesLabelPosition::UpperMiddle)
            .border_style(BLACK);
        labels.background_style(WHITE).draw().unwrap();
        area.present().unwrap();
    }
    text
}
