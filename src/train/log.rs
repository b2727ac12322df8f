//! A run's log: a line of JSON a step, each step once.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{read_bounded, whole_lines, write_whole};

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Its number, from 1.
    pub step: u64,
    /// Mean nll (nats) of its targets, before its update.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Wall time, without evaluation.
    pub seconds: f64,
    /// Mean nll (nats) of the dev rows' targets, after its update, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dev_loss: Option<f64>,
}

/// A log that is open for more lines.
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens a log after `step`: what an earlier run wrote of later steps goes, as does a line that
    /// a kill cut short. Step 0 begins anew.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for a file that is not a log, which stays as it is.
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        if path.exists() {
            let bytes = read_bounded(path, LONGEST_LOG)?;
            let cut = &bytes[whole_lines(&bytes)..];
            if !(cut.starts_with(BEGIN) || BEGIN.starts_with(cut)) {
                return Err(Error::format(path, "its last line is not a step of a log"));
            }
            let mut kept = Vec::new();
            for line in lines(path, &bytes)?.iter().filter(|line| line.step <= step) {
                kept.extend(text_of(path, line)?);
            }
            write_whole(path, &kept)?;
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(Error::io(path))?;
        Ok(Log {
            path: path.to_owned(),
            file,
        })
    }

    /// Appends a line in one write.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn push(&mut self, line: &Line) -> Result<()> {
        let text = text_of(&self.path, line)?;
        self.file.write_all(&text).map_err(Error::io(&self.path))
    }

    /// Has all lines on disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        match self.file.sync_all() {
            // Not every file system can.
            Err(error) if error.kind() != std::io::ErrorKind::InvalidInput => {
                Err(Error::io(&self.path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// How a line of ours begins.
const BEGIN: &[u8] = b"{\"step\":";

/// A line of the log at `path`, with its end.
fn text_of(path: &Path, line: &Line) -> Result<Vec<u8>> {
    let mut text =
        serde_json::to_vec(line).map_err(|error| Error::format(path, error.to_string()))?;
    text.push(b'\n');
    Ok(text)
}

/// A log of five million steps.
const LONGEST_LOG: u64 = 1 << 30;

/// Reads a log.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] with the number of a line that cannot be read, the last one excepted
/// where it has no end: it may be in the writing.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    lines(path, &read_bounded(path, LONGEST_LOG)?)
}

/// The whole lines in the bytes of the log at `path`.
fn lines(path: &Path, bytes: &[u8]) -> Result<Vec<Line>> {
    let parts = bytes[..whole_lines(bytes)].split(|&b| b == b'\n');
    parts
        .enumerate()
        .filter(|(_, line)| !line.trim_ascii().is_empty())
        .map(|(at, line)| {
            serde_json::from_slice(line)
                .map_err(|error| Error::format(path, format!("line {}: {error}", at + 1)))
        })
        .collect()
}
