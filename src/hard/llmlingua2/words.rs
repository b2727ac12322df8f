//! Words of pieces, with the probability that each is kept (`__merge_token_to_word`).

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use super::super::options::TokenToWord;
use super::forced::Forced;
use super::percentile::Probability;
use crate::model::config::Family;
use crate::text::Pieces;

/// Python's `string.punctuation`.
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";

/// Bytes within which a word is looked for: what the tokenizer changed or did not know lies between two words.
const FARTHEST: usize = 4096;

/// How pieces make words.
pub(super) struct Rules<'a> {
    pub family: Family,
    pub pieces: &'a Pieces,
    pub forced: &'a Forced<'a>,
    /// Keep every token with a digit.
    pub digits: bool,
}

/// The words of a chunk.
#[derive(Default)]
pub(super) struct Words {
    /// As the tokenizer marks their beginning.
    pub texts: Vec<String>,
    /// Of each token of each word, 1 where it must stay.
    tokens: Vec<Vec<Probability>>,
    /// As the model says.
    plain: Vec<Vec<Probability>>,
}

impl Words {
    /// The probability of each word.
    pub(super) fn worth(&self, method: TokenToWord) -> Vec<Probability> {
        self.tokens.iter().map(|tokens| method.of(tokens)).collect()
    }

    /// The same whatever must stay.
    pub(super) fn plain(&self, method: TokenToWord) -> impl Iterator<Item = f32> {
        self.plain
            .iter()
            .map(move |tokens| method.of(tokens).value() as f32)
    }
}

impl Rules<'_> {
    /// Merges pieces and the probability of each; special tokens and unknown ones vanish.
    pub(super) fn merge(&self, pieces: &[String], probabilities: &[f32]) -> Words {
        let mut words = Words::default();
        for (piece, &probability) in pieces.iter().zip(probabilities) {
            let added = self.pieces.is_added(piece);
            if !added && (self.is_special(piece) || self.pieces.id(piece).is_none()) {
                continue;
            }
            let pure = self.pure(piece);
            let model = Probability::Single(probability);
            // A continuation without a word begins one, where the reference fails.
            if self.begins(piece) || words.texts.is_empty() {
                let stays = self.forced.has(pure) || self.forced.maps_to(pure);
                let text = self.forced.restored(piece);
                let stays = stays || self.digits && has_digit(&text);
                words.tokens.push(vec![kept(stays, model)]);
                words.plain.push(vec![model]);
                words.texts.push(text);
            } else {
                let last = words.texts.len() - 1;
                words.texts[last].push_str(pure);
                let stays = self.digits && has_digit(piece);
                words.tokens[last].push(kept(stays, model));
                // The reference repeats the first token's here, so that contexts are ranked by the first
                // tokens of their words alone.
                let first = words.plain[last][0];
                words.plain[last].push(first);
            }
        }
        words
    }

    fn is_special(&self, piece: &str) -> bool {
        match self.family {
            Family::XlmRoberta => ["<s>", "</s>", "<unk>", "<pad>", "<mask>"].contains(&piece),
            // Its padding is not special: its id, 0, counts as false.
            _ => ["[CLS]", "[SEP]", "[UNK]", "[MASK]"].contains(&piece),
        }
    }

    /// A piece without its mark, however often that stands there.
    fn pure<'p>(&self, piece: &'p str) -> &'p str {
        match self.family {
            Family::XlmRoberta => piece.trim_start_matches('\u{2581}'),
            _ => piece.trim_start_matches('#'),
        }
    }

    fn begins(&self, piece: &str) -> bool {
        match self.family {
            // Anything that stands in the list of punctuation as it is written, `()` too.
            Family::XlmRoberta => {
                PUNCTUATION.contains(piece)
                    || self.forced.has(piece)
                    || self.forced.maps_to(piece)
                    || piece.starts_with('\u{2581}')
            }
            _ => {
                let pure = self.pure(piece);
                !piece.starts_with("##") || self.forced.has(pure) || self.forced.maps_to(pure)
            }
        }
    }
}

fn kept(stays: bool, model: Probability) -> Probability {
    if stays {
        Probability::Double(1.0)
    } else {
        model
    }
}

fn has_digit(text: &str) -> bool {
    static DIGIT: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\d").expect("a constant pattern"));
    DIGIT.is_match(text)
}

/// The words that the reference names where a text stays whole.
pub(super) fn regex_words(text: &str) -> Vec<String> {
    // Python's `\w` has no marks.
    const PATTERN: &str = r#"[\p{L}\p{N}_]+|[<>=/!@#$%^&*()?":{}|\\`~;+-]"#;
    static WORDS: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(PATTERN).expect("a constant pattern"));
    WORDS
        .find_iter(text)
        .map(|word| word.as_str().to_owned())
        .collect()
}

/// The bytes of `text` that kept words stand on, where they are found in their order; neighbours with white
/// space alone between them in one.
pub(super) fn spans<'w>(
    text: &str,
    words: impl Iterator<Item = (&'w String, bool)>,
) -> Vec<Range<usize>> {
    let mut spans: Vec<Range<usize>> = Vec::new();
    let (mut done, mut joins) = (0, false);
    for (word, kept) in words {
        let bare = word.trim_start_matches("##");
        let near = &text[done..text.floor_char_boundary(done + FARTHEST)];
        let Some(found) = near.find(bare).filter(|_| !bare.is_empty()) else {
            joins &= kept;
            continue;
        };
        let span = done + found..done + found + bare.len();
        let blank = text[done..span.start].trim().is_empty();
        match spans.last_mut().filter(|_| joins && kept && blank) {
            Some(last) => last.end = span.end,
            None if kept => spans.push(span.clone()),
            None => {}
        }
        (done, joins) = (span.end, kept);
    }
    spans
}
