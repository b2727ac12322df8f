//! The whole library behind one object.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::gpu::{Cuda, Gpu, Launcher, Precision};
use crate::hard::{self, Compressed, Request};
use crate::model::decoder::Model;
use crate::model::lora::{Lora, LoraWeights};
use crate::model::weights::Weights;
use crate::model::{Adapted, Scorer};
use crate::ops::{Backend, Cpu};
use crate::prefix::{KvPrefix, ModelId};
use crate::soft::{
    self, Adapter, Ask, EncodeOptions, Generated, PrefillOptions, Reply, Sampling, Source,
};
use crate::text::Tokenizer;
use crate::train::objective::{Gradient, LoraShape, Objective, Sample};
use crate::train::parameters::{self, Parameters};
use crate::train::{self, MemoryStart, Trainee};

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The first CUDA device if there is one, this program has kernels for it, and they agree with the
    /// CPU on small shapes ([`Gpu::self_check`]); otherwise the CPU, and [`ModelInfo::device`] says why where
    /// there is a driver.
    #[default]
    Auto,
    /// The CPU, all cores.
    Cpu,
    /// A CUDA device by its number.
    Cuda(usize),
}

/// Shape and origin of an open model, for display.
#[derive(Debug, Clone, Serialize)]
pub struct ModelInfo {
    /// Name of its file or folder.
    pub name: String,
    /// `llama`, `qwen2`, `qwen3`, `gpt2`.
    pub architecture: String,
    /// Number of weights; a tied head counts once.
    pub parameters: usize,
    /// Number of token ids.
    pub vocab: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the hidden state.
    pub hidden: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_positions: usize,
    /// Id of the token that begins a text, if the model names one.
    pub bos: Option<u32>,
    /// Id of the token that ends a text, if the model names one.
    pub eos: Option<u32>,
    /// Identifies weights and configuration.
    pub fingerprint: String,
    /// Where it runs, in words.
    pub device: String,
}

/// An open model. Any number of threads may call it at once.
pub trait Engine: Send + Sync {
    /// Shape and origin.
    fn info(&self) -> &ModelInfo;

    /// The model's tokenizer.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a folder without a `tokenizer.json`, which serves ids only.
    fn tokenizer(&self) -> Result<&Tokenizer>;

    /// Nll (nats) of `ids[1..]`, each given all before it, or of more ids than the model has positions
    /// what a window holds of it: windows as long as the model's context begin half a context apart,
    /// and each scores what the one before did not reach, so that every id has at least half a context
    /// before it.
    ///
    /// # Errors
    /// [`Error::Input`] for an id outside the vocabulary.
    fn score(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let window = self.info().max_positions.max(2);
        let mut nll = Vec::new();
        for start in (0..ids.len()).step_by(window / 2) {
            let end = ids.len().min(start + window);
            nll.extend(self.score_tail(&ids[start..end], nll.len() + 1 - start)?);
            if end == ids.len() {
                break;
            }
        }
        Ok(nll)
    }

    /// Nll (nats) of `ids[from..]`, each given all before it; the LM head works for these alone. The
    /// first id has none: `from` 0 is taken as 1.
    ///
    /// # Errors
    /// [`Error::Input`] for an id outside the vocabulary or more ids than the model has positions.
    fn score_tail(&self, ids: &[u32], from: usize) -> Result<Vec<f32>>;

    /// A shorter prompt: see [`hard::compress`].
    ///
    /// # Errors
    /// Those of [`hard::compress`].
    fn compress(&self, request: &Request) -> Result<Compressed>;

    /// Several prompts at once, on a device faster than one by one: see [`hard::compress_many`].
    ///
    /// # Errors
    /// Of each by itself those of [`Engine::compress`].
    fn compress_many(&self, requests: &[Request]) -> Vec<Result<Compressed>>;

    /// How many prompts [`Engine::compress_many`] has in hand at a time: 1 where one alone keeps the device
    /// busy, as it does a CPU.
    fn at_a_time(&self) -> usize;

    /// Reads an encoder's adapter from a folder: see [`Adapter::open`].
    ///
    /// # Errors
    /// Those of [`Adapter::open`].
    fn adapter(&self, folder: &Path) -> Result<Adapter>;

