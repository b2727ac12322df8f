//! Words in common: Okapi BM25 over words as a reader sees them.
//!
//! The reference's `bm25` splits at spaces and nothing else (see [`crate::hard::rank_text`]); here
//! case, punctuation, English endings and English function words do not count, and scripts that put no
//! space between words are taken by the character.

use std::collections::{HashMap, HashSet};

use super::units::unspaced;

/// Saturation and length normalisation of BM25.
const K1: f64 = 1.5;
const B: f64 = 0.75;

/// English words that say nothing about what a text is on. Other languages rely on their rarity alone.
const FUNCTION_WORDS: &str = " a about after all also an and any are as at be because been before being \
    between both but by can could did do does during each for from had has have he her him his how i \
    if in into is it its more most no nor not of on one only or other our out over own same she so \
    some such than that the their them then there these they this those through to too under until up \
    very was we were what when where which while who whom whose why will with would you your ";

/// The words of a text that count, in order.
pub(super) fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let lower = text.to_lowercase();
    for run in lower.split(|c: char| !c.is_alphanumeric()) {
        if run.chars().any(unspaced) {
            words.extend(run.chars().map(String::from));
        } else if !run.is_empty() && !FUNCTION_WORDS.contains(&format!(" {run} ")) {
            words.push(stem(run).to_string());
        }
    }
    words
}

/// A word without the commonest English endings, if enough of it is left.
fn stem(word: &str) -> &str {
    ["ing", "ed", "es", "s", "ly"]
        .iter()
        .filter_map(|ending| word.strip_suffix(ending))
        .find(|rest| rest.chars().count() >= 4)
        .unwrap_or(word)
}

/// How well each text answers to a query, by Okapi BM25 with an idf that is never negative.
pub(super) fn bm25(texts: &[Vec<String>], query: &[String]) -> Vec<f64> {
    let n = texts.len() as f64;
    let mean = texts.iter().map(Vec::len).sum::<usize>() as f64 / n.max(1.0);
    let query: HashSet<&str> = query.iter().map(String::as_str).collect();
    let counts: Vec<HashMap<&str, f64>> = texts
        .iter()
        .map(|text| {
            let mut counts = HashMap::new();
            for word in text.iter().filter(|w| query.contains(w.as_str())) {
                *counts.entry(word.as_str()).or_insert(0.0) += 1.0;
            }
            counts
        })
        .collect();
    let mut holding: HashMap<&str, f64> = HashMap::new();
    for word in counts.iter().flat_map(HashMap::keys) {
        *holding.entry(word).or_insert(0.0) += 1.0;
    }
    counts
        .iter()
        .zip(texts)
        .map(|(counts, text)| {
            let length = K1 * (1.0 - B + B * text.len() as f64 / mean.max(1.0));
            // Summed in the order of the words, so that the same texts always give the same bits.
            let mut terms: Vec<(&str, f64)> = counts.iter().map(|(w, n)| (*w, *n)).collect();
            terms.sort_unstable_by(|a, b| a.0.cmp(b.0));
            terms
                .into_iter()
                .map(|(word, count)| {
                    let df = holding[word];
                    let idf = (1.0 + (n - df + 0.5) / (df + 0.5)).ln();
                    idf * count * (K1 + 1.0) / (count + length)
                })
                .sum()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_a_text_is_on() {
        assert_eq!(
            words("The owner's values were moved!"),
            ["owner", "valu", "mov"]
                .map(|w| w)
                .to_vec()
                .iter()
                .map(|w| w.to_string())
                .collect::<Vec<_>>()
        );
        assert_eq!(words("東京 Tower"), ["東", "京", "tower"]);
    }

    #[test]
    fn rare_words_weigh_more_and_long_texts_less() {
        let texts: Vec<Vec<String>> = [
            "cat dog",
            "cat bird",
            "cat cat fish and very long tail of words",
        ]
        .iter()
        .map(|t| words(t))
        .collect();
        let scores = bm25(&texts, &words("cat dog"));
        assert!(scores[0] > scores[1] && scores[0] > scores[2], "{scores:?}");
        assert_eq!(bm25(&[], &words("x")), Vec::<f64>::new());
        assert_eq!(bm25(&texts, &words("zebra")), [0.0, 0.0, 0.0]);
    }
}
