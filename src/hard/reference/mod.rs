//! The reference's own behaviour, token for token: `compress_prompt` and
//! `structured_compress_prompt` of Microsoft's `llmlingua` 0.2.2 for causal language models.
//!
//! Its oddities are kept where they show in the result, and named where they are kept. What it would
//! raise an exception for is an error here.

mod budget_expression;
mod contexts;
mod ratios;
mod sentences;
mod tokens;

use crate::error::{Error, Result};
use crate::model::Scorer;
use crate::text::{Tokenizer, counts::count_cl100k};

use super::options::{LlmLingua, RankMethod, Where};
use super::python;
use super::rank_text;
use super::request::{Budget, Request};
use super::result::{Compressed, KeptContext};
use super::source::{Source, Unit};
use super::structured::{self, Segment};

/// What every step needs.
pub(crate) struct Reference<'a> {
    pub lm: &'a dyn Scorer,
    pub tokenizer: &'a Tokenizer,
    pub options: &'a LlmLingua,
}

/// A length in characters of a context, with the rate of the segment that it lies in.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Stretch {
    chars: usize,
    rate: f64,
    compress: bool,
}

/// What is left of the contexts: tokens, which a rate may make negative, or a share of the prompt.
#[derive(Debug, Clone, Copy)]
enum Target {
    Tokens(f64),
    Rate(f64),
}

/// The options' condition after the reference's rules for it.
#[derive(Debug, Clone, Copy)]
struct Conditioning {
    /// Where the question stands when texts are ranked.
    at: Where,
    /// The token level sees the question in front of the contexts.
    tokens: bool,
}

