//! Files as read-only memory maps, and the tensors that lie in them.

use std::fs;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use serde::de::DeserializeOwned;

use super::quant::DType;
use crate::error::{Error, Result};
pub(crate) use crate::files::one_line;
use crate::files::{refuse_pointer, regular_file};

/// A whole file, mapped.
#[derive(Debug)]
pub(crate) struct Mapped {
    path: PathBuf,
    map: Mmap,
}

impl Mapped {
    /// Maps the regular, non-empty file at `path`.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        // Asked before opening: opening a pipe would wait for its writer.
        regular_file(path)?;
        let file = fs::File::open(path).map_err(Error::io(path))?;
        if file.metadata().map_err(Error::io(path))?.len() == 0 {
            return Err(Error::format(path, "the file is empty"));
        }
        // SAFETY: the map is read-only and every access to it is checked against its length. What
        // nobody can check is that no other process shortens the file meanwhile; as with every
        // mapped model, that would end this process by a signal, and the docs of `open` say so.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        refuse_pointer(path, &map)?;
        Ok(Arc::new(Mapped {
            path: path.to_owned(),
            map,
        }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// A malformed-file error that names this file.
    pub fn error(&self, reason: impl Into<String>) -> Error {
        Error::format(&self.path, reason)
    }
}

/// A tensor as its file describes it: its extent is checked, its use is not.
#[derive(Debug, Clone)]
pub(crate) struct RawTensor {
    pub file: Arc<Mapped>,
    /// Where in the file.
    pub range: Range<usize>,
    /// Or the name of an element type that is not read here.
    pub dtype: Result<DType, String>,
    /// Outermost first.
    pub shape: Vec<usize>,
}

impl RawTensor {
    pub fn bytes(&self) -> &[u8] {
        self.file.bytes().get(self.range.clone()).unwrap_or(&[])
    }
}

/// Reads and parses a JSON file of at most `limit` bytes.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<T> {
    regular_file(path)?;
    let mut text = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut text))
        .map_err(Error::io(path))?;
    if text.len() as u64 > limit {
        return Err(Error::format(path, format!("longer than {limit} bytes")));
    }
    refuse_pointer(path, &text)?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::format(path, one_line(&format!("not the JSON expected: {e}"))))
}