    /// Scores, and so compresses, with an adapter on from now on: one that distribution alignment
    /// trained (LLMLingua, section 4.3). Prefixes and generated text stay the model's own.
    ///
    /// # Errors
    /// Those of [`LoraWeights::open`].
    fn score_with(&mut self, folder: &Path) -> Result<()>;

    /// An untrained adapter: A as PEFT draws it, B zero, and so many memory embeddings.
    ///
    /// # Errors
    /// Those of [`parameters::check`].
    fn new_adapter(
        &self,
        lora: LoraShape,
        memory_tokens: usize,
        start: MemoryStart,
        seed: u64,
    ) -> Result<Parameters>;

    /// Losses and gradients of an objective over this model, for adapters of `lora`'s shape: what
    /// [`run`](crate::train::run::run) trains by. Of the activations as many are kept as fit into so
    /// many bytes; the others are computed again, layer by layer.
    ///
    /// # Errors
    /// Those of [`Trainee::new`].
    fn source(
        &self,
        lora: LoraShape,
        objective: Objective,
        activations: usize,
    ) -> Result<Box<dyn train::run::Source + '_>>;

    /// A text as the K and V of a few memory tokens: see [`soft::encode`].
    ///
    /// # Errors
    /// Those of [`soft::encode`].
    fn encode(
        &self,
        adapter: &Adapter,
        source: &Source,
        options: &EncodeOptions,
    ) -> Result<KvPrefix>;

    /// A text as the model's own K and V: see [`soft::prefill`].
    ///
    /// # Errors
    /// Those of [`soft::prefill`].
    fn prefill(&self, source: &Source, options: &PrefillOptions) -> Result<KvPrefix>;

