//! The models on this machine: found, listed and removed.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::choose::{Choice, INDEX, WEIGHTS, choose};
use super::{ENCODERS, KNOWN, ModelName, Settings, is_inside};
use crate::error::{Error, Result};

/// A model on this machine.
#[derive(Debug)]
#[non_exhaustive]
pub struct Stored {
    /// The name that `--model` takes.
    pub name: String,
    /// Its file or folder.
    pub path: PathBuf,
    /// Bytes on disk.
    pub bytes: u64,
}

/// Lists the models in prefold's cache folder and in the hub's.
pub fn list(settings: &Settings) -> Vec<Stored> {
    let mut found = Vec::new();
    for known in KNOWN {
        let path = settings.place(known);
        if let Ok(meta) = fs::metadata(&path) {
            found.push(Stored {
                name: known.name.into(),
                path,
                bytes: meta.len(),
            });
        }
    }
    for known in ENCODERS {
        if let Some(path) = packaged(settings, known.repo) {
            found.push(Stored {
                name: known.repo.into(),
                bytes: used(&path),
                path,
            });
        }
    }
    let mut folders = names(&settings.hub_cache);
    folders.sort();
    for folder in folders {
        let Some(repo) = folder
            .strip_prefix("models--")
            .map(|name| name.replacen("--", "/", 1))
        else {
            continue;
        };
        let Some(snapshot) = snapshot(&settings.hub_cache, &repo) else {
            continue;
        };
        let all = files(&snapshot);
        let size = |file: &str| fs::metadata(snapshot.join(file)).map_or(0, |meta| meta.len());
        if whole(&snapshot) {
            found.push(Stored {
                bytes: all.iter().map(|file| size(file)).sum(),
                name: repo.clone(),
                path: snapshot.clone(),
            });
        }
        for file in all.iter().filter(|file| file.ends_with(".gguf")) {
            found.push(Stored {
                name: format!("{repo}:{file}"),
                path: snapshot.join(file),
                bytes: size(file),
            });
        }
    }
    found
}

/// Removes a model and what was begun of it, and gives the bytes that were freed. A repository without a
/// file is removed as a whole, from the hub's cache and from ours.
///
/// # Errors
/// [`Error::Input`] for a path and for a model that is not here, [`Error::Io`].
pub fn remove(name: &ModelName, settings: &Settings) -> Result<u64> {
    let absent = || {
        Error::input(
            name.to_string(),
            "it is not here; see `prefold models list`",
        )
    };
    match name {
        ModelName::Path(_) => Err(Error::input(
            name.to_string(),
            "expected a name that `prefold models list` gives",
        )),
        ModelName::Known(known) => {
            let path = settings.place(known);
            let parts = [incomplete(&path), path];
            let there: Vec<&PathBuf> = parts.iter().filter(|path| path.exists()).collect();
            if there.is_empty() {
                return Err(absent());
            }
            there.into_iter().map(|path| remove_file(path)).sum()
        }
        ModelName::Hub { repo, file: None } => {
            let own = ENCODERS.iter().filter(|known| known.repo == repo);
            let folders = own.map(|known| settings.folder(known));
            let folders = folders.chain([folder(&settings.hub_cache, repo)]);
            let there: Vec<PathBuf> = folders.filter(|folder| folder.is_dir()).collect();
            if there.is_empty() {
                return Err(absent());
            }
            let mut bytes = 0;
            for folder in there {
                bytes += used(&folder);
                fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
            }
            Ok(bytes)
        }
        ModelName::Hub {
            repo,
            file: Some(file),
        } => {
            let link = cached(settings, repo, Some(file)).ok_or_else(absent)?;
            let blob = fs::canonicalize(&link).map_err(Error::io(&link))?;
            let mut bytes = remove_file(&link)?;
            // The link of another snapshot may share the blob.
            let snapshots = folder(&settings.hub_cache, repo).join("snapshots");
            let shared = names(&snapshots).iter().any(|commit| {
                let snapshot = snapshots.join(commit);
                let same =
                    |file: &String| fs::canonicalize(snapshot.join(file)).is_ok_and(|b| b == blob);
                files(&snapshot).iter().any(same)
            });
            if blob.exists() && !shared {
                bytes += remove_file(&blob)?;
            }
            Ok(bytes)
        }
    }
}

