//! `prefold inspect`: what a prefix or a model holds.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::files::regular_file;
use crate::model::weights::Weights;
use crate::prefix::RopeScaling;
use serde_json::json;

use super::failure::{Outcome, one_line};
use super::files::write_stdout;
use super::soft::read_prefix;

/// Where a KV prefix came from, and what is in it; or the shape of a model
#[derive(clap::Args)]
pub struct Args {
    /// The prefix; or a GGUF file or Hugging Face folder, of which few bytes are read
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    match is_model(&args.file) {
        true => model(&args.file, args.json),
        false => prefix(&args.file, args.json),
    }
}

/// Whether a path is a model's by its first bytes, or by the name of its configuration.
fn is_model(path: &Path) -> bool {
    let mut magic = [0; 4];
    // Opening a pipe would wait for its writer.
    if regular_file(path).is_err() {
        return path.join("config.json").is_file();
    }
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && &magic == b"GGUF"
}

fn model(path: &Path, as_json: bool) -> Outcome {
    let weights = Weights::open(path)?;
    let config = weights.config();
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for name in weights.names() {
        *kinds
            .entry(weights.get(name)?.dtype.name().to_owned())
            .or_default() += 1;
    }
    if as_json {
        let report = json!({
            "model": {
                "architecture": config.family.name(),
                "parameters": weights.parameters(),
                "layers": config.layers,
                "hidden": config.hidden,
                "heads": config.heads,
                "kv_heads": config.kv_heads,
                "head_dim": config.head_dim,
                "ffn": config.ffn,
                "vocab": config.vocab,
                "max_positions": config.max_positions,
                "sliding_window": config.sliding_window,
                "rope": config.rope(),
                "bos": config.bos,
                "eos": config.eos,
                "tensors": kinds,
                "fingerprint": weights.fingerprint(),
            },
        });
        return write_stdout(&format!("{report}\n"));
    }
    let token = |id: Option<u32>| id.map_or("none".into(), |id| id.to_string());
    let tensors = kinds.iter().map(|(kind, count)| format!("{count} {kind}"));
    let mut lines = vec![
        ("architecture", config.family.name().to_owned()),
        ("parameters", weights.parameters().to_string()),
        (
            "layers",
            format!("{}, hidden size {}", config.layers, config.hidden),
        ),
        (
            "heads",
            format!(
                "{}, size {}; {} for k and v",
                config.heads, config.head_dim, config.kv_heads
            ),
        ),
        ("vocabulary", config.vocab.to_string()),
        ("context", format!("{} tokens", config.max_positions)),
    ];
    if let Some(rope) = config.rope() {
        lines.push(("rope", rope_line(rope.theta, &rope.scaling)));
    }
    if let Some(window) = config.sliding_window {
        lines.push(("window", format!("{window} tokens")));
    }
    lines.extend([
        (
            "bos, eos",
            format!("{}, {}", token(config.bos), token(config.eos)),
        ),
        ("tensors", tensors.collect::<Vec<_>>().join(", ")),
        ("fingerprint", weights.fingerprint()),
    ]);
    print(&lines)
}

fn rope_line(theta: f32, scaling: &RopeScaling) -> String {
    match scaling {
        RopeScaling::None => format!("theta {theta}"),
        scaling => format!("theta {theta}, stretched: {}", json!(scaling)),
    }
}

fn prefix(path: &Path, as_json: bool) -> Outcome {
    let (prefix, dtype) = read_prefix(path)?;
    let bytes = std::fs::metadata(path).map_err(Error::io(path))?.len();
    let (o, s) = (prefix.origin(), prefix.shape());
    if as_json {
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
        lines.push(("rope", rope_line(rope.theta, &rope.scaling)));
    }
    lines.extend([
        ("positions", format!("{first} to {last}")),
        ("next position", prefix.next_pos().to_string()),
        ("bytes", bytes.to_string()),
    ]);
    print(&lines)
}

fn print(lines: &[(&str, String)]) -> Outcome {
    let text: String = lines
        .iter()
        .map(|(name, value)| {
            // A file's strings may hold anything.
            format!("{name:<14}{}\n", one_line(value))
        })
        .collect();
    write_stdout(&text)
}
