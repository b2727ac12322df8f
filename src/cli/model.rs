//! Which model, on which device, and the spinner while it works.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use prefold::gpu::Precision;
use prefold::{Device, Engine, Error};

use super::failure::Outcome;

/// Where `make model` puts the model that is used when none is named.
const DEFAULT: &str = ".cache/models/SmolLM2-135M-Instruct-Q4_1.gguf";

/// Which model
#[derive(clap::Args)]
pub struct PathArgs {
    /// GGUF file or Hugging Face folder [default: the model that `make model` fetched]
    #[arg(long, short, value_name = "PATH", help_heading = "Model")]
    model: Option<PathBuf>,
}

impl PathArgs {
    /// The model that was asked for.
    pub fn path(&self) -> Outcome<PathBuf> {
        Ok(match &self.model {
            Some(path) => path.clone(),
            None => default_model()?,
        })
    }
}

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    path: PathArgs,
    /// Where it runs: auto, cpu, cuda or cuda:N
    #[arg(
        long,
        value_parser = device,
        default_value = "auto",
        help_heading = "Model"
    )]
    device: Device,
    /// What products are made of on a CUDA device; the CPU has f32
    #[arg(
        long,
        value_enum,
        default_value = "bf16",
        help_heading = "Model",
        hide_possible_values = false
    )]
    precision: PrecisionName,
}

/// The adapter that is on when the model scores
#[derive(clap::Args)]
pub struct AdapterArgs {
    /// Score with an adapter that `prefold train align` made
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    adapter: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum PrecisionName {
    Bf16,
    F32,
}

/// A device by its name on the command line.
pub fn device(name: &str) -> Result<Device, String> {
    match name {
        "auto" => Ok(Device::Auto),
        "cpu" => Ok(Device::Cpu),
        "cuda" => Ok(Device::Cuda(0)),
        _ => name
            .strip_prefix("cuda:")
            .and_then(|index| index.parse().ok())
            .map(Device::Cuda)
            .ok_or_else(|| "possible values: auto, cpu, cuda, cuda:N".into()),
    }
}

/// An open model, where it came from and how long that took.
pub struct Model {
    pub engine: Box<dyn Engine>,
    pub name: String,
    pub load_seconds: f64,
}

impl Args {
    /// Opens the model that was asked for.
    pub fn open(&self) -> Outcome<Model> {
        self.open_path(&self.path.path()?)
    }

    /// Opens another model on the same device.
    pub fn open_path(&self, path: &Path) -> Outcome<Model> {
        let precision = match self.precision {
            PrecisionName::Bf16 => Precision::Bf16,
            PrecisionName::F32 => Precision::F32,
        };
        open(path, self.device, precision)
    }
}

/// Opens a model, with a spinner.
pub fn open(path: &Path, device: Device, precision: Precision) -> Outcome<Model> {
    let name = path.file_name().unwrap_or(path.as_os_str());
    let name = name.to_string_lossy().into_owned();
    let busy = Busy::new(format!("loading {name}"));
    let start = Instant::now();
    let engine = prefold::open_with(path, device, precision)?;
    drop(busy);
    Ok(Model {
        engine,
        name,
        load_seconds: start.elapsed().as_secs_f64(),
    })
}

impl Model {
    /// The same model, scoring with the adapter that was asked for.
    pub fn scoring_with(mut self, args: &AdapterArgs) -> Outcome<Model> {
        if let Some(folder) = &args.adapter {
            self.engine.score_with(folder)?;
        }
        Ok(self)
    }
}

/// What comes with prefold: in the working directory, or in the checkout in which the program was built.
pub fn shipped(path: &str) -> Option<PathBuf> {
    let program = std::env::current_exe().unwrap_or_default();
    std::iter::once(Path::new(""))
        .chain(program.ancestors().skip(1))
        .map(|folder| folder.join(path))
        .find(|path| path.exists())
}

/// The fetched model.
fn default_model() -> Result<PathBuf, Error> {
    shipped(DEFAULT).ok_or_else(|| Error::Input {
        what: "--model".into(),
        reason: format!(
            "none was given and {DEFAULT} is not there; `make model` fetches it, or give a GGUF file \
             or a Hugging Face folder"
        ),
    })
}

/// A spinner on a terminal's standard error for as long as this lives; it appears after a second.
pub struct Busy(Option<(Sender<()>, JoinHandle<()>)>);

impl Busy {
    /// Starts to wait; `what` says what for.
    pub fn new(what: String) -> Self {
        if !std::io::stderr().is_terminal() {
            return Busy(None);
        }
        const PATIENCE: Duration = Duration::from_secs(1);
        let (sender, receiver) = channel();
        let thread = std::thread::spawn(move || {
            if receiver.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            let bar = ProgressBar::new_spinner()
                .with_message(what)
                .with_elapsed(PATIENCE);
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}, {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            // Ends when the sender is dropped.
            let _ = receiver.recv();
            bar.finish_and_clear();
        });
        Busy(Some((sender, thread)))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.0.take() {
            drop(sender);
            let _ = thread.join();
        }
    }
}
