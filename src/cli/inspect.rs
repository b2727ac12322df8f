//! `prefold inspect`: what a prefix file holds.

use std::path::PathBuf;

use crate::Error;
use crate::prefix::RopeScaling;
use serde_json::json;

use super::failure::{Outcome, one_line};
use super::files::write_stdout;
use super::soft::read_prefix;

/// Where a KV prefix came from, and what is in it
#[derive(clap::Args)]
pub struct Args {
    /// The prefix
    #[arg(value_name = "FILE")]
    prefix: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let (prefix, dtype) = read_prefix(&args.prefix)?;
    let bytes = std::fs::metadata(&args.prefix)
        .map_err(Error::io(&args.prefix))?
        .len();
    let (o, s) = (prefix.origin(), prefix.shape());
    if args.json {
        let report = json!({
            "origin": o,
            "shape": s,
            "dtype": dtype,
            "k_rope": prefix.k_rope(),
            "rope": prefix.rope(),
            "rope_positions": prefix.positions(),
            "next_pos": prefix.next_pos(),
            "content_id": prefix.content_id(),
            "source_ids": prefix.source_ids(),
            "bytes": bytes,
        });
        return write_stdout(&format!("{report}\n"));
    }
    let mut lines = vec![
        ("method", o.method.name().to_owned()),
        ("model", o.model.name.clone()),
        ("architecture", o.model.architecture.clone()),
        ("fingerprint", o.model.fingerprint.clone()),
    ];
    if let Some(adapter) = &o.adapter {
        lines.push(("adapter", adapter.clone()));
    }
    if let Some(by) = &o.kept_by {
        lines.push(("kept by", by.clone()));
    }
    let first = prefix.positions().iter().min().copied().unwrap_or(0);
    let last = prefix.positions().iter().max().copied().unwrap_or(0);
    lines.extend([
        (
            "text",
            format!("{} tokens in {} pieces", o.source_tokens, o.pieces),
        ),
        ("text sha256", o.source_sha256.clone()),
        ("content id", prefix.content_id()),
        (
            "k and v",
            format!(
                "{} layers, {} heads, {} rows of {}, {}",
                s.layers,
                s.kv_heads,
                s.tokens,
                s.head_dim,
                dtype.name()
            ),
        ),
        ("k rope", prefix.k_rope().name().to_owned()),
    ]);
    if let Some(rope) = prefix.rope() {
        let scaling = match &rope.scaling {
            RopeScaling::None => String::new(),
            scaling => format!(", stretched: {}", json!(scaling)),
        };
        lines.push(("rope", format!("theta {}{scaling}", rope.theta)));
    }
    lines.extend([
        ("positions", format!("{first} to {last}")),
        ("next position", prefix.next_pos().to_string()),
        ("bytes", bytes.to_string()),
    ]);
    let text: String = lines
        .iter()
        .map(|(name, value)| {
            // A file's strings may hold anything.
            format!("{name:<14}{}\n", one_line(value))
        })
        .collect();
    write_stdout(&text)
}
