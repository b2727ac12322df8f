//! New Hugging Face folders, whole or absent.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::View;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::files::scratch_folder;
use crate::mapped;

/// Files that stand beside a model's weights and do not depend on them.
const COMPANIONS: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
];
/// A `config.json` has a few kilobytes.
const LONGEST_CONFIG: u64 = 1 << 20;

/// Refuses what is not the name of a new folder.
///
/// # Errors
/// [`Error::Input`] for a folder that is there already, or a path without a name.
pub(super) fn check_new(out: &Path) -> Result<()> {
    let refuse = |reason: &str| Err(Error::input(format!("output {}", out.display()), reason));
    match out.file_name() {
        None => refuse("expected the name of a new folder"),
        Some(_) if out.exists() => refuse("it is there already; name another folder"),
        Some(_) => Ok(()),
    }
}

/// The configuration of a Hugging Face folder.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] for what is not JSON.
pub(super) fn read_config(folder: &Path) -> Result<Value> {
    mapped::read_json(&folder.join("config.json"), LONGEST_CONFIG)
}

/// A folder in the making.
pub(super) struct Folder {
    path: PathBuf,
}

/// Makes the folder `out` of what `fill` writes; it is there once all of that is on the disk.
///
/// # Errors
/// [`Error::Io`] that names `out`; the error of `fill`.
pub(super) fn new_folder<T>(out: &Path, fill: impl FnOnce(&Folder) -> Result<T>) -> Result<T> {
    let (_lock, path) = scratch_folder(out).map_err(Error::io(out))?;
    let folder = Folder { path };
    let written = fill(&folder).and_then(|filled| {
        folder.sync()?;
        fs::rename(&folder.path, out).map_err(Error::io(out))?;
        Ok(filled)
    });
    if written.is_err() {
        let _ = fs::remove_dir_all(&folder.path);
    }
    written
}

impl Folder {
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        fs::write(&path, bytes).map_err(Error::io(&path))
    }

    /// Writes `model.safetensors`.
    pub(super) fn tensors<N: AsRef<str> + Ord + std::fmt::Display, V: View>(
        &self,
        tensors: impl IntoIterator<Item = (N, V)>,
    ) -> Result<()> {
        self.tensors_to("model.safetensors", tensors)
    }

    /// Writes a safetensors file.
    pub(super) fn tensors_to<N: AsRef<str> + Ord + std::fmt::Display, V: View>(
        &self,
        file: &str,
        tensors: impl IntoIterator<Item = (N, V)>,
    ) -> Result<()> {
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let path = self.path.join(file);
        safetensors::serialize_to_file(tensors, Some(metadata), &path)
            .map_err(|error| Error::io(&path)(std::io::Error::other(error)))
    }

    /// Copies what stands beside the weights of `source`: its tokenizer and the like.
    pub(super) fn companions(&self, source: &Path) -> Result<()> {
        for name in COMPANIONS {
            let from = source.join(name);
            if from.is_file() {
                fs::copy(&from, self.path.join(name)).map_err(Error::io(&from))?;
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        for entry in fs::read_dir(&self.path).map_err(Error::io(&self.path))? {
            let path = entry.map_err(Error::io(&self.path))?.path();
            let synced = fs::File::open(&path).and_then(|file| file.sync_all());
            synced.map_err(Error::io(&path))?;
        }
        Ok(())
    }
}
