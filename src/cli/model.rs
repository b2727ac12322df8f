//! Which model, on which device, and the spinner while it works.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use prefold::gpu::Precision;
use prefold::{Device, Engine};

use super::config;
use super::failure::{Failure, Outcome};
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
        value_parser = device,
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
            (None, Some(name)) => device(name)
                .map_err(|names| Failure::Usage(format!("prefold.toml: device {name:?}; {names}"))),
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
    /// Element type of matrix products on a CUDA device; the CPU uses f32 [default: `precision` of
    /// prefold.toml, or bf16]
    #[arg(long, value_enum, help_heading = "Model")]
    precision: Option<PrecisionName>,
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
        let named = match (self.precision, &config::get()?.precision) {
            (Some(named), _) => named,
            (None, Some(name)) => PrecisionName::from_str(name, true).map_err(|_| {
                Failure::Usage(format!(
                    "prefold.toml: precision {name:?}; expected bf16 or f32"
                ))
            })?,
            (None, None) => PrecisionName::Bf16,
        };
        let precision = match named {
            PrecisionName::Bf16 => Precision::Bf16,
            PrecisionName::F32 => Precision::F32,
        };
        open(path, self.device.device()?, precision)
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
