//! The library in one screen: open a model, score a text, compress a prompt.
//!
//! `cargo run --release --example compress [MODEL]`, after `make model`.

use std::path::Path;

use prefold::hard::Request;
use prefold::{Device, Engine, Result};

fn main() -> Result<()> {
    let model = std::env::args_os()
        .nth(1)
        .unwrap_or_else(|| ".cache/models/SmolLM2-135M-Instruct-Q4_1.gguf".into());
    let engine: Box<dyn Engine> = prefold::open(Path::new(&model), Device::Auto)?;

    let sentence = "The owl flew over the quiet barn.";
    let ids = engine.tokenizer()?.encode(sentence, true, false)?.ids;
    let nll = engine.score(&ids)?;
    let mean = nll.iter().sum::<f32>() / nll.len() as f32;
    println!("{} tokens, perplexity {:.1}", ids.len(), mean.exp());

    let request = Request::new([
        include_str!("peps/pep-0418.txt"),
        include_str!("peps/pep-0446.txt"),
    ])
    .with_question(include_str!("peps/question.txt").trim_end())
    .with_rate(0.3);
    let shorter = engine.compress(&request)?;
    println!(
        "{} -> {} tokens:\n\n{}",
        shorter.tokens_before, shorter.tokens_after, shorter.text
    );
    Ok(())
}
