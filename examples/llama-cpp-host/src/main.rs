//! A Rust host on llama.cpp (crate `llama-cpp-2`) that continues after a prefix of prefold:
//!
//! ```text
//! prefold export --to llama.cpp prefix.safetensors -o slot.bin
//! llama-cpp-host model.gguf slot.bin '[1, 2, 3]' 12
//! ```
//!
//! prints the likeliest ids after the prefix and those of a question, as JSON.

use std::error::Error;
use std::num::NonZeroU32;

use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;

const CONTEXT: u32 = 2048;

fn run(model: &str, slot: &str, question: &str, count: usize) -> Result<Vec<i32>, Box<dyn Error>> {
    let question: Vec<LlamaToken> = question
        .trim_matches(['[', ']'])
        .split(',')
        .map(|id| id.trim().parse().map(LlamaToken))
        .collect::<Result<_, _>>()?;
    let mut backend = LlamaBackend::init()?;
    backend.void_logs();
    let model = LlamaModel::load_from_file(&backend, model, &LlamaModelParams::default())?;
    // A slot without a template is for flash attention and a cache of f16, llama.cpp's own defaults.
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(CONTEXT))
        // Its threads wait for each other in a loop: more than there are idle cores make it slow.
        .with_n_threads(1)
        .with_n_threads_batch(1)
        .with_type_k(KvCacheType::F16)
        .with_type_v(KvCacheType::F16)
        .with_flash_attention_policy(llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_ENABLED);
    let mut context = model.new_context(&backend, params)?;

    context.state_seq_load_file(slot, 0, CONTEXT as usize)?;
    let mut position = context.kv_cache_seq_pos_max(0) + 1;
    let mut batch = LlamaBatch::new(question.len(), 1);
    for (i, &id) in question.iter().enumerate() {
        batch.add(id, position, &[0], i + 1 == question.len())?;
        position += 1;
    }
    let mut ids = Vec::new();
    loop {
        context.decode(&mut batch)?;
        let logits = context.get_logits_ith(batch.n_tokens() - 1);
        let best = (0..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1));
        let (id, _) = best.ok_or("the model has no vocabulary")?;
        ids.push(id);
        if ids.len() >= count {
            return Ok(ids);
        }
        batch.clear();
        batch.add(LlamaToken(id), position, &[0], true)?;
        position += 1;
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let [model, slot, question, count] = &given[..] else {
        return Err("llama-cpp-host MODEL SLOT QUESTION-IDS COUNT".into());
    };
    println!("{:?}", run(model, slot, question, count.parse()?)?);
    Ok(())
}
