//! `prefold prefill`: a text as the model's own K and V.

use std::time::Instant;

use clap::ValueEnum;
use prefold::hard::check_rate;
use prefold::soft::{KeepBy, PrefillOptions};

use super::failure::{Outcome, usage};
use super::model::{self, Busy};
use super::options::share;
use super::soft::{TextArgs, WriteArgs};

/// The K and V of a prompt by the model itself, as a KV prefix; special tokens such as <|im_start|>
/// are read as such
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    text: TextArgs,
    /// Keep the K and V of this share of the tokens only, at their own positions
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    keep: Option<f64>,
    /// By what they are chosen: the tokens' surprise, or attention, per layer and head group
    #[arg(
        long,
        value_enum,
        requires = "keep",
        default_value = "expected-attention"
    )]
    by: KeepByName,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    model: model::Args,
}

#[derive(Clone, Copy, ValueEnum)]
enum KeepByName {
    Llmlingua,
    Snapkv,
    ExpectedAttention,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    usage(args.keep.map_or(Ok(()), check_rate))?;
    let given = args.text.read()?;
    args.write.check()?;
    let model = args.model.open()?;
    let source = given.source(&*model.engine, true)?;
    let by = match args.by {
        KeepByName::Llmlingua => KeepBy::Llmlingua,
        KeepByName::Snapkv => KeepBy::Snapkv,
        KeepByName::ExpectedAttention => KeepBy::ExpectedAttention,
    };
    let options = PrefillOptions {
        keep: args.keep.map(|rate| (rate, by)),
    };
    let busy = Busy::new("reading".into());
    let start = Instant::now();
    let prefix = model.engine.prefill(&source, &options)?;
    drop(busy);
    args.write.write(prefix, start.elapsed().as_secs_f64())
}
