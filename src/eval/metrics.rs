//! How near a text is to another: ROUGE, BLEU, exact match and F1, as the Python packages count them.
//!
//! All are shares from 0 to 1. Ties to the packages: `rouge-score` 0.1.2 without a stemmer, `sacrebleu`
//! 2.6.0's sentence score over 100, and the evaluation script of SQuAD v2; `tests/program/eval.rs` holds their
//! values.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// F-measures of ROUGE (Lin 2004).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rouge {
    /// Words in common.
    pub rouge1: f64,
    /// Pairs of words in common.
    pub rouge2: f64,
    /// The longest common subsequence of words.
    pub rouge_l: f64,
}

/// ROUGE-1, -2 and -L. Words are runs of `a-z0-9` of the lower-case text, as `rouge-score` has it: the
/// letters of other alphabets count for nothing.
pub fn rouge(said: &str, gold: &str) -> Rouge {
    let lower = [said.to_lowercase(), gold.to_lowercase()];
    let [said, gold] = [0, 1].map(|i| {
        let words = lower[i].split(|c: char| !c.is_ascii_alphanumeric());
        words.filter(|word| !word.is_empty()).collect::<Vec<_>>()
    });
    let grams = |n| {
        let (said, gold) = (counts(&said, n), counts(&gold, n));
        let (all_said, all_gold) = (said.values().sum(), gold.values().sum());
        f_measure(common(&said, &gold), all_said, all_gold)
    };
    Rouge {
        rouge1: grams(1),
        rouge2: grams(2),
        rouge_l: f_measure(longest_common(&said, &gold), said.len(), gold.len()),
    }
}

/// BLEU of one text (Papineni et al. 2002) with words as `13a` splits them, orders up to four as far as
/// the text has them, and exponential smoothing: `sacrebleu.sentence_bleu` over 100.
pub fn bleu(said: &str, gold: &str) -> f64 {
    const ORDERS: usize = 4;
    let [said, gold] = [said, gold].map(words_13a);
    let [said, gold]: [Vec<&str>; 2] = [&said, &gold].map(|text| python_words(text).collect());
    let (mut logs, mut orders, mut smooth, mut any) = (0.0, 0, 1.0, false);
    for n in 1..=ORDERS {
        let (ours, theirs) = (counts(&said, n), counts(&gold, n));
        let total: usize = ours.values().sum();
        if total == 0 {
            break;
        }
        orders = n;
        let correct = common(&ours, &theirs);
        any |= correct > 0;
        let precision = if correct == 0 {
            smooth *= 2.0;
            1.0 / (smooth * total as f64)
        } else {
            correct as f64 / total as f64
        };
        logs += precision.ln();
    }
    if !any {
        return 0.0;
    }
    let brevity = if said.len() < gold.len() {
        1.0 - gold.len() as f64 / said.len() as f64
    } else {
        0.0
    };
    (brevity + logs / orders as f64).exp()
}

/// An answer as SQuAD's evaluation compares it: lower case, no ASCII punctuation, no articles, single
/// spaces.
pub fn normalize_answer(text: &str) -> String {
    // A word as Python's `\b` sees it; Rust's own counts combining marks in.
    static WORD: LazyLock<Regex> = LazyLock::new(|| regex(r"[\p{L}\p{N}_]+"));
    let lower = text.to_lowercase();
    let bare: String = lower
        .chars()
        .filter(|c| !c.is_ascii_punctuation())
        .collect();
    let plain = WORD.replace_all(&bare, |found: &Captures<'_>| match &found[0] {
        "a" | "an" | "the" => " ".to_owned(),
        other => other.to_owned(),
    });
    python_words(&plain).collect::<Vec<_>>().join(" ")
}

/// 1 where the two are the same answer in SQuAD's eyes, otherwise 0.
pub fn exact_match(said: &str, gold: &str) -> f64 {
    f64::from(u8::from(normalize_answer(said) == normalize_answer(gold)))
}

/// F1 over the words of two answers, as SQuAD's evaluation normalises them.
pub fn f1(said: &str, gold: &str) -> f64 {
    let [said, gold] = [said, gold].map(normalize_answer);
    let [said, gold]: [Vec<&str>; 2] = [&said, &gold].map(|text| python_words(text).collect());
    if said.is_empty() || gold.is_empty() {
        return f64::from(u8::from(said == gold));
    }
    let common = common(&counts(&said, 1), &counts(&gold, 1));
    f_measure(common, said.len(), gold.len())
}

/// The best of `metric` over several right answers; those that normalise to nothing do not count, and
/// where none is left the right answer is to say nothing.
pub fn best(said: &str, answers: &[String], metric: impl Fn(&str, &str) -> f64) -> f64 {
    let real = answers
        .iter()
        .filter(|answer| !normalize_answer(answer).is_empty());
    let best = real.map(|answer| metric(said, answer)).reduce(f64::max);
    best.unwrap_or_else(|| metric(said, ""))
}

fn f_measure(common: usize, said: usize, gold: usize) -> f64 {
    if common == 0 {
        return 0.0;
    }
    let (precision, recall) = (common as f64 / said as f64, common as f64 / gold as f64);
    2.0 * precision * recall / (precision + recall)
}

type Counts<'a> = HashMap<&'a [&'a str], usize>;

/// How often each run of `n` words stands there.
fn counts<'a>(words: &'a [&'a str], n: usize) -> Counts<'a> {
    let mut counts = Counts::new();
    for gram in words.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    counts
}

fn common(a: &Counts<'_>, b: &Counts<'_>) -> usize {
    a.iter()
        .map(|(gram, &n)| n.min(b.get(gram).copied().unwrap_or(0)))
        .sum()
}

/// Length of the longest common subsequence, in memory for one row.
fn longest_common(a: &[&str], b: &[&str]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y {
                diagonal + 1
            } else {
                above.max(row[j])
            };
            diagonal = above;
        }
    }
    row[b.len()]
}

/// `str.split()`: at Unicode white space and the four ASCII separators.
fn python_words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
        .filter(|word| !word.is_empty())
}

/// A text with spaces between the words of mteval's tokenizer 13a.
fn words_13a(text: &str) -> String {
    static STEPS: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        [
            (r"([{-~\[-` -&(-+:-@/])", " $1 "),
            (r"([^0-9])([.,])", "$1 $2 "),
            (r"([.,])([^0-9])", " $1 $2"),
            ("([0-9])(-)", "$1 $2 "),
        ]
        .map(|(pattern, to)| (regex(pattern), to))
    });
    let text = text.trim_end_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c));
    let mut text = text
        .replace("<skipped>", "")
        .replace("-\n", "")
        .replace('\n', " ");
    for (entity, plain) in [
        ("&quot;", "\""),
        ("&amp;", "&"),
        ("&lt;", "<"),
        ("&gt;", ">"),
    ] {
        text = text.replace(entity, plain);
    }
    let text = format!(" {text} ");
    STEPS.iter().fold(text, |text, (pattern, to)| {
        pattern.replace_all(&text, *to).into_owned()
    })
}

/// A pattern of this file.
fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap_or_else(|error| unreachable!("{error}"))
}
