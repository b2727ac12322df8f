//! BERT's WordPiece from a GGUF's vocabulary, as the `tokenizer.json` that it was made of.

use serde_json::{Map, Value, json};

use super::vocab::{GgufVocab, TokenType, token_types, twice};
use crate::error::{Error, Result};

/// In a GGUF this stands before what begins a word, and nothing before what continues one; in a
/// `tokenizer.json` it is the reverse, with [`CONTINUES`].
const BEGINS: char = '\u{2581}';
const CONTINUES: &str = "##";
/// One in so many tokens with a capital letter makes a vocabulary one of text as it is. Lower-cased ones have a
/// few, as `ℝ`.
const CASED: usize = 100;

/// The `tokenizer.json` of a vocabulary whose model is `bert`.
///
/// # Errors
/// [`Error::Format`] for tokens of one name, for types of another number than tokens or unknown ones, and where
/// one of `[CLS]`, `[SEP]` and `[UNK]` is missing.
pub(super) fn tokenizer_json(vocab: &GgufVocab) -> Result<Value> {
    const TOKENS: &str = "tokenizer.ggml.tokens";
    let types = token_types(&vocab.token_types, vocab.tokens.len())?;
    let mut ids = Map::new();
    let mut specials = Vec::new();
    let mut capitals = 0;
    for (id, (token, kind)) in vocab.tokens.iter().zip(types).enumerate() {
        // Some files pad with nameless tokens; no text becomes those.
        if token.is_empty() {
            continue;
        }
        // Their names stand as they are, whatever type the file gives them.
        let special = matches!(kind, TokenType::Control | TokenType::Unknown)
            || ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].contains(&token.as_str());
        let users = kind == TokenType::UserDefined;
        let name = match token.strip_prefix(BEGINS) {
            _ if special => token.clone(),
            Some(rest) => rest.to_owned(),
            None if users => token.clone(),
            None => format!("{CONTINUES}{token}"),
        };
        if special || users {
            specials.push(added(id, &name, special));
        } else if kind == TokenType::Normal && token.contains(|c: char| c.is_ascii_uppercase()) {
            capitals += 1;
        }
        if let Some(first) = ids.insert(name.clone(), id.into()) {
            return Err(twice(&name, first, id));
        }
    }
    let cased = capitals * CASED > vocab.tokens.len();
    let lowercase = vocab.lowercase.unwrap_or(!cased);
    let id = |name: &str| {
        let found = ids.get(name).and_then(Value::as_u64);
        found.ok_or_else(|| Error::format(TOKENS, format!("has no {name}, as BERT's have")))
    };
    let (first, last, _) = (id("[CLS]")?, id("[SEP]")?, id("[UNK]")?);
    let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let text = |which: &str, kind: u32| json!({"Sequence": {"id": which, "type_id": kind}});
    let end = json!({"SpecialToken": {"id": "[SEP]", "type_id": 1}});
    Ok(json!({
        "version": "1.0",
        "added_tokens": specials,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": vocab.strip_accents, "lowercase": lowercase,
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

/// An entry of `added_tokens`: a special token, or one that a user defined.
pub(super) fn added(id: usize, name: &str, special: bool) -> Value {
    json!({
        "id": id, "content": name, "special": special, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": !special,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lowercases(words: &[&str], change: impl Fn(&mut GgufVocab)) -> bool {
        let mut tokens: Vec<String> = ["[CLS]", "[SEP]", "[UNK]"].map(String::from).into();
        tokens.extend((0..300).map(|i| format!("{BEGINS}w{i}")));
        tokens.extend(words.iter().map(|word| format!("{BEGINS}{word}")));
        let mut vocab = GgufVocab {
            model: "bert".into(),
            tokens,
            ..GgufVocab::default()
        };
        change(&mut vocab);
        let json = tokenizer_json(&vocab).unwrap();
        json["normalizer"]["lowercase"].as_bool().unwrap()
    }

    #[test]
    fn what_the_file_says_of_capitals_counts_before_what_the_vocabulary_looks_like() {
        // bert-base-uncased has this one, which is a capital letter to Unicode.
        assert!(lowercases(&["\u{211d}", "[PAD30522]"], |_| ()));
        assert!(!lowercases(&["The", "A", "Paris", "Monday"], |_| ()));
        assert!(!lowercases(&[], |vocab| vocab.lowercase = Some(false)));
        assert!(lowercases(&["The", "A", "Paris", "Monday"], |vocab| {
            vocab.lowercase = Some(true);
        }));
    }

    #[test]
    fn a_vocabulary_that_contradicts_itself_is_refused() {
        let vocab = |tokens: &[&str], token_types: Vec<i32>| GgufVocab {
            model: "bert".into(),
            tokens: tokens.iter().map(|token| token.to_string()).collect(),
            token_types,
            ..GgufVocab::default()
        };
        let good = ["[CLS]", "[SEP]", "[UNK]", "", "", "ing", "\u{2581}the"];
        let json = tokenizer_json(&vocab(&good, vec![3, 3, 3, 5, 5, 1, 4])).unwrap();
        assert_eq!(json["model"]["vocab"]["##ing"], 5);
        assert_eq!(json["model"]["vocab"]["the"], 6);
        assert_eq!(json["added_tokens"][3]["special"], false);
        for (tokens, types, part) in [
            (&good[..2], vec![], "[UNK]"),
            (&good[..], vec![1, 1], "2 entries"),
            (&["[CLS]", "[SEP]", "[UNK]", "##a", "a"], vec![], "####a"),
        ] {
            match tokenizer_json(&vocab(tokens, types)) {
                Err(error) => assert!(error.to_string().contains(part), "{error}"),
                // `##a` is a name of its own here.
                Ok(json) => assert_eq!(json["model"]["vocab"][part], 3),
            }
        }
        let twice = vocab(&["[CLS]", "[SEP]", "[UNK]", "a", "a"], vec![]);
        let error = tokenizer_json(&twice).unwrap_err().to_string();
        assert!(error.contains("ids 3 and 4"), "{error}");
    }
}
