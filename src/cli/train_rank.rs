//! `prefold train rank`: the ranker's weights from rows of questions.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;

use crate::files;
use crate::hard::lexical::term;
use crate::hard::rank::{COSINE, similarity_unit};
use crate::train::rank::{Example, Options, prompts, read, read_corpus, train};
use crate::{Engine, Error};

use super::failure::{Outcome, say};
use super::files::{check_target, write_whole};
use super::model::{Busy, open};
use super::models;

/// The learned ranker of passages, from questions and their right passages
///
/// Rows: `question` and either `docs` with `gold` (an index, or several), `docs` with `context` (those
/// documents are right that it holds), or `context` alone. A row of fewer than six documents gets others
/// that are like the right ones, out of --corpus and of the other rows. Without --encoder no model is needed, and
/// the same rows and options give the same weights, to the bit.
///
/// With --encoder a further small network learns how far the ranker and that encoder are to be trusted where
/// `compress --encoder` has both.
#[derive(clap::Args)]
pub struct Args {
    /// Rows to train on; several files are one
    #[arg(long, value_name = "ROWS.jsonl[.xz|.zst]", required = true, num_args = 1..)]
    data: Vec<PathBuf>,
    /// Rows with `text`: passages that may stand beside the right ones
    #[arg(long, value_name = "CORPUS.jsonl[.xz|.zst]")]
    corpus: Option<PathBuf>,
    /// Where the weights go, for `compress --ranker`
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Hidden units of each network
    #[arg(long, value_name = "N", default_value_t = Options::default().hidden)]
    hidden: usize,
    /// Networks on top of each other: each sees which passages the one before found best
    #[arg(long, value_name = "N", default_value_t = Options::default().stages)]
    stages: usize,
    /// Networks of each stage that are averaged
    #[arg(long, value_name = "N", default_value_t = Options::default().seeds)]
    seeds: u64,
    /// Passes over the rows
    #[arg(long, value_name = "N", default_value_t = Options::default().epochs)]
    epochs: usize,
    /// Prompts of a step
    #[arg(long, value_name = "N", default_value_t = Options::default().batch)]
    batch: usize,
    /// Learning rate of the first step
    #[arg(long, value_name = "X", default_value_t = Options::default().lr)]
    lr: f64,
    /// Decay of AdamW
    #[arg(long, value_name = "X", default_value_t = Options::default().weight_decay)]
    weight_decay: f64,
    /// Share of features that a step does not see
    #[arg(long, value_name = "SHARE", default_value_t = Options::default().dropout)]
    dropout: f64,
    /// Share of prompts whose passages have titles in front
    #[arg(long, value_name = "SHARE", default_value_t = Options::default().titled)]
    titled: f64,
    /// All draws come from it
    #[arg(long, value_name = "N", default_value_t = Options::default().seed)]
    seed: u64,
    /// A sentence encoder, whose cosines a further network learns to weigh: a folder, or `minilm`
    #[arg(long, value_name = "MODEL")]
    encoder: Option<PathBuf>,
    /// Prompts that the encoder reads: every Nth
    #[arg(long, value_name = "N", default_value_t = 5, requires = "encoder", value_parser = two_or_more)]
    encoder_every: usize,
    /// Keep the cosines in this file as they come, a JSON line for each prompt, and read those that it has
    #[arg(long, value_name = "FILE", requires = "encoder")]
    cosines: Option<PathBuf>,
    /// Leave every Nth row out, for `eval rank --every N`
    #[arg(long, value_name = "N")]
    hold_out: Option<usize>,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    check_target(&args.out)?;
    let options = Options {
        hidden: args.hidden,
        stages: args.stages,
        seeds: args.seeds,
        epochs: args.epochs,
        batch: args.batch,
        lr: args.lr,
        weight_decay: args.weight_decay,
        dropout: args.dropout,
        titled: args.titled,
        seed: args.seed,
    };
    options.check()?;
    let rows = read(&args.data)?;
    let corpus = args
        .corpus
        .as_deref()
        .map(read_corpus)
        .transpose()?
        .unwrap_or_default();
    let mut prompts = prompts(&rows, &corpus, &options);
    if let Some(every) = args.hold_out {
        let kept = |line: usize| every == 0 || !line.is_multiple_of(every);
        let mut line = 0..;
        prompts.retain(|_| line.next().is_some_and(kept));
    }
    let cosines = match &args.encoder {
        Some(encoder) => Some(read_by(
            encoder,
            &prompts,
            args.encoder_every,
            args.cosines.as_deref(),
        )?),
        None => None,
    };
    let trained = train(&prompts, cosines.as_deref(), &options)?;
    let losses: Vec<String> = trained
        .loss
        .iter()
        .map(|loss| format!("{loss:.4}"))
        .collect();
    let mut losses = losses.join(", then ");
    if let Some((loss, prompts)) = trained.meaning {
        let encoder = args.encoder.as_deref().unwrap_or(Path::new(""));
        let name = encoder.file_name().unwrap_or_default().to_string_lossy();
        losses += &format!("; with the cosines of {name} for {prompts} prompts {loss:.4}");
    }
    let card = format!(
        "Trained on {} prompts: {} hidden units, {} stages of {} networks, {} passes, batch {}, lr {},\n\
         weight decay {}, dropout {}, titles in {}, seed {}. Loss {losses}.",
        trained.prompts,
        args.hidden,
        args.stages,
        args.seeds,
        args.epochs,
        args.batch,
        args.lr,
        args.weight_decay,
        args.dropout,
        args.titled,
        args.seed,
    );
    write_whole(&args.out, &trained.ranker.to_text(&card))?;
    say(&format!(
        "{}: {} weights from {} prompts; loss {losses}",
        args.out.display(),
        trained.ranker.weights(),
        trained.prompts,
    ));
    Ok(())
}

