//! Ranking of contexts by their words alone, without a model: BM25 and compression distance.
//!
//! Both rank as the reference does with `rank_bm25` and Python's `gzip`; where scores tie, the
//! context that stands first ranks first.

use std::collections::HashMap;

#[cfg(feature = "gzip")]
use flate2::{Compress, Compression, FlushCompress, Status};

/// Indices of `corpus`, the best match of `query` first, by Okapi BM25.
pub fn bm25(corpus: &[&str], query: &str) -> Vec<usize> {
    let scores = bm25_scores(corpus, query);
    ranked(corpus.len(), |a, b| scores[b].total_cmp(&scores[a]))
}

/// The BM25 score of every text of `corpus`; words are what single spaces part.
///
/// Robertson's weights with k1 = 1.5 and b = 0.75. A word in more than half of the texts would weigh
/// less than nothing; it gets a quarter of the mean weight instead (Trotman et al. 2014, ATIRE).
pub fn bm25_scores(corpus: &[&str], query: &str) -> Vec<f64> {
    const K1: f64 = 1.5;
    const B: f64 = 0.75;
    let texts: Vec<WordCounts> = corpus.iter().map(|text| WordCounts::new(text)).collect();
    let words: usize = texts.iter().map(|t| t.len).sum();
    let mean_len = words as f64 / corpus.len() as f64;
    let weights = weights(&texts);
    let mut scores = vec![0.0; corpus.len()];
    for word in query.split(' ') {
        let Some(&weight) = weights.get(word) else {
            continue;
        };
        for (score, text) in scores.iter_mut().zip(&texts) {
            let count = text.count(word) as f64;
            let length = 1.0 - B + B * text.len as f64 / mean_len;
            *score += weight * (count * (K1 + 1.0) / (count + K1 * length));
        }
    }
    scores
}

/// How often each word of a text occurs.
struct WordCounts<'a> {
    /// In order of first occurrence, so that sums are the same on every run.
    words: Vec<(&'a str, usize)>,
    index: HashMap<&'a str, usize>,
    len: usize,
}

impl<'a> WordCounts<'a> {
    fn new(text: &'a str) -> Self {
        let mut counts = WordCounts {
            words: Vec::new(),
            index: HashMap::new(),
            len: 0,
        };
        for word in text.split(' ') {
            counts.len += 1;
            let next = counts.words.len();
            let at = *counts.index.entry(word).or_insert(next);
            if at == next {
                counts.words.push((word, 0));
            }
            counts.words[at].1 += 1;
        }
        counts
    }

    fn count(&self, word: &str) -> usize {
        self.index.get(word).map_or(0, |&at| self.words[at].1)
    }
}

/// The inverse document frequency of every word.
fn weights<'a>(texts: &[WordCounts<'a>]) -> HashMap<&'a str, f64> {
    const EPSILON: f64 = 0.25;
    let mut order = Vec::new();
    let mut holders: HashMap<&str, usize> = HashMap::new();
    for &(word, _) in texts.iter().flat_map(|t| &t.words) {
        let count = holders.entry(word).or_insert(0);
        *count += 1;
        if *count == 1 {
            order.push(word);
        }
    }
    let mut sum = 0.0;
    let mut weights: Vec<(&str, f64)> = Vec::with_capacity(order.len());
    for word in order {
        let with = holders[word] as f64;
        let weight = (texts.len() as f64 - with + 0.5).ln() - (with + 0.5).ln();
        sum += weight;
        weights.push((word, weight));
    }
    let floor = EPSILON * (sum / weights.len() as f64);
    let raised = |weight: f64| if weight < 0.0 { floor } else { weight };
    weights.into_iter().map(|(w, x)| (w, raised(x))).collect()
}

