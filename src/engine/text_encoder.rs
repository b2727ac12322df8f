//! An encoder with its tokenizer: texts to vectors, scores and probabilities.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

use super::runtime::{Meaning, open_tokenizer};
use crate::error::{Error, Result};
use crate::hard::llmlingua2::{self, TokenClassifier};
use crate::hard::rank;
use crate::mapped::read_json;
use crate::model::config::{EncoderHead, Family};
use crate::model::weights::Weights;
use crate::model::{Encoder, EncoderInput, Pooling};
use crate::ops::Backend;
use crate::text::{Pieces, Tokenizer};
#[cfg(feature = "train")]
use crate::train::tokens::WordStates;

/// Tokens of a text that a vector is made of; what follows is not read.
const LONGEST: usize = 512;
/// Bytes of a file of settings.
const LONGEST_SETTINGS: u64 = 1 << 20;

/// An open encoder, for texts.
pub(super) struct TextEncoder<B: Backend> {
    pub encoder: Encoder<B>,
    path: PathBuf,
    tokenizer: Tokenizer,
    /// Of the tokenizer; `None`: it comes with the weights, out of a GGUF.
    file: Option<PathBuf>,
    pieces: OnceLock<Pieces>,
    pooling: Pooling,
}

impl<B: Backend> TextEncoder<B> {
    /// Opens weights; `tokenizer` is a file in place of their own.
    pub(super) fn load(weights: &Weights, backend: B, tokenizer: Option<&Path>) -> Result<Self> {
        let own = weights.tokenizer_path();
        let file = tokenizer.map(Path::to_owned).or(own);
        let Some(tokenizer) = open_tokenizer(weights, file.as_deref())? else {
            return Err(Error::Unsupported {
                what: format!("text with {}", weights.path().display()),
                have: "no tokenizer.json beside the weights: put one there, or name it".into(),
            });
        };
        Ok(TextEncoder {
            path: weights.path().to_owned(),
            encoder: Encoder::load(backend, weights)?,
            tokenizer,
            file,
            pieces: OnceLock::new(),
            pooling: pooling(weights)?,
        })
    }

    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The pieces that LLMLingua-2 works on.
    pub(super) fn pieces(&self) -> Result<&Pieces> {
        if let Some(pieces) = self.pieces.get() {
            return Ok(pieces);
        }
        let Some(file) = &self.file else {
            return Err(Error::Unsupported {
                what: format!("mode llmlingua2 with {}", self.path.display()),
                have: "token classifiers as a Hugging Face folder".into(),
            });
        };
        let pieces = llmlingua2::pieces(file)?;
        Ok(self.pieces.get_or_init(|| pieces))
    }

    /// Hidden states of a text given as words, as LLMLingua-2 reads it.
    #[cfg(feature = "train")]
    pub(super) fn word_states(&self, words: &[String]) -> Result<WordStates> {
        self.refuse_unmarked()?;
        let window = self.encoder.config().max_positions;
        let readings = llmlingua2::readings(self.pieces()?, words, window)?;
        let (inputs, words): (Vec<_>, Vec<_>) = readings
            .into_iter()
            .map(|reading| (reading.input, reading.words))
            .unzip();
        let width = self.encoder.config().hidden;
        let states = self.encoder.states(&inputs)?.into_iter();
        let read = words.into_iter().zip(states).map(|(words, mut states)| {
            // Without the marks.
            states.truncate(states.len() - width);
            states.drain(..width);
            (words, states)
        });
        Ok(read.collect())
    }

    /// Refuses a family whose pieces have no mark of a word's beginning that LLMLingua-2 would know.
    fn refuse_unmarked(&self) -> Result<()> {
        match self.encoder.config().family {
            Family::ModernBert => Err(Error::Unsupported {
                what: "mode llmlingua2 with modernbert".into(),
                have: "classifiers of bert and xlm-roberta".into(),
            }),
            _ => Ok(()),
        }
    }

    fn head(&self) -> EncoderHead {
        let encoder = self.encoder.config().encoder.as_ref();
        encoder.map_or(EncoderHead::None, |encoder| encoder.head)
    }

    fn room(&self) -> usize {
        LONGEST.min(self.encoder.config().max_positions)
    }

    /// A text with what the tokenizer puts around it, cut at the model's length.
    fn input(&self, text: &str) -> Result<EncoderInput> {
        let mut ids = self.tokenizer.encode(text, true, true)?.ids;
        if ids.len() > self.room() {
            // What ends a text ends a shortened one too.
            let last = ids[ids.len() - 1];
            ids.truncate(self.room() - 1);
            ids.push(last);
        }
        Ok(ids.into())
    }

