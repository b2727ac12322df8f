//! What every training of a model's own loop is told, and how its end is said.

use std::path::PathBuf;

use serde_json::json;

use crate::gpu::Precision;
use crate::train::{BadRows, Plan, QUESTION, Schedule, Summary, data};
use crate::{Engine, Error};

use super::failure::{Failure, Outcome, say};
use super::files::write_stdout;
use super::model;

pub const ROWS: &str = "Rows";
pub const OPTIMISER: &str = "Optimiser";
pub const RUN: &str = "Run";

/// The model that is trained, or for which.
#[derive(clap::Args)]
pub struct ModelArgs {
    #[command(flatten)]
    model: model::PathArgs,
    #[command(flatten)]
    device: model::DeviceArgs,
    /// What products are made of; bf16 needs a CUDA device
    #[arg(long, value_enum, default_value = "f32", help_heading = "Model")]
    precision: Precision,
    /// Id that ends every target [default: the model's]
    #[arg(long, value_name = "ID", help_heading = "Model")]
    eos: Option<u32>,
}

/// How rows are read.
#[derive(clap::Args)]
pub struct RowArgs {
    /// Rows to measure the loss on
    #[arg(long, value_name = "DEV.jsonl", help_heading = ROWS)]
    eval: Option<PathBuf>,
    /// Most of those rows
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = ROWS)]
    eval_rows: usize,
    /// What becomes of a row that cannot be read: it is named, and then ends the run or is passed over
    #[arg(long, value_enum, default_value = "fail", help_heading = ROWS)]
    bad_rows: BadRows,
    /// What a question of text stands in
    #[arg(long, value_name = "TEXT", default_value = QUESTION, help_heading = ROWS)]
    pub question_template: String,
    /// What an answer of text stands in
    #[arg(long, value_name = "TEXT", default_value = data::ANSWER, help_heading = ROWS)]
    answer_template: String,
    /// Rows held in memory to be shuffled; 1 keeps the files' order
    #[arg(long, value_name = "N", default_value_t = 10_000, help_heading = ROWS)]
    shuffle_buffer: usize,
}

/// What steps are made of, as far as all trainings begin with the same.
#[derive(clap::Args)]
pub struct StepArgs {
    /// Steps, those before a resume included
    #[arg(long, value_name = "N", help_heading = OPTIMISER)]
    pub steps: u64,
    /// Passes of one step
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = OPTIMISER)]
    accumulate: usize,
    /// What the learning rate does after its rise
    #[arg(long, value_enum, default_value = "constant", help_heading = OPTIMISER)]
    schedule: Schedule,
    /// Greatest norm of a gradient; 0 for any
    #[arg(long, value_name = "X", default_value_t = 1.0, help_heading = OPTIMISER)]
    clip: f64,
}

/// How a run is kept and told of.
#[derive(clap::Args)]
pub struct KeepArgs {
    /// Resumes the run in --out, if there is one
    #[arg(long, help_heading = RUN)]
    pub resume: bool,
    /// The log, a line of JSON a step [default: DIR.log.jsonl]
    #[arg(long, value_name = "LOG.jsonl", help_heading = RUN)]
    log: Option<PathBuf>,
    /// Memory for activations that are kept; what does not fit is computed again, layer by layer,
    /// which gives the same values
    #[arg(long, value_name = "MB", default_value_t = 0, help_heading = RUN)]
    activation_mb: usize,
    /// Print how it ended as JSON
    #[arg(long, help_heading = RUN)]
    pub json: bool,
}

impl ModelArgs {
    /// Opens the model at the precision that was asked for, or not at all.
    pub fn open(&self) -> Outcome<Engine> {
        let path = self.model.path()?;
        let builder = Engine::builder(&path)
            .device(self.device.device()?)
            .precision(self.precision);
        let engine = model::open(&path, builder)?.engine;
        if engine.info().precision != self.precision {
            return Err(Failure::Failed(Error::Unsupported {
                what: "--precision bf16 on a CPU".into(),
                have: "--precision f32 there, and bf16 on a CUDA device".into(),
            }));
        }
        Ok(engine)
    }

    pub fn apply(&self, plan: &mut Plan) {
        plan.eos = self.eos;
    }
}

impl RowArgs {
    pub fn apply(&self, plan: &mut Plan) {
        plan.dev = self.eval.clone();
        plan.dev_rows = self.eval_rows;
        plan.bad_rows = self.bad_rows;
        plan.question_template = self.question_template.clone();
        plan.answer_template = self.answer_template.clone();
        plan.shuffle_buffer = self.shuffle_buffer;
    }
}

impl StepArgs {
    pub fn apply(&self, plan: &mut Plan) {
        plan.accumulate = self.accumulate;
        plan.schedule = self.schedule;
        plan.clip = self.clip;
    }
}

impl KeepArgs {
    pub fn apply(&self, plan: &mut Plan) {
        plan.log = self.log.clone();
        plan.resume = self.resume;
        plan.activation_bytes = self.activation_mb.saturating_mul(1 << 20);
    }
}

/// Says how a run ended, and where what it made is.
pub fn report(plan: &Plan, done: Summary, told: bool, as_json: bool, what: &str) -> Outcome {
    let out = plan.out.display();
    if as_json {
        let report = json!({
            "step": done.step,
            "stopped": done.stopped,
            "loss": done.loss,
            "dev_loss": done.dev_loss,
            "tokens": done.tokens,
            "seconds": done.seconds,
            "out": plan.out.to_string_lossy(),
        });
        write_stdout(&format!("{report}\n"))?;
    }
    if done.stopped && told {
        return Err(Failure::Interrupted(format!(
            "stopped after step {} of {}, which is saved in {out}; --resume continues",
            done.step, plan.steps
        )));
    }
    let loss = |name: &str, loss: Option<f64>| match loss {
        Some(loss) => format!(", {name} {loss:.4}"),
        None => String::new(),
    };
    say(&format!(
        "{} steps{}{}, {} tokens in {:.0} s; {what}",
        done.step,
        loss("loss", done.loss),
        loss("dev loss", done.dev_loss),
        done.tokens,
        done.seconds,
    ));
    Ok(())
}
