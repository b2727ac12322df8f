//! A scorer and a tokenizer without a model: what holds for any scores needs none.
#![allow(dead_code)]

use std::path::Path;
use std::sync::OnceLock;

use prefold::model::{Scorer, Session};
use prefold::text::Tokenizer;
use serde_json::json;

/// Scores that depend on the ids alone. Whether a budget is kept must not depend on the scores, so
/// prompts of 50,000 tokens need no model.
pub struct AnyScores;

impl Scorer for AnyScores {
    fn max_positions(&self) -> usize {
        2048
    }

    fn session(&self) -> prefold::Result<Box<dyn Session + '_>> {
        unreachable!("the exact budget keeps no cache")
    }

    fn score_tails(&self, sequences: &[(&[u32], usize)]) -> prefold::Result<Vec<Vec<f32>>> {
        // A step of a generator (splitmix64): neighbouring ids get unlike scores.
        let nll = |pair: &[u32]| {
            let mut x =
                (u64::from(pair[0]) << 32 | u64::from(pair[1])).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (x >> 52) as f32 / 256.0
        };
        Ok(sequences
            .iter()
            .map(|(ids, from)| {
                assert!(ids.len() <= self.max_positions());
                ids.windows(2)
                    .skip(from.saturating_sub(1))
                    .map(nll)
                    .collect()
            })
            .collect())
    }
}

/// A tokenizer of 256 tokens, one a byte.
pub fn byte_tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let printable = |b: &u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let mut others = 0x100u32..;
        let vocab: serde_json::Map<String, serde_json::Value> = (0..=255u8)
            .map(|b| {
                let code = match printable(&b) {
                    true => u32::from(b),
                    false => others.next().expect("endless"),
                };
                (char::from_u32(code).expect("a character").to_string(), b.into())
            })
            .collect();
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        });
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bytes-{}.json", std::process::id()));
        std::fs::write(&path, json.to_string()).expect("writes");
        Tokenizer::from_file(&path).expect("a tokenizer")
    })
}