/// Indices of `corpus`, the nearest to `query` first, by normalised compression distance.
#[cfg(feature = "gzip")]
pub fn gzip(corpus: &[&str], query: &str) -> Vec<usize> {
    let query_len = gzip_len(&[query]);
    let distance = |text: &&str| {
        let len = gzip_len(&[text]);
        let both = gzip_len(&[text, " ", query]);
        (both as f64 - len.min(query_len) as f64) / len.max(query_len) as f64
    };
    let distances: Vec<f64> = corpus.iter().map(distance).collect();
    ranked(corpus.len(), |a, b| distances[a].total_cmp(&distances[b]))
}

/// Length in bytes of the concatenated `texts` as a gzip file at level 9.
#[cfg(feature = "gzip")]
fn gzip_len(texts: &[&str]) -> usize {
    /// A gzip file without a name: header and checksum.
    const FRAME: usize = 10 + 8;
    let text = texts.concat();
    let mut deflate = Compress::new(Compression::best(), false);
    let mut out = Vec::with_capacity(text.len() / 2 + 1024);
    loop {
        let rest = text.as_bytes().get(deflate.total_in() as usize..);
        match deflate.compress_vec(rest.unwrap_or_default(), &mut out, FlushCompress::Finish) {
            Ok(Status::StreamEnd) => break,
            Ok(_) => out.reserve(out.capacity().max(1024)),
            // Compressing from memory fails only if zlib is misused.
            Err(e) => unreachable!("deflate: {e}"),
        }
    }
    FRAME + deflate.total_out() as usize
}

/// `0..len`, sorted stably.
fn ranked(len: usize, compare: impl Fn(usize, usize) -> std::cmp::Ordering) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    order.sort_by(|&a, &b| compare(a, b));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with `rank_bm25` 0.2.2 and Python 3.11 by `tests/data/make_rank_text.py`.
    const CASES: &str = include_str!("../../tests/data/rank_text.json");

    #[test]
    fn ranks_as_the_python_packages_do() {
        let cases: serde_json::Value = serde_json::from_str(CASES).expect("is JSON");
        for case in cases.as_array().expect("cases") {
            let texts: Vec<&str> = case["corpus"]
                .as_array()
                .expect("texts")
                .iter()
                .map(|t| t.as_str().expect("a text"))
                .collect();
            let query = case["query"].as_str().expect("a query");
            let list = |key: &str| {
                let list = case[key].as_array().expect("a list").iter();
                list.map(|x| x.as_f64().expect("a number"))
                    .collect::<Vec<f64>>()
            };
            let order = |key: &str| list(key).iter().map(|&i| i as usize).collect::<Vec<_>>();
            for (got, want) in bm25_scores(&texts, query).iter().zip(list("bm25_scores")) {
                assert!((got - want).abs() <= 1e-14 * want.abs(), "{got} {want}");
            }
            assert_eq!(bm25(&texts, query), order("bm25"), "{query}");
            #[cfg(feature = "gzip")]
            {
                let lens: Vec<f64> = texts.iter().map(|t| gzip_len(&[t]) as f64).collect();
                assert_eq!(lens, list("gzip_len"));
                assert_eq!(gzip(&texts, query), order("gzip"), "{query}");
            }
        }
    }

    #[test]
    #[cfg(feature = "gzip")]
    fn gzip_lengths_hold_over_many_blocks() {
        // Pseudo-random words, 400 kB; the length is Python's.
        let mut state = 1u32;
        let mut text = String::new();
        for _ in 0..80_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            text.push_str(&format!("{:x} ", state >> 18));
        }
        assert_eq!(gzip_len(&[&text]), 185_609);
    }

    #[test]
    fn no_texts_and_no_words() {
        assert!(bm25(&[], "a").is_empty());
        assert_eq!(bm25(&["", ""], ""), [0, 1]);
        #[cfg(feature = "gzip")]
        {
            assert!(gzip(&[], "a").is_empty());
            assert_eq!(gzip(&["", ""], ""), [0, 1]);
        }
    }
}