    /// Scores of pairs: one text after the other, as the family marks them.
    fn rerank(&self, question: &str, texts: &[&str]) -> Result<Vec<f64>> {
        let family = self.encoder.config().family;
        let [first, between, last]: [&[&str]; 3] = match family {
            Family::XlmRoberta => [&["<s>"], &["</s>", "</s>"], &["</s>"]],
            _ => [&["[CLS]"], &["[SEP]"], &["[SEP]"]],
        };
        let marks = |names: &[&str]| -> Result<Vec<u32>> {
            let id = |name: &&str| {
                self.tokenizer.token_id(name).ok_or_else(|| {
                    Error::format(
                        self.file.as_ref().unwrap_or(&self.path),
                        format!("has no token {name}, which this model needs"),
                    )
                })
            };
            names.iter().map(id).collect()
        };
        let (first, between, last) = (marks(first)?, marks(between)?, marks(last)?);
        let question = self.tokenizer.encode(question, false, true)?.ids;
        let around = first.len() + between.len() + last.len();
        // The question may take half; a text gives way first.
        let room = self.room().saturating_sub(around);
        let question = &question[..question.len().min(room / 2)];
        let mut inputs = Vec::with_capacity(texts.len());
        for text in texts {
            let mut text = self.tokenizer.encode(text, false, true)?.ids;
            text.truncate(room - question.len());
            let mut ids = [&first[..], question, &between].concat();
            let mut types = Vec::new();
            if family == Family::Bert {
                types.resize(ids.len(), 0);
                types.resize(ids.len() + text.len() + last.len(), 1);
            }
            ids.extend(text.iter().chain(&last));
            inputs.push(EncoderInput {
                types,
                ids,
                ..EncoderInput::default()
            });
        }
        let scores = self.encoder.text_logits(&inputs)?;
        Ok(scores.iter().map(|logits| logits[0].into()).collect())
    }
}

/// By the score of a reranker, or the cosine of two vectors.
impl<B: Backend> Meaning for TextEncoder<B> {
    fn similarity(&self, question: &str, texts: &[&str]) -> Result<Vec<f64>> {
        match self.head() {
            EncoderHead::Text(1) => self.rerank(question, texts),
            EncoderHead::None => {
                let mut inputs = Vec::with_capacity(texts.len() + 1);
                inputs.push(self.input(question)?);
                for text in texts {
                    inputs.push(self.input(text)?);
                }
                let vectors = self.encoder.embed(&inputs, self.pooling, true)?;
                let Some((question, texts)) = vectors.split_first() else {
                    return Ok(Vec::new());
                };
                let cosine = |text: &Vec<f32>| {
                    let products = text.iter().zip(question).map(|(a, b)| f64::from(a * b));
                    products.sum()
                };
                Ok(texts.iter().map(cosine).collect())
            }
            EncoderHead::Tokens(_) | EncoderHead::Text(_) => Err(Error::Unsupported {
                what: "ranking texts by a classifier".into(),
                have: "encoders without a head (sentence-transformers) and rerankers, which have one label".into(),
            }),
        }
    }

    fn unit(&self) -> f64 {
        rank::similarity_unit(self.encoder.config())
    }
}

impl<B: Backend> TokenClassifier for TextEncoder<B> {
    fn family(&self) -> Family {
        self.encoder.config().family
    }

    fn max_positions(&self) -> usize {
        self.encoder.config().max_positions
    }

    fn keep_probabilities(&self, inputs: &[EncoderInput]) -> Result<Vec<Vec<f32>>> {
        self.refuse_unmarked()?;
        match self.head() {
            EncoderHead::Tokens(2) => {}
            EncoderHead::Tokens(labels) => {
                return Err(Error::Unsupported {
                    what: format!("mode llmlingua2 with a classifier of {labels} labels"),
                    have: "two: drop and keep".into(),
                });
            }
            EncoderHead::None | EncoderHead::Text(_) => {
                return Err(Error::Unsupported {
                    what: "mode llmlingua2 with an encoder that classifies no tokens".into(),
                    have: "models for token classification, as microsoft's llmlingua-2".into(),
                });
            }
        }
        let softmax = |pair: &[f32]| {
            let max = pair[0].max(pair[1]);
            let [drop, keep] = [(pair[0] - max).exp(), (pair[1] - max).exp()];
            keep / (drop + keep)
        };
        let logits = self.encoder.token_logits(inputs)?;
        let of_text = |logits: &Vec<f32>| logits.chunks_exact(2).map(softmax).collect();
        Ok(logits.iter().map(of_text).collect())
    }
}

/// What a GGUF, or sentence-transformers' `1_Pooling/config.json` beside the weights, says.
fn pooling(weights: &Weights) -> Result<Pooling> {
    if let Some(metadata) = weights.gguf() {
        const KEY: &str = "bert.pooling_type";
        // As llama.cpp numbers them; 0 is "none".
        return match metadata.u32(KEY)? {
            None | Some(0 | 1) => Ok(Pooling::Mean),
            // A reranker (4) also judges a pair by its first token.
            Some(2 | 4) => Ok(Pooling::First),
            Some(other) => Err(Error::Unsupported {
                what: format!("{}: {KEY} {other}", weights.path().display()),
                have: "1 (the mean of all tokens), 2 (the first token), 4 (a reranker)".into(),
            }),
        };
    }
    let file = weights.path().join("1_Pooling").join("config.json");
    if !file.exists() {
        return Ok(Pooling::default());
    }
    let settings: Value = read_json(&file, LONGEST_SETTINGS)?;
    let on = |name: &str| settings.get(name).and_then(Value::as_bool) == Some(true);
    match (on("pooling_mode_mean_tokens"), on("pooling_mode_cls_token")) {
        (true, _) => Ok(Pooling::Mean),
        (false, true) => Ok(Pooling::First),
        (false, false) => Err(Error::Unsupported {
            what: format!("{}: this pooling", file.display()),
            have: "the mean of all tokens, the first token".into(),
        }),
    }
}
