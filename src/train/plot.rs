//! Loss curves of logs as one SVG.

use std::io::ErrorKind;

use plotters::prelude::*;

use super::log::Line;
use crate::error::{Error, Result};
use crate::files::one_line;

/// What the horizontal axis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Axis {
    /// Steps.
    #[default]
    Step,
    /// Tokens that went through the model.
    Tokens,
    /// Time that steps took, in seconds.
    Seconds,
}

/// Width and height, in pixels.
const SIZE: (u32, u32) = (960, 540);
/// From so many steps on a curve is drawn smoothed, over its own pale self.
const MANY: usize = 40;
/// Nothing beyond is drawn: axes cannot be laid through the ends of what a float can be.
const MAX: f64 = 1e30;
/// What can be told apart, also by the colour-blind (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// Draws the losses of named logs, and the dev losses as dots on a line, over `axis`.
///
/// # Errors
/// [`Error::Format`] for logs without a step; [`Error::Io`] if the drawing fails.
pub fn svg(logs: &[(String, Vec<Line>)], axis: Axis) -> Result<String> {
    let curves: Vec<Curve<'_>> = logs
        .iter()
        .map(|(name, lines)| Curve::new(name, lines, axis))
        .collect();
    let points = || curves.iter().flat_map(|c| c.loss.iter().chain(&c.dev));
    let (mut low, mut high, mut end) = (f64::INFINITY, 0.0f64, 0.0f64);
    for &(x, y) in points() {
        (low, high, end) = (low.min(y), high.max(y), end.max(x));
    }
    if low > high {
        return Err(Error::format("logs", "they hold no step; train further"));
    }
    // Never so small that it is lost beside the values.
    let margin = 0.05 * (high - low).max(1e-3).max(1e-6 * high);
    // A loss that has almost vanished is best seen from zero.
    let bottom = if low < 0.25 * high { 0.0 } else { low - margin };

    let mut text = String::new();
    let drawn = draw(
        &mut text,
        &curves,
        axis,
        end.max(1.0),
        bottom..high + margin,
    );
    drawn.map_err(|error| Error::failed("plot", ErrorKind::Other, error.to_string()))?;
    Ok(text)
}

type Point = (f64, f64);

struct Curve<'a> {
    name: &'a str,
    loss: Vec<Point>,
    dev: Vec<Point>,
}

impl<'a> Curve<'a> {
    fn new(name: &'a str, lines: &[Line], axis: Axis) -> Self {
        let (mut tokens, mut seconds) = (0.0, 0.0);
        let (mut loss, mut dev) = (Vec::new(), Vec::new());
        for line in lines {
            tokens += line.tokens as f64;
            seconds += line.seconds;
            let x = match axis {
                Axis::Step => line.step as f64,
                Axis::Tokens => tokens,
                Axis::Seconds => seconds,
            };
            let drawn = |y: &f64| x <= MAX && y.abs() <= MAX;
            loss.extend(Some(line.loss).filter(drawn).map(|y| (x, y)));
            dev.extend(line.dev_loss.filter(drawn).map(|y| (x, y)));
        }
        Curve { name, loss, dev }
    }

    /// Exponential means over a twentieth of the curve, without a bias to its start.
    fn smooth(&self) -> Vec<Point> {
        let keep = 1.0 - 20.0 / self.loss.len().max(21) as f64;
        let (mut sum, mut weight) = (0.0, 0.0);
        let mean = |&(x, y): &Point| {
            sum = keep * sum + y;
            weight = keep * weight + 1.0;
            (x, sum / weight)
        };
        self.loss.iter().map(mean).collect()
    }
}

fn draw(
    text: &mut String,
    curves: &[Curve<'_>],
    axis: Axis,
    end: f64,
    height: std::ops::Range<f64>,
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end, height)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(BLACK.mix(0.12))
        .x_desc(match axis {
            Axis::Step => "step",
            Axis::Tokens => "tokens",
            Axis::Seconds => "seconds",
        })
        .y_desc("loss (nats per token)")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.2}"))
        .label_style(("sans-serif", 14))
        .draw()?;
    for (i, curve) in curves.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let many = curve.loss.len() >= MANY;
        if many {
            let pale = colour.mix(0.25).stroke_width(1);
            chart.draw_series(LineSeries::new(curve.loss.iter().copied(), pale))?;
        }
        let line = if many {
            curve.smooth()
        } else {
            curve.loss.clone()
        };
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(one_line(curve.name))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        if !curve.dev.is_empty() {
            let narrow = colour.stroke_width(1);
            chart.draw_series(LineSeries::new(curve.dev.iter().copied(), narrow))?;
            let dots = curve
                .dev
                .iter()
                .map(|&at| Circle::new(at, 4, colour.filled()));
            chart
                .draw_series(dots)?
                .label(format!("{}, dev", one_line(curve.name)))
                .legend(move |(x, y)| Circle::new((x + 9, y), 4, colour.filled()));
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.2))
        .label_font(("sans-serif", 14))
        .draw()?;
    root.present()?;
    Ok(())
}
