//! Words in common: Okapi BM25 over words as a reader sees them.
//!
//! The reference's `bm25` splits at spaces and nothing else (see [`crate::hard::rank_text`]); here
//! case, punctuation, English endings and English function words do not count, and scripts that put
//! no space between words are taken by pairs of characters.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::LazyLock;

use rust_stemmers::{Algorithm, Stemmer};

use super::units::unspaced;

/// Saturation and length normalisation of BM25.
const K1: f64 = 1.5;
const B: f64 = 0.75;

/// English words that do not say what a text is on. Other languages rely on rarity alone.
const FUNCTION_WORDS: &str = "a about after all also an and any are as at be because been before being \
    between both but by can could did do does during each for from had has have he her him his how i \
    if in into is it its more most no nor not of on one only or other our out over own same she so \
    some such than that the their them then there these they this those through to too under until up \
    very was we were what when where which while who whom whose why will with would you your";

/// A word by its hash: FNV-1a, the same on every machine.
pub(crate) type Term = u64;

/// Hashes a word.
pub(crate) fn term(word: &str) -> Term {
    word.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Calls `word` with each word of a text that counts, in order.
pub(crate) fn each_word(text: &str, mut word: impl FnMut(&str)) {
    static FUNCTION: LazyLock<HashSet<&str>> =
        LazyLock::new(|| FUNCTION_WORDS.split_whitespace().collect());
    let lower = text.to_lowercase();
    for run in lower.split(|c: char| !in_word(c)) {
        let ascii = run.is_ascii();
        // Marks alone join emoji.
        if run.is_empty() || !ascii && !run.contains(char::is_alphanumeric) {
            continue;
        }
        if !ascii && run.contains(unspaced) {
            pairs(run, &mut word);
        } else if !FUNCTION.contains(run) {
            word(&stem(run));
        }
    }
}

/// Takes a run of letters of which some are of scripts without spaces: those by overlapping pairs, one
/// that is alone by itself, and what is between as words.
fn pairs(run: &str, word: &mut impl FnMut(&str)) {
    let mut rest = run;
    while let Some(first) = rest.chars().next() {
        let dense = unspaced(first);
        let end = rest
            .find(|c: char| unspaced(c) != dense)
            .unwrap_or(rest.len());
        let part = &rest[..end];
        rest = &rest[end..];
        let starts: Vec<usize> = part.char_indices().map(|(at, _)| at).collect();
        if !dense || starts.len() == 1 {
            word(part);
            continue;
        }
        for pair in 0..starts.len() - 1 {
            word(&part[starts[pair]..*starts.get(pair + 2).unwrap_or(&part.len())]);
        }
    }
}

/// The words of a text that count, in order.
#[cfg(test)]
pub(crate) fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    each_word(text, |word| words.push(word.to_string()));
    words
}

/// The words of a text that count, in order, by their hashes.
pub(crate) fn terms(text: &str) -> Vec<Term> {
    let mut terms = Vec::with_capacity(text.len() / 8);
    each_word(text, |word| terms.push(term(word)));
    terms
}

/// A text without some of its words, whatever their endings.
pub(crate) fn without(text: &str, dropped: &HashSet<Term>) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let inside = in_word(first);
        let end = rest
            .find(|c: char| in_word(c) != inside)
            .unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        let mut found = false;
        if inside {
            each_word(run, |word| found |= dropped.contains(&term(word)));
        }
        if !found {
            kept.push_str(run);
        }
        rest = after;
    }
    kept
}

/// Calls `gram` with each run of four characters of a word and the borders around it.
pub(crate) fn each_gram(word: &str, mut gram: impl FnMut(Term)) {
    let mut bounded = String::with_capacity(word.len() + 2);
    bounded.push('#');
    bounded.push_str(word);
    bounded.push('#');
    let starts: Vec<usize> = bounded.char_indices().map(|(at, _)| at).collect();
    for first in 0..starts.len().saturating_sub(3) {
        let end = starts.get(first + 4).copied().unwrap_or(bounded.len());
        gram(term(&bounded[starts[first]..end]));
    }
}

/// The runs of four characters of the words of a text that count.
pub(crate) fn grams(text: &str) -> Vec<Term> {
    let mut grams = Vec::with_capacity(text.len());
    each_word(text, |word| each_gram(word, |gram| grams.push(gram)));
    grams
}

/// Characters of a word in another script, or with marks of another language, that count: most inflect
/// at the end, and the beginning tells words apart nearly as well as a stemmer does.
const PREFIX: usize = 5;

/// Bytes of the longest word that a stemmer is asked about: none of English is longer.
const LONGEST_STEMMED: usize = 40;

/// A word without its inflection, as far as its letters tell: ASCII by the Snowball stemmer for English (Porter
/// 2); other words keep their beginning, Arabic ones without the article.
fn stem(word: &str) -> Cow<'_, str> {
    static ENGLISH: LazyLock<Stemmer> = LazyLock::new(|| Stemmer::create(Algorithm::English));
    if word.is_ascii() {
        return match word.len() <= LONGEST_STEMMED {
            true => ENGLISH.stem(word),
            false => word.into(),
        };
    }
    let bare = ["وال", "بال", "لل", "ال"]
        .iter()
        .filter_map(|article| word.strip_prefix(article))
        .find(|rest| rest.chars().nth(2).is_some())
        .unwrap_or(word);
    match bare.char_indices().nth(PREFIX) {
        Some((end, _)) => bare[..end].into(),
        None => bare.into(),
    }
}

