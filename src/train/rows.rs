//! Lines of JSONL files, as they are, packed by xz or by zstd: streamed, never whole in memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};
use crate::files::mark;

/// A line beyond this is no row of text; it bounds what a file can have allocated.
pub const LONGEST_LINE: usize = 16 << 20;

/// A line and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Which of the files.
    pub file: usize,
    /// Number of the line in it, from 1.
    pub number: u64,
    /// Its bytes without the line break; cut behind [`LONGEST_LINE`].
    pub bytes: Vec<u8>,
}

/// The lines of several files, one after the other, but for empty ones.
pub struct Lines {
    paths: Vec<PathBuf>,
    file: usize,
    number: u64,
    open: Option<Box<dyn BufRead + Send>>,
}

impl Lines {
    /// From the first line of the first file.
    pub fn new(paths: &[PathBuf]) -> Self {
        Lines {
            paths: paths.to_vec(),
            file: 0,
            number: 0,
            open: None,
        }
    }

    /// The next line.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be read or unpacked.
    pub fn next_line(&mut self) -> Result<Option<Line>> {
        while let Some(path) = self.paths.get(self.file) {
            let reader = match &mut self.open {
                Some(reader) => reader,
                empty => empty.insert(open(path)?),
            };
            let mut bytes = Vec::new();
            if !read_line(reader, &mut bytes, LONGEST_LINE).map_err(Error::io(path))? {
                (self.open, self.number) = (None, 0);
                self.file += 1;
                continue;
            }
            self.number += 1;
            if self.number == 1 {
                bytes.drain(..mark(path, &bytes)?);
            }
            if !bytes.trim_ascii().is_empty() {
                return Ok(Some(Line {
                    file: self.file,
                    number: self.number,
                    bytes,
                }));
            }
        }
        Ok(None)
    }
}

/// Reads to the next line break and leaves it out; false at the end of the file. Of a line of more than
/// `longest` bytes one byte more is kept, and the rest passed over.
///
/// # Errors
/// Those of the reader.
pub fn read_line(
    reader: &mut dyn BufRead,
    bytes: &mut Vec<u8>,
    longest: usize,
) -> io::Result<bool> {
    let mut begun = false;
    loop {
        let available = reader.fill_buf()?;
        if available.is_empty() {
            return Ok(begun);
        }
        begun = true;
        let end = available.iter().position(|&b| b == b'\n');
        let part = &available[..end.unwrap_or(available.len())];
        let room = longest.saturating_add(1).saturating_sub(bytes.len());
        bytes.extend_from_slice(&part[..part.len().min(room)]);
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}

/// Reads one text, several, or SQuAD's `{"text": [...]}`.
///
/// # Errors
/// Those of the deserializer for anything else.
pub(crate) fn texts<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "expected a text, a list of texts, or {\"text\": [...]}"
    )]
    enum Texts {
        One(String),
        Several(Vec<String>),
        Squad { text: Vec<String> },
    }
    Ok(match Texts::deserialize(from)? {
        Texts::One(text) => vec![text],
        Texts::Several(texts) | Texts::Squad { text: texts } => texts,
    })
}

/// What is wrong with a line of JSON. Of its position the column alone says something: it knows one line
/// only.
pub(crate) fn json_error(error: &serde_json::Error) -> String {
    let said = error.to_string();
    let said = said.split(" at line ").next().unwrap_or_default();
    format!("{said} at column {}", error.column())
}

/// Opens a file by its ending.
fn open(path: &Path) -> Result<Box<dyn BufRead + Send>> {
    let file = File::open(path).map_err(Error::io(path))?;
    if file.metadata().map_err(Error::io(path))?.is_dir() {
        return Err(Error::format(path, "a folder, expected a file of rows"));
    }
    let file = BufReader::with_capacity(1 << 16, file);
    let ending = path.extension().and_then(|ending| ending.to_str());
    match ending {
        #[cfg(feature = "train")]
        Some("xz") => Ok(super::packed::xz(file)),
        #[cfg(feature = "train")]
        Some("zst") => Ok(super::packed::zstd(file)),
        #[cfg(not(feature = "train"))]
        Some(ending @ ("xz" | "zst")) => Err(Error::Unsupported {
            what: format!("{}: rows packed as .{ending}", path.display()),
            have: "plain JSONL; packed rows need the feature `train`".into(),
        }),
        _ => Ok(Box::new(file)),
    }
}
