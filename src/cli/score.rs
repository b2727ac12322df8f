//! `prefold score`: the surprisal of a text.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use super::failure::Outcome;
use super::files::{read_text, write_stdout};
use super::model::{self, Busy};

/// Perplexity of a text
///
/// A text longer than the model's context is read in windows of that length that begin half of it
/// apart. Every token is scored once, given at least half a context before it.
#[derive(clap::Args)]
pub struct Args {
    /// The text; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    model: model::Args,
    #[command(flatten)]
    adapter: model::AdapterArgs,
    /// Print JSON, with every token's id, text and nll (nats)
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let text = read_text(&args.file)?;
    let model = args.model.open_to_score(&args.adapter)?;
    let busy = Busy::new("scoring".into());
    let start = Instant::now();
    let encoding = model.engine.tokenizer()?.encode(&text, true, false)?;
    let nll = model.engine.score(&encoding.ids, &busy.control())?;
    let seconds = start.elapsed().as_secs_f64();
    drop(busy);

    let mean = match nll.len() {
        0 => None,
        scored => Some(nll.iter().map(|&x| f64::from(x)).sum::<f64>() / scored as f64),
    };
    let tokens = encoding.ids.len();
    if args.json {
        let per_token: Vec<Value> = encoding
            .ids
            .iter()
            .zip(&encoding.spans)
            .enumerate()
            .map(|(at, (id, span))| {
                let bytes = text.as_bytes().get(span.clone()).unwrap_or_default();
                json!({
                    "id": id,
                    "text": String::from_utf8_lossy(bytes),
                    "nll": at.checked_sub(1).and_then(|at| nll.get(at)),
                })
            })
            .collect();
        let report = json!({
            "tokens": tokens,
            "mean_nll": mean,
            "perplexity": mean.map(f64::exp),
            "seconds": seconds,
            "load_seconds": model.load_seconds,
            "model": model.name,
            "per_token": per_token,
        });
        return write_stdout(&format!("{report}\n"));
    }
    let number = |value: Option<f64>, unit: &str| match value {
        Some(value) => format!("{value:.4}{unit}"),
        None => "none: the first token has nothing before it".into(),
    };
    write_stdout(&format!(
        "tokens      {tokens}\nmean nll    {}\nperplexity  {}\n",
        number(mean, " nats"),
        number(mean.map(f64::exp), ""),
    ))
}
