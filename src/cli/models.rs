//! `prefold models`, and how a command finds its model.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use crate::Error;
use crate::hub::{self, DEFAULT, ENCODERS, KNOWN, ModelName, Settings};
use clap::Subcommand;
use serde_json::json;

use super::failure::{Failure, Outcome};
use super::files::write_stdout;

/// Lists, downloads, finds and removes models
///
/// A NAME is one of `prefold models list`, or org/repo[:file] on the Hugging Face hub; FILE may be a
/// quantisation such as Q4_K_M. HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are
/// heeded; PREFOLD_CACHE moves prefold's own cache folder.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Known scorers and encoders, and all models on this machine; `*` marks the default
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Downloads a model and prints its path; a download that was cut short is resumed
    Pull {
        /// What to download [default: the default scorer]
        #[arg(value_name = "NAME")]
        name: Option<PathBuf>,
    },
    /// Prints where a model lies, without a network
    Path {
        /// Which model [default: the one that is used when none is named]
        #[arg(value_name = "NAME")]
        name: Option<PathBuf>,
    },
    /// Removes a model from the cache
    Rm {
        /// What to remove; a repository without a file is removed as a whole
        #[arg(value_name = "NAME")]
        name: PathBuf,
    },
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let settings = Settings::from_env()?;
    match args.command {
        Command::List { json } => list(&settings, json),
        Command::Pull { name } => {
            let name = parsed(name.as_deref());
            let path = download(&name, &settings, true)?;
            write_stdout(&format!("{}\n", path.display()))
        }
        Command::Path { name } => {
            let name = parsed(name.as_deref());
            match hub::find(&name, &settings).filter(|path| path.exists()) {
                Some(path) => write_stdout(&format!("{}\n", path.display())),
                None => Err(failed(&name, "it is not here; run `prefold models pull`")),
            }
        }
        Command::Rm { name } => {
            let name = ModelName::parse(&name);
            let bytes = hub::remove(&name, &settings)?;
            eprintln!("prefold: {name} removed, {} freed", size(bytes));
            Ok(())
        }
    }
}

fn parsed(name: Option<&Path>) -> ModelName {
    name.map_or(ModelName::Known(DEFAULT), ModelName::parse)
}

/// A model that a command was given, or the default.
pub fn locate(given: Option<&Path>) -> Outcome<PathBuf> {
    let name = match given {
        // Paths need no cache and no hub.
        Some(given) => match ModelName::parse(given) {
            ModelName::Path(path) => return Ok(path),
            name => name,
        },
        None => ModelName::Known(DEFAULT),
    };
    let settings = Settings::from_env()?;
    if let Some(path) = hub::find(&name, &settings) {
        return Ok(path);
    }
    if given.is_none() && (settings.offline || !offer(&settings)?) {
        let what = format!("{} and {}", size(DEFAULT.bytes), DEFAULT.licence);
        return Err(Failure::Failed(Error::Input {
            what: "--model".into(),
            reason: format!(
                "none was given and none is in {}; `prefold models pull` downloads the default ({what}), \
                 or give a GGUF file, a Hugging Face folder or org/repo",
                settings.cache.display()
            ),
        }));
    }
    download(&name, &settings, false)
}

/// Offers the default model on a terminal; whether it was accepted.
fn offer(settings: &Settings) -> Outcome<bool> {
    let stderr = std::io::stderr();
    if !cfg!(feature = "hub") || !stderr.is_terminal() || !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    let question = format!(
        "prefold: no model was given. Download {} ({}, {}) from {}/{} to {}? [Y/n] ",
        DEFAULT.name,
        size(DEFAULT.bytes),
        DEFAULT.licence,
        settings.endpoint,
        DEFAULT.repo,
        settings.place(DEFAULT).display()
    );
    let mut answer = String::new();
    let asked = stderr.lock().write_all(question.as_bytes());
    asked
        .and_then(|()| std::io::stdin().read_line(&mut answer))
        .map_err(Error::io("the terminal"))?;
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "" | "y" | "yes"
    ) && !answer.is_empty())
}

/// Downloads a model with a progress bar on a terminal, and a line for each file elsewhere.
#[cfg(feature = "hub")]
fn download(name: &ModelName, settings: &Settings, again: bool) -> Outcome<PathBuf> {
    use indicatif::{ProgressBar, ProgressStyle};

    let bar = ProgressBar::hidden();
    if std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
    }
    let style = "{msg} {bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let mut current = String::new();
    let mut progress = |transfer: hub::Transfer<'_>| {
        if current != transfer.file {
            current = transfer.file.into();
            bar.set_length(transfer.total);
            bar.set_message(current.clone());
            if bar.is_hidden() && transfer.done < transfer.total {
                eprintln!("prefold: downloading {current}, {}", size(transfer.total));
            }
        }
        bar.set_position(transfer.done);
    };
    let path = match again {
        true => hub::pull(name, settings, &mut progress),
        false => hub::resolve(name, settings, &mut progress),
    };
    bar.finish_and_clear();
    Ok(path?)
}

#[cfg(not(feature = "hub"))]
fn download(name: &ModelName, settings: &Settings, _: bool) -> Outcome<PathBuf> {
    hub::find(name, settings).ok_or_else(|| {
        failed(
            name,
            "it is not here, and this program was built without the feature `hub`",
        )
    })
}

fn failed(name: &ModelName, reason: &str) -> Failure {
    Failure::Failed(Error::Input {
        what: name.to_string(),
        reason: reason.into(),
    })
}

/// The table of `prefold models list`.
fn list(settings: &Settings, as_json: bool) -> Outcome {
    let mut rows = Vec::new();
    let scorers = KNOWN
        .iter()
        .map(|k| (ModelName::Known(k), k.name, k.bytes, k.licence, k.purpose));
    let encoders = ENCODERS.iter().map(|k| {
        (
            ModelName::parse(k.name.as_ref()),
            k.name,
            k.bytes,
            k.licence,
            k.purpose,
        )
    });
    for (model, name, bytes, licence, purpose) in scorers.chain(encoders) {
        rows.push(json!({
            "name": name,
            "bytes": bytes,
            "licence": licence,
            "purpose": purpose,
            "default": name == DEFAULT.name,
            "path": hub::find(&model, settings),
        }));
    }
    let stored = hub::list(settings);
    for model in stored
        .iter()
        .filter(|model| hub::known::known(&model.name).is_none())
        .filter(|model| ENCODERS.iter().all(|known| known.repo != model.name))
    {
        rows.push(json!({"name": model.name, "bytes": model.bytes, "path": model.path}));
    }
    if as_json {
        return write_stdout(&format!("{}\n", json!(rows)));
    }
    let mut cells = vec![["NAME", "SIZE", "LICENCE", "PATH"].map(String::from)];
    for row in &rows {
        let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
        let mark = if row["default"] == true { " *" } else { "" };
        cells.push([
            text("name") + mark,
            size(row["bytes"].as_u64().unwrap_or(0)),
            text("licence"),
            text("path"),
        ]);
    }
    let width = |column: usize| {
        let lengths = cells.iter().map(|row| row[column].chars().count());
        lengths.max().unwrap_or(0)
    };
    let widths = [width(0), width(1), width(2)];
    let lines: String = cells
        .iter()
        .map(|[name, size, licence, path]| {
            let [a, b, c] = widths;
            format!("{name:a$}  {size:>b$}  {licence:c$}  {path}\n")
        })
        .collect();
    write_stdout(&lines)
}

/// Bytes as people read them.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1000)),
        1_000_000..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
