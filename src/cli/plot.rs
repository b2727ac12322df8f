//! `prefold plot`: loss curves.

use std::path::PathBuf;

use crate::train::log;
use crate::train::plot::{Axis, svg};
use clap::ValueEnum;

use super::failure::Outcome;
use super::files::{write_stdout, write_whole};

/// Draws the losses of training logs as one SVG; losses on dev rows are dots
#[derive(clap::Args)]
pub struct Args {
    /// Logs that `prefold train` wrote
    #[arg(value_name = "LOG", required = true)]
    logs: Vec<PathBuf>,
    /// Where the picture goes [default: standard output]
    #[arg(long, short, value_name = "OUT.svg")]
    output: Option<PathBuf>,
    /// What the horizontal axis counts
    #[arg(long, value_enum, default_value = "step")]
    axis: AxisName,
}

#[derive(Clone, Copy, ValueEnum)]
enum AxisName {
    Step,
    Tokens,
    Seconds,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let mut logs = Vec::new();
    for path in &args.logs {
        let name = path.display().to_string();
        logs.push((name, log::read(path)?));
    }
    let axis = match args.axis {
        AxisName::Step => Axis::Step,
        AxisName::Tokens => Axis::Tokens,
        AxisName::Seconds => Axis::Seconds,
    };
    let picture = svg(&logs, axis)?;
    match &args.output {
        Some(path) => write_whole(path, &picture),
        None => write_stdout(&picture),
    }
}
