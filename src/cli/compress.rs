//! `prefold compress`: a shorter prompt.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use crate::hard::{Compressed, KeptContext, LlmLinguaResult, Request};
use anstream::{AutoStream, ColorChoice};
use clap::ValueEnum;
use serde::Serialize;

use super::failure::{Failure, Outcome, say, usage};
use super::files::{check_target, read_text, text_or_file, write_stdout, write_whole};
use super::model::{self, Busy};
use super::options::Flags;
use super::{marked, messages, page};

/// Shortens a prompt: files are its contexts, the question and the instruction stay whole
#[derive(clap::Args)]
pub struct Args {
    /// One context each; `-` or nothing is standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What is to be answered from the contexts: kept whole, at the end
    #[arg(long, short, value_name = "TEXT|@FILE")]
    question: Option<String>,
    /// Kept whole, in front
    #[arg(long, short, value_name = "TEXT|@FILE")]
    instruction: Option<String>,
    /// The contexts carry `<llmlingua, rate=…, compress=…>` tags
    #[arg(long)]
    structured: bool,

    #[command(flatten)]
    model: model::Args,
    #[command(flatten)]
    adapter: model::AdapterArgs,
    #[command(flatten)]
    encoder: model::EncoderArgs,
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    conversation: messages::Flags,

    /// Write to FILE instead of standard output, whole or not at all
    #[arg(long, short, value_name = "FILE", help_heading = OUTPUT)]
    output: Option<PathBuf>,
    /// Print the reference's dictionary, what is left of each context, and the time, as JSON
    #[arg(long, conflicts_with = "show", help_heading = OUTPUT)]
    json: bool,
    /// Print the original with what was dropped struck through, or without colour in [-brackets-]
    #[arg(long, help_heading = OUTPUT)]
    show: bool,
    /// Write one self-contained page: tokens shaded by surprisal, dropped ones struck
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    html: Option<PathBuf>,
    /// Colours of --show; `auto` heeds NO_COLOR and uses none outside a terminal
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN", help_heading = OUTPUT)]
    color: Colour,
    /// No summary on standard error
    #[arg(long, help_heading = OUTPUT)]
    quiet: bool,
}

const OUTPUT: &str = "Output";

#[derive(Clone, Copy, ValueEnum)]
enum Colour {
    Auto,
    Always,
    Never,
}

/// A compressed prompt and how it came about.
struct Report {
    compressed: Compressed,
    /// Wall time of the compression alone.
    seconds: f64,
    /// Tokens of the original per second.
    tokens_per_second: f64,
    /// Wall time of opening the model.
    load_seconds: f64,
    /// The model's file or folder name.
    model: String,
}

/// A report as `--json` prints it.
#[derive(Serialize)]
struct Json<'a> {
    #[serde(flatten)]
    llmlingua: LlmLinguaResult,
    target: Option<usize>,
    contexts: &'a [KeptContext],
    warnings: &'a [String],
    seconds: f64,
    tokens_per_second: f64,
    load_seconds: f64,
    model: &'a str,
}

impl Report {
    /// The report as one line of JSON.
    fn json(&self) -> Outcome<String> {
        let json = Json {
            llmlingua: self.compressed.llmlingua(),
            target: self.compressed.target,
            contexts: &self.compressed.contexts,
            warnings: &self.compressed.warnings,
            seconds: self.seconds,
            tokens_per_second: self.tokens_per_second,
            load_seconds: self.load_seconds,
            model: &self.model,
        };
        match serde_json::to_string(&json) {
            Ok(json) => Ok(json + "\n"),
            Err(error) => Err(Failure::Failed(crate::Error::Input {
                what: "--json".into(),
                reason: error.to_string(),
            })),
        }
    }

    /// The report as a page.
    fn page(&self) -> page::Page<'_> {
        page::Page {
            before: self.compressed.tokens_before,
            after: self.compressed.tokens_after,
            seconds: self.seconds,
            tokens_per_second: self.tokens_per_second,
            model: &self.model,
            pieces: &self.compressed.pieces,
        }
    }

    /// The numbers in one line.
    fn summary(&self) -> String {
        let c = &self.compressed;
        let (before, after) = (c.tokens_before, c.tokens_after);
        // Of an empty text a share means nothing.
        let shares = if before == 0 || after == 0 {
            String::new()
        } else if after > before {
            " (longer than before)".to_string()
        } else {
            format!(" ({:.1}% kept, {:.1}x)", c.rate() * 100.0, c.ratio())
        };
        // Words and lines are whole, so that the budget is seldom met to the token.
        let distance = match self.compressed.target {
            Some(target) if target > after + 1 => format!(", {} below the budget", target - after),
            _ => String::new(),
        };
        format!(
            "{before} -> {after} tokens{shares}{distance} in {:.2} s, {:.0} tokens/s, by {}",
            self.seconds, self.tokens_per_second, self.model,
        )
    }
}

