//! Models by name: known scorers, the cache folder, and the Hugging Face hub.
//!
//! A model is a path, the name of a known scorer, or a hub name `org/repo[:file]`. Known scorers lie in
//! prefold's cache folder as plain files, where `make model` puts them too, and `make model-minilm` a
//! folder. Hub models lie in the hub's own cache, in the layout that `huggingface_hub` reads and writes, so
//! both share them. [`find`] only
//! looks; [`resolve`] downloads what is missing (feature `hub`).

mod choose;
pub mod known;
mod store;
#[cfg(feature = "hub")]
mod transfer;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
pub use known::{DEFAULT, ENCODERS, KNOWN, Known, KnownFolder};
pub use store::{Stored, list, remove};

/// Where models are looked for, and how the hub is reached.
#[derive(Clone, Debug)]
pub struct Settings {
    /// prefold's cache folder.
    pub cache: PathBuf,
    /// The hub's cache folder, shared with other programs.
    pub hub_cache: PathBuf,
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// Access token, sent to `endpoint` only.
    pub token: Option<String>,
    /// Whether the network must not be used.
    pub offline: bool,
}

impl Settings {
    /// Reads the settings from the environment, by the variables that `huggingface_hub` heeds.
    ///
    /// These are `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`,
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN` and `HF_HUB_OFFLINE`; `PREFOLD_CACHE` moves prefold's own folder.
    ///
    /// # Errors
    /// [`Error::Io`] where the platform names no home folder and no variable replaces it.
    pub fn from_env() -> Result<Settings> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let text = |name: &str| variable(name).and_then(|value| value.into_string().ok());
        let homeless = |fix: &str| {
            let reason = format!("the system names none; set {fix}");
            Error::failed("home folder", ErrorKind::NotFound, reason)
        };
        let cache = match variable("PREFOLD_CACHE") {
            Some(folder) => folder.into(),
            None => directories::ProjectDirs::from("", "", "prefold")
                .ok_or_else(|| homeless("PREFOLD_CACHE"))?
                .cache_dir()
                .to_path_buf(),
        };
        let home = match (variable("HF_HOME"), variable("XDG_CACHE_HOME")) {
            (Some(folder), _) => Some(PathBuf::from(folder)),
            (None, Some(folder)) => Some(Path::new(&folder).join("huggingface")),
            (None, None) => std::env::home_dir().map(|home| home.join(".cache/huggingface")),
        };
        let hub_cache = match (variable("HF_HUB_CACHE"), &home) {
            (Some(folder), _) => folder.into(),
            (None, Some(home)) => home.join("hub"),
            (None, None) => return Err(homeless("HF_HOME")),
        };
        let set = |name: &str| {
            text(name).is_some_and(|value| {
                ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
            })
        };
        let token_file = match variable("HF_TOKEN_PATH") {
            Some(path) => Some(path.into()),
            None => home.map(|home| home.join("token")),
        };
        let token = text("HF_TOKEN").or_else(|| {
            let file = token_file.filter(|_| !set("HF_HUB_DISABLE_IMPLICIT_TOKEN"))?;
            std::fs::read_to_string(file).ok()
        });
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Ok(Settings {
            cache,
            hub_cache,
            endpoint: endpoint.trim_end_matches('/').into(),
            token: token
                .map(|token| token.trim().into())
                .filter(|token: &String| !token.is_empty()),
            offline: set("HF_HUB_OFFLINE"),
        })
    }

    /// Where a known scorer lies, or would lie.
    pub fn place(&self, known: &Known) -> PathBuf {
        self.cache.join("models").join(known.file)
    }

    /// Where `make` puts a known repository's folder. A download lies in the hub's cache instead.
    pub fn folder(&self, known: &KnownFolder) -> PathBuf {
        let name = known.repo.rsplit('/').next().unwrap_or(known.repo);
        self.cache.join("models").join(name)
    }

    /// Where adapters that are used by default lie, each in a folder of its own.
    pub fn adapters(&self) -> PathBuf {
        self.cache.join("adapters")
    }
}

/// What a model's name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelName {
    /// A GGUF file or a Hugging Face folder.
    Path(PathBuf),
    /// A known scorer.
    Known(&'static Known),
    /// A repository on the hub, and the file in it or its quantisation.
    Hub {
        /// `org/repo`.
        repo: String,
        /// What follows the colon.
        file: Option<String>,
    },
}

impl ModelName {
    /// Reads a name. What exists as a path is a path; what looks like neither a known scorer nor
    /// `org/repo[:file]` is one as well.
    pub fn parse(name: &Path) -> ModelName {
        if name.exists() {
            return ModelName::Path(name.into());
        }
        let Some(text) = name.to_str() else {
            return ModelName::Path(name.into());
        };
        if let Some(known) = known::known(text) {
            return ModelName::Known(known);
        }
        if let Some(known) = known::known_folder(text) {
            return ModelName::Hub {
                repo: known.repo.into(),
                file: None,
            };
        }
        match hub_name(text) {
            Some((repo, file)) => ModelName::Hub {
                repo: repo.into(),
                file: file.map(Into::into),
            },
            None => ModelName::Path(name.into()),
        }
    }
}

impl std::fmt::Display for ModelName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ModelName::Path(path) => path.display().fmt(f),
            ModelName::Known(known) => f.write_str(known.name),
            ModelName::Hub { repo, file: None } => f.write_str(repo),
            ModelName::Hub {
                repo,
                file: Some(file),
            } => write!(f, "{repo}:{file}"),
        }
    }
}

/// The parts of `org/repo[:file]`. A path that was mistyped is not one: its folder exists, or it names a
/// file by its ending.
fn hub_name(text: &str) -> Option<(&str, Option<&str>)> {
    let (repo, file) = match text.split_once(':') {
        Some((repo, file)) => (repo, Some(file)),
        None => (text, None),
    };
    let (org, name) = repo.split_once('/')?;
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let path = name.ends_with(".gguf") || name.ends_with(".safetensors") || Path::new(org).is_dir();
    (part(org) && part(name) && !path && file != Some("")).then_some((repo, file))
}

/// A download that is under way.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Transfer<'a> {
    /// The file.
    pub file: &'a str,
    /// Bytes that are here.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// Finds a model that is on this machine, without a network.
pub fn find(name: &ModelName, settings: &Settings) -> Option<PathBuf> {
    match name {
        ModelName::Path(path) => Some(path.clone()),
        ModelName::Known(known) => {
            let own = settings.place(known);
            if own.is_file() {
                return Some(own);
            }
            store::cached(settings, known.repo, Some(known.remote_file))
        }
        ModelName::Hub { repo, file: None } => {
            store::cached(settings, repo, None).or_else(|| store::packaged(settings, repo))
        }
        ModelName::Hub { repo, file } => store::cached(settings, repo, file.as_deref()),
    }
}

/// Finds a model, and downloads it where it is not on this machine. A download that was cut short is
/// resumed; a file gets its name when it is whole and its checksum is right.
///
/// # Errors
/// [`Error::Io`] that names the model where the hub does not have it, refuses it or cannot be reached, or the
/// cache folder cannot be written; [`Error::Format`] for a wrong checksum or a repository without a model;
/// [`Error::Input`] offline, or with several files to choose from.
#[cfg(feature = "hub")]
pub fn resolve(
    name: &ModelName,
    settings: &Settings,
    progress: &mut dyn FnMut(Transfer<'_>),
) -> Result<PathBuf> {
    match find(name, settings) {
        Some(path) => Ok(path),
        None => pull(name, settings, progress),
    }
}

/// Downloads a model although an older copy may be here.
///
/// # Errors
/// [`Error::Io`] that names the model where the hub does not have it, refuses it or cannot be reached, or the
/// cache folder cannot be written; [`Error::Format`] for a wrong checksum or a repository without a model;
/// [`Error::Input`] offline, or with several files to choose from.
#[cfg(feature = "hub")]
pub fn pull(
    name: &ModelName,
    settings: &Settings,
    progress: &mut dyn FnMut(Transfer<'_>),
) -> Result<PathBuf> {
    match name {
        ModelName::Path(path) => Ok(path.clone()),
        _ if settings.offline => Err(Error::input(
            name.to_string(),
            "it is not on this machine, and HF_HUB_OFFLINE forbids a download; unset it, or give a file \
             by --model",
        )),
        ModelName::Known(known) => transfer::Hub::new(settings).known(known, progress),
        ModelName::Hub { repo, file } => {
            transfer::Hub::new(settings).model(repo, file.as_deref(), progress)
        }
    }
}

/// Whether a path in a repository stays inside it.
fn is_inside(file: &str) -> bool {
    !file.is_empty()
        && !file.contains('\\')
        && Path::new(file)
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(repo: &str, file: Option<&str>) -> ModelName {
        ModelName::Hub {
            repo: repo.into(),
            file: file.map(Into::into),
        }
    }

    #[test]
    fn names_are_told_apart() {
        let parse = |text: &str| ModelName::parse(Path::new(text));
        assert_eq!(parse("smollm2-135m"), ModelName::Known(DEFAULT));
        assert_eq!(
            parse("Qwen/Qwen3-0.6B-GGUF"),
            hub("Qwen/Qwen3-0.6B-GGUF", None)
        );
        assert_eq!(parse("a/b:Q4_K_M"), hub("a/b", Some("Q4_K_M")));
        assert_eq!(parse("a/b:sub/c.gguf"), hub("a/b", Some("sub/c.gguf")));
        for path in [
            "model.gguf",
            "a/model.gguf",
            "src/no-such-model",
            "./a/b",
            "../a",
            "/a/b",
            "a/b/c",
            "a/b:",
            "~/model",
            "C:/model",
            "Cargo.toml",
        ] {
            assert_eq!(parse(path), ModelName::Path(path.into()), "{path}");
        }
        for name in ["smollm2-135m", "a/b", "a/b:Q4_K_M"] {
            assert_eq!(parse(name).to_string(), name);
        }
    }

    #[test]
    fn paths_that_leave_a_repository_are_seen() {
        assert!(is_inside("model.gguf") && is_inside("sub/model.gguf"));
        for file in ["", "../a", "a/../../b", "/a", "a\\..\\b", "."] {
            assert!(!is_inside(file), "{file}");
        }
    }
}
