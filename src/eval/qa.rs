//! Questions about documents, which the host reads in several ways.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use hmac_sha256::Hash as Sha256;
use serde::Serialize;
use serde_json::json;

use super::data::Question;
use super::metrics::{best, exact_match, f1};
use super::run::{Answer, Pair, Task, place};
use crate::control::Control;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::hard::{
    Condition, Exact, Granularity, LlmLingua, LlmLingua2, Mode, RankMethod, Reorder, Request,
    check_rate,
};
use crate::kv_prefix::{KvPrefix, Method, hex};
use crate::model::decoder::Input;
use crate::random::Random;
use crate::soft::{Adapter, EncodeOptions, KeepBy, PrefillOptions, Query, Sampling, Source};

/// A way to bring documents to the host.
#[derive(Debug, Clone)]
pub enum Way<'a> {
    /// All of them, whole.
    Full,
    /// None of them.
    None,
    /// Those that the answer is in, whole.
    Gold,
    /// Every word is kept with a chance of the rate.
    RandomWords,
    /// Every token of the host's is kept with a chance of the rate.
    RandomTokens,
    /// What hard compression leaves of them; the rate is the case's.
    Fold(&'static str, Box<Mode>),
    /// What LLMLingua-2 leaves of them by a token classifier; the rate is the case's.
    Classified(&'a Engine),
    /// A KV prefix by an adapter of the host's.
    Prefix(&'a Adapter, Method),
    /// The host's own K and V of all documents, pruned to the rate.
    Pruned(KeepBy),
}

impl<'a> Way<'a> {
    /// What there is without an adapter: the three fixed ways, random ones, our default, our other
    /// granularities, the two presets of the reference, and pruned caches.
    pub fn all() -> Vec<Way<'a>> {
        let ours = |name, granularity| {
            let options = Exact::default().with_granularity(granularity);
            Way::Fold(name, Box::new(options.into()))
        };
        // The preset of LongLLMLingua's own documentation.
        let long = LlmLingua::default()
            .with_rank_method(RankMethod::Longllmlingua)
            .with_condition_in_question(Condition::AfterCondition)
            .with_reorder_context(Reorder::Sort)
            .with_dynamic_context_compression_ratio(0.3)
            .with_condition_compare(true)
            .with_context_budget("+100".into());
        vec![
            Way::Full,
            Way::None,
            Way::Gold,
            Way::RandomWords,
            Way::RandomTokens,
            Way::Fold("llmlingua", Box::new(LlmLingua::default().into())),
            Way::Fold("longllmlingua", Box::new(long.into())),
            ours("prefold", Granularity::default()),
            Way::Fold(
                "prefold-enough",
                Box::new(Exact::default().with_enough(true).into()),
            ),
            ours("prefold-context", Granularity::Context),
            ours("prefold-sentence", Granularity::Sentence),
            ours("prefold-token", Granularity::Token),
            Way::Pruned(KeepBy::Llmlingua),
            Way::Pruned(KeepBy::Snapkv),
            Way::Pruned(KeepBy::ExpectedAttention),
            Way::Pruned(KeepBy::Keydiff),
        ]
    }

    /// Its name in tables and reports.
    pub fn name(&self) -> &'static str {
        match self {
            Way::Full => "full",
            Way::None => "none",
            Way::Gold => "gold",
            Way::RandomWords => "random-words",
            Way::RandomTokens => "random-tokens",
            Way::Fold(name, _) => name,
            Way::Classified(_) => "llmlingua2",
            Way::Prefix(_, method) => method.name(),
            Way::Pruned(KeepBy::Llmlingua) => "kv-llmlingua",
            Way::Pruned(KeepBy::Snapkv) => "kv-snapkv",
            Way::Pruned(KeepBy::ExpectedAttention) => "kv-expected-attention",
            Way::Pruned(KeepBy::Keydiff) => "kv-keydiff",
        }
    }

    /// Whether a rate means something to it.
    pub fn has_rate(&self) -> bool {
        matches!(
            self,
            Way::RandomWords
                | Way::RandomTokens
                | Way::Fold(..)
                | Way::Classified(_)
                | Way::Pruned(_)
        )
    }
}

/// The task: every question in every way.
///
/// The host reads `CONTEXT`, a blank line, `Question: …` and `Answer:`; after an adapter's prefix the last two,
/// after a pruned cache the blank line too.
/// Its answer ends with the line, with its end-of-text token, or after `max_new_tokens`.
pub struct Qa<'a> {
    scorer: &'a Engine,
    host: &'a Engine,
    questions: Vec<Question>,
    cases: Vec<(Way<'a>, Option<f64>)>,
    max_new_tokens: usize,
    seed: u64,
}

