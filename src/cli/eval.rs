//! `prefold eval`: what a compressor keeps, measured on questions or on texts regenerated.

use std::path::{Path, PathBuf};

use crate::eval::{
    Qa, Question, Regenerate, Report, Representation, Task, Text, Way, run as measure,
};
use crate::hard::check_rate;
use crate::prefix::Method;
use crate::soft::{Adapter, Settings};
use crate::{Engine, Error};
use anstream::{AutoStream, ColorChoice};
use clap::{Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::eval_table;
use super::failure::{Failure, Outcome, usage};
use super::files::{check_target, write_stdout, write_whole};
use super::interrupt;
use super::model;
use super::options::share;

/// Measures what a compressor keeps, as a table with bootstrap intervals
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    task: Which,
}

#[derive(Subcommand)]
enum Which {
    Qa(Box<QaArgs>),
    Regen(Box<RegenArgs>),
    Rank(Box<super::eval_rank::Args>),
}

/// What every task takes
#[derive(clap::Args)]
struct Common {
    /// Shares of the tokens that hard compression and random dropping keep
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "0.5,0.25",
        value_parser = share
    )]
    rates: Vec<f64>,
    /// An adapter of the model that reads the prefixes, for a row of 500xCompressor
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Only the first so many memory tokens, of adapters that were trained by --nested [default: all]
    #[arg(long, value_name = "K")]
    memory_tokens: Option<usize>,
    /// An adapter for a row of ICAE
    #[arg(long, value_name = "DIR")]
    icae: Option<PathBuf>,
    /// An adapter for a row of pooled states
    #[arg(long, value_name = "DIR")]
    pooled: Option<PathBuf>,
    /// Write the report as JSON too; `-` is standard output, in place of the table
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
    /// Keep every answer in this file as it comes, a JSON line each, and continue from what is in it
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Of random dropping and of the intervals' draws
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    model: model::Args,
}

/// Questions about documents: nll of the gold answer, exact match and F1 (SQuAD's) of the host's own
///
/// A row of the data is JSON with `question`, `answers` and `context`, and perhaps `docs`: all
/// documents, which are then what is shortened.
#[derive(clap::Args)]
struct QaArgs {
    /// The questions, JSON lines
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Questions to ask
    #[arg(long, value_name = "N", default_value_t = 16)]
    limit: usize,
    /// Questions to pass over first
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip: usize,
    /// Only questions that bring `docs`
    #[arg(long, overrides_with = "with_docs")]
    with_docs: bool,
    /// The model that answers [default: the one that scores]
    #[arg(long, value_name = "MODEL", help_heading = "Model")]
    host: Option<PathBuf>,
    /// Most tokens of an answer; 0 measures the nll alone
    #[arg(long, value_name = "N", default_value_t = 16)]
    max_new_tokens: usize,
    /// Rows of the table [default: full, none, gold, random-tokens, prefold, prefold-sentence,
    /// prefold-token; those of adapters come after]
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',')]
    ways: Vec<WayName>,
    /// A token classifier, as `train tokens` makes them, for a row of LLMLingua-2
    #[arg(long, value_name = "MODEL", help_heading = "Model")]
    classifier: Option<PathBuf>,
    /// Add the presets llmlingua and longllmlingua in reference mode
    #[arg(long, overrides_with = "reference")]
    reference: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WayName {
    /// All documents
    Full,
    /// No document
    None,
    /// The documents that the answer is in
    Gold,
    /// Words dropped at random
    RandomWords,
    /// Tokens of the host dropped at random
    RandomTokens,
    /// The reference's default
    Llmlingua,
    /// The reference's preset for questions
    Longllmlingua,
    /// Our default
    Prefold,
    /// Our default, which leaves the budget unfilled where what is left is far below the best
    PrefoldEnough,
    /// Ours, by whole documents
    PrefoldContext,
    /// Ours, by sentences
    PrefoldSentence,
    /// Ours, by tokens
    PrefoldToken,
    /// The host's K and V of the tokens of high surprisal
    KvLlmlingua,
    /// The host's K and V that SnapKV keeps
    KvSnapkv,
    /// The host's K and V that Expected Attention keeps
    KvExpectedAttention,
    /// The host's K and V that KeyDiff keeps
    KvKeydiff,
}

/// Texts regenerated: ROUGE, BLEU, exact match, and nll of the text
///
/// A row of the data is JSON with `text`. The model reads one BOS after the memory tokens (or after
/// the K and V of the whole text, of what hard compression or random dropping leaves of it, or after
/// nothing) and continues greedily.
#[derive(clap::Args)]
struct RegenArgs {
    /// The texts, JSON lines
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Texts to reconstruct
    #[arg(long, value_name = "N", default_value_t = 16)]
    limit: usize,
    /// Tokens of each text, from its beginning
    #[arg(long, value_name = "N", default_value_t = 96)]
    text_tokens: usize,
    /// Begins an answer [default: the model's own]
    #[arg(long, value_name = "ID")]
    bos: Option<u32>,
    #[command(flatten)]
    common: Common,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    match args.task {
        Which::Qa(args) => qa(*args),
        Which::Regen(args) => regen(*args),
        Which::Rank(args) => super::eval_rank::run(*args),
    }
}