/// Removes a file or a link; the bytes of a file.
fn remove_file(path: &Path) -> Result<u64> {
    let meta = fs::symlink_metadata(path).map_err(Error::io(path))?;
    fs::remove_file(path).map_err(Error::io(path))?;
    Ok(if meta.is_file() { meta.len() } else { 0 })
}

/// Bytes of the files under a folder; what a link names counts where it lies.
fn used(folder: &Path) -> u64 {
    let size = |name: String| {
        let path = folder.join(name);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => used(&path),
            Ok(meta) if meta.is_file() => meta.len(),
            _ => 0,
        }
    };
    names(folder).into_iter().map(size).sum()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// The name of a file while it is downloaded.
pub(super) fn incomplete(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(".incomplete");
    target.with_file_name(name)
}

/// The model of a repository, if the hub's cache holds it whole.
pub(super) fn cached(settings: &Settings, repo: &str, wanted: Option<&str>) -> Option<PathBuf> {
    let snapshot = snapshot(&settings.hub_cache, repo)?;
    if let Some(wanted) = wanted.filter(|file| is_inside(file)) {
        let path = snapshot.join(wanted);
        if path.is_file() {
            return Some(path);
        }
    }
    match choose(repo, &files(&snapshot), wanted).ok()? {
        Choice::File(file) => Some(snapshot.join(file)),
        Choice::Folder(_) => whole(&snapshot).then_some(snapshot),
    }
}

/// The folder of a known repository in prefold's own cache, if it is whole.
pub(super) fn packaged(settings: &Settings, repo: &str) -> Option<PathBuf> {
    let known = ENCODERS.iter().find(|known| known.repo == repo)?;
    Some(settings.folder(known)).filter(|folder| whole(folder))
}

/// The folder of a repository in a hub's cache.
pub(super) fn folder(hub_cache: &Path, repo: &str) -> PathBuf {
    hub_cache.join(format!("models--{}", repo.replace('/', "--")))
}

/// The snapshot that a repository's `main` names.
pub(super) fn snapshot(hub_cache: &Path, repo: &str) -> Option<PathBuf> {
    let folder = folder(hub_cache, repo);
    let commit = fs::read_to_string(folder.join("refs/main")).ok()?;
    let commit = commit.trim();
    is_inside(commit).then(|| folder.join("snapshots").join(commit))
}

/// Files of a snapshot, with their folders, by name.
pub(super) fn files(snapshot: &Path) -> Vec<String> {
    fn walk(folder: &Path, prefix: &str, depth: usize, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let name = format!("{prefix}{name}");
            // A link to a file whose blob is gone is neither.
            match fs::metadata(entry.path()) {
                Ok(meta) if meta.is_file() => found.push(name),
                Ok(meta) if meta.is_dir() && depth > 0 => {
                    walk(&entry.path(), &format!("{name}/"), depth - 1, found);
                }
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    walk(snapshot, "", 3, &mut found);
    found.sort();
    found
}

/// Whether a Hugging Face folder has all that its index names.
fn whole(folder: &Path) -> bool {
    if !folder.join("config.json").is_file() {
        return false;
    }
    if folder.join(WEIGHTS).is_file() {
        return true;
    }
    let Ok(index) = fs::read(folder.join(INDEX)) else {
        return false;
    };
    let index: Value = serde_json::from_slice(&index).unwrap_or_default();
    match index["weight_map"].as_object() {
        Some(map) => map.values().all(|file| {
            file.as_str()
                .is_some_and(|file| is_inside(file) && folder.join(file).is_file())
        }),
        None => false,
    }
}
