//! An open model: the whole library as one object.

mod encoding;
mod info;
mod loaded;
mod prefixes;
mod runtime;
mod study;
mod text_encoder;
mod training;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::control::{Call, Control};
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::gpu::{Cuda, Gpu, Launcher, Precision};
use crate::hard::messages::{self, MessagesOptions, MessagesResult};
use crate::hard::{Compressed, JsonRequest, RankMethod, Request};
use crate::model::config::Config;
use crate::model::weights::{Access, Weights};
use crate::text::Tokenizer;
use runtime::{Meaning, Runtime};
use text_encoder::TextEncoder;

pub use info::ModelInfo;
pub use prefixes::Prefixes;
pub use training::Training;

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Device {
    /// The first CUDA device if there is one, this program has kernels for it, and they agree with the
    /// CPU on small shapes; otherwise the CPU, and [`ModelInfo::device`] says why where there is a driver.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by its number.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = Error;

    /// Reads `auto`, `cpu`, `cuda` or `cuda:N`.
    fn from_str(name: &str) -> Result<Self> {
        let device = match name {
            // An empty variable is one that is not set.
            "" | "auto" => Some(Device::Auto),
            "cpu" => Some(Device::Cpu),
            "cuda" => Some(Device::Cuda(0)),
            _ => name
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Device::Cuda),
        };
        device.ok_or_else(|| Error::Unsupported {
            what: format!("device `{name}`"),
            have: "auto, cpu, cuda, cuda:N".into(),
        })
    }
}

/// How a model is opened: see [`Engine::builder`].
#[derive(Debug, Clone)]
#[must_use]
pub struct EngineBuilder {
    path: PathBuf,
    device: Device,
    precision: Precision,
    threads: usize,
    adapter: Option<PathBuf>,
    tokenizer: Option<PathBuf>,
    encoder: Option<PathBuf>,
    access: Access,
}

impl EngineBuilder {
    /// Sets where the model runs; [`Device::Auto`] by default.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Sets what a CUDA device multiplies in; the CPU works in f32.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Sets the number of the engine's own CPU threads; 0, the default, is one per core.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Scores, and so compresses, with an adapter that distribution alignment trained (LLMLingua,
    /// section 4.3). Prefixes and generated text stay the model's own.
    pub fn adapter(mut self, folder: impl Into<PathBuf>) -> Self {
        self.adapter = Some(folder.into());
        self
    }

    /// Takes a `tokenizer.json` instead of the model's own tokenizer: for a GGUF whose tokenizer is not
    /// built, or was converted wrongly.
    pub fn tokenizer(mut self, file: impl Into<PathBuf>) -> Self {
        self.tokenizer = Some(file.into());
        self
    }

    /// Opens an encoder beside the model: a folder or GGUF of BERT's or XLM-RoBERTa's family that makes one
    /// vector of a text, as all-MiniLM-L6-v2, or a reranker. It ranks by meaning:
    /// [`RankMethod::Sentbert`], and beside the words where the mode [`Exact`](crate::Exact) ranks by default.
    pub fn encoder(mut self, model: impl Into<PathBuf>) -> Self {
        self.encoder = Some(model.into());
        self
    }

