//! `prefold train rank`: the ranker's weights from rows of questions.

use std::path::PathBuf;

use crate::train::rank::{Options, prompts, read, read_corpus, train};

use super::failure::{Outcome, say};
use super::files::{check_target, write_whole};

/// The learned ranker of passages, from questions and their right passages
///
/// Rows: `question` and either `docs` with `gold` (an index, or several), `docs` with `context` (those
/// documents are right that it holds), or `context` alone. A row of fewer than six documents gets others
/// that are like the right ones, out of --corpus and of the other rows. No model is needed. The same rows
/// and options give the same weights, to the bit.
#[derive(clap::Args)]
pub struct Args {
    /// Rows to train on; several files are one
    #[arg(long, value_name = "ROWS.jsonl[.xz|.zst]", required = true, num_args = 1..)]
    data: Vec<PathBuf>,
    /// Rows with `text`: passages that may stand beside the right ones
    #[arg(long, value_name = "CORPUS.jsonl[.xz|.zst]")]
    corpus: Option<PathBuf>,
    /// Where the weights go, for `compress --ranker`
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Hidden units of each network
    #[arg(long, value_name = "N", default_value_t = Options::default().hidden)]
    hidden: usize,
    /// Networks on top of each other: each sees which passages the one before found best
    #[arg(long, value_name = "N", default_value_t = Options::default().stages)]
    stages: usize,
    /// Networks of each stage that are averaged
    #[arg(long, value_name = "N", default_value_t = Options::default().seeds)]
    seeds: u64,
    /// Passes over the rows
    #[arg(long, value_name = "N", default_value_t = Options::default().epochs)]
    epochs: usize,
    /// Prompts of a step
    #[arg(long, value_name = "N", default_value_t = Options::default().batch)]
    batch: usize,
    /// Learning rate of the first step
    #[arg(long, value_name = "X", default_value_t = Options::default().lr)]
    lr: f64,
    /// Decay of AdamW
    #[arg(long, value_name = "X", default_value_t = Options::default().weight_decay)]
    weight_decay: f64,
    /// Share of features that a step does not see
    #[arg(long, value_name = "SHARE", default_value_t = Options::default().dropout)]
    dropout: f64,
    /// Share of prompts whose passages have titles in front
    #[arg(long, value_name = "SHARE", default_value_t = Options::default().titled)]
    titled: f64,
    /// All draws come from it
    #[arg(long, value_name = "N", default_value_t = Options::default().seed)]
    seed: u64,
    /// Leave every Nth row out, for `eval rank --every N`
    #[arg(long, value_name = "N")]
    hold_out: Option<usize>,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    check_target(&args.out)?;
    let options = Options {
        hidden: args.hidden,
        stages: args.stages,
        seeds: args.seeds,
        epochs: args.epochs,
        batch: args.batch,
        lr: args.lr,
        weight_decay: args.weight_decay,
        dropout: args.dropout,
        titled: args.titled,
        seed: args.seed,
    };
    options.check()?;
    let rows = read(&args.data)?;
    let corpus = args
        .corpus
        .as_deref()
        .map(read_corpus)
        .transpose()?
        .unwrap_or_default();
    let mut prompts = prompts(&rows, &corpus, &options);
    if let Some(every) = args.hold_out {
        let mut line = 0;
        prompts.retain(|_| {
            line += 1;
            every == 0 || (line - 1) % every != 0
        });
    }
    let trained = train(&prompts, &options)?;
    let losses: Vec<String> = trained
        .loss
        .iter()
        .map(|loss| format!("{loss:.4}"))
        .collect();
    let losses = losses.join(", then ");
    let card = format!(
        "Trained on {} prompts: {} hidden units, {} stages of {} networks, {} passes, batch {}, lr {},\n\
         weight decay {}, dropout {}, titles in {}, seed {}. Loss {losses}.",
        trained.prompts,
        args.hidden,
        args.stages,
        args.seeds,
        args.epochs,
        args.batch,
        args.lr,
        args.weight_decay,
        args.dropout,
        args.titled,
        args.seed,
    );
    write_whole(&args.out, &trained.ranker.to_text(&card))?;
    say(&format!(
        "{}: {} weights from {} prompts; loss {losses}",
        args.out.display(),
        trained.ranker.weights(),
        trained.prompts,
    ));
    Ok(())
}