    /// Text behind a prefix and a prompt: see [`soft::generate`].
    ///
    /// # Errors
    /// Those of [`soft::generate`], and [`Error::Input`] for another model's prefix, naming both.
    fn generate(
        &self,
        prefix: Option<&KvPrefix>,
        prompt: &[u32],
        options: &Sampling,
        each: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generated>;

    /// The nll of given continuations and the model's own ones, each prompt read once: see
    /// [`soft::answer`].
    ///
    /// # Errors
    /// Those of [`Engine::generate`].
    fn answer(
        &self,
        asks: &[Ask<'_>],
        options: &Sampling,
        each: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Reply>>;
}

/// Opens a GGUF file or a Hugging Face folder; a CUDA device works in `precision`, the CPU in f32.
///
/// # Errors
/// [`Error::Device`] for a CUDA device that was asked for and cannot be had; [`Error::Io`] and
/// [`Error::Format`] for a file that cannot be read, and [`Error::Unsupported`] for an architecture,
/// tokenizer or tensor type that is not built.
pub fn open_with(model: &Path, device: Device, precision: Precision) -> Result<Box<dyn Engine>> {
    // First: without a device nothing needs to be read.
    let mut unasked = None;
    match device {
        Device::Cpu => {}
        Device::Cuda(index) => return open_on(model, Gpu::new(Cuda::open(index)?, precision)),
        Device::Auto => match Cuda::open(0) {
            Ok(cuda) => {
                let gpu = Gpu::new(cuda, precision);
                match gpu.self_check() {
                    Ok(()) => return open_on(model, gpu),
                    Err(error) => unasked = Some(error),
                }
            }
            // Without a driver nobody misses a GPU.
            Err(error) if Cuda::driver_present() => unasked = Some(error),
            Err(_) => {}
        },
    }
    let mut name = format!("cpu, {} threads", rayon::current_num_threads());
    if let Some(error) = unasked {
        name += &format!(" (not the GPU: {error})");
    }
    load(model, Cpu::new(), name)
}

/// Opens a GGUF file or a Hugging Face folder on a backend of the caller's: a device with kernels that were built
/// elsewhere ([`Cuda::with_images`]), or kernels executed by the CPU.
///
/// # Errors
/// Those of [`open_with`].
pub fn open_on<L: Launcher>(model: &Path, gpu: Gpu<L>) -> Result<Box<dyn Engine>> {
    let name = gpu.describe();
    load(model, gpu, name)
}

/// [`open_with`] in the default precision.
///
/// # Errors
/// Those of [`open_with`].
pub fn open(model: &Path, device: Device) -> Result<Box<dyn Engine>> {
    open_with(model, device, Precision::default())
}

fn load<B: Backend>(model: &Path, backend: B, device: String) -> Result<Box<dyn Engine>> {
    let weights = Weights::open(model)?;
    let tokenizer = tokenizer(&weights)?;
    let config = weights.config();
    let name = model.file_name().unwrap_or(model.as_os_str());
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
    };
    Ok(Box::new(Loaded {
        info,
        tokenizer,
        path: model.to_owned(),
        model: Model::load(backend, &weights)?,
        lora: Mutex::default(),
        scoring: None,
    }))
}

/// The tokenizer that comes with the weights, if one does.
fn tokenizer(weights: &Weights) -> Result<Option<Tokenizer>> {
    let tokenizer = match (weights.gguf(), weights.tokenizer_path()) {
        (Some(metadata), _) => Tokenizer::from_vocab(metadata.vocab()?)?,
        (None, Some(path)) => Tokenizer::from_file(&path)?,
        (None, None) => return Ok(None),
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

/// A model in memory, with its tokenizer.
struct Loaded<B: Backend> {
    info: ModelInfo,
    tokenizer: Option<Tokenizer>,
    path: std::path::PathBuf,
    model: Model<B>,
    /// The adapter last used, on the device.
    lora: Mutex<Option<(String, Arc<Lora<B>>)>>,
    /// The adapter that is on when it scores.
    scoring: Option<Lora<B>>,
}

impl<B: Backend> Loaded<B> {
    fn id(&self) -> ModelId {
        ModelId {
            name: self.info.name.clone(),
            architecture: self.info.architecture.clone(),
            fingerprint: self.info.fingerprint.clone(),
        }
    }

    fn scorer(&self) -> Adapted<'_, B> {
        self.model.with(self.scoring.as_ref())
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

impl<B: Backend> Engine for Loaded<B> {
    fn info(&self) -> &ModelInfo {
        &self.info
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

    fn compress_many(&self, requests: &[Request]) -> Vec<Result<Compressed>> {
        match self.tokenizer() {
            Ok(tokenizer) => hard::compress_many(&self.scorer(), tokenizer, requests),
            // Each says for itself that there is none.
            Err(_) => requests
                .iter()
                .map(|request| self.compress(request))
                .collect(),
        }
    }

    fn at_a_time(&self) -> usize {
        match self.model.backend().queues() {
            true => hard::AT_A_TIME,
            false => 1,
        }
    }

    fn adapter(&self, folder: &Path) -> Result<Adapter> {
        Adapter::open(folder, self.model.config())
    }

    fn score_with(&mut self, folder: &Path) -> Result<()> {
        let weights = LoraWeights::open(folder, self.model.config())?;
        self.scoring = Some(Lora::load(
            self.model.backend(),
            self.model.config(),
            &weights,
        )?);
        Ok(())
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
    ) -> Result<Box<dyn train::run::Source + '_>> {
        Ok(Box::new(Training {
            trainee: Trainee::new(&self.model, lora, activations)?,
            objective,
        }))
    }

    fn encode(
        &self,
        adapter: &Adapter,
        source: &Source,
        options: &EncodeOptions,
    ) -> Result<KvPrefix> {
        let lora = self.lora(adapter)?;
        soft::encode(&self.model, &self.id(), adapter, &lora, source, options)
    }

    fn prefill(&self, source: &Source, options: &PrefillOptions) -> Result<KvPrefix> {
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
        asks: &[Ask<'_>],
        options: &Sampling,
        each: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Reply>> {
        for prefix in asks.iter().filter_map(|ask| ask.prefix) {
            prefix.check_model(&self.id())?;
        }
        soft::answer(&self.model, asks, options, each)
    }
}

/// An objective over a model.
struct Training<'m, B: Backend> {
    trainee: Trainee<'m, B>,
    objective: Objective,
}

impl<B: Backend> train::run::Source for Training<'_, B> {
    fn gradient(
        &mut self,
        parameters: &Parameters,
        batch: &[Sample],
        seed: u64,
    ) -> Result<Gradient> {
        let (tensors, objective) = (&parameters.tensors, &self.objective);
        self.trainee.gradient(tensors, batch, objective, seed)
    }

    fn nll(&mut self, parameters: &Parameters, batch: &[Sample]) -> Result<(f64, usize)> {
        let (tensors, objective) = (&parameters.tensors, &self.objective);
        let loss = self.trainee.loss(tensors, batch, objective)?;
        Ok((loss.nll, loss.targets))
    }
}
