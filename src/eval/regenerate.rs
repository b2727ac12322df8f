//! Texts regenerated from what was made of them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use hmac_sha256::Hash as Sha256;
use serde_json::json;

use super::data::Text;
use super::metrics::{bleu, exact_match, rouge};
use super::run::{Answer, Pair, Task, place};
use crate::control::Control;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::hard::{Request, check_rate};
use crate::kv_prefix::{KvPrefix, Method, hex};
use crate::model::decoder::Input;
use crate::random::Random;
use crate::soft::{Adapter, EncodeOptions, PrefillOptions, Query, Sampling, Source};

/// What holds a text that is to be regenerated.
#[derive(Debug, Clone)]
pub enum Representation<'a> {
    /// The K and V of all of its tokens.
    Full,
    /// Nothing: what the model says to a BOS alone.
    None,
    /// The K and V of its tokens, each kept with a chance of this rate.
    RandomTokens(f64),
    /// The K and V of what hard compression leaves of it at this rate.
    Fold(f64),
    /// Memory tokens by an adapter.
    Prefix(&'a Adapter, Method),
}

impl Representation<'_> {
    /// Its name in tables and reports.
    pub fn name(&self) -> &'static str {
        match self {
            Representation::Full => "full",
            Representation::None => "none",
            Representation::RandomTokens(_) => "random-tokens",
            Representation::Fold(_) => "prefold",
            Representation::Prefix(_, method) => method.name(),
        }
    }

    /// The share of the tokens that it keeps, if it has one.
    fn rate(&self) -> Option<f64> {
        match self {
            Representation::RandomTokens(rate) | Representation::Fold(rate) => Some(*rate),
            Representation::Full | Representation::None | Representation::Prefix(..) => None,
        }
    }
}

/// Tokens that an answer may have beyond those of its text.
const MORE: usize = 16;
/// Texts that are regenerated together.
const TOGETHER: usize = 8;

/// The task: every text from every origin, greedily after one BOS, or after what an adapter was
/// trained to begin with in its place.
///
/// An answer ends with the model's end-of-text token, or when it is 16 tokens longer than its text.
pub struct Regenerate<'a> {
    model: &'a Engine,
    texts: Vec<(String, Vec<u32>)>,
    from: Vec<Representation<'a>>,
    bos: u32,
    seed: u64,
}

impl<'a> Regenerate<'a> {
    /// The first `text_tokens` of each text. `bos` begins an answer; the model's own unless given. `seed`
    /// decides what is dropped at random.
    ///
    /// # Errors
    /// [`Error::Input`] without a text, a token in it, anything to reconstruct it from or a BOS, or for a rate
    /// outside (0, 1]; [`Error::Unsupported`] for a model without a tokenizer.
    pub fn new(
        model: &'a Engine,
        texts: &[Text],
        text_tokens: usize,
        from: Vec<Representation<'a>>,
        bos: Option<u32>,
        seed: u64,
    ) -> Result<Self> {
        if texts.is_empty() || from.is_empty() || text_tokens == 0 {
            return Err(Error::input(
                "evaluation",
                "there is nothing to reconstruct",
            ));
        }
        from.iter()
            .filter_map(Representation::rate)
            .try_for_each(|rate| check_rate("rates", rate))?;
        let Some(bos) = bos.or(model.info().bos) else {
            let reason = "the model names none to ask for a text with; give one";
            return Err(Error::input("bos", reason));
        };
        let tokenizer = model.tokenizer()?;
        let texts = texts.iter().map(|text| {
            let mut ids = tokenizer.encode(&text.text, false, false)?.ids;
            ids.truncate(text_tokens);
            Ok((text.id.clone(), ids))
        });
        Ok(Regenerate {
            model,
            texts: texts.collect::<Result<_>>()?,
            from,
            bos,
            seed,
        })
    }

    /// Mean length of the texts, in tokens.
    pub fn mean_tokens(&self) -> f64 {
        let sum: usize = self.texts.iter().map(|(_, ids)| ids.len()).sum();
        sum as f64 / self.texts.len() as f64
    }

