//! `prefold export`: a prefix as a host reads it.

use std::path::PathBuf;

use crate::prefix::llama_cpp::{Layout, Slot};
use crate::prefix::{Placeholder, transformers, vllm};
use clap::ValueEnum;
use serde_json::json;

use super::failure::{Failure, Outcome};
use super::files::write_stdout;
use super::soft::read_prefix;

/// A KV prefix in the form that a host reads; prints what the host must be told, as JSON
#[derive(clap::Args)]
pub struct Args {
    /// The prefix
    #[arg(value_name = "FILE")]
    prefix: PathBuf,
    /// The host. llama.cpp: a file for `POST /slots/ID?action=restore`; transformers and vllm: a
    /// safetensors file with rotated K, which the modules under python/ read
    #[arg(long, value_enum)]
    to: Host,
    /// Where it goes
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// For llama.cpp: a slot that the server saved after a prompt of one token; version, streams and
    /// types are taken from it
    #[arg(long, value_name = "SLOT")]
    template: Option<PathBuf>,
    /// For llama.cpp without a template: version 3 or 4 of the file, for a server with one slot, flash
    /// attention and an f16 cache
    #[arg(
        long,
        value_name = "N",
        default_value_t = 4,
        conflicts_with = "template"
    )]
    slot_version: u32,
    /// What stands for memory tokens in a prompt: `unique` ids, drawn from its content, or one id for all
    #[arg(long, value_name = "ID|unique", default_value = "unique", value_parser = placeholder)]
    placeholder: Placeholder,
}

fn placeholder(text: &str) -> Result<Placeholder, String> {
    if text == "unique" {
        return Ok(Placeholder::Unique);
    }
    match text.parse::<i32>() {
        Ok(id) if id >= 0 => Ok(Placeholder::Repeated(id.unsigned_abs())),
        _ => Err("expected `unique` or a token id, which is below 2^31".into()),
    }
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Host {
    #[value(name = "llama.cpp")]
    LlamaCpp,
    Transformers,
    Vllm,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    if args.to != Host::LlamaCpp && args.template.is_some() {
        return Err(Failure::Usage("--template is for llama.cpp only".into()));
    }
    let same = |path: &PathBuf| std::fs::canonicalize(path).ok();
    if same(&args.prefix).is_some_and(|prefix| same(&args.output) == Some(prefix)) {
        let message = "--output is the prefix itself, which would be lost; name another file";
        return Err(Failure::Usage(message.into()));
    }
    let (prefix, dtype) = read_prefix(&args.prefix)?;
    let report = match args.to {
        Host::LlamaCpp => {
            let layout = match &args.template {
                Some(path) => Layout::of_template(path)?,
                None => Layout::new(args.slot_version)?,
            };
            let slot = Slot::new(&prefix, &layout, args.placeholder)?;
            slot.write(&args.output)?;
            json!({
                "tokens": slot.tokens,
                "cells": slot.cells,
                "bytes": slot.bytes.len(),
            })
        }
        Host::Transformers => {
            let made = transformers::export(prefix, dtype, args.placeholder, &args.output)?;
            json!(made)
        }
        Host::Vllm => {
            let made = vllm::export(prefix, dtype, args.placeholder, &args.output)?;
            json!(made)
        }
    };
    write_stdout(&format!("{report}\n"))
}