    /// Sets whether the model's files are mapped, as by default, or read as a whole. A mapped file must not
    /// be shortened while the engine is open: see [`Access::Map`].
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Opens the model.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] for a file that cannot be read, [`Error::Unsupported`] for an
    /// architecture, tokenizer or tensor type that is not built, [`Error::Device`] for a CUDA device that
    /// was asked for and cannot be had.
    pub fn build(self) -> Result<Engine> {
        // Before a device is touched: most mistakes are in the path.
        let weights = Weights::open_with(&self.path, self.access)?;
        let mut why_not = None;
        let gpu = match self.device {
            Device::Cpu => None,
            Device::Cuda(index) => Some(Gpu::new(Cuda::open(index)?, self.precision)),
            Device::Auto => match Cuda::open(0) {
                Ok(cuda) => {
                    let gpu = Gpu::new(cuda, self.precision);
                    why_not = gpu.self_check().err();
                    Some(gpu).filter(|_| why_not.is_none())
                }
                // Without a driver a GPU is not missed.
                Err(error) => {
                    log::info!("CUDA is not used: {error}");
                    why_not = Some(error).filter(|_| Cuda::driver_present());
                    None
                }
            },
        };
        if let Some(gpu) = gpu {
            return self.load_on(&weights, gpu);
        }
        let threads = self.pool()?;
        let mut device = format!("cpu, {} threads", threads.current_num_threads());
        if let Some(error) = why_not {
            device += &format!(" (not the GPU: {error})");
        }
        self.load(&weights, threads, Cpu::new(), device, Precision::F32)
    }

    /// Opens the model on a backend of the caller's: a device with kernels that were built elsewhere
    /// ([`Cuda::with_images`]), or kernels executed by the CPU.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] for a file that cannot be read, [`Error::Unsupported`] for an
    /// architecture, tokenizer or tensor type that is not built, [`Error::Device`] if the device fails.
    #[doc(hidden)]
    pub fn build_on<L: Launcher>(self, gpu: Gpu<L>) -> Result<Engine> {
        let weights = Weights::open_with(&self.path, self.access)?;
        self.load_on(&weights, gpu)
    }

    fn load_on<L: Launcher>(self, weights: &Weights, gpu: Gpu<L>) -> Result<Engine> {
        let device = gpu.describe();
        let threads = self.pool()?;
        let precision = gpu.precision();
        self.load(weights, threads, gpu, device, precision)
    }

    fn load<B: crate::ops::Backend>(
        self,
        weights: &Weights,
        threads: ThreadPool,
        backend: B,
        device: String,
        precision: Precision,
    ) -> Result<Engine> {
        let load = || {
            let encoder: Option<Arc<dyn Meaning>> = match &self.encoder {
                Some(path) => {
                    let weights = Weights::open_with(path, self.access)?;
                    // Small enough for a CPU, whatever the model runs on.
                    Some(Arc::new(TextEncoder::load(&weights, Cpu::new(), None)?))
                }
                None => None,
            };
            let beside = loaded::Beside {
                scoring: self.adapter.as_deref(),
                tokenizer: self.tokenizer.as_deref(),
                encoder,
            };
            loaded::load(&self.path, weights, backend, device, precision, beside)
        };
        let runtime = threads.install(load)?;
        Ok(Engine {
            runtime,
            threads: Arc::new(threads),
        })
    }

    fn pool(&self) -> Result<ThreadPool> {
        ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .thread_name(|i| format!("prefold-{i}"))
            .build()
            .map_err(|error| Error::Device {
                device: "cpu".into(),
                reason: error.to_string(),
            })
    }
}

/// An open model with threads of its own. Any number of callers may use it at once.
///
/// ```no_run
/// use prefold::{Device, Engine, Request};
///
/// let engine = Engine::builder("SmolLM2-135M-Instruct-Q4_1.gguf")
///     .device(Device::Cpu)
///     .threads(2)
///     .build()?;
/// let short = engine.compress(&Request::new(["A long document."]).with_tokens(100))?;
/// # Ok::<(), prefold::Error>(())
/// ```
pub struct Engine {
    runtime: Box<dyn Runtime>,
    threads: Arc<ThreadPool>,
}

impl Engine {
    /// Opens a GGUF file or a Hugging Face folder with all defaults.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] for a file that cannot be read, [`Error::Unsupported`] for an
    /// architecture, tokenizer or tensor type that is not built, [`Error::Device`] if the device fails.
    pub fn open(model: impl Into<PathBuf>) -> Result<Engine> {
        Self::builder(model).build()
    }

    /// Says how a GGUF file or a Hugging Face folder is to be opened.
    pub fn builder(model: impl Into<PathBuf>) -> EngineBuilder {
        EngineBuilder {
            path: model.into(),
            device: Device::default(),
            precision: Precision::default(),
            threads: 0,
            adapter: None,
            tokenizer: None,
            encoder: None,
            access: Access::Map,
        }
    }

    /// Shape and origin of the model.
    pub fn info(&self) -> &ModelInfo {
        self.runtime.info()
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a folder without a `tokenizer.json`, which serves ids only.
    #[doc(hidden)]
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.runtime.tokenizer()
    }

    /// Token ids of a text. `add_special` adds what the tokenizer puts around a text, as BOS;
    /// `parse_special` reads `<|im_start|>` as one token.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a folder without a `tokenizer.json`, which serves ids only.
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer()?;
        Ok(tokenizer.encode(text, add_special, parse_special)?.ids)
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a folder without a `tokenizer.json`, which serves ids only.
    pub fn detokenize(&self, ids: &[u32]) -> Result<String> {
        Ok(self.tokenizer()?.decode(ids))
    }

