//! XLM-RoBERTa's Unigram from a GGUF's vocabulary, as the `tokenizer.json` that it was made of.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::vocab::{GgufVocab, TokenType, token_types, twice};
use super::word_piece::added;
use crate::error::{Error, Result};

/// What SentencePiece puts for a space.
const SPACE: &str = "\u{2581}";

/// The `tokenizer.json` of a vocabulary whose model is `t5`, as llama.cpp calls Unigram.
///
/// Spaces at the ends of a text and beside others are dropped, as SentencePiece does for this family;
/// `remove_extra_whitespaces` is not read: some converters write another setting there.
///
/// # Errors
/// [`Error::Format`] for nameless tokens or two of one name, for scores or types of another number than tokens,
/// for a score that is not finite, and where `<s>`, `</s>` or the unknown token is missing.
pub(super) fn tokenizer_json(vocab: &GgufVocab) -> Result<Value> {
    const TOKENS: &str = "tokenizer.ggml.tokens";
    let count = vocab.tokens.len();
    let types = token_types(&vocab.token_types, count)?;
    if vocab.scores.len() != count {
        return Err(Error::format(
            "tokenizer.ggml.scores",
            format!("has {} entries for {count} tokens", vocab.scores.len()),
        ));
    }
    if let Some(id) = vocab.scores.iter().position(|score| !score.is_finite()) {
        return Err(Error::format(
            "tokenizer.ggml.scores",
            format!("token {id} has the score {}", vocab.scores[id]),
        ));
    }
    // Padding rows are left out: their low scores would lower that of the unknown token.
    let used = types.iter().rposition(|&kind| kind != TokenType::Unused);
    let used = used.map_or(0, |last| last + 1);
    let min = std::iter::zip(&vocab.scores, &types)
        .filter(|&(_, kind)| *kind == TokenType::Normal)
        .map(|(&score, _)| score)
        .fold(0.0, f32::min);
    let mut ids = std::collections::HashMap::with_capacity(used);
    let mut pieces = Vec::with_capacity(used);
    let mut specials = Vec::new();
    let mut bytes = false;
    for (id, (token, kind)) in vocab.tokens.iter().zip(types).take(used).enumerate() {
        let score = match kind {
            TokenType::Unused => min,
            _ => vocab.scores[id],
        };
        if token.is_empty() {
            return Err(Error::format(TOKENS, format!("token {id} has no name")));
        }
        if let Some(first) = ids.insert(token.as_str(), id) {
            return Err(twice(token, first, id));
        }
        bytes |= kind == TokenType::Byte;
        let special = matches!(kind, TokenType::Control | TokenType::Unknown);
        if special || kind == TokenType::UserDefined {
            specials.push(added(id, token, special));
        }
        pieces.push(json!([token, score]));
    }
    let id = |name: &str| {
        let found = ids.get(name).copied();
        found.ok_or_else(|| {
            Error::format(
                TOKENS,
                format!("has no {name}, which XLM-RoBERTa's vocabularies have"),
            )
        })
    };
    let (first, last) = (id("<s>")?, id("</s>")?);
    let unknown = match vocab.unk {
        Some(id) if (id as usize) < used => id as usize,
        Some(id) => {
            return Err(Error::format(
                "tokenizer.ggml.unknown_token_id",
                format!("is {id}, but there are {used} tokens"),
            ));
        }
        None => id("<unk>")?,
    };
    let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let text = |which: &str| json!({"Sequence": {"id": which, "type_id": 0}});
    let end = || special("</s>");
    let normalizer = match &vocab.char_map[..] {
        [] => Value::Null,
        map => {
            json!({"type": "Precompiled", "precompiled_charsmap": BASE64_STANDARD.encode(map)})
        }
    };
    let spaces = json!({
        "type": "Metaspace", "replacement": SPACE, "split": true,
        "prepend_scheme": if vocab.add_space_prefix == Some(false) { "never" } else { "always" },
    });
    Ok(json!({
        "version": "1.0",
        "added_tokens": specials,
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, spaces]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special("<s>"), text("A"), end()],
            "pair": [special("<s>"), text("A"), end(), end(), text("B"), end()],
            "special_tokens": {
                "<s>": {"id": "<s>", "ids": [first], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [last], "tokens": ["</s>"]},
            },
        },
        "decoder": spaces,
        "model": {"type": "Unigram", "unk_id": unknown, "byte_fallback": bytes, "vocab": pieces},
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocab(change: impl FnOnce(&mut GgufVocab)) -> GgufVocab {
        let tokens = ["<s>", "<pad>", "</s>", "<unk>", "\u{2581}a", "b", "[PAD6]"];
        let mut vocab = GgufVocab {
            model: "t5".into(),
            tokens: tokens.map(String::from).into(),
            scores: vec![0.0, 0.0, 0.0, 0.0, -1.5, -2.0, -10000.0],
            token_types: vec![3, 3, 3, 2, 1, 1, 5],
            ..GgufVocab::default()
        };
        change(&mut vocab);
        vocab
    }

    #[test]
    fn padding_is_left_out_and_special_tokens_are_named() {
        let json = tokenizer_json(&vocab(|_| ())).unwrap();
        assert_eq!(json["model"]["vocab"].as_array().unwrap().len(), 6);
        assert_eq!(json["model"]["unk_id"], 3);
        assert_eq!(json["added_tokens"].as_array().unwrap().len(), 4);
        // Inside the table a token keeps its place.
        let json = tokenizer_json(&vocab(|v| v.token_types[4] = 5)).unwrap();
        assert_eq!(json["model"]["vocab"][4], json!(["\u{2581}a", -2.0]));
    }

    #[test]
    fn a_vocabulary_that_contradicts_itself_is_refused() {
        type Change = fn(&mut GgufVocab);
        let cases: [(Change, &str); 8] = [
            (|v| v.scores.truncate(3), "3 entries for 7 tokens"),
            (|v| v.scores[5] = f32::NAN, "token 5 has the score NaN"),
            (|v| v.tokens[5].clear(), "token 5 has no name"),
            (|v| v.tokens[5] = "<s>".into(), "ids 0 and 5"),
            (|v| v.tokens[2] = "end".into(), "has no </s>"),
            (|v| v.unk = Some(6), "unknown_token_id: is 6"),
            (|v| v.tokens[3] = "x".into(), "has no <unk>"),
            (|v| v.token_types.truncate(1), "1 entries"),
        ];
        for (change, part) in cases {
            let said = tokenizer_json(&vocab(change)).unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        }
        assert!(tokenizer_json(&GgufVocab::default()).is_err());
    }
}