/// A step of two or more: prompts that the encoder does not read train the ranker that scores the others.
fn two_or_more(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|&number| number > 1);
    number.ok_or_else(|| "expected a whole number from 2 on".into())
}

/// Most bytes that a file of cosines may have.
const LONGEST_COSINES: u64 = 1 << 30;

/// What an encoder said of a prompt, as a line of a file.
#[derive(Deserialize)]
struct Read {
    prompt: String,
    cosines: Vec<f64>,
}

/// A prompt by the hash of the encoder, its question and documents.
fn key(encoder: &str, example: &Example) -> String {
    let mut all = encoder.to_owned();
    for doc in [&example.question].into_iter().chain(&example.docs) {
        all.push('\0');
        all.push_str(doc);
    }
    format!("{:016x}", term(&all))
}

/// Cosines that were kept in a file, by prompt; more of them are put after them.
fn kept(path: &Path) -> Result<(HashMap<String, Vec<f64>>, File), Error> {
    let text = match path.exists() {
        true => files::text(path, files::read_bounded(path, LONGEST_COSINES)?)?,
        false => String::new(),
    };
    // A run that was ended may have left a part of a line, which is read again.
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let mut cosines = HashMap::new();
    for (i, line) in text[..whole].lines().enumerate() {
        let read: Read = serde_json::from_str(line).map_err(|error| Error::Format {
            file: path.into(),
            reason: format!("line {}: not the cosines of a prompt: {error}", i + 1),
        })?;
        cosines.insert(read.prompt, read.cosines);
    }
    let file = OpenOptions::new().create(true).append(true).open(path);
    let file = file.map_err(Error::io(path))?;
    file.set_len(whole as u64).map_err(Error::io(path))?;
    Ok((cosines, file))
}

/// Cosines of every Nth prompt's question and documents; `path` is where they are kept.
fn read_by(
    encoder: &Path,
    prompts: &[Example],
    every: usize,
    path: Option<&Path>,
) -> Outcome<Vec<Vec<f64>>> {
    let (mut known, mut file) = (HashMap::new(), None);
    if let Some(path) = path {
        let (cosines, log) = kept(path)?;
        known = cosines;
        file = Some((log, path));
    }
    let model = models::locate(Some(encoder))?;
    let engine = open(&model, Engine::builder(&model))?.engine;
    let encodes = engine.config().encoder.is_some();
    if !encodes || similarity_unit(engine.config()) != COSINE {
        return Err(Error::Unsupported {
            what: format!("training by {}", model.display()),
            have: "encoders of sentences; a reranker's scores are added as they are".into(),
        }
        .into());
    }
    let count = prompts.len().div_ceil(every);
    let busy = Busy::new(format!("{count} prompts by the encoder"));
    let mut all = vec![Vec::new(); prompts.len()];
    for (prompt, cosines) in prompts.iter().zip(&mut all).step_by(every) {
        let key = key(&engine.info().fingerprint, prompt);
        if let Some(known) = known.remove(&key) {
            *cosines = known;
            continue;
        }
        *cosines = engine.rank(&prompt.question, &prompt.docs, &busy.control())?;
        if let Some((file, path)) = &mut file {
            let read = json!({ "prompt": key, "cosines": *cosines });
            writeln!(file, "{read}").map_err(Error::io(*path))?;
        }
    }
    Ok(all)
}
