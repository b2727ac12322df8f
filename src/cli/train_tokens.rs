//! `prefold train tokens`: a token classifier for LLMLingua-2 from rows of kept words.

use std::path::PathBuf;

use crate::Engine;
use crate::train::tokens::{Options, read};
use serde_json::json;

use super::failure::{Outcome, say};
use super::files::write_stdout;
use super::model::{self, Busy};

/// A token classifier for LLMLingua-2, on an encoder that stays as it is
///
/// Rows: `text` and `compressed` (the words that are kept, in order), `words` and `labels` (1: kept), or
/// `context`, `question` and `answers` (rows of one context are one text: what is asked and answered is kept).
/// The result is a Hugging Face folder, for `compress --llmlingua2 --model FOLDER` and for the `llmlingua`
/// package alike.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: model::PathArgs,
    #[command(flatten)]
    device: model::DeviceArgs,
    /// Rows to train on; several files are one
    #[arg(long, value_name = "ROWS.jsonl[.xz|.zst]", required = true, num_args = 1..)]
    data: Vec<PathBuf>,
    /// The folder to make
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Most tokens that are trained on; further rows are left out
    #[arg(long, value_name = "N", default_value_t = Options::default().tokens)]
    tokens: usize,
    /// Of N texts hold one back, and measure on it; 0: none
    #[arg(long, value_name = "N", default_value_t = Options::default().hold_out)]
    hold_out: usize,
    /// Passes over the tokens
    #[arg(long, value_name = "N", default_value_t = Options::default().epochs)]
    epochs: usize,
    /// Tokens of a step
    #[arg(long, value_name = "N", default_value_t = Options::default().batch)]
    batch: usize,
    /// Learning rate of the first step
    #[arg(long, value_name = "X", default_value_t = Options::default().lr)]
    lr: f64,
    /// Decay of AdamW
    #[arg(long, value_name = "X", default_value_t = Options::default().weight_decay)]
    weight_decay: f64,
    /// All draws come from it
    #[arg(long, value_name = "N", default_value_t = Options::default().seed)]
    seed: u64,
    /// What was measured, as JSON, on standard output
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let options = Options {
        tokens: args.tokens,
        hold_out: args.hold_out,
        epochs: args.epochs,
        batch: args.batch,
        lr: args.lr,
        weight_decay: args.weight_decay,
        seed: args.seed,
    };
    options.check()?;
    let model = args.model.path()?;
    let examples = read(&args.data)?;
    let builder = Engine::builder(&model).device(args.device.device()?);
    let encoder = model::open(&model, builder)?.engine;
    let busy = Busy::new(format!("reading {} texts", examples.len()));
    let control = busy.control();
    let summary = encoder
        .training()
        .classifier(&model, &args.out, &examples, &options, &control)?;
    drop(busy);
    if args.json {
        return write_stdout(&format!("{:#}\n", json!(summary)));
    }
    let mut line = format!(
        "{}: a token classifier from {} tokens of {} texts, of which {:.0}% are kept; loss {:.4}",
        args.out.display(),
        summary.tokens,
        summary.texts,
        100.0 * summary.kept,
        summary.loss,
    );
    if let Some(held) = summary.held_out {
        line += &format!(
            "; {} texts held back: loss {:.4}, AUC {:.3}",
            held.texts, held.loss, held.auc
        );
    }
    say(&line);
    Ok(())
}
