//! A model in memory as one object: generics over backends stop here.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::encoding::LoadedEncoder;
use super::info::ModelInfo;
use super::runtime::{Meaning, Runtime, open_tokenizer};
use super::text_encoder::TextEncoder;
use crate::control;
use crate::error::{Error, Result};
use crate::gpu::Precision;
use crate::hard::{self, Compressed, JsonRequest, RankMethod, Request};
use crate::model::config::Config;
use crate::model::decoder::Model;
use crate::model::lora::{Lora, LoraWeights};
use crate::model::weights::Weights;
use crate::model::{Adapted, PrunedTokens, Scorer, Session, TokenPruning};
use crate::ops::Backend;
use crate::prefix::{KvPrefix, ModelId};
use crate::soft::{
    self, Adapter, Completion, EncodeOptions, Generated, PrefillOptions, Query, Sampling, Source,
};
use crate::text::Tokenizer;
use crate::train::objective::{Gradient, LoraShape, Objective, Sample};
use crate::train::parameters::{self, Parameters};
#[cfg(feature = "train")]
use crate::train::tokens::WordStates;
use crate::train::{self, MemoryStart, TrainableModel};

/// What does not lie in a model's own files.
pub(super) struct Beside<'a> {
    /// The adapter that is on when it scores.
    pub scoring: Option<&'a Path>,
    /// A `tokenizer.json` in place of its own tokenizer.
    pub tokenizer: Option<&'a Path>,
    /// An encoder that ranks by meaning.
    pub encoder: Option<Arc<dyn Meaning>>,
}

/// A scorer with the encoder beside it.
struct WithEncoder<'a, B: Backend> {
    scorer: Adapted<'a, B>,
    encoder: Option<&'a dyn Meaning>,
}

impl<B: Backend> Scorer for WithEncoder<'_, B> {
    fn max_positions(&self) -> usize {
        self.scorer.max_positions()
    }

    fn session(&self) -> Result<Box<dyn Session + '_>> {
        self.scorer.session()
    }

    fn score_tails(&self, sequences: &[(&[u32], usize)]) -> Result<Vec<Vec<f32>>> {
        self.scorer.score_tails(sequences)
    }

    fn estimate_tails(&self, sequences: &[(&[u32], usize)]) -> Result<Vec<Vec<f32>>> {
        self.scorer.estimate_tails(sequences)
    }

    fn prunes(&self) -> bool {
        self.scorer.prunes()
    }

    fn prune(&self, texts: &[TokenPruning<'_>]) -> Result<Vec<PrunedTokens>> {
        self.scorer.prune(texts)
    }

    fn similarity(&self, question: &str, texts: &[&str]) -> Result<Vec<f64>> {
        match self.encoder {
            Some(encoder) => encoder.similarity(question, texts),
            None => self.scorer.similarity(question, texts),
        }
    }

    fn similarity_unit(&self) -> Option<f64> {
        self.encoder.map(Meaning::unit)
    }
}

/// Brings a model to a device.
pub(super) fn load<B: Backend>(
    path: &Path,
    weights: &Weights,
    backend: B,
    device: String,
    precision: Precision,
    beside: Beside,
) -> Result<Box<dyn Runtime>> {
    let config = weights.config();
    let name = path.file_name().unwrap_or(path.as_os_str());
    let info = ModelInfo {
        name: name.to_string_lossy().into_owned(),
        architecture: config.family.name().into(),
        parameters: weights.parameters(),
        vocab: config.vocab,
        layers: config.layers,
        hidden: config.hidden,
        max_positions: config.max_positions,
        bos: config.bos,
        eos: config.eos,
        fingerprint: weights.fingerprint(),
        device,
        precision,
    };
    log::info!("{}: {} on {}", info.name, info.architecture, info.device);
    if config.encoder.is_some() {
        return Ok(Box::new(LoadedEncoder {
            reader: TextEncoder::load(weights, backend, beside.tokenizer)?,
            info,
        }));
    }
    let tokenizer = open_tokenizer(weights, beside.tokenizer)?;
    let scoring = match beside.scoring {
        Some(folder) => Some(LoraWeights::open_without_memory(folder, config)?),
        None => None,
    };
    let model = Model::load(backend, weights)?;
    let scoring = match scoring {
        Some(weights) => Some(Lora::load(model.backend(), model.config(), &weights)?),
        None => None,
    };
    Ok(Box::new(Loaded {
        info,
        tokenizer,
        path: path.to_owned(),
        model,
        lora: Mutex::default(),
        scoring,
        encoder: beside.encoder,
    }))
}

/// A model in memory, with its tokenizer.
struct Loaded<B: Backend> {
    info: ModelInfo,
    tokenizer: Option<Tokenizer>,
    path: PathBuf,
    model: Model<B>,
    /// The adapter last used, on the device.
    lora: Mutex<Option<(String, Arc<Lora<B>>)>>,
    /// The adapter that is on when it scores.
    scoring: Option<Lora<B>>,
    /// What ranks by meaning.
    encoder: Option<Arc<dyn Meaning>>,
}

impl<B: Backend> Loaded<B> {
    fn id(&self) -> ModelId {
        ModelId {
            name: self.info.name.clone(),
            architecture: self.info.architecture.clone(),
            fingerprint: self.info.fingerprint.clone(),
            vocab: u32::try_from(self.info.vocab).ok(),
        }
    }

