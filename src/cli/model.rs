//! Which model, on which device, and the spinner while it works.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::gpu::Precision;
use crate::{Access, Control, Device, Engine, EngineBuilder};
use clap::ValueEnum;
use clap::builder::{OsStringValueParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};

use super::config;
use super::failure::{Failure, Outcome};
use super::interrupt;
use super::models;

/// Which model
#[derive(clap::Args)]
pub struct PathArgs {
    /// GGUF file, Hugging Face folder, a name of `prefold models list`, or org/repo[:file] on the hub
    /// [default: `model` of prefold.toml, or smollm2-135m]
    #[arg(
        long,
        short,
        value_name = "MODEL",
        value_parser = OsStringValueParser::new().map(PathBuf::from),
        env = "PREFOLD_MODEL",
        hide_env_values = true,
        help_heading = "Model"
    )]
    model: Option<PathBuf>,
}

impl PathArgs {
    /// The path of the model that was asked for; it may be downloaded.
    pub fn path(&self) -> Outcome<PathBuf> {
        // An empty variable is one that is not set.
        let given = self
            .model
            .as_deref()
            .filter(|model| !model.as_os_str().is_empty());
        match given {
            Some(given) => models::locate(Some(given)),
            None => models::locate(config::get()?.model.as_deref()),
        }
    }
}

/// Where it runs
#[derive(clap::Args)]
pub struct DeviceArgs {
    /// Where it runs: auto, cpu, cuda or cuda:N [default: `device` of prefold.toml, or auto]
    #[arg(
        long,
        env = "PREFOLD_DEVICE",
        hide_env_values = true,
        help_heading = "Model"
    )]
    device: Option<Device>,
}

impl DeviceArgs {
    /// The device that was asked for.
    pub fn device(&self) -> Outcome<Device> {
        match (self.device, &config::get()?.device) {
            (Some(device), _) => Ok(device),
            (None, Some(name)) => name
                .parse()
                .map_err(|error| Failure::Usage(format!("prefold.toml: {error}"))),
            (None, None) => Ok(Device::Auto),
        }
    }
}

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    path: PathArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// A tokenizer.json [default: the model's own tokenizer]
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    tokenizer: Option<PathBuf>,
    /// Element type of matrix products on a CUDA device; the CPU uses f32 [default: `precision` of
    /// prefold.toml, or bf16]
    #[arg(long, value_enum, help_heading = "Model")]
    precision: Option<Precision>,
    /// Read the model's files as a whole instead of mapping them, so that they may be changed meanwhile
    #[arg(long, help_heading = "Model")]
    no_mmap: bool,
}

/// The adapter that is on when the model scores
#[derive(clap::Args)]
pub struct AdapterArgs {
    /// Score with an adapter that `prefold train align` made
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    adapter: Option<PathBuf>,
}

/// The encoder beside the model
#[derive(clap::Args)]
pub struct EncoderArgs {
    /// Rank by meaning too: an encoder as all-MiniLM-L6-v2 (`minilm`), or a reranker; folder, name, or org/repo
    #[arg(long, value_name = "MODEL", help_heading = "Model")]
    encoder: Option<PathBuf>,
}

/// An open model, where it came from and how long that took.
pub struct Model {
    pub engine: Engine,
    pub name: String,
    pub load_seconds: f64,
}

impl Args {
    /// Opens the model that was asked for.
    pub fn open(&self) -> Outcome<Model> {
        self.open_path(&self.path.path()?)
    }

    /// Opens the model that was asked for, to score with an adapter if one was.
    pub fn open_to_score(&self, adapter: &AdapterArgs) -> Outcome<Model> {
        self.open_to_rank(adapter, &EncoderArgs { encoder: None })
    }

    /// The same, with the encoder that was asked for.
    pub fn open_to_rank(&self, adapter: &AdapterArgs, beside: &EncoderArgs) -> Outcome<Model> {
        let path = self.path.path()?;
        let mut builder = self.builder(&path)?;
        if let Some(folder) = &adapter.adapter {
            builder = builder.adapter(folder);
        }
        if let Some(name) = &beside.encoder {
            builder = builder.encoder(models::locate(Some(name))?);
        }
        open(&path, builder)
    }

    /// Opens another model on the same device.
    pub fn open_path(&self, path: &Path) -> Outcome<Model> {
        open(path, self.builder(path)?)
    }

    fn builder(&self, path: &Path) -> Outcome<EngineBuilder> {
        let precision = match (self.precision, &config::get()?.precision) {
            (Some(precision), _) => precision,
            (None, Some(name)) => Precision::from_str(name, true).map_err(|_| {
                Failure::Usage(format!(
                    "prefold.toml: precision {name:?}; expected bf16 or f32"
                ))
            })?,
            (None, None) => Precision::default(),
        };
        let builder = Engine::builder(path)
            .device(self.device.device()?)
            .precision(precision)
            .access(match self.no_mmap {
                true => Access::Read,
                false => Access::Map,
            });
        Ok(match &self.tokenizer {
            Some(file) => builder.tokenizer(file),
            None => builder,
        })
    }
}

/// Opens a model, with a spinner.
pub fn open(path: &Path, builder: EngineBuilder) -> Outcome<Model> {
    let name = path.file_name().unwrap_or(path.as_os_str());
    let name = name.to_string_lossy().into_owned();
    let busy = Busy::new(format!("loading {name}"));
    let start = Instant::now();
    let engine = builder.build()?;
    drop(busy);
    Ok(Model {
        engine,
        name,
        load_seconds: start.elapsed().as_secs_f64(),
    })
}

/// Work that Ctrl-C ends. On a terminal's standard error a spinner shows it, with the share that is done;
/// it appears after a second.
pub struct Busy {
    done: Arc<AtomicUsize>,
    spinner: Option<(Sender<()>, JoinHandle<()>)>,
}

/// Parts that the share that is done is shown in.
const PARTS: usize = 100;
/// Before it is shown at all.
const NOTHING: usize = usize::MAX;

impl Busy {
    /// Starts to wait; `what` says what for.
    pub fn new(what: String) -> Self {
        let done = Arc::new(AtomicUsize::new(NOTHING));
        let terminal = std::io::stderr().is_terminal();
        Busy {
            spinner: terminal.then(|| Self::spin(what, done.clone())),
            done,
        }
    }

    /// What the work is to be done under.
    pub fn control(&self) -> Control {
        let to = self.done.clone();
        interrupt::control().with_progress(move |progress| {
            let share = PARTS * progress.done / progress.total.max(1);
            to.store(share, Ordering::Relaxed);
        })
    }

    fn spin(what: String, done: Arc<AtomicUsize>) -> (Sender<()>, JoinHandle<()>) {
        const PATIENCE: Duration = Duration::from_secs(1);
        const TICK: Duration = Duration::from_millis(100);
        let (sender, receiver) = channel();
        let thread = std::thread::spawn(move || {
            if receiver.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            let bar = ProgressBar::new_spinner().with_elapsed(PATIENCE);
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}, {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(TICK);
            loop {
                bar.set_message(match done.load(Ordering::Relaxed) {
                    NOTHING => what.clone(),
                    done => format!("{what}, {done}%"),
                });
                // Ends when the sender is dropped.
                if receiver.recv_timeout(TICK) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
            bar.finish_and_clear();
        });
        (sender, thread)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.spinner.take() {
            drop(sender);
            let _ = thread.join();
        }
    }
}
