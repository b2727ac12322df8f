//! `prefold mcp`: the Model Context Protocol over standard input and output.

use crate::serve::serve_mcp;

use super::failure::{Outcome, usage};
use super::serve_settings::Settings;
use super::{config, model};

/// Serves compression as tools of the Model Context Protocol, over standard input and output
///
/// An agent starts it and calls `compress` (a text, a question, a rate), `retrieve` (the original
/// of a hash) and `stats`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    model: model::Args,
    #[command(flatten)]
    adapter: model::AdapterArgs,
    #[command(flatten)]
    encoder: model::EncoderArgs,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let file = config::get()?.serve.clone().unwrap_or_default();
    let options = file.under(args.settings).options();
    usage(options.check())?;
    let model = args.model.open_to_rank(&args.adapter, &args.encoder)?;
    Ok(serve_mcp(model.engine, options)?)
}
