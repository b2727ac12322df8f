//! An encoder as an engine: it compresses as LLMLingua-2 does, or ranks; it neither scores nor generates.

use std::ops::ControlFlow;
use std::path::Path;

use super::info::ModelInfo;
use super::runtime::{Meaning, Runtime};
use super::text_encoder::TextEncoder;
use crate::error::{Error, Result};
use crate::hard::llmlingua2::Classified;
use crate::hard::{Compressed, JsonRequest, Mode, RankMethod, Request};
use crate::model::config::Config;
use crate::ops::Backend;
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

/// An encoder in memory.
pub(super) struct LoadedEncoder<B: Backend> {
    pub info: ModelInfo,
    pub reader: TextEncoder<B>,
}

impl<B: Backend> LoadedEncoder<B> {
    /// What only a decoder does.
    fn decoder_only<T>(&self, what: &str) -> Result<T> {
        Err(Error::Unsupported {
            what: format!("{what} with {}, an encoder", self.info.name),
            have: "compressing in mode llmlingua2 and ranking; all else needs a decoder".into(),
        })
    }
}

impl<B: Backend> Runtime for LoadedEncoder<B> {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn config(&self) -> &Config {
        self.reader.encoder.config()
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        Ok(self.reader.tokenizer())
    }

    fn score_tail(&self, _: &[u32], _: usize) -> Result<Vec<f32>> {
        self.decoder_only("scoring")
    }

    fn compress(&self, request: &Request) -> Result<Compressed> {
        request.check()?;
        match &request.mode {
            Mode::LlmLingua2(options) => Classified {
                classifier: &self.reader,
                pieces: self.reader.pieces()?,
                options,
            }
            .compress(request),
            mode => self.decoder_only(&format!("mode {}", mode.name())),
        }
    }

    fn compress_many(&self, requests: &[Request]) -> Vec<Result<Compressed>> {
        requests
            .iter()
            .map(|request| self.compress(request))
            .collect()
    }

    fn compress_json(&self, _: &JsonRequest) -> Result<Compressed> {
        self.decoder_only("compressing JSON")
    }

    fn rank(
        &self,
        question: &str,
        texts: &[String],
        method: Option<RankMethod>,
    ) -> Result<Vec<f64>> {
        match method {
            None | Some(RankMethod::Sentbert) => {
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                self.reader.similarity(question, &texts)
            }
            Some(_) => self.decoder_only("this rank method"),
        }
    }

    #[cfg(feature = "train")]
    fn word_states(&self, words: &[String]) -> Result<WordStates> {
        self.reader.word_states(words)
    }

    fn at_a_time(&self) -> usize {
        1
    }

    fn adapter(&self, _: &Path) -> Result<Adapter> {
        self.decoder_only("an adapter")
    }

    fn new_adapter(&self, _: LoraShape, _: usize, _: MemoryStart, _: u64) -> Result<Parameters> {
        self.decoder_only("training an adapter")
    }

    fn source(
        &self,
        _: LoraShape,
        _: Objective,
        _: usize,
    ) -> Result<Box<dyn train::run::Source + Send + '_>> {
        self.decoder_only("training an adapter")
    }

    fn prefix_source(
        &self,
        _: Objective,
        _: usize,
    ) -> Result<Box<dyn train::run::Source + Send + '_>> {
        self.decoder_only("training a prefix")
    }

    fn encode(&self, _: &Adapter, _: &[Source], _: &EncodeOptions) -> Result<Vec<KvPrefix>> {
        self.decoder_only("a KV prefix")
    }

    fn encoded_id(&self, _: &Adapter, _: &Source, _: &EncodeOptions) -> Result<String> {
        self.decoder_only("a KV prefix")
    }

    fn prefill(&self, _: &Source, _: &[PrefillOptions]) -> Result<Vec<KvPrefix>> {
        self.decoder_only("a KV prefix")
    }

    fn generate(
        &self,
        _: Option<&KvPrefix>,
        _: &[u32],
        _: &Sampling,
        _: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generated> {
        self.decoder_only("generating text")
    }

    fn answer(
        &self,
        _: &[Query<'_>],
        _: &Sampling,
        _: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Completion>> {
        self.decoder_only("generating text")
    }
}