impl<'a> Qa<'a> {
    /// Each of `ways` at each of `rates`, where it has one. `scorer` chooses what is kept, `host`
    /// answers. At `max_new_tokens` 0 only the nll is measured.
    ///
    /// # Errors
    /// [`Error::Input`] for a rate outside (0, 1], or without a question, a way or, for ways
    /// that have one, no rate.
    pub fn new(
        scorer: &'a Engine,
        host: &'a Engine,
        questions: Vec<Question>,
        ways: Vec<Way<'a>>,
        rates: &[f64],
        max_new_tokens: usize,
        seed: u64,
    ) -> Result<Self> {
        rates
            .iter()
            .try_for_each(|&rate| check_rate("rates", rate))?;
        let mut cases = Vec::new();
        for way in ways {
            match way.has_rate() {
                true => cases.extend(rates.iter().map(|&rate| (way.clone(), Some(rate)))),
                false => cases.push((way, None)),
            }
        }
        if questions.is_empty() || cases.is_empty() {
            return Err(Error::input("evaluation", "there is nothing to ask"));
        }
        Ok(Qa {
            scorer,
            host,
            questions,
            cases,
            max_new_tokens,
            seed,
        })
    }

    fn hash(&self, value: &impl Serialize) -> [u8; 32] {
        let text = serde_json::to_vec(value).unwrap_or_default();
        Sha256::hash(&text)
    }

    /// What the host is to read in place of the documents.
    fn shorten(
        &self,
        way: &Way<'_>,
        rate: f64,
        question: &Question,
        control: &Control,
    ) -> Result<Read> {
        let docs = question.documents();
        let whole = |docs: Vec<String>| docs.join("\n\n");
        let random = || {
            let hash = self.hash(question);
            Random(self.seed ^ hash.iter().take(8).fold(0, |n, &b| n << 8 | u64::from(b)))
        };
        Ok(Read::Text(match way {
            Way::Full => whole(docs),
            Way::None => String::new(),
            Way::Gold => question.context.clone(),
            Way::RandomWords => {
                let mut random = random();
                let text = whole(docs);
                let kept = text.split_inclusive(' ').filter(|_| random.unit() < rate);
                kept.collect()
            }
            Way::RandomTokens => {
                let mut random = random();
                let tokenizer = self.host.tokenizer()?;
                let mut ids = tokenizer.encode(&whole(docs), false, false)?.ids;
                ids.retain(|_| random.unit() < rate);
                tokenizer.decode(&ids)
            }
            Way::Fold(_, mode) => {
                let request = Request::new(docs)
                    .with_question(&question.question)
                    .with_rate(rate)
                    .with_mode((**mode).clone());
                let text = self.scorer.compress_with(&request, control)?.text;
                // The host's own form of the question follows.
                let context = text.strip_suffix(&question.question).unwrap_or(&text);
                context.trim_end().to_string()
            }
            Way::Classified(classifier) => {
                let request = Request::new(docs)
                    .with_rate(rate)
                    .with_mode(LlmLingua2::default());
                let text = classifier.compress_with(&request, control)?.text;
                text.trim_end().to_string()
            }
            Way::Prefix(adapter, method) => {
                let text = whole(docs);
                let ids = self.host.tokenizer()?.encode(&text, false, false)?.ids;
                let options = EncodeOptions {
                    method: Some(*method),
                    piece_tokens: None,
                };
                let source = Source::text(&text, ids);
                let prefix = self
                    .host
                    .prefixes()
                    .with(control)
                    .encode(adapter, &source, &options)?;
                return Ok(Read::Prefix(Box::new(prefix), ""));
            }
            // Made together: [`Qa::pruned`].
            Way::Pruned(_) => String::new(),
        }))
    }

    /// The caches of those pairs that want a pruned one, with one prefill for each question.
    fn pruned(&self, pairs: &[Pair], control: &Control) -> Result<Vec<Option<KvPrefix>>> {
        let mut caches: Vec<Option<KvPrefix>> = pairs.iter().map(|_| None).collect();
        let mut first = 0;
        for item in pairs.chunk_by(|a, b| a.item == b.item) {
            let places = first..first + item.len();
            first = places.end;
            let text = self.questions[item[0].item].documents().join("\n\n");
            let ids = self.host.tokenizer()?.encode(&text, true, false)?.ids;
            // A few tokens are too few to choose from.
            let few = ids.len() <= 8;
            let (places, options): (Vec<usize>, Vec<PrefillOptions>) = (places.zip(item))
                .filter(|_| !text.is_empty())
                .filter_map(|(place, pair)| match &self.cases[pair.case] {
                    (Way::Pruned(by), rate) => {
                        let keep = (!few).then_some((rate.unwrap_or(1.0), *by));
                        Some((place, PrefillOptions { keep }))
                    }
                    _ => None,
                })
                .unzip();
            if options.is_empty() {
                continue;
            }
            let prefixes = self.host.prefixes().with(control);
            let each = prefixes.prefill_each(&Source::text(&text, ids), &options)?;
            for (place, prefix) in places.into_iter().zip(each) {
                caches[place] = Some(prefix);
            }
        }
        Ok(caches)
    }
}

