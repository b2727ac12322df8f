//! `prefold encode`: a text as the K and V of a few memory tokens.

use std::path::PathBuf;
use std::time::Instant;

use prefold::Engine;
use prefold::soft::{EncodeOptions, Settings};

use super::failure::{Failure, Outcome};
use super::model::{self, Busy};
use super::soft::{MethodName, TextArgs, WriteArgs};

/// The adapter that comes with prefold, for the model that `make model` fetches.
const DEFAULT_ADAPTER: &str = "assets/smollm2-135m-instruct-16";

/// Soft compression: a text as a KV prefix of a few memory tokens (500xCompressor, ICAE)
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    text: TextArgs,
    /// The adapter: a folder with adapter_config.json, adapter_model.safetensors and
    /// memory_embeddings.safetensors [default: with the model that `make model` fetched, the one in
    /// assets/]
    #[arg(long, short, value_name = "DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    write: WriteArgs,
    /// What the decoder reads: the memory tokens' K and V, or their output states [default: as the
    /// adapter was trained]
    #[arg(long, value_enum)]
    method: Option<MethodName>,
    /// Longest piece of text, in tokens [default: as the adapter was trained]. A longer text is cut into
    /// as few pieces of equal length as fit; each gets its own memory tokens, joined in order
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
    let adapter = match &args.adapter {
        Some(folder) => model.engine.prefixes().adapter(folder)?,
        None => {
            let folder = default_adapter(&model.engine)?;
            model.engine.prefixes().adapter(&folder)?
        }
    };
    let source = given.source(&model.engine, false)?;
    let options = EncodeOptions {
        method: args.method.map(MethodName::method),
        piece_tokens: args.piece_tokens,
    };
    let busy = Busy::new("encoding".into());
    let start = Instant::now();
    let prefix = model
        .engine
        .prefixes()
        .with(&busy.control())
        .encode(&adapter, &source, &options)?;
    drop(busy);
    args.write.write(prefix, start.elapsed().as_secs_f64())
}

/// The adapter that is used when none is named, if it is here and this model's.
fn default_adapter(engine: &Engine) -> Outcome<PathBuf> {
    let folder = model::shipped(DEFAULT_ADAPTER).unwrap_or(DEFAULT_ADAPTER.into());
    let missing = |why: &str| {
        Err(Failure::Usage(format!(
            "{why}: name an adapter by --adapter, or train one (prefold train regen --help)"
        )))
    };
    match Settings::open(&folder)? {
        None => missing(&format!("{DEFAULT_ADAPTER} is not here")),
        Some(s) if s.model.as_ref() != Some(&engine.info().fingerprint) => {
            missing(&format!("{DEFAULT_ADAPTER} is not this model's"))
        }
        Some(_) => Ok(folder),
    }
}
