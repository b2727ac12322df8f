//! Questions about a text, and answers to them, by the model that has the text before it.

use std::ops::ControlFlow;

use super::Training;
use crate::control::Control;
use crate::error::{Error, Result};
use crate::model::decoder::Input;
use crate::random::Random;
use crate::soft::{PrefillOptions, Query, Sampling, Source, pieces};
use crate::train::Study;

/// What a question is asked for with; one after the other. The seeds of arXiv 2506.06266, section 4, in
/// fewer words: small models follow long instructions badly.
const SEEDS: [&str; 5] = [
    "A question about the text above, and its answer.",
    "A question about a name, a number or a date in the text above, and its answer.",
    "A question that asks to summarize a part of the text above, and its answer.",
    "A question about how the parts of the text above belong together, and its answer.",
    "A question that somebody who uses the text above at work would ask, and its answer.",
];

impl Training<'_> {
    /// Self-study (arXiv 2506.06266, section 4): questions about `corpus` and answers, for
    /// [`Training::prefix`]. The model reads a piece of the corpus, writes a question about it, and answers
    /// it with the piece before it. Both end with the line. Questions without words, and those that came
    /// before, are left out, so that there may be fewer than were asked for.
    ///
    /// # Errors
    /// [`Error::Input`] for options outside their ranges, a corpus without tokens, or one about which the
    /// model writes no question; [`Error::Unsupported`] for a model without a tokenizer; and what ends a
    /// call ([`Control`]).
    pub fn questions(
        &self,
        corpus: &Source,
        study: &Study,
        control: &Control,
    ) -> Result<Vec<(String, String)>> {
        study.check()?;
        let engine = self.engine;
        let tokenizer = engine.tokenizer()?;
        let room = engine.config().max_positions;
        let prompt = |seed: &str| format!("\n\n{seed}\nQuestion:");
        let mut longest = tokenizer
            .encode(&study.question_template, false, false)?
            .ids
            .len();
        for seed in SEEDS {
            let ids = tokenizer.encode(&prompt(seed), false, false)?.ids;
            longest = longest.max(ids.len());
        }
        let asked = study.question_tokens + study.answer_tokens + longest;
        if study.piece_tokens.saturating_add(asked) > room {
            let what = format!("piece_tokens {}", study.piece_tokens);
            let reason = format!(
                "with {asked} for a question and its answer they are more than the model's {room}"
            );
            return Err(Error::input(what, reason));
        }
        let pieces = pieces(corpus.ids.len(), study.piece_tokens);
        if pieces.is_empty() {
            return Err(Error::input("corpus", "it has no tokens"));
        }
        let mut rows: Vec<(String, String)> = Vec::new();
        // Every piece in turn, each time with another seed.
        for (at, piece) in pieces.iter().enumerate() {
            let share =
                study.questions * (at + 1) / pieces.len() - study.questions * at / pieces.len();
            // With fewer questions than pieces most have none: reading those would be for nothing.
            if share == 0 {
                continue;
            }
            let read = Source::ids(corpus.ids[piece.clone()].to_vec());
            let prefixes = engine.prefixes().with(control);
            let prefix = prefixes.prefill(&read, &PrefillOptions::default())?;
            for number in 0..share {
                let seed = SEEDS[(at + number) % SEEDS.len()];
                let uses = [at as u64, number as u64];
                let sampling = Sampling {
                    max_new_tokens: study.question_tokens,
                    temperature: study.temperature,
                    seed: Random::of(study.seed, &uses).next(),
                    ..Sampling::default()
                };
                let line = |prompt: &str, sampling: &Sampling| -> Result<String> {
                    let ids = tokenizer.encode(prompt, false, false)?.ids;
                    let query = Query {
                        prefix: Some(&prefix),
                        prompt: Input::Ids(&ids),
                        gold: &[],
                    };
                    let mut each =
                        |_: usize, id: u32| match tokenizer.token_bytes(id).contains(&b'\n') {
                            true => ControlFlow::Break(()),
                            false => ControlFlow::Continue(()),
                        };
                    let made = prefixes.answer(&[query], sampling, &mut each)?;
                    let ids = made.into_iter().next().map(|made| made.generated.ids);
                    let text = tokenizer.decode(&ids.unwrap_or_default());
                    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
                };
                let question = line(&prompt(seed), &sampling)?;
                let wordless = !question.chars().any(char::is_alphanumeric);
                if wordless || rows.iter().any(|(before, _)| *before == question) {
                    continue;
                }
                let prompt = study.question_template.replacen("{}", &question, 1);
                let sampling = Sampling {
                    max_new_tokens: study.answer_tokens,
                    ..Sampling::default()
                };
                let answer = line(&prompt, &sampling)?;
                if !answer.is_empty() {
                    rows.push((question, answer));
                }
            }
        }
        match rows.is_empty() {
            true => Err(Error::input(
                "corpus",
                "the model wrote no question about it; give rows with questions and answers",
            )),
            false => Ok(rows),
        }
    }
}