fn qa(args: QaArgs) -> Outcome {
    args.common.check()?;
    let questions = Question::read(&args.data, args.skip, args.limit, args.with_docs)?;
    let common = &args.common;
    let scorer = common.model.open()?;
    let other = args.host.as_deref();
    let other = other.map(|path| common.model.open_path(path)).transpose()?;
    let host = other.as_ref().unwrap_or(&scorer);
    let adapters = common.adapters(&host.engine)?;
    let classifier = args.classifier.as_deref();
    let classifier = classifier.map(|path| common.model.open_path(path));
    let classifier = classifier.transpose()?;
    let mut ways = ways(&args, &adapters);
    ways.extend(
        classifier
            .iter()
            .map(|model| Way::Classified(&model.engine)),
    );
    let task = Qa::new(
        &scorer.engine,
        &host.engine,
        questions,
        ways,
        &common.rates,
        args.max_new_tokens,
        common.seed,
    )?;
    let about = json!({
        "scorer": scorer.name,
        "host": host.name,
        "device": host.engine.info().device,
        "max_new_tokens": args.max_new_tokens,
    });
    common.report(&task, Some("prefold"), about)
}

fn regen(args: RegenArgs) -> Outcome {
    if args.text_tokens == 0 {
        return Err(bad("text_tokens", 0, "expected 1 or more"));
    }
    args.common.check()?;
    let texts = Text::read(&args.data, args.limit)?;
    let common = &args.common;
    let model = common.model.open()?;
    let adapters = common.adapters(&model.engine)?;
    let mut holders = vec![Representation::Full, Representation::None];
    holders.extend(
        common
            .rates
            .iter()
            .map(|&rate| Representation::RandomTokens(rate)),
    );
    holders.extend(common.rates.iter().map(|&rate| Representation::Fold(rate)));
    holders.extend(
        adapters
            .iter()
            .map(|(a, method)| Representation::Prefix(a, *method)),
    );
    let (engine, tokens, seed) = (&model.engine, args.text_tokens, common.seed);
    let task = Regenerate::new(engine, &texts, tokens, holders, args.bos, seed)?;
    let about = json!({
        "model": model.name,
        "device": model.engine.info().device,
        "text_tokens": task.mean_tokens(),
    });
    common.report(&task, None, about)
}

/// The ways that were asked for, in the order of the table.
fn ways<'a>(args: &QaArgs, adapters: &'a [(Adapter, Method)]) -> Vec<Way<'a>> {
    use WayName::*;
    let wanted = |name: &str| match WayName::from_str(name, false) {
        Ok(Llmlingua | Longllmlingua) if args.reference => true,
        Ok(way) if args.ways.is_empty() => matches!(
            way,
            Full | None | Gold | RandomTokens | Prefold | PrefoldSentence | PrefoldToken
        ),
        Ok(way) => args.ways.contains(&way),
        Err(_) => false,
    };
    let mut ways: Vec<Way<'a>> = Way::all();
    ways.retain(|way| wanted(way.name()));
    ways.extend(adapters.iter().map(|(a, method)| Way::Prefix(a, *method)));
    ways
}

impl Common {
    /// What is better known now than after an hour.
    fn check(&self) -> Outcome {
        usage(
            self.rates
                .iter()
                .try_for_each(|&rate| check_rate("rates", rate)),
        )?;
        let adapters = [&self.adapter, &self.icae, &self.pooled];
        if self.memory_tokens.is_some() && adapters.iter().all(|folder| folder.is_none()) {
            let reason = "no adapter to take them of; give --adapter, --icae or --pooled";
            return Err(Failure::Usage(format!("--memory-tokens: {reason}")));
        }
        self.json.as_deref().map_or(Ok(()), check_target)
    }

    /// The adapters that were named, each with the method that it is read by.
    fn adapters(&self, engine: &Engine) -> Outcome<Vec<(Adapter, Method)>> {
        let folders = [
            (&self.adapter, Method::FiveHundredX),
            (&self.icae, Method::Icae),
            (&self.pooled, Method::Pooled),
        ];
        let mut adapters = Vec::new();
        for (folder, method) in folders {
            let Some(folder) = folder else { continue };
            if let Some(settings) = Settings::open(folder)?
                && settings.method != method
            {
                let (is, row) = (settings.method.name(), method.name());
                let reason = format!("it was trained by {is}, and this row is {row}'s");
                return Err(bad("adapter", folder.display(), &reason));
            }
            let mut adapter = engine.prefixes().adapter(folder)?;
            if let Some(count) = self.memory_tokens {
                adapter = adapter.first(count)?;
            }
            adapters.push((adapter, method));
        }
        Ok(adapters)
    }

    /// Runs the task and writes its table and its JSON, `about` in front.
    fn report(&self, task: &dyn Task, base: Option<&str>, about: Value) -> Outcome {
        let bar = ProgressBar::new((2 * task.items() * task.cases().len()) as u64);
        let style = "{bar:30} {percent}%, {elapsed} gone, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(std::time::Duration::from_millis(500));
        let (log, control) = (self.log.as_deref(), interrupt::control());
        let report = measure(task, self.seed, base, log, &control, &mut || bar.inc(1));
        bar.finish_and_clear();
        let report = report?;
        let json = merged(about.clone(), &report)?;
        if self.json.as_deref() == Some(Path::new("-")) {
            return write_stdout(&json);
        }
        let colour = AutoStream::choice(&std::io::stdout()) != ColorChoice::Never;
        write_stdout(&eval_table::render(&report, &about, colour))?;
        self.json
            .as_deref()
            .map_or(Ok(()), |path| write_whole(path, &json))
    }
}

/// A report as one JSON object, `about` in front.
fn merged(mut about: Value, report: &Report) -> Outcome<String> {
    let failed = |error: serde_json::Error| bad("--json", "report", &error.to_string());
    let report = serde_json::to_value(report).map_err(failed)?;
    if let (Value::Object(all), Value::Object(report)) = (&mut about, report) {
        all.extend(report);
    }
    Ok(serde_json::to_string_pretty(&about).map_err(failed)? + "\n")
}

fn bad(what: &str, value: impl std::fmt::Display, reason: &str) -> Failure {
    Failure::Failed(Error::Input {
        what: format!("{what} {value}"),
        reason: reason.into(),
    })
}