/// What a host reads in place of documents.
enum Read {
    Text(String),
    /// K and V in place of the text, and what stands between them and the question.
    Prefix(Box<KvPrefix>, &'static str),
}

impl Task for Qa<'_> {
    fn name(&self) -> &'static str {
        "qa"
    }

    fn metrics(&self) -> &'static [&'static str] {
        match self.max_new_tokens {
            0 => &["nll"],
            _ => &["nll", "em", "f1"],
        }
    }

    fn items(&self) -> usize {
        self.questions.len()
    }

    fn cases(&self) -> Vec<(String, Option<f64>)> {
        let name = |(way, rate): &(Way<'_>, _)| (way.name().to_string(), *rate);
        self.cases.iter().map(name).collect()
    }

    fn batch(&self) -> usize {
        1
    }

    fn key(&self, pair: Pair) -> String {
        let (way, rate) = &self.cases[pair.case];
        let (mode, adapter) = match way {
            Way::Fold(_, mode) => (Some(mode), None),
            Way::Prefix(adapter, _) => (None, Some((adapter.id(), adapter.settings()))),
            _ => (None, None),
        };
        let scorer = mode.as_ref().map(|_| &self.scorer.info().fingerprint);
        let seed = matches!(way, Way::RandomWords | Way::RandomTokens).then_some(self.seed);
        hex(&self.hash(&json!([
            env!("CARGO_PKG_VERSION"),
            way.name(),
            rate,
            mode,
            adapter,
            scorer,
            self.host.info().fingerprint,
            place(self.host),
            self.max_new_tokens,
            seed,
            self.questions[pair.item],
        ]))[..16])
    }

    fn ask(
        &self,
        pairs: &[Pair],
        control: &Control,
        tick: &mut dyn FnMut(),
    ) -> Result<Vec<Answer>> {
        let tokenizer = self.host.tokenizer()?;
        let mut read = Vec::with_capacity(pairs.len());
        for (pair, cache) in pairs.iter().zip(self.pruned(pairs, control)?) {
            let (way, rate) = &self.cases[pair.case];
            let question = &self.questions[pair.item];
            let context = match cache {
                Some(cache) => Read::Prefix(Box::new(cache), "\n\n"),
                None => self.shorten(way, rate.unwrap_or(1.0), question, control)?,
            };
            let asked = format!("Question: {}\nAnswer:", question.question);
            let (prompt, host_tokens) = match &context {
                Read::Text(text) => {
                    let gap = if text.is_empty() { "" } else { "\n\n" };
                    let prompt = format!("{text}{gap}{asked}");
                    let tokens = tokenizer.encode(text, false, false)?.ids.len();
                    (tokenizer.encode(&prompt, true, false)?.ids, tokens)
                }
                Read::Prefix(prefix, gap) => {
                    let prompt = format!("{gap}{asked}");
                    let prompt = tokenizer.encode(&prompt, false, false)?.ids;
                    (prompt, prefix.shape().tokens)
                }
            };
            let gold = question.answers.first().map_or("", String::as_str);
            let gold = tokenizer.encode(&format!(" {gold}"), false, false)?.ids;
            read.push((context, prompt, gold, host_tokens));
            tick();
        }
        let asks: Vec<Query<'_>> = read
            .iter()
            .map(|(context, prompt, gold, _)| Query {
                prefix: match context {
                    Read::Prefix(prefix, _) => Some(prefix),
                    Read::Text(_) => None,
                },
                prompt: Input::Ids(prompt),
                gold,
            })
            .collect();
        let sampling = Sampling {
            max_new_tokens: self.max_new_tokens,
            ..Sampling::default()
        };
        // Up to the end of the first line that has something in it.
        let mut said = vec![Vec::new(); asks.len()];
        let mut until_line_end = |ask: usize, id| {
            said[ask].extend(tokenizer.token_bytes(id));
            match said[ask].trim_ascii_start().contains(&b'\n') {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let prefixes = self.host.prefixes().with(control);
        let replies = prefixes.answer(&asks, &sampling, &mut until_line_end)?;
        let mut answers = Vec::with_capacity(pairs.len());
        for ((pair, (.., host_tokens)), reply) in pairs.iter().zip(&read).zip(replies) {
            let question = &self.questions[pair.item];
            let said = tokenizer.decode(&reply.generated.ids);
            let said = said.trim_start().lines().next().unwrap_or("").trim_end();
            let nll = reply.nll.iter().map(|&x| f64::from(x)).sum::<f64>();
            let mut scores = BTreeMap::from([("nll".into(), nll / reply.nll.len().max(1) as f64)]);
            if self.max_new_tokens > 0 {
                scores.insert("em".into(), best(said, &question.answers, exact_match));
                scores.insert("f1".into(), best(said, &question.answers, f1));
            }
            answers.push(Answer {
                id: question.id.clone(),
                host_tokens: *host_tokens,
                said: said.into(),
                scores,
            });
            tick();
        }
        Ok(answers)
    }
}
