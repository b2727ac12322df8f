//! `prefold merge`: an adapter made part of its model.

use std::path::PathBuf;

use clap::ValueEnum;
use prefold::model::weights::Weights;
use prefold::train::merge::{MergedDtype, Tokens, merge};

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
    dtype: DtypeName,
}

#[derive(Clone, Copy, ValueEnum)]
enum DtypeName {
    F32,
    F16,
    Bf16,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let weights = Weights::open(&args.model.path()?)?;
    let dtype = match args.dtype {
        DtypeName::F32 => MergedDtype::F32,
        DtypeName::F16 => MergedDtype::F16,
        DtypeName::Bf16 => MergedDtype::Bf16,
    };
    let busy = Busy::new("merging".into());
    let tokens = merge(&weights, &args.adapter, &args.output, dtype)?;
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
