//! `prefold import`: published weights as an adapter's folder.

use std::path::PathBuf;

use crate::train::import::{Options, Purpose, import};

use super::failure::{Failure, Outcome, say};
use super::soft::parse_ids;

/// Turns ICAE's published weights into an adapter's folder, for `encode --adapter`
///
/// The file is a safetensors of their code's layout: LoRA as `icae.base_model.model.…`, and
/// `memory_token_embed.weight` with a row for each memory token and then [AE], [LM] and [FT]. What it
/// does not say is asked for here; the defaults are those of the published Mistral-7B weights.
#[derive(clap::Args)]
pub struct Args {
    /// The weights, as mistral_7b_ft_icae.safetensors
    #[arg(value_name = "FILE")]
    checkpoint: PathBuf,
    /// What the decoder is to do after the memory tokens: give the text back ([AE]; pretrained weights),
    /// follow an instruction ([FT]; fine-tuned ones), or continue the text ([LM])
    #[arg(long, value_enum)]
    task: Purpose,
    /// The folder to make
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// LoRA's alpha
    #[arg(long, value_name = "X", default_value_t = 32.0)]
    alpha: f32,
    /// Tokens of text for one memory token: pieces are as long as that times the memory tokens
    #[arg(long, value_name = "N", default_value_t = 4)]
    compression: usize,
    /// Id that the encoder reads before a text
    #[arg(
        long,
        value_name = "ID",
        default_value_t = 1,
        conflicts_with = "no_bos"
    )]
    bos: u32,
    /// The encoder reads the text alone
    #[arg(long)]
    no_bos: bool,
    /// Ids that the decoder reads before the memory tokens, as JSON [default: Mistral's `<s> [INST]`,
    /// [1, 733, 16289, 28793], for --task qa, and none for the others]
    #[arg(long, value_name = "JSON")]
    decoder_begin: Option<String>,
}

/// `<s> [INST]` in Mistral's vocabulary.
const INSTRUCTION: [u32; 4] = [1, 733, 16289, 28793];

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let pickled =
        |extension: &std::ffi::OsStr| ["bin", "pt", "pth"].iter().any(|e| extension == *e);
    if args.checkpoint.extension().is_some_and(pickled) {
        return Err(Failure::Usage(format!(
            "{}: pickled PyTorch is not read; save its dictionary as safetensors",
            args.checkpoint.display()
        )));
    }
    let options = Options {
        purpose: args.task,
        alpha: args.alpha,
        compression: args.compression,
        bos: (!args.no_bos).then_some(args.bos),
        decoder_begin: match (&args.decoder_begin, args.task) {
            (Some(json), _) => parse_ids("--decoder-begin", json)?,
            (None, Purpose::Qa) => INSTRUCTION.to_vec(),
            (None, _) => Vec::new(),
        },
    };
    let found = import(&args.checkpoint, &args.output, &options)?;
    say(&format!(
        "{}: {} memory tokens for pieces of {} tokens, LoRA of rank {} in {} layers",
        args.output.display(),
        found.memory_tokens,
        found.piece_tokens,
        found.rank,
        found.layers,
    ));
    Ok(())
}