    /// Nll (nats) of `ids[1..]`, each given all before it.
    ///
    /// Of more ids than the model has positions each is given what a window holds: windows as long as the
    /// model's context begin half a context apart, and each scores what the one before did not reach, so
    /// that every id has at least half a context before it.
    ///
    /// # Errors
    /// [`Error::Input`] for an id outside the vocabulary; [`Error::Cancelled`] or [`Error::Deadline`] where
    /// `control` ends it.
    pub fn score(&self, ids: &[u32], control: &Control) -> Result<Vec<f32>> {
        let window = self.info().max_positions.max(2);
        let mut nll = Vec::new();
        for start in (0..ids.len()).step_by(window / 2) {
            let end = ids.len().min(start + window);
            let from = nll.len() + 1 - start;
            nll.extend(self.score_tail(&ids[start..end], from, control)?);
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
    /// [`Error::Input`] for an id outside the vocabulary or more ids than the model has positions;
    /// [`Error::Cancelled`] or [`Error::Deadline`] where `control` ends it.
    pub fn score_tail(&self, ids: &[u32], from: usize, control: &Control) -> Result<Vec<f32>> {
        self.call(control, || self.runtime.score_tail(ids, from))
    }

    /// Shortens a prompt: [`Engine::compress_with`] without a control.
    ///
    /// # Errors
    /// [`Error::Input`] for an option outside its range or a tag that cannot be read; [`Error::Budget`] when
    /// what must be kept is longer than the target; [`Error::Device`] if the device fails.
    pub fn compress(&self, request: &Request) -> Result<Compressed> {
        self.compress_with(request, &Control::default())
    }

    /// Shortens a prompt.
    ///
    /// # Errors
    /// [`Error::Input`] for an option outside its range or a tag that cannot be read; [`Error::Budget`] when
    /// what must be kept is longer than the target; [`Error::Cancelled`] or [`Error::Deadline`] where
    /// `control` ends it.
    pub fn compress_with(&self, request: &Request, control: &Control) -> Result<Compressed> {
        self.call(control, || self.runtime.compress(request))
    }

    /// Shortens several prompts, each as it would come out alone, in their order. On a GPU they share
    /// forward passes.
    ///
    /// # Errors
    /// Of each request by itself: [`Error::Input`] for an option outside its range or a tag that cannot be
    /// read; [`Error::Budget`] when what must be kept is longer than the target; [`Error::Cancelled`] or
    /// [`Error::Deadline`] where `control` ends it.
    pub fn compress_many(
        &self,
        requests: &[Request],
        control: &Control,
    ) -> Vec<Result<Compressed>> {
        self.call(control, || self.runtime.compress_many(requests))
    }

    /// Shortens a conversation: the body of a request to a chat model (OpenAI's chat completions and
    /// responses, Anthropic's messages), or the list of its messages.
    ///
    /// Tool results, documents and older turns may become shorter; every other byte is copied.
    ///
    /// # Errors
    /// [`Error::Input`] for an option outside its range or a body that is not a conversation;
    /// [`Error::Budget`] when what must not change is longer than the target; [`Error::Cancelled`] or
    /// [`Error::Deadline`] where `control` ends it.
    pub fn compress_messages(
        &self,
        body: &[u8],
        options: &MessagesOptions,
        control: &Control,
    ) -> Result<MessagesResult> {
        let tokenizer = self.tokenizer()?;
        self.call(control, || {
            let compress = |requests: &[Request]| self.runtime.compress_many(requests);
            messages::compress_by(body, options, tokenizer, &compress)
        })
    }

    /// Shortens a JSON object whose members have rates of their own: llmlingua's `compress_json`, valid by
    /// construction.
    ///
    /// # Errors
    /// [`Error::Input`] for what is not an object or does not fit its configuration; [`Error::Budget`] when
    /// what must stay is longer than the target; [`Error::Cancelled`] or [`Error::Deadline`] where `control`
    /// ends it.
    pub fn compress_json(&self, request: &JsonRequest, control: &Control) -> Result<Compressed> {
        self.call(control, || self.runtime.compress_json(request))
    }

    /// How well each text answers to a question: the higher the better, comparable within a call only.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a folder without a `tokenizer.json`; [`Error::Cancelled`] or
    /// [`Error::Deadline`] where `control` ends it.
    pub fn rank(&self, question: &str, texts: &[String], control: &Control) -> Result<Vec<f64>> {
        self.call(control, || self.runtime.rank(question, texts, None))
    }

    /// The same by a method of the mode [`Exact`](crate::Exact).
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a folder without a `tokenizer.json`; [`Error::Cancelled`] or
    /// [`Error::Deadline`] where `control` ends it.
    pub fn rank_by(
        &self,
        method: RankMethod,
        question: &str,
        texts: &[String],
        control: &Control,
    ) -> Result<Vec<f64>> {
        self.call(control, || self.runtime.rank(question, texts, Some(method)))
    }

    /// How many prompts [`Engine::compress_many`] works on at a time: 1 where one alone keeps the device
    /// busy, as it does a CPU.
    pub fn at_a_time(&self) -> usize {
        self.runtime.at_a_time()
    }

    /// Makes KV prefixes, and text after them.
    pub fn prefixes(&self) -> Prefixes<'_> {
        Prefixes {
            engine: self,
            control: Control::default(),
        }
    }

    /// Trains adapters.
    pub fn training(&self) -> Training<'_> {
        Training { engine: self }
    }

    /// Shapes of the model.
    pub(crate) fn config(&self) -> &Config {
        self.runtime.config()
    }

    /// Does `work` for a call, on this engine's threads.
    fn call<R>(&self, control: &Control, work: impl FnOnce() -> R) -> R {
        Call::new(control, Some(self.threads.clone())).enter(work)
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("info", self.info())
            .finish_non_exhaustive()
    }
}
