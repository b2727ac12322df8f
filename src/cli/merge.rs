//! `prefold merge`: an adapter made part of its model.

use std::path::PathBuf;

use crate::model::weights::Weights;
use crate::prefix::Dtype;
use crate::train::merge::{Tokens, merge};

use super::failure::{Outcome, say};
use super::model::{self, Busy};

/// Merges an adapter into its model: a new Hugging Face folder that needs no adapter
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: model::PathArgs,
    /// The adapter, as `prefold train align` made it or in PEFT's layout
    #[arg(long, short, value_name = "DIR")]
    adapter: PathBuf,
    /// The folder to make
    #[arg(long, short, value_name = "FOLDER")]
    output: PathBuf,
    /// Element type of the merged weights
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let weights = Weights::open(&args.model.path()?)?;
    let busy = Busy::new("merging".into());
    let tokens = merge(&weights, &args.adapter, &args.output, args.dtype)?;
    drop(busy);
    let out = args.output.display();
    match tokens {
        Tokens::Copied => say(&format!(
            "{out}: the merged model, with the source's tokenizer"
        )),
        Tokens::Made => say(&format!(
            "{out}: the merged model, with the GGUF's tokenizer"
        )),
        Tokens::None(why) => say(&format!(
            "{out}: the merged model; it serves ids only, as {why}"
        )),
    }
    Ok(())
}
