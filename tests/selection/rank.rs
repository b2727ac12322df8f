//! The ranking of the exact mode: what it may ask of the model, and what it keeps.

use std::sync::Mutex;

use crate::common::fake::{AnyScores, byte_tokenizer};
use prefold::eval::rank::{Ranking, recall};
use prefold::hard::{self, Compressed, Effort, Exact, Ranker, Request};
use prefold::model::{Scorer, Session};
use prefold::train::rank::{Example, Options, train};

/// Scores by the ids, and the tokens that were read for them.
#[derive(Default)]
struct Counting {
    tokens: Mutex<usize>,
}

impl Scorer for Counting {
    fn max_positions(&self) -> usize {
        AnyScores.max_positions()
    }

    fn session(&self) -> prefold::Result<Box<dyn Session + '_>> {
        AnyScores.session()
    }

    fn score_tails(&self, sequences: &[(&[u32], usize)]) -> prefold::Result<Vec<Vec<f32>>> {
        *self.tokens.lock().unwrap() += sequences.iter().map(|(ids, _)| ids.len()).sum::<usize>();
        AnyScores.score_tails(sequences)
    }
}

const QUESTION: &str = "Where was the author of the novel The Silver Lighthouse born?";
const AUTHOR: &str = "Ada Roy: Ada Roy is a Belgian novelist. She was born in Ghent in 1950.";
const NOVEL: &str =
    "The Silver Lighthouse: The Silver Lighthouse is a novel by Ada Roy. It won a prize.";

/// The two passages that the question needs among others that it does not.
fn documents(others: usize) -> Vec<String> {
    let mut all: Vec<String> = (0..others)
        .map(|i| {
            format!(
                "Village {i}: Village {i} is a village on the river {}. Its church was built in {}, and {} \
                 people live there.",
                ["Aar", "Inn", "Ems"][i % 3],
                1500 + i % 400,
                40 + i * 7 % 900
            )
        })
        .collect();
    all.insert(others / 3, AUTHOR.into());
    all.insert(2 * others / 3, NOVEL.into());
    all
}

/// A result, and the tokens that the model read for it.
fn compressed(request: &Request) -> (Compressed, usize) {
    let scorer = Counting::default();
    let result = hard::compress(&scorer, byte_tokenizer(), request).expect("it is compressed");
    let tokens = *scorer.tokens.lock().unwrap();
    (result, tokens)
}

fn has_both(result: &Compressed) -> bool {
    result.text.contains(AUTHOR) && result.text.contains(NOVEL)
}

#[test]
fn where_words_suffice_the_model_is_not_run() {
    let request = Request::new(documents(8))
        .with_question(QUESTION)
        .with_rate(0.4);
    let (result, tokens) = compressed(&request);
    assert!(has_both(&result), "{}", result.text);
    assert_eq!(tokens, 0);
}

#[test]
fn the_least_effort_never_runs_the_model() {
    for question in [QUESTION, ""] {
        let exact = Exact::default().with_effort(Effort::Fast);
        let request = Request::new(documents(30))
            .with_question(question)
            .with_mode(exact);
        assert_eq!(compressed(&request).1, 0, "{question}");
    }
}

#[test]
fn the_cost_is_the_budgets_and_not_the_prompts() {
    let tokens_of = |others: usize, question: &str, effort: Effort| {
        let exact = Exact::default().with_effort(effort);
        let documents = documents(others);
        let longest = documents.iter().map(String::len).max().unwrap_or(0) + question.len() + 1;
        let request = Request::new(documents)
            .with_question(question)
            .with_tokens(400)
            .with_mode(exact);
        let (result, tokens) = compressed(&request);
        assert!(result.tokens_after <= 400);
        (tokens, longest)
    };
    for others in [200, 2000] {
        let (tokens, longest) = tokens_of(others, QUESTION, Effort::Balanced);
        assert!(tokens <= 6 * longest, "{tokens}");
        let (tokens, longest) = tokens_of(others, QUESTION, Effort::Best);
        assert!(tokens <= 48 * longest, "{tokens}");
        let (tokens, _) = tokens_of(others, "", Effort::Balanced);
        assert!(tokens > 0 && tokens <= 2048, "{tokens}");
    }
}

#[test]
fn enough_leaves_the_budget_unfilled() {
    let request = Request::new(documents(20))
        .with_question(QUESTION)
        .with_rate(0.8);
    let whole = compressed(&request).0;
    let enough = Exact::default().with_enough(true);
    let result = compressed(&request.clone().with_mode(enough.clone())).0;
    assert!(has_both(&result), "{}", result.text);
    assert!(
        2 * result.tokens_after < whole.tokens_after,
        "{} of {}",
        result.tokens_after,
        whole.tokens_after
    );
    // A budget that everything fits is a ceiling too.
    let all = compressed(&request.clone().with_rate(1.0).with_mode(enough.clone())).0;
    assert_eq!(all.text, result.text);
    // What must be kept is kept.
    let forced = enough.with_force_contexts(vec![0]);
    let forced = compressed(&request.with_mode(forced)).0;
    assert!(forced.text.contains("Village 0 is a village"));
}

