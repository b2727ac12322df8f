//! `prefold prefill`: a text as the model's own K and V.

use std::path::PathBuf;
use std::time::Instant;

use crate::hard::check_rate;
use crate::soft::{KeepBy, PrefillOptions};

use super::failure::{Outcome, usage};
use super::files::check_target;
use super::model::{self, Busy};
use super::options::share;
use super::soft::{FormArgs, TextArgs};

/// The K and V of a prompt by the model itself, as a KV prefix; special tokens such as <|im_start|>
/// are read as such
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    text: TextArgs,
    /// Keep the K and V of this share of the tokens only, at their own positions; a whole number from 2 on
    /// is so many tokens
    #[arg(long, value_name = "SHARE|TOKENS", value_parser = keep, allow_negative_numbers = true)]
    keep: Option<Keep>,
    /// By what they are chosen: the tokens' surprisal, or per layer and head group attention or their keys
    #[arg(
        long,
        value_enum,
        requires = "keep",
        default_value = "expected-attention"
    )]
    by: KeepBy,
    /// Where the prefix goes
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    form: FormArgs,
    #[command(flatten)]
    model: model::Args,
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Keep {
    Share(f64),
    Tokens(usize),
}

/// Reads `0.5`, `50%` or `64`.
fn keep(text: &str) -> Result<Keep, String> {
    match text.parse::<usize>() {
        Ok(tokens) if tokens >= 2 => Ok(Keep::Tokens(tokens)),
        _ => share(text).map(Keep::Share),
    }
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    if let Some(Keep::Share(share)) = args.keep {
        usage(check_rate("keep", share))?;
    }
    let given = args.text.read()?;
    check_target(&args.output)?;
    let model = args.model.open()?;
    let source = given.source(&model.engine, true)?;
    let options = PrefillOptions {
        keep: args.keep.map(|keep| {
            let rate = match keep {
                Keep::Share(share) => share,
                // As many of so many tokens; all where there are fewer.
                Keep::Tokens(tokens) => (tokens as f64 / source.ids.len().max(1) as f64).min(1.0),
            };
            (rate, args.by)
        }),
    };
    let busy = Busy::new("reading".into());
    let start = Instant::now();
    let prefix = model
        .engine
        .prefixes()
        .with(&busy.control())
        .prefill(&source, &options)?;
    drop(busy);
    args.form
        .write_and_say(prefix, &args.output, start.elapsed().as_secs_f64())
}