impl Reference<'_> {
    /// `compress_prompt`, or where contexts carry `<llmlingua>` tags `structured_compress_prompt`.
    pub fn compress(&self, prompt: &Request) -> Result<Compressed> {
        if prompt.structured {
            return self.compress_structured(prompt);
        }
        let target = match prompt.budget {
            Budget::Rate(rate) => Target::Rate(rate),
            Budget::Tokens(target) => Target::Tokens(target as f64),
        };
        self.run(prompt, contexts_or_blank(prompt), None, target)
    }

    fn compress_structured(&self, prompt: &Request) -> Result<Compressed> {
        let mut contexts = Vec::new();
        for context in contexts_or_blank(prompt) {
            let ids = self.tokenizer.encode(&context, false, true)?.ids;
            contexts.push(self.tokenizer.decode(&ids));
        }
        let lengths = self.lengths(&contexts)?;
        let total: usize = lengths.iter().sum();
        let (target, rate) = match prompt.budget {
            Budget::Tokens(target) => {
                let rate = target as f64 / total as f64;
                // The reference demands this too; an empty prompt has no rate.
                if rate.is_nan() || rate > 1.0 {
                    return Err(Error::input(
                        format!("target_token {target}"),
                        format!("the contexts have {total} tokens; name no more than that"),
                    ));
                }
                (target as f64, rate)
            }
            Budget::Rate(rate) => (self.target_of_rate(prompt, rate, total)?, rate),
        };
        let mut segments = Vec::new();
        for context in &contexts {
            segments.push(structured::segments(context, rate)?);
        }
        let stripped = segments
            .iter()
            .map(|s| s.iter().map(|s| s.text.as_str()).collect())
            .collect();
        // The reference hands this target on, and reads -1 as "none given" there too.
        let target = match target == -1.0 {
            true => Target::Rate(rate),
            false => Target::Tokens(target),
        };
        // Spans refer to the texts that were given, which a tokenizer may not reproduce.
        let altered: Vec<bool> = contexts
            .iter()
            .zip(contexts_or_blank(prompt))
            .map(|(decoded, given)| *decoded != given)
            .collect();
        let mut result = self.run(prompt, stripped, Some(segments.clone()), target)?;
        for (index, (context, segments)) in contexts.iter().zip(&segments).enumerate() {
            if let Some(lost) = structured::lost(context, segments) {
                result.warnings.push(format!(
                    "context {index}: {lost} bytes of text are lost, as llmlingua reads no segment that holds \
                     a `<`, none after a misspelt tag, and nothing between tags; mode exact keeps them"
                ));
            }
        }
        for kept in &mut result.contexts {
            if altered[kept.index] {
                kept.spans.clear();
                result.warnings.push(format!(
                    "context {}: the tokenizer altered its text, so its spans are not known",
                    kept.index
                ));
            } else {
                kept.spans = structured::given_spans(&segments[kept.index], &kept.spans);
            }
        }
        Ok(result)
    }

    fn run(
        &self,
        prompt: &Request,
        contexts: Vec<String>,
        segments: Option<Vec<Vec<Segment>>>,
        target: Target,
    ) -> Result<Compressed> {
        let options = self.options;
        let condition = self.conditioning(prompt)?;
        let lengths = self.lengths(&contexts)?;
        let target = match target {
            Target::Tokens(target) => target,
            Target::Rate(rate) => self.target_of_rate(prompt, rate, lengths.iter().sum())?,
        };
        let mut source = Source::new(&prompt.instruction, &contexts, &prompt.question);

        // Coarse: whole contexts, then whole sentences.
        let (used, ratios) = if contexts.len() > 1 && options.use_context_level_filter {
            self.filter_contexts(prompt, &contexts, &lengths, target, condition, &segments)?
        } else {
            ((0..contexts.len()).collect(), vec![0.0; contexts.len()])
        };
        let texts: Vec<&str> = used.iter().map(|&i| contexts[i].as_str()).collect();
        let segments: Option<Vec<Vec<Segment>>> =
            segments.map(|all| used.iter().map(|&i| all[i].clone()).collect());
        let (kept, stretches) = if options.use_sentence_level_filter {
            self.filter_sentences(prompt, &texts, target, condition, segments.as_deref())?
        } else {
            let whole = |text: &&str| vec![0..text.len()];
            let stretches = segments.as_deref().map(stretches_of);
            (texts.iter().map(whole).collect(), stretches)
        };
        let stretches = stretches.map(|all| all.iter().map(|s| join_equal(s)).collect::<Vec<_>>());

        // What is left, as units that know where they come from.
        let units: Vec<Unit> = used
            .iter()
            .zip(kept)
            .map(|(&context, ranges)| Unit { context, ranges })
            .collect();
        let filtered: Vec<String> = units.iter().map(|u| u.text(&contexts)).collect();

        // Fine: tokens.
        let body = if options.use_token_level_filter {
            let prefix = if condition.tokens {
                Some(self.condition_prefix(prompt)?)
            } else {
                None
            };
            let tokens =
                self.filter_tokens(&filtered, prefix.as_deref(), target, &ratios, stretches)?;
            source.keep_tokens(&units, &tokens);
            let ids: Vec<u32> = tokens.iter().filter(|t| t.kept).map(|t| t.id).collect();
            self.tokenizer
                .decode(&ids)
                .replace("<s> ", "")
                .replace("<s>", "")
        } else {
            source.keep_units(&units);
            filtered.join("\n\n")
        };

        let mut parts = Vec::new();
        if !prompt.instruction.is_empty() {
            parts.push(prompt.instruction.as_str());
        }
        if !python::strip(&body).is_empty() {
            parts.push(&body);
        }
        if options.concate_question && !prompt.question.is_empty() {
            parts.push(&prompt.question);
        }
        source.keep_question(options.concate_question);
        let mut result = Compressed::new(python::strip(source.text()), parts.join("\n\n"));
        let mut spans = source.kept_spans();
        for index in used {
            let spans = std::mem::take(&mut spans[index]);
            let bytes: Vec<u8> = spans
                .iter()
                .flat_map(|span| &contexts[index].as_bytes()[span.clone()])
                .copied()
                .collect();
            // Tokens may be parts of characters, in the result too.
            let text = String::from_utf8_lossy(&bytes).into_owned();
            // Without contexts the reference compresses a blank of its own.
            if !text.is_empty() && index < prompt.contexts.len() {
                result.contexts.push(KeptContext {
                    index,
                    tokens: count_cl100k(&text),
                    text,
                    spans,
                });
            }
        }
        result.pieces = source.into_pieces();
        Ok(result)
    }

    /// The rules by which the reference rewrites `condition_in_question`.
    fn conditioning(&self, prompt: &Request) -> Result<Conditioning> {
        let options = self.options;
        if self.options.rank_method == RankMethod::Longllmlingua && prompt.question.is_empty() {
            return Err(Error::input(
                "rank_method longllmlingua",
                "it ranks by a question, and none was given; give one or another rank_method",
            ));
        }
        let (mut at, mut tokens) = options.condition_in_question.split();
        tokens |= options.condition_compare;
        match self.options.rank_method {
            RankMethod::Longllmlingua if at == Where::None && !tokens => at = Where::After,
            RankMethod::Llmlingua => at = Where::None,
            _ => {}
        }
        Ok(Conditioning { at, tokens })
    }

    /// The tokens that `rate` leaves for the contexts: instruction and question are paid for first.
    fn target_of_rate(&self, prompt: &Request, rate: f64, contexts: usize) -> Result<f64> {
        let instruction = self.length(&prompt.instruction)? as f64;
        let question = self.length(&prompt.question)? as f64;
        let all = instruction + question + contexts as f64;
        let paid = if self.options.concate_question {
            question
        } else {
            0.0
        };
        Ok(all * rate - instruction - paid)
    }

    /// Tokens of `text`, BOS included where the tokenizer adds one.
    fn length(&self, text: &str) -> Result<usize> {
        Ok(self.ids(text)?.len())
    }

    fn lengths<S: AsRef<str>>(&self, texts: &[S]) -> Result<Vec<usize>> {
        texts.iter().map(|t| self.length(t.as_ref())).collect()
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text, true, true)?.ids)
    }

    /// Ranks texts, the ones to keep first (the reference's `get_rank_results`).
    fn rank(&self, texts: &[&str], query: &str, at: Where) -> Result<Vec<usize>> {
        match self.options.rank_method {
            RankMethod::Bm25 => Ok(rank_text::bm25(texts, query)),
            #[cfg(feature = "gzip")]
            RankMethod::Gzip => Ok(rank_text::gzip(texts, query)),
            RankMethod::Sentbert => {
                let mut scores = self.lm.similarity(query, texts)?;
                scores.iter_mut().for_each(|score| *score = -*score);
                Ok(python::argsort(&scores))
            }
            RankMethod::Llmlingua | RankMethod::Longllmlingua => {
                let query = format!(
                    "{query} We can get the answer to this question in the given documents."
                );
                let mut nlls = self.mean_nlls(texts, &query, at)?;
                // Without a condition texts of high surprisal come first; with one, those after which the
                // question's is lowest.
                if at == Where::None {
                    nlls.iter_mut().for_each(|nll| *nll = -*nll);
                }
                Ok(python::argsort(&nlls))
            }
        }
    }

    /// Mean nll of each text alone (`None`), of each text after the question (`Before`), or of the
    /// question after each text (`After`): the reference's `get_condition_ppl`.
    fn mean_nlls(&self, texts: &[&str], question: &str, at: Where) -> Result<Vec<f64>> {
        let mut sequences = Vec::with_capacity(texts.len());
        let mut starts = Vec::with_capacity(texts.len());
        let question_length = self.length(question)? as i64;
        for text in texts {
            let (joined, start) = match at {
                Where::None => (self.ids(text)?, 0),
                Where::Before => (self.ids(&format!("{question}{text}"))?, question_length - 1),
                Where::After => (
                    self.ids(&format!("{text}{question}"))?,
                    self.length(text)? as i64 - 1,
                ),
            };
            let end = joined.len().min(self.lm.max_positions());
            sequences.push(joined[..end].to_vec());
            starts.push(start);
        }
        let views: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let nlls = self.lm.score_each(&views)?;
        Ok(nlls
            .iter()
            .zip(starts)
            .map(|(nll, start)| {
                let counted = &nll[python::slice(nll.len(), Some(start), None)];
                counted.iter().map(|&x| f64::from(x)).sum::<f64>() / counted.len() as f64
            })
            .collect())
    }

    /// The text that the token level sees in front of the contexts, cut in its middle when it would
    /// not leave room for two segments.
    fn condition_prefix(&self, prompt: &Request) -> Result<String> {
        /// Tokens kept of the start of such a prefix (`prefix_bos_num`).
        const HEAD: usize = 100;
        let prefix = if self.options.add_instruction {
            format!("{}\n\n{}", prompt.question, prompt.instruction)
        } else {
            prompt.question.clone()
        };
        let room = self.options.iterative_size * 2;
        let positions = self.lm.max_positions();
        if self.length(&format!("{prefix}\n\n"))? + room <= positions {
            return Ok(prefix);
        }
        let ids = self.tokenizer.encode(&prefix, false, true)?.ids;
        let tail = (ids.len() + room + HEAD + 2) as i64 - positions as i64;
        let head = ids[..HEAD.min(ids.len())].iter();
        let tail = ids[python::slice(ids.len(), Some(tail), None)].iter();
        Ok(self
            .tokenizer
            .decode(&head.chain(tail).copied().collect::<Vec<_>>()))
    }
}

fn contexts_or_blank(prompt: &Request) -> Vec<String> {
    if prompt.contexts.is_empty() {
        vec![" ".to_string()]
    } else {
        prompt.contexts.clone()
    }
}

fn stretches_of(segments: &[Vec<Segment>]) -> Vec<Vec<Stretch>> {
    let stretch = |s: &Segment| Stretch {
        chars: python::len(&s.text),
        rate: s.rate,
        compress: s.compress,
    };
    segments
        .iter()
        .map(|c| c.iter().map(stretch).collect())
        .collect()
}

/// Joins neighbours of one rate (`concate_segment_info`).
fn join_equal(stretches: &[Stretch]) -> Vec<Stretch> {
    let mut joined: Vec<Stretch> = Vec::new();
    for &next in stretches {
        match joined.last_mut() {
            Some(last) if last.rate == next.rate && last.compress == next.compress => {
                last.chars += next.chars;
            }
            _ => joined.push(next),
        }
    }
    joined
}
