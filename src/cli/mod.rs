//! The command line: arguments, dispatch, errors and exit codes.
// The comments of options are the help, which a terminal shows as it stands.
#![allow(rustdoc::bare_urls, rustdoc::invalid_html_tags)]

mod batch;
mod batch_calls;
mod compress;
mod config;
mod encode;
mod eval;
mod eval_rank;
mod eval_table;
mod examples;
mod export;
mod failure;
mod files;
mod generate;
mod import;
mod inspect;
mod interrupt;
mod log;
mod manual;
mod marked;
#[cfg(feature = "mcp")]
mod mcp;
mod merge;
mod messages;
mod model;
mod models;
mod options;
mod page;
mod plot;
mod prefill;
mod prefixes;
mod score;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "serve")]
mod serve_settings;
#[cfg(feature = "hub")]
mod slot;
mod soft;
mod train;
mod train_prefix;
mod train_progress;
mod train_rank;
mod train_run;
mod train_tokens;

use std::ffi::OsString;
use std::io::Write;

use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use failure::Failure;

/// Folds a long prompt before a language model reads it.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    /// Bytes that a text, or a row of `batch`, may have, as 200M [default: 64M]
    #[arg(long, global = true, value_name = "BYTES", value_parser = bytes)]
    max_bytes: Option<u64>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Compress(Box<compress::Args>),
    Score(score::Args),
    Batch(batch::Args),
    Encode(encode::Args),
    Prefill(prefill::Args),
    Generate(generate::Args),
    Inspect(inspect::Args),
    Export(export::Args),
    Eval(eval::Args),
    Train(train::Args),
    Import(import::Args),
    Merge(merge::Args),
    Plot(plot::Args),
    Models(models::Args),
    Prefixes(prefixes::Args),
    #[cfg(feature = "serve")]
    Serve(Box<serve::Args>),
    #[cfg(feature = "mcp")]
    Mcp(Box<mcp::Args>),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
    #[command(hide = true)]
    Reference(manual::ReferenceArgs),
}

/// A number of bytes, in units of 1024 where a letter says so.
fn bytes(text: &str) -> Result<u64, String> {
    let split = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text[split.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => Some(0),
        "k" | "kb" | "kib" => Some(10),
        "m" | "mb" | "mib" => Some(20),
        "g" | "gb" | "gib" => Some(30),
        _ => None,
    };
    let number = split.trim().parse::<u64>().ok();
    let bytes = number
        .zip(factor)
        .and_then(|(n, shift)| n.checked_mul(1 << shift));
    bytes
        .filter(|&bytes| bytes > 0)
        .ok_or_else(|| "expected a number of bytes, as 1000000, 500K, 64M or 2G".into())
}

/// The whole command line, as it is parsed, explained and completed.
fn command() -> clap::Command {
    examples::add(Cli::command())
}

/// Keeps a panic that becomes an error from saying anything of its own.
fn quiet_panics() {
    // Python's process may run the program more than once.
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let said = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !crate::text::is_guarded() {
                said(panic);
            }
        }));
    });
}

/// Runs the program on its arguments, its own name first, and gives its exit code.
pub fn run(args: Vec<OsString>) -> u8 {
    quiet_panics();
    let parsed = command()
        .try_get_matches_from(&args)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    if let Err(failure) = log::start() {
        return report(&failure);
    }
    if let Ok(Cli {
        max_bytes: Some(bytes),
        ..
    }) = &parsed
    {
        files::set_longest_text(*bytes);
    }
    let done = match parsed {
        Ok(cli) => match cli.command {
            Command::Compress(args) => compress::run(*args),
            Command::Score(args) => score::run(args),
            Command::Batch(args) => batch::run(args),
            Command::Encode(args) => encode::run(args),
            Command::Prefill(args) => prefill::run(args),
            Command::Generate(args) => generate::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Export(args) => export::run(args),
            Command::Eval(args) => eval::run(args),
            Command::Train(args) => train::run(args),
            Command::Import(args) => import::run(args),
            Command::Merge(args) => merge::run(args),
            Command::Plot(args) => plot::run(args),
            Command::Models(args) => models::run(args),
            Command::Prefixes(args) => prefixes::run(args),
            #[cfg(feature = "serve")]
            Command::Serve(args) => serve::run(*args),
            #[cfg(feature = "mcp")]
            Command::Mcp(args) => mcp::run(*args),
            Command::Completions(args) => manual::completions(args),
            Command::Man(args) => manual::man(args),
            Command::Reference(args) => manual::reference(args),
        },
        // Help, asked for or not, and the version are clap's own pages, not errors of one line.
        Err(error) if error.kind() == DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return 2;
        }
        Err(error) if !error.use_stderr() => error.print().map_err(files::stdout_failure),
        Err(error) => Err(match args.get(1).and_then(|word| left_out(word)) {
            Some(feature) => failure::not_built(feature),
            None => failure::malformed(&error, &asked(&args)),
        }),
    };
    match done {
        Ok(()) => 0,
        Err(failure) => report(&failure),
    }
}

/// The feature that a command needs and this build lacks.
fn left_out(command: &std::ffi::OsStr) -> Option<&'static str> {
    // Their commands have the features' names.
    let built = [
        ("serve", cfg!(feature = "serve")),
        ("mcp", cfg!(feature = "mcp")),
    ];
    let (name, is_built) = built.into_iter().find(|(name, _)| command == *name)?;
    (!is_built).then_some(name)
}

/// The command that the arguments name, as far as there is one.
fn asked(args: &[OsString]) -> String {
    let mut name = String::from("prefold");
    let mut command = command();
    for word in args.iter().skip(1) {
        let Some(sub) = command.find_subcommand(word) else {
            break;
        };
        name = format!("{name} {}", sub.get_name());
        command = sub.clone();
    }
    name
}

/// Says what went wrong, in one line, and gives the exit code for it.
fn report(failure: &Failure) -> u8 {
    // With standard error gone too nothing can be said.
    let _ = writeln!(std::io::stderr(), "prefold: {}", failure.line());
    failure.code()
}
