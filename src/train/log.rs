//! A run's log: a line of JSON a step, each step once.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::write_whole;

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
    /// Mean nll (nats) of the dev rows' targets, behind its update, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dev_loss: Option<f64>,
}

/// A log that is open for more lines.
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens a log behind `step`: what an earlier run wrote of later steps goes, as does a line that
    /// a kill cut short. Step 0 begins anew.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        if path.exists() || step == 0 {
            let kept: String = match step {
                0 => String::new(),
                _ => {
                    let bytes = fs::read(path).map_err(Error::io(path))?;
                    let text = String::from_utf8_lossy(&bytes);
                    let early = |line: &&str| {
                        serde_json::from_str::<Line>(line).is_ok_and(|line| line.step <= step)
                    };
                    let lines = text.lines().filter(early);
                    lines.flat_map(|line| [line, "\n"]).collect()
                }
            };
            write_whole(path, kept.as_bytes())?;
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
        let mut text = serde_json::to_vec(line)
            .map_err(|error| Error::format(&self.path, error.to_string()))?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(Error::io(&self.path))
    }

    /// Has all lines on disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        match self.file.sync_all() {
            // A pipe or a device has nothing to sync.
            Err(error) if error.kind() != std::io::ErrorKind::InvalidInput => {
                Err(Error::io(&self.path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Reads a log.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] with the number of a line that is none, the last one excepted
/// where it has no end: it may be in the writing.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    let whole = bytes
        .iter()
        .rposition(|&b| b == b'\n')
        .map_or(0, |at| at + 1);
    let parts = bytes[..whole].split(|&b| b == b'\n');
    parts
        .enumerate()
        .filter(|(_, line)| !line.trim_ascii().is_empty())
        .map(|(at, line)| {
            serde_json::from_slice(line)
                .map_err(|error| Error::format(path, format!("line {}: {error}", at + 1)))
        })
        .collect()
}
