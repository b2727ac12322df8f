//! Files as read-only memory, mapped or read.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{Mmap, MmapMut};
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
pub(crate) use crate::files::one_line;
use crate::files::{read_bounded, refuse_pointer, regular_file};

/// How a file's bytes come into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// It is mapped: fast to open, shared with other processes, and read as needed. If another process
    /// shortens the file meanwhile, the system ends this one by SIGBUS.
    #[default]
    Map,
    /// It is read as a whole when it is opened, and may become anything afterwards.
    Read,
}

/// A whole file in memory.
#[derive(Debug)]
pub(crate) struct Mapped {
    path: PathBuf,
    map: Mmap,
}

impl Mapped {
    /// Maps or reads the regular, non-empty file at `path`.
    pub fn open(path: &Path, access: Access) -> Result<Arc<Self>> {
        // Asked before opening: opening a pipe would wait for its writer.
        regular_file(path)?;
        let mut file = fs::File::open(path).map_err(Error::io(path))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        if length == 0 {
            return Err(Error::format(path, "the file is empty"));
        }
        if access == Access::Read {
            let length = usize::try_from(length)
                .map_err(|_| Error::format(path, "larger than the address space"))?;
            // Pages, as a map has them: tensors are aligned in the file.
            let mut memory = MmapMut::map_anon(length).map_err(Error::io(path))?;
            file.read_exact(&mut memory).map_err(Error::io(path))?;
            let map = memory.make_read_only().map_err(Error::io(path))?;
            return Ok(Arc::new(Mapped {
                path: path.to_owned(),
                map,
            }));
        }
        // SAFETY: the map is read-only and every access to it is checked against its length. What
        // cannot be checked is that no other process shortens the file meanwhile: that would end this
        // process by a signal, as `Access::Map` says.
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

/// Reads and parses a JSON file of at most `limit` bytes.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<T> {
    let text = read_bounded(path, limit)?;
    refuse_pointer(path, &text)?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::format(path, one_line(&format!("not the JSON expected: {e}"))))
}
