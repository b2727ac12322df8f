//! The library in one screen: open a model, score a text, compress a prompt.
//!
//! `cargo run --release --example compress [MODEL]`, after `make model`.

use std::path::Path;

use prefold::hard::{Options, Prompt};
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

    let prompt = Prompt {
        context: vec![
            include_str!("peps/pep-0418.txt").into(),
            include_str!("peps/pep-0446.txt").into(),
        ],
        question: include_str!("peps/question.txt").trim_end().into(),
        ..Prompt::default()
    };
    let options = Options {
        rate: 0.3,
        ..Options::default()
    };
    let shorter = engine.compress(&prompt, &options)?;
    println!(
        "{} -> {} tokens:\n\n{}",
        shorter.origin_tokens, shorter.compressed_tokens, shorter.compressed_prompt
    );
    Ok(())
}