    fn prefix(&self, pair: Pair, control: &Control) -> Result<Option<KvPrefix>> {
        let (from, ids) = (&self.from[pair.case], &self.texts[pair.item].1);
        let read = |ids: Vec<u32>| match ids.is_empty() {
            true => Ok(None),
            false => {
                let options = PrefillOptions::default();
                let source = Source::ids(ids);
                let prefixes = self.model.prefixes().with(control);
                prefixes.prefill(&source, &options).map(Some)
            }
        };
        Ok(match from {
            Representation::None => None,
            Representation::Full => read(ids.clone())?,
            Representation::RandomTokens(rate) => {
                let mut random = Random::of(self.seed, &[pair.item as u64]);
                let mut ids = ids.clone();
                ids.retain(|_| random.unit() < *rate);
                read(ids)?
            }
            Representation::Fold(rate) => {
                let tokenizer = self.model.tokenizer()?;
                let request = Request::new([tokenizer.decode(ids)]).with_rate(*rate);
                let text = self.model.compress_with(&request, control)?.text;
                read(tokenizer.encode(&text, false, false)?.ids)?
            }
            Representation::Prefix(adapter, method) => {
                let options = EncodeOptions {
                    method: Some(*method),
                    piece_tokens: None,
                };
                let source = Source::ids(ids.clone());
                let prefixes = self.model.prefixes().with(control);
                Some(prefixes.encode(adapter, &source, &options)?)
            }
        })
    }
}

impl Task for Regenerate<'_> {
    fn name(&self) -> &'static str {
        "regen"
    }

    fn metrics(&self) -> &'static [&'static str] {
        &["nll", "rouge1", "rouge2", "rouge_l", "bleu", "em"]
    }

    fn items(&self) -> usize {
        self.texts.len()
    }

    fn cases(&self) -> Vec<(String, Option<f64>)> {
        let name = |from: &Representation<'_>| (from.name().to_string(), from.rate());
        self.from.iter().map(name).collect()
    }

    fn batch(&self) -> usize {
        TOGETHER
    }

    fn key(&self, pair: Pair) -> String {
        let from = &self.from[pair.case];
        let adapter = match from {
            Representation::Prefix(adapter, _) => Some((adapter.id(), adapter.settings())),
            _ => None,
        };
        let random =
            matches!(from, Representation::RandomTokens(_)).then_some((self.seed, pair.item));
        let all = json!([
            env!("CARGO_PKG_VERSION"),
            "regen",
            from.name(),
            from.rate(),
            random,
            adapter,
            self.model.info().fingerprint,
            place(self.model),
            self.bos,
            self.texts[pair.item].1,
        ]);
        hex(&Sha256::hash(all.to_string().as_bytes())[..16])
    }

    fn ask(
        &self,
        pairs: &[Pair],
        control: &Control,
        tick: &mut dyn FnMut(),
    ) -> Result<Vec<Answer>> {
        let tokenizer = self.model.tokenizer()?;
        let mut prefixes = Vec::with_capacity(pairs.len());
        for pair in pairs {
            prefixes.push(self.prefix(*pair, control)?);
            tick();
        }
        let asks: Vec<Query<'_>> = pairs
            .iter()
            .zip(&prefixes)
            .map(|(pair, prefix)| Query {
                prefix: prefix.as_ref(),
                prompt: match (&self.from[pair.case], std::slice::from_ref(&self.bos)) {
                    (Representation::Prefix(adapter, _), bos) => adapter.opening(bos),
                    (_, bos) => Input::Ids(bos),
                },
                gold: &self.texts[pair.item].1,
            })
            .collect();
        let longest = asks.iter().map(|ask| ask.gold.len()).max().unwrap_or(0);
        let sampling = Sampling {
            max_new_tokens: longest + MORE,
            ..Sampling::default()
        };
        let mut left: Vec<usize> = asks.iter().map(|ask| ask.gold.len() + MORE).collect();
        let answer = self.model.prefixes().with(control);
        let replies = answer.answer(&asks, &sampling, &mut |ask, _| {
            left[ask] -= 1;
            match left[ask] {
                0 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        })?;
        let mut answers = Vec::with_capacity(pairs.len());
        for (((pair, ask), reply), prefix) in pairs.iter().zip(&asks).zip(replies).zip(&prefixes) {
            let said = tokenizer.decode(&reply.generated.ids);
            let gold = tokenizer.decode(ask.gold);
            let nll = reply.nll.iter().map(|&x| f64::from(x)).sum::<f64>();
            let rouge = rouge(&said, &gold);
            let scores = [
                ("nll", nll / reply.nll.len().max(1) as f64),
                ("rouge1", rouge.rouge1),
                ("rouge2", rouge.rouge2),
                ("rouge_l", rouge.rouge_l),
                ("bleu", bleu(&said, &gold)),
                ("em", exact_match(&said, &gold)),
            ];
            answers.push(Answer {
                id: self.texts[pair.item].0.clone(),
                host_tokens: prefix.as_ref().map_or(0, |prefix| prefix.shape().tokens),
                said,
                scores: BTreeMap::from(scores.map(|(name, value)| (name.to_string(), value))),
            });
            tick();
        }
        Ok(answers)
    }
}