#[test]
fn a_ranker_of_ones_own_is_used() {
    let request = Request::new(documents(8))
        .with_question(QUESTION)
        .with_rate(0.4);
    let shipped = compressed(&request).0;
    let same = Ranker::parse(&Ranker::shipped().to_text("a copy")).expect("it is read");
    let same = Exact::default().with_ranker(Some(same));
    assert_eq!(compressed(&request.clone().with_mode(same)).0, shipped);
    // The shipped weights, with the score negated.
    let negated: Vec<String> = Ranker::shipped()
        .to_text("")
        .lines()
        .map(|line| {
            let parts: Vec<&str> = line.split(' ').collect();
            let negated = |part: &str| (-part.parse::<f32>().expect("a number")).to_string();
            match parts.as_slice() {
                ["output", values @ ..] => {
                    let values: Vec<String> = values.iter().map(|value| negated(value)).collect();
                    format!("output {}", values.join(" "))
                }
                [name, mean, scale, linear, rest @ ..] if *name != "bias" && *name != "stage" => {
                    format!(
                        "{name} {mean} {scale} {} {}",
                        negated(linear),
                        rest.join(" ")
                    )
                }
                _ => line.to_string(),
            }
        })
        .collect();
    let negated = Ranker::parse(&negated.join("\n")).expect("it is read");
    let negated = compressed(&request.with_mode(Exact::default().with_ranker(Some(negated)))).0;
    assert!(!has_both(&negated));
}

/// Questions whose right passage shares a rare word with them, beside others that share a common one.
fn examples(count: usize) -> Vec<Example> {
    let word = |seed: usize| {
        let letters = ["ka", "lo", "mi", "ru", "se", "to", "va", "ne"];
        (0..4)
            .map(|i| letters[(seed * 31 / 7usize.pow(i) + seed) % 8])
            .collect::<String>()
    };
    (0..count)
        .map(|i| {
            let docs: Vec<String> = (0..6)
                .map(|d| {
                    format!(
                        "The castle of {} is old. It has {} towers.",
                        word(97 * i + 13 * d),
                        d + 2
                    )
                })
                .collect();
            let right = i % 6;
            Example {
                question: format!(
                    "How many towers has the castle of {}?",
                    word(97 * i + 13 * right)
                ),
                answers: vec![(right + 2).to_string()],
                gold: (0..6).map(|d| d == right).collect(),
                docs,
            }
        })
        .collect()
}

#[test]
fn training_gives_the_same_bits_and_learns() {
    let options = Options {
        epochs: 6,
        hidden: 4,
        seeds: 1,
        ..Options::default()
    };
    let examples = examples(120);
    let trained = train(&examples, None, &options).expect("it trains");
    assert_eq!(
        train(&examples, None, &options)
            .expect("it trains again")
            .ranker,
        trained.ranker
    );
    let other = Options {
        seed: 2,
        ..options.clone()
    };
    assert_ne!(
        train(&examples, None, &other).expect("it trains").ranker,
        trained.ranker
    );
    assert!(trained.loss[1] < 0.3, "{:?}", trained.loss);
    let right = examples.iter().filter(|example| {
        let docs: Vec<&str> = example.docs.iter().map(String::as_str).collect();
        let worth = trained.ranker.rank(&example.question, &docs);
        let best = (0..6).max_by(|&a, &b| worth[a].total_cmp(&worth[b]));
        best.is_some_and(|best| example.gold[best])
    });
    assert!(right.count() >= 110);
    assert!(train(&examples[..1], None, &options).is_err());
    assert!(
        train(
            &examples,
            None,
            &Options {
                epochs: 0,
                ..options
            }
        )
        .is_err()
    );
}

/// Cosines that know the right passage by little, and questions of which a third do not tell it by words: what the
/// fixed weight cannot see, training finds.
#[test]
fn cosines_are_weighed_by_training() {
    let options = Options {
        epochs: 40,
        batch: 8,
        hidden: 4,
        seeds: 1,
        ..Options::default()
    };
    let vague = |example: Example| Example {
        question: "Which castles have six towers or two?".into(),
        ..example
    };
    let mut examples = examples(120);
    for example in examples.iter_mut().step_by(3) {
        *example = vague(example.clone());
    }
    let cosine = |gold: &bool| if *gold { 0.31 } else { 0.3 };
    let cosines: Vec<Vec<f64>> = examples
        .iter()
        .enumerate()
        .map(|(i, example)| match i % 2 {
            0 => example.gold.iter().map(cosine).collect(),
            _ => Vec::new(),
        })
        .collect();
    let plain = train(&examples, None, &options).expect("it trains");
    let trained = train(&examples, Some(&cosines), &options).expect("it trains");
    assert_eq!(trained.meaning.map(|(_, prompts)| prompts), Some(60));
    // What serves without an encoder is the same, and the new part comes after it.
    let text = trained.ranker.to_text("");
    assert!(text.starts_with(&plain.ranker.to_text("")));
    assert!(text.contains("\nmeaning\n"));
    assert_eq!(Ranker::parse(&text).as_ref(), Ok(&trained.ranker));
    assert!(Ranker::parse(&(text + "stage 4")).is_err());

    let vague: Vec<Example> = examples.iter().cloned().map(vague).collect();
    let cosines: Vec<Vec<f64>> = vague
        .iter()
        .map(|example| example.gold.iter().map(cosine).collect())
        .collect();
    let whole = |ranker: &Ranker| {
        let rows = recall(&vague, ranker, Some((&cosines, 12.5)), &[0.2], 1).expect("a table");
        let both = rows.iter().find(|row| row.ranking == Ranking::Both);
        both.and_then(|row| row.whole).expect("a share").mean
    };
    let (by_weight, by_training) = (whole(&plain.ranker), whole(&trained.ranker));
    assert!(by_training > by_weight + 0.2, "{by_weight}, {by_training}");
    let wrong = [vec![0.5]];
    assert!(train(&examples, Some(&wrong), &options).is_err());
}
