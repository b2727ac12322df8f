//! BERT's WordPiece from a GGUF's vocabulary, as the `tokenizer.json` that it was made of.

use serde_json::{Map, Value, json};

use super::vocab::GgufVocab;
use crate::error::{Error, Result};

/// In a GGUF this stands before what begins a word, and nothing before what continues one; in a
/// `tokenizer.json` it is the other way round, with [`CONTINUES`].
const BEGINS: char = '\u{2581}';
const CONTINUES: &str = "##";
/// `tokenizer.ggml.token_type` of unknown and of control tokens, whose names are left as they are.
const SPECIAL: [i32; 2] = [2, 3];

/// The `tokenizer.json` of a vocabulary whose model is `bert`.
///
/// The file does not say whether text is lower-cased: a vocabulary that has capital letters is of a model that
/// reads them.
///
/// # Errors
/// [`Error::Input`] for tokens of one name, and where one of `[CLS]`, `[SEP]` and `[UNK]` is missing.
pub(super) fn tokenizer_json(vocab: &GgufVocab) -> Result<Value> {
    const TOKENS: &str = "tokenizer.ggml.tokens";
    let mut ids = Map::new();
    let mut added = Vec::new();
    let mut cased = false;
    for (id, token) in vocab.tokens.iter().enumerate() {
        let kind = vocab.token_types.get(id);
        let special = kind.is_some_and(|kind| SPECIAL.contains(kind))
            || ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].contains(&token.as_str());
        let name = match token.strip_prefix(BEGINS) {
            _ if special => token.clone(),
            Some(rest) => rest.to_owned(),
            None => format!("{CONTINUES}{token}"),
        };
        if special {
            added.push(json!({
                "id": id, "content": name, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false,
            }));
        } else {
            // `[unused1]` is lower case.
            cased |= token.chars().any(char::is_uppercase);
        }
        if let Some(first) = ids.insert(name.clone(), id.into()) {
            return Err(Error::input(
                TOKENS,
                format!("ids {first} and {id} are both {name:?}"),
            ));
        }
    }
    let id = |name: &str| {
        let found = ids.get(name).and_then(Value::as_u64);
        found.ok_or_else(|| Error::input(TOKENS, format!("has no {name}, as BERT's have")))
    };
    let (first, last, _) = (id("[CLS]")?, id("[SEP]")?, id("[UNK]")?);
    let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let text = |which: &str, kind: u32| json!({"Sequence": {"id": which, "type_id": kind}});
    let end = json!({"SpecialToken": {"id": "[SEP]", "type_id": 1}});
    Ok(json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
            "lowercase": !cased,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special("[CLS]"), text("A", 0), special("[SEP]")],
            "pair": [special("[CLS]"), text("A", 0), special("[SEP]"), text("B", 1), end],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [first], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [last], "tokens": ["[SEP]"]},
            },
        },
        "decoder": {"type": "WordPiece", "prefix": CONTINUES, "cleanup": true},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": CONTINUES,
            "max_input_chars_per_word": 100, "vocab": ids,
        },
    }))
}
