//! The table of an evaluation.

use crate::eval::{Interval, Report};
use anstyle::{AnsiColor, Style};
use serde_json::Value;

use super::failure::one_line;

/// The report as aligned text, with what it is about in front; colour says which differences are
/// beyond chance.
pub fn render(report: &Report, about: &Value, colour: bool) -> String {
    let paint = |style: Style, text: &str| match colour {
        true => format!("{style}{text}{style:#}"),
        false => text.to_string(),
    };
    let bold = Style::new().bold();
    let mut out = String::new();
    let what = match report.task {
        "qa" => "questions",
        _ => "texts",
    };
    let mut facts = vec![format!("{} {what}", report.items)];
    if let Value::Object(about) = about {
        facts.extend(about.iter().map(|(name, value)| {
            let value = value.as_str().map_or(value.to_string(), str::to_string);
            // A model's file may be called anything.
            format!("{} {}", name.replace('_', " "), one_line(&value))
        }));
    }
    out += &format!("{}\n\n", facts.join("; "));

    let mut lines = vec![["way", "rate", "tokens"].map(String::from).to_vec()];
    lines[0].extend(report.metrics.iter().map(|metric| title(metric).into()));
    for row in &report.rows {
        let mut line = vec![
            row.way.clone(),
            row.rate.map_or(String::new(), |rate| rate.to_string()),
            format!("{:.0}", row.host_tokens),
        ];
        let cell = |metric: &&str| row.scores.get(*metric).map(|i| shown(metric, i, false));
        line.extend(report.metrics.iter().map(|m| cell(m).unwrap_or_default()));
        lines.push(line);
    }
    let widths = widths(&lines);
    for (i, line) in lines.iter().enumerate() {
        let text = joined(line, &widths, 1..3);
        out += &match i == 0 || line[0] == "prefold" {
            true => paint(bold, &text),
            false => text,
        };
        out.push('\n');
    }
    if report.differences.is_empty() {
        return out;
    }

    out += "\nLess the row named, question by question [95% interval]\n\n";
    let mut lines = vec![vec![report.differences[0].way.clone(), "rate".into()]];
    lines[0].extend(report.metrics.iter().map(|metric| title(metric).into()));
    for difference in &report.differences {
        let rate = difference
            .rate
            .map_or(String::new(), |rate| rate.to_string());
        let mut line = vec![format!("- {}", difference.less), rate];
        let cell = |metric: &&str| {
            let found = difference.scores.get(*metric);
            found.map(|i| shown(metric, i, true)).unwrap_or_default()
        };
        line.extend(report.metrics.iter().map(cell));
        lines.push(line);
    }
    let widths = self::widths(&lines);
    out += &paint(bold, &joined(&lines[0], &widths, 1..2));
    out.push('\n');
    for (line, difference) in lines[1..].iter().zip(&report.differences) {
        out += &joined(&line[..2], &widths, 1..2);
        for ((metric, cell), width) in report.metrics.iter().zip(&line[2..]).zip(&widths[2..]) {
            let beyond = difference.scores.get(*metric).and_then(|interval| {
                // Of the nll less is better.
                let better = (interval.high < 0.0) == (*metric == "nll");
                let beyond = interval.high < 0.0 || interval.low > 0.0;
                beyond.then_some(match better {
                    true => AnsiColor::Green,
                    false => AnsiColor::Red,
                })
            });
            let padded = format!("{cell:width$}");
            out += "  ";
            out += &match beyond {
                Some(color) => paint(color.on_default(), &padded),
                None => padded,
            };
        }
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
    }
    out
}

/// A metric's name at the head of a column.
fn title(metric: &str) -> &str {
    match metric {
        "nll" => "nll of the gold",
        "em" => "exact match",
        "f1" => "F1",
        "rouge1" => "ROUGE-1",
        "rouge2" => "ROUGE-2",
        "rouge_l" => "ROUGE-L",
        "bleu" => "BLEU",
        other => other,
    }
}

/// A mean with its interval; a difference with its sign.
fn shown(metric: &str, interval: &Interval, sign: bool) -> String {
    let digits = if metric == "nll" { 2 } else { 3 };
    let Interval { mean, low, high } = interval;
    match sign {
        true => format!("{mean:+.digits$} [{low:+.digits$}, {high:+.digits$}]"),
        false => format!("{mean:.digits$} [{low:.digits$}, {high:.digits$}]"),
    }
}

fn widths(lines: &[Vec<String>]) -> Vec<usize> {
    let columns = lines.first().map_or(0, Vec::len);
    let widest = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    (0..columns).map(|c| widest(c).unwrap_or(0)).collect()
}

/// Cells side by side, those of `right` to the right.
fn joined(cells: &[String], widths: &[usize], right: std::ops::Range<usize>) -> String {
    let cells = cells.iter().zip(widths).enumerate();
    let cells = cells.map(|(i, (cell, &width))| match right.contains(&i) {
        true => format!("{cell:>width$}"),
        false => format!("{cell:width$}"),
    });
    cells.collect::<Vec<_>>().join("  ")
}
