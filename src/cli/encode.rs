//! `prefold encode`: a text as the K and V of a few memory tokens.

use std::path::PathBuf;
use std::time::Instant;

use prefold::soft::EncodeOptions;

use super::failure::Outcome;
use super::model::{self, Busy};
use super::soft::{MethodName, TextArgs, WriteArgs};

/// Soft compression: a text as a KV prefix of a few memory tokens (500xCompressor, ICAE)
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    text: TextArgs,
    /// The adapter: a folder with adapter_config.json, adapter_model.safetensors and
    /// memory_embeddings.safetensors
    #[arg(long, short, value_name = "DIR")]
    adapter: PathBuf,
    #[command(flatten)]
    write: WriteArgs,
    /// What the decoder reads: the memory tokens' K and V, or their output states [default: as the
    /// adapter was trained]
    #[arg(long, value_enum)]
    method: Option<MethodName>,
    /// Longest piece of text, in tokens; each gets its own memory tokens [default: as the adapter was
    /// trained]
    #[arg(long, value_name = "N")]
    piece_tokens: Option<usize>,
    #[command(flatten)]
    model: model::Args,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let given = args.text.read()?;
    args.write.check()?;
    let model = args.model.open()?;
    let adapter = model.engine.adapter(&args.adapter)?;
    let source = given.source(&*model.engine, false)?;
    let options = EncodeOptions {
        method: args.method.map(MethodName::method),
        piece_tokens: args.piece_tokens,
    };
    let busy = Busy::new("encoding".into());
    let start = Instant::now();
    let prefix = model.engine.encode(&adapter, &source, &options)?;
    drop(busy);
    args.write.write(prefix, start.elapsed().as_secs_f64())
}