/// The file of a conversation: that of `--messages`, or the one that `--as chat` calls so.
fn conversation(args: &Args) -> Outcome<Option<PathBuf>> {
    if !args.flags.is_chat() || args.conversation.messages.is_some() {
        return Ok(args.conversation.messages.clone());
    }
    if args.instruction.is_some() || args.structured || args.show || args.html.is_some() {
        let reason =
            "--as chat: a conversation takes no --instruction, --structured, --show or --html";
        return Err(Failure::Usage(reason.into()));
    }
    match args.files.as_slice() {
        [] => Ok(Some("-".into())),
        [file] => Ok(Some(file.clone())),
        _ => Err(Failure::Usage(
            "--as chat: takes one FILE, the body of a chat request".into(),
        )),
    }
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    // A place where nothing can be written is better known before the work than after it.
    for path in args.output.iter().chain(&args.html) {
        check_target(path)?;
    }
    let conversation = conversation(&args)?;
    let (budget, mode) = args.flags.budget_and_mode(args.html.is_some());
    if let Some(file) = conversation {
        let question = args.question.as_deref().map(text_or_file).transpose()?;
        let options = args.conversation.options(budget, mode, question)?;
        let body = messages::read(&file)?;
        crate::text::prepare_cl100k();
        let model = args.model.open_to_rank(&args.adapter, &args.encoder)?;
        let output = messages::Output {
            file: args.output.as_deref(),
            json: args.json,
            quiet: args.quiet,
        };
        return messages::run(&model, &body, &options, output);
    }
    let request = read_prompt(&args.files, &args.question, &args.instruction)?
        .with_structured(args.structured)
        .with_budget(budget)
        .with_mode(mode);
    // The library checks too, but only after a model was loaded.
    usage(request.check())?;
    crate::text::prepare_cl100k();
    let model = args.model.open_to_rank(&args.adapter, &args.encoder)?;

    let busy = Busy::new("compressing".into());
    let start = Instant::now();
    let compressed = model.engine.compress_with(&request, &busy.control())?;
    let seconds = start.elapsed().as_secs_f64();
    drop(busy);

    let report = Report {
        tokens_per_second: compressed.tokens_before as f64 / seconds.max(1e-9),
        compressed,
        seconds,
        load_seconds: model.load_seconds,
        model: model.name,
    };
    if let Some(path) = &args.html {
        write_whole(path, &page::render(&report.page()))?;
    }
    let to_terminal = args.output.is_none() && std::io::stdout().is_terminal();
    let mut text = if args.json {
        report.json()?
    } else if args.show {
        let colour = match args.color {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => {
                args.output.is_none()
                    && AutoStream::choice(&std::io::stdout()) != ColorChoice::Never
            }
        };
        marked::render(&report.compressed.pieces, colour)
    } else {
        report.compressed.text.clone()
    };
    // A file or a pipe gets the very text; a terminal's next line should start at its left.
    if to_terminal && !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    match &args.output {
        Some(path) => write_whole(path, &text)?,
        None => write_stdout(&text)?,
    }
    if !args.quiet {
        for warning in &report.compressed.warnings {
            say(&format!("warning: {warning}"));
        }
        say(&report.summary());
    }
    Ok(())
}

/// The prompt from files and texts, each of which may be standard input, but only one of them.
fn read_prompt(
    files: &[PathBuf],
    question: &Option<String>,
    instruction: &Option<String>,
) -> Outcome<Request> {
    let stdin = PathBuf::from("-");
    let files = match files {
        [] => std::slice::from_ref(&stdin),
        files => files,
    };
    let texts = [question, instruction];
    let from_stdin = files.iter().filter(|file| **file == stdin).count()
        + texts.iter().filter(|t| t.as_deref() == Some("@-")).count();
    if from_stdin > 1 {
        return Err(Failure::Usage(
            "standard input can be read only once, but is asked for more often".into(),
        ));
    }
    let text =
        |argument: &Option<String>| argument.as_deref().map_or(Ok(String::new()), text_or_file);
    let contexts = files.iter().map(|file| read_text(file));
    Ok(Request::new(contexts.collect::<Outcome<Vec<_>>>()?)
        .with_instruction(text(instruction)?)
        .with_question(text(question)?))
}
