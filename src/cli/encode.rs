//! `prefold encode`: a text as the K and V of a few memory tokens.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::Engine;
use crate::hub::{DEFAULT, Settings};
use crate::prefix::Method;
use crate::soft::{self, EncodeOptions};

use super::config;
use super::failure::{Failure, Outcome};
use super::model::{self, Busy};
use super::soft::{TextArgs, WriteArgs};

/// Folder of the sample adapter, for the default model: in a checkout, and in prefold's cache folder.
const SAMPLE: &str = "smollm2-135m-instruct-16";

/// Soft compression: a text as a KV prefix of a few memory tokens (500xCompressor, ICAE)
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    text: TextArgs,
    /// The adapter: a folder with adapter_config.json, adapter_model.safetensors and
    /// memory_embeddings.safetensors [default: `adapter` of prefold.toml, or the sample adapter where it is
    /// installed]
    #[arg(long, short, value_name = "DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    write: WriteArgs,
    /// What the decoder reads: the memory tokens' K and V, or their output states [default: as the
    /// adapter was trained]
    #[arg(long, value_enum)]
    method: Option<Method>,
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
        method: args.method,
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
    if let Some(folder) = &config::get()?.adapter {
        return Ok(folder.clone());
    }
    let installed = Settings::from_env()?.adapters().join(SAMPLE);
    let candidates = [Path::new("assets").join(SAMPLE), installed.clone()];
    let missing = |why: String| {
        Err(Failure::Usage(format!(
            "{why}; name an adapter by --adapter, or train one (prefold train regen --help)"
        )))
    };
    for folder in candidates {
        if let Some(settings) = soft::Settings::open(&folder)? {
            return match settings.model.as_ref() == Some(&engine.info().fingerprint) {
                true => Ok(folder),
                false => missing(format!("the sample adapter is for {}", DEFAULT.name)),
            };
        }
    }
    missing(format!(
        "the sample adapter of the release archive is not in {}",
        installed.display()
    ))
}