/// Whether a character is part of a word: letters, digits, and the marks that scripts of India, Arabic,
/// Hebrew and decomposed Latin put on them.
fn in_word(c: char) -> bool {
    c.is_alphanumeric()
        || matches!(c, '\u{300}'..='\u{36f}' | '\u{591}'..='\u{5c7}' | '\u{610}'..='\u{61a}'
            | '\u{64b}'..='\u{65f}' | '\u{670}' | '\u{200c}' | '\u{200d}')
        // The sign that mutes a vowel, and the dot, stand at one place in each block of an Indic script.
        || matches!(c, '\u{900}'..='\u{dff}' if matches!(u32::from(c) & 0x7f, 0x3c | 0x4d))
}

/// The words of a text without their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bag {
    /// Each word and how often it occurs, in the order of the hashes.
    counts: Vec<(Term, u32)>,
    /// Words in all.
    pub len: usize,
}

impl Bag {
    /// Counts words.
    pub fn new(terms: &[Term]) -> Self {
        let mut sorted = terms.to_vec();
        sorted.sort_unstable();
        let counts = sorted
            .chunk_by(|a, b| a == b)
            .map(|same| (same[0], same.len() as u32))
            .collect();
        Bag {
            counts,
            len: terms.len(),
        }
    }

    /// How often a word occurs.
    pub fn count(&self, term: Term) -> u32 {
        let found = self.counts.binary_search_by_key(&term, |&(term, _)| term);
        found.map_or(0, |at| self.counts[at].1)
    }

    /// Whether a word occurs.
    pub fn has(&self, term: Term) -> bool {
        self.count(term) > 0
    }

    /// Each different word.
    pub fn terms(&self) -> impl Iterator<Item = Term> + '_ {
        self.counts.iter().map(|&(term, _)| term)
    }
}

/// What a word weighs that `holding` of `of` texts have: an idf that is never negative.
pub(crate) fn idf(holding: usize, of: usize) -> f64 {
    let (holding, of) = (holding as f64, of as f64);
    libm::log(1.0 + (of - holding + 0.5) / (holding + 0.5))
}

/// What a word that occurs so often adds to the score of a text of `len` words, where the mean text
/// has `mean`.
pub(crate) fn saturated(count: u32, len: usize, mean: f64) -> f64 {
    let count = f64::from(count);
    let length = K1 * (1.0 - B + B * len as f64 / mean.max(1.0));
    count * (K1 + 1.0) / (count + length)
}

/// The mean length of texts.
pub(crate) fn mean_len<'b>(texts: impl ExactSizeIterator<Item = &'b Bag>) -> f64 {
    let n = texts.len().max(1) as f64;
    texts.map(|bag| bag.len).sum::<usize>() as f64 / n
}

/// How well each text answers to a query, by Okapi BM25. Summed in the order of the hashes, so that
/// the same texts always give the same bits.
pub(crate) fn bm25<'b>(
    texts: impl ExactSizeIterator<Item = &'b Bag> + Clone,
    query: &Bag,
) -> Vec<f64> {
    let n = texts.len();
    let mean = mean_len(texts.clone());
    let mut scores = vec![0.0; n];
    let mut counts = vec![0; n];
    for term in query.terms() {
        for (count, text) in counts.iter_mut().zip(texts.clone()) {
            *count = text.count(term);
        }
        let holding = counts.iter().filter(|&&count| count > 0).count();
        if holding == 0 {
            continue;
        }
        let idf = idf(holding, n);
        for ((score, &count), text) in scores.iter_mut().zip(&counts).zip(texts.clone()) {
            if count > 0 {
                *score += idf * saturated(count, text.len, mean);
            }
        }
    }
    scores
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_a_text_is_on() {
        assert_eq!(
            words("The keepers were walking quickly!"),
            ["keeper", "walk", "quick"]
        );
        assert_eq!(words("A red bus moved"), ["red", "bus", "move"]);
        assert_eq!(
            words("values value cities city"),
            ["valu", "valu", "citi", "citi"]
        );
        let long = "s".repeat(1_000_000);
        assert_eq!(words(&long), [long.as_str()]);
        assert_eq!(words("Библиотека библиотеки"), ["библи", "библи"]);
        assert_eq!(words("المكتبة مكتبة"), ["مكتبة", "مكتبة"]);
        assert_eq!(words("विद्यालय"), ["विद्य"]);
        assert_eq!(words("東京 Tower"), ["東京", "tower"]);
        assert_eq!(words("東京都の3人"), ["東京", "京都", "都の", "3", "人"]);
    }

    #[test]
    fn words_are_taken_out_with_their_inflections() {
        let dropped = terms("walking keeper").into_iter().collect();
        let text = "The Keepers walked; 東京's walkway, keeper!";
        assert_eq!(without(text, &dropped), "The  ; 東京's walkway, !");
        assert_eq!(without("", &dropped), "");
    }

    #[test]
    fn rare_words_weigh_more_and_long_texts_less() {
        let bag = |text: &str| Bag::new(&terms(text));
        let texts: Vec<Bag> = [
            "cat dog",
            "cat bird",
            "cat cat fish and very long tail of words",
        ]
        .map(bag)
        .to_vec();
        let scores = bm25(texts.iter(), &bag("cat dog"));
        assert!(scores[0] > scores[1] && scores[0] > scores[2], "{scores:?}");
        assert_eq!(bm25([].iter(), &bag("x")), Vec::<f64>::new());
        assert_eq!(bm25(texts.iter(), &bag("zebra")), [0.0, 0.0, 0.0]);
    }

    #[test]
    fn hashes_are_those_of_fnv() {
        assert_eq!(term(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(term("foobar"), 0x8594_4171_f739_67e8);
    }
}