    fn scorer(&self) -> WithEncoder<'_, B> {
        WithEncoder {
            scorer: self.model.with(self.scoring.as_ref()),
            encoder: self.encoder.as_deref(),
        }
    }

    fn lora(&self, adapter: &Adapter) -> Result<Arc<Lora<B>>> {
        let mut last = self.lora.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((id, lora)) = &*last
            && id == adapter.id()
        {
            return Ok(lora.clone());
        }
        let lora = Lora::load(self.model.backend(), self.model.config(), &adapter.lora)?;
        let lora = Arc::new(lora);
        *last = Some((adapter.id().into(), lora.clone()));
        Ok(lora)
    }
}

impl<B: Backend> Runtime for Loaded<B> {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn config(&self) -> &Config {
        self.model.config()
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| Error::Unsupported {
            what: format!("text with {}", self.path.display()),
            have: "no tokenizer.json beside the weights: give ids, or put one there".into(),
        })
    }

    fn score_tail(&self, ids: &[u32], from: usize) -> Result<Vec<f32>> {
        let nlls = self.scorer().score_tails(&[(ids, from)])?;
        Ok(nlls.into_iter().next().unwrap_or_default())
    }

    fn compress(&self, request: &Request) -> Result<Compressed> {
        hard::compress(&self.scorer(), self.tokenizer()?, request)
    }

    fn compress_json(&self, request: &JsonRequest) -> Result<Compressed> {
        hard::compress_json(&self.scorer(), self.tokenizer()?, request)
    }

    fn compress_many(&self, requests: &[Request]) -> Vec<Result<Compressed>> {
        match self.tokenizer() {
            Ok(tokenizer) => hard::compress_many(&self.scorer(), tokenizer, requests),
            // Each caller reports that the tokenizer is missing.
            Err(_) => requests
                .iter()
                .map(|request| self.compress(request))
                .collect(),
        }
    }

    fn rank(
        &self,
        question: &str,
        texts: &[String],
        method: Option<RankMethod>,
    ) -> Result<Vec<f64>> {
        hard::rank(&self.scorer(), self.tokenizer()?, question, texts, method)
    }

    #[cfg(feature = "train")]
    fn word_states(&self, _: &[String]) -> Result<WordStates> {
        Err(Error::Unsupported {
            what: format!("a token classifier on {}, a decoder", self.info.name),
            have: "encoders: BERT and XLM-RoBERTa as a Hugging Face folder".into(),
        })
    }

    fn at_a_time(&self) -> usize {
        match self.model.backend().runs_ahead() {
            true => hard::AT_A_TIME,
            false => 1,
        }
    }

    fn adapter(&self, folder: &Path) -> Result<Adapter> {
        Adapter::open(folder, self.model.config())
    }

    fn new_adapter(
        &self,
        lora: LoraShape,
        memory_tokens: usize,
        start: MemoryStart,
        seed: u64,
    ) -> Result<Parameters> {
        parameters::check(self.model.config(), &lora, memory_tokens)?;
        let tensors = train::initial(&self.model, &lora, memory_tokens, start, seed)?;
        Ok(Parameters { lora, tensors })
    }

    fn source(
        &self,
        lora: LoraShape,
        objective: Objective,
        activations: usize,
    ) -> Result<Box<dyn train::run::Source + Send + '_>> {
        Ok(Box::new(Trained {
            trainable: TrainableModel::new(&self.model, lora, activations)?,
            objective,
        }))
    }

    fn prefix_source(
        &self,
        objective: Objective,
        activations: usize,
    ) -> Result<Box<dyn train::run::Source + Send + '_>> {
        Ok(Box::new(Trained {
            trainable: TrainableModel::for_prefix(&self.model, activations)?,
            objective,
        }))
    }

    fn encode(
        &self,
        adapter: &Adapter,
        sources: &[Source],
        options: &EncodeOptions,
    ) -> Result<Vec<KvPrefix>> {
        let lora = self.lora(adapter)?;
        soft::encode(&self.model, &self.id(), adapter, &lora, sources, options)
    }

    fn encoded_id(
        &self,
        adapter: &Adapter,
        source: &Source,
        options: &EncodeOptions,
    ) -> Result<String> {
        soft::encoded_id(&self.model, &self.id(), adapter, source, options)
    }

    fn prefill(&self, source: &Source, options: &[PrefillOptions]) -> Result<Vec<KvPrefix>> {
        soft::prefill(&self.model, &self.id(), source, options)
    }

    fn generate(
        &self,
        prefix: Option<&KvPrefix>,
        prompt: &[u32],
        options: &Sampling,
        each: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generated> {
        if let Some(prefix) = prefix {
            prefix.check_model(&self.id())?;
        }
        soft::generate(&self.model, prefix, prompt, options, each)
    }

    fn answer(
        &self,
        queries: &[Query<'_>],
        options: &Sampling,
        each: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Completion>> {
        for prefix in queries.iter().filter_map(|query| query.prefix) {
            prefix.check_model(&self.id())?;
        }
        soft::answer(&self.model, queries, options, each)
    }
}

/// An objective over a model.
struct Trained<'m, B: Backend> {
    trainable: TrainableModel<'m, B>,
    objective: Objective,
}

impl<B: Backend> train::run::Source for Trained<'_, B> {
    fn gradient(
        &mut self,
        parameters: &Parameters,
        batch: &[Sample],
        seed: u64,
    ) -> Result<Gradient> {
        let (tensors, objective) = (&parameters.tensors, &self.objective);
        control::step(|| self.trainable.gradient(tensors, batch, objective, seed))
    }

    fn nll(&mut self, parameters: &Parameters, batch: &[Sample]) -> Result<(f64, usize)> {
        let (tensors, objective) = (&parameters.tensors, &self.objective);
        let loss = control::step(|| self.trainable.loss(tensors, batch, objective))?;
        Ok((loss.nll, loss.targets))
    }
}
