//! `prefold prefill`: a text as the model's own K and V.

use std::time::Instant;

use prefold::soft::PrefillOptions;

use super::failure::Outcome;
use super::model::{self, Busy};
use super::soft::{TextArgs, WriteArgs};

/// The K and V of a text by the model itself, as a KV prefix
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    model: model::Args,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let given = args.text.read()?;
    let model = args.model.open()?;
    let source = given.source(&*model.engine, true)?;
    let options = PrefillOptions::default();
    let busy = Busy::new("reading".into());
    let start = Instant::now();
    let prefix = model.engine.prefill(&source, &options)?;
    drop(busy);
    args.write.write(prefix, start.elapsed().as_secs_f64())
}
