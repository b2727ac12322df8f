//! What an engine asks of an open model, whichever it is and whatever device it is on.

use std::ops::ControlFlow;
use std::path::Path;

use super::info::ModelInfo;
use crate::error::{Error, Result};
use crate::hard::{Compressed, JsonRequest, RankMethod, Request};
use crate::model::config::Config;
use crate::model::weights::Weights;
use crate::prefix::KvPrefix;
use crate::soft::{
    Adapter, Completion, EncodeOptions, Generated, PrefillOptions, Query, Sampling, Source,
};
use crate::text::Tokenizer;
use crate::train::objective::{LoraShape, Objective};
use crate::train::parameters::Parameters;
#[cfg(feature = "train")]
use crate::train::tokens::WordStates;
use crate::train::{self, MemoryStart};

/// What an engine asks of a model, whatever device it is on.
pub(super) trait Runtime: Send + Sync {
    fn info(&self) -> &ModelInfo;
    fn config(&self) -> &Config;
    fn tokenizer(&self) -> Result<&Tokenizer>;
    fn score_tail(&self, ids: &[u32], from: usize) -> Result<Vec<f32>>;
    fn compress(&self, request: &Request) -> Result<Compressed>;
    fn compress_many(&self, requests: &[Request]) -> Vec<Result<Compressed>>;
    fn compress_json(&self, request: &JsonRequest) -> Result<Compressed>;
    fn rank(
        &self,
        question: &str,
        texts: &[String],
        method: Option<RankMethod>,
    ) -> Result<Vec<f64>>;
    /// Hidden states of an encoder, for a text given as words; see [`WordStates`].
    #[cfg(feature = "train")]
    fn word_states(&self, words: &[String]) -> Result<WordStates>;
    fn at_a_time(&self) -> usize;
    fn adapter(&self, folder: &Path) -> Result<Adapter>;
    fn new_adapter(
        &self,
        lora: LoraShape,
        memory_tokens: usize,
        start: MemoryStart,
        seed: u64,
    ) -> Result<Parameters>;
    fn source(
        &self,
        lora: LoraShape,
        objective: Objective,
        activations: usize,
    ) -> Result<Box<dyn train::run::Source + Send + '_>>;
    fn prefix_source(
        &self,
        objective: Objective,
        activations: usize,
    ) -> Result<Box<dyn train::run::Source + Send + '_>>;
    fn encode(
        &self,
        adapter: &Adapter,
        sources: &[Source],
        options: &EncodeOptions,
    ) -> Result<Vec<KvPrefix>>;
    fn encoded_id(
        &self,
        adapter: &Adapter,
        source: &Source,
        options: &EncodeOptions,
    ) -> Result<String>;
    fn prefill(&self, source: &Source, options: &[PrefillOptions]) -> Result<Vec<KvPrefix>>;
    fn generate(
        &self,
        prefix: Option<&KvPrefix>,
        prompt: &[u32],
        options: &Sampling,
        each: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generated>;
    fn answer(
        &self,
        queries: &[Query<'_>],
        options: &Sampling,
        each: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Completion>>;
}

/// An encoder beside the model, whatever device it is on.
pub(super) trait Meaning: Send + Sync {
    /// As [`Scorer::similarity`].
    fn similarity(&self, question: &str, texts: &[&str]) -> Result<Vec<f64>>;

    /// As [`Scorer::similarity_unit`].
    fn unit(&self) -> f64;
}

/// The tokenizer in `file`, or else the one that comes with the weights, if one does.
pub(super) fn open_tokenizer(weights: &Weights, file: Option<&Path>) -> Result<Option<Tokenizer>> {
    let tokenizer = match (file, weights.gguf(), weights.tokenizer_path()) {
        (Some(file), ..) => Tokenizer::from_file(file)?,
        (None, Some(metadata), _) => Tokenizer::from_vocab(metadata.vocab()?)
            .map_err(|error| error.in_file(weights.path()))?,
        (None, None, Some(path)) => Tokenizer::from_file(&path)?,
        (None, None, None) => return Ok(None),
    };
    if tokenizer.vocab_size() > weights.config().vocab {
        return Err(Error::format(
            weights.path(),
            format!(
                "its tokenizer has {} ids, but the embedding only {} rows",
                tokenizer.vocab_size(),
                weights.config().vocab
            ),
        ));
    }
    Ok(Some(tokenizer))
}
