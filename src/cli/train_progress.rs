//! How training shows its progress: a bar on a terminal, else a line now and then.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use crate::train::log::Line;
use crate::train::run::Event;
use indicatif::{ProgressBar, ProgressStyle};

use super::failure;

/// What is shown of a run.
pub struct Progress {
    steps: u64,
    bar: Option<ProgressBar>,
    last: Instant,
    /// Without a terminal: the last step, and when it was last told.
    told: Option<Instant>,
    dev: Option<f64>,
    /// Seconds of a step, of late.
    pace: Option<f64>,
}

/// Between two lines without a terminal.
const SELDOM: Duration = Duration::from_secs(30);

impl Progress {
    /// Before the first of `steps`.
    pub fn new(steps: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(steps);
            let template = "{bar:24} step {pos} of {len}{msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        Progress {
            steps,
            bar,
            last: Instant::now(),
            told: None,
            dev: None,
            pace: None,
        }
    }

    /// A line on standard error.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| failure::say(line)),
            None => failure::say(line),
        }
    }

    /// Shows what happened.
    pub fn report(&mut self, event: &Event<'_>) {
        match event {
            Event::Resumed(step) => {
                if let Some(bar) = &self.bar {
                    bar.set_position(*step);
                }
                self.say(&format!("continuing after step {step}"));
                self.last = Instant::now();
            }
            Event::Fresh => self.say("nothing to resume: a new run begins"),
            Event::Note(line) => self.say(line),
            Event::Skipped(line) => self.say(&format!("skipped: {line}")),
            Event::Step(line) => self.step(line),
            Event::Evaluating(done, of) => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!(", measuring dev row {done} of {of}"));
                }
            }
            Event::Saved(step) if self.bar.is_none() && self.told.is_some() => {
                self.say(&format!("step {step} is saved"));
            }
            _ => {}
        }
    }

    fn step(&mut self, line: &Line) {
        self.dev = line.dev_loss.or(self.dev);
        // With evaluation and saving: what is left takes its share of them too.
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        let pace = self
            .pace
            .map_or(seconds, |pace| 0.95 * pace + 0.05 * seconds);
        self.pace = Some(pace);
        let left = (self.steps.saturating_sub(line.step)) as f64 * pace;
        let dev = self.dev.map(|dev| format!(", dev loss {dev:.4}"));
        let message = format!(
            ", loss {:.4}{}, {:.0} tokens/s, {} left",
            line.loss,
            dev.unwrap_or_default(),
            line.tokens as f64 / line.seconds.max(1e-9),
            duration(left),
        );
        match &self.bar {
            Some(bar) => {
                bar.set_message(message);
                bar.set_position(line.step);
            }
            None if self.told.is_none_or(|told| told.elapsed() >= SELDOM) => {
                self.told = Some(Instant::now());
                self.say(&format!("step {} of {}{message}", line.step, self.steps));
            }
            None => {}
        }
    }

    /// Clears the bar.
    pub fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `1h 02m`, `3m 20s`, `45s`.
fn duration(seconds: f64) -> String {
    let seconds = seconds as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m {s:02}s"),
        (h, m, _) => format!("{h}h {m:02}m"),
    }
}
