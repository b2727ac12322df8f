//! What an encoder's similarity is worth beside the ranker's scores.
//!
//! Their sum with a fixed weight is where it begins; a small network corrects it by what both say of the
//! passages, how sure each is, and how much of the question words alone cover.

use super::features::{Column, descending, inverse_ranks, standardised};

/// Features of what both say, the first of [`columns`](Judged::columns).
const OPINIONS: [&str; 13] = [
    "similarity",
    "similarity_below",
    "similarity_z",
    "similarity_rank",
    "similarity_share",
    "score_below",
    "score_share",
    "sum_below",
    "sum_rank",
    "score_gap",
    "similarity_gap",
    "best_similarity",
    "alike_score",
];

/// Features of the first stage, which the network sees as they are.
const FIRST: [&str; 10] = [
    "cover",
    "named",
    "run",
    "bm25_share",
    "length",
    "like_1",
    "lacking_1",
    "best_bridges_1",
    "bridges_best_1",
    "shared_rare_1",
];

/// Features of the prompt.
const PROMPT: [&str; 7] = [
    "most_cover",
    "best_cover",
    "most_run",
    "most_named",
    "heads_named",
    "question",
    "passages",
];

/// The features of the network that weighs an encoder's similarity, in the order of [`Judged::columns`].
pub(crate) fn names() -> Vec<String> {
    let all = [&OPINIONS[..], &FIRST, &PROMPT].concat();
    all.into_iter().map(String::from).collect()
}

/// One by the temperature at which similarities become shares.
const SHARPNESS: f64 = 20.0;

/// Passages that both have judged.
pub(super) struct Judged<'a> {
    /// The ranker's scores and the encoder's similarities.
    pub scores: &'a [f64],
    pub similarity: &'a [f64],
    /// Both, by the fixed weight.
    pub sum: &'a [f64],
    /// Words of the question that count.
    pub question: usize,
}

impl Judged<'_> {
    /// The columns of [`names`]; `first` gives those of the first stage, by name.
    pub fn columns(&self, first: impl Fn(&str) -> Column) -> Vec<Column> {
        let Judged {
            scores,
            similarity,
            sum,
            question,
        } = *self;
        let n = scores.len();
        let most = |values: &[f64]| values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let below = |values: &[f64]| -> Column {
            let most = most(values);
            values.iter().map(|value| value - most).collect()
        };
        let all = |value: f64| vec![value; n];
        let (by_score, by_similarity) = (descending(scores), descending(similarity));
        let gap = |values: &[f64], order: &[usize]| match order {
            [first, second, ..] => values[*first] - values[*second],
            _ => 0.0,
        };
        let at = |values: &[f64], order: &[usize]| {
            let value = order.first().map_or(0.0, |&i| values[i]);
            all(value - most(values))
        };
        let sharp: Column = similarity.iter().map(|s| SHARPNESS * s).collect();
        let mut columns = vec![
            similarity.to_vec(),
            below(similarity),
            standardised(similarity),
            inverse_ranks(similarity),
            log_shares(&sharp),
            below(scores),
            log_shares(scores),
            below(sum),
            inverse_ranks(sum),
            all(gap(scores, &by_score)),
            all(gap(similarity, &by_similarity)),
            at(similarity, &by_score),
            at(scores, &by_similarity),
        ];
        columns.extend(FIRST.map(&first));
        let cover = first("cover");
        let best = by_score.first().map_or(0.0, |&i| cover[i]);
        columns.extend([
            all(most(&cover)),
            all(best),
            all(most(&first("run"))),
            all(most(&first("named"))),
            all(first("head_whole").iter().sum()),
            all(question as f64),
            all(n as f64),
        ]);
        columns
    }
}

/// Logarithms of the shares that a softmax gives.
fn log_shares(values: &[f64]) -> Column {
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = values.iter().map(|value| libm::exp(value - most)).sum();
    let all = most + libm::log(sum);
    values.iter().map(|value| value - all).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_are_relative_to_the_best() {
        let judged = Judged {
            scores: &[3.0, 1.0, 2.0],
            similarity: &[0.25, 0.5, 0.0],
            sum: &[6.0, 7.0, 2.0],
            question: 4,
        };
        let columns = judged.columns(|name| match name {
            "cover" => vec![0.5, 0.75, 0.0],
            "head_whole" => vec![1.0, 0.0, 1.0],
            _ => vec![0.0; 3],
        });
        assert_eq!(columns.len(), names().len());
        let of = |name: &str| {
            let at = names().iter().position(|n| n == name).unwrap();
            columns[at].as_slice()
        };
        assert_eq!(of("similarity_below"), [-0.25, 0.0, -0.5]);
        assert_eq!(of("sum_rank"), [0.5, 1.0, 1.0 / 3.0]);
        assert_eq!(of("score_gap"), [1.0; 3]);
        assert_eq!(of("similarity_gap"), [0.25; 3]);
        // What each thinks of the other's best.
        assert_eq!(of("best_similarity"), [-0.25; 3]);
        assert_eq!(of("alike_score"), [-2.0; 3]);
        assert_eq!(of("most_cover"), [0.75; 3]);
        assert_eq!(of("best_cover"), [0.5; 3]);
        assert_eq!(of("heads_named"), [2.0; 3]);
        assert_eq!(of("question"), [4.0; 3]);
        assert_eq!(of("passages"), [3.0; 3]);
        let shares: f64 = of("score_share").iter().map(|x| x.exp()).sum();
        assert!((shares - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_first_stage_has_what_is_taken_from_it() {
        let first = super::super::stage_names(0);
        for name in FIRST.into_iter().chain(["head_whole"]) {
            assert!(first.iter().any(|of_first| of_first == name), "{name}");
        }
    }
}
