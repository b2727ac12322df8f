//! Lines of JSONL files, as they are, packed by xz or by zstd: streamed, never whole in memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::control;
use crate::error::{Error, Result};
use crate::files::mark;

/// A line beyond this is not a row of text; it bounds what a file can have allocated.
pub const LONGEST_LINE: usize = 16 << 20;

/// A line and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Which of the files.
    pub file: usize,
    /// Number of the line in it, from 1.
    pub number: u64,
    /// Its bytes without the line break; cut after [`LONGEST_LINE`].
    pub bytes: Vec<u8>,
}

/// Lines that are read ahead; each may be as long as [`LONGEST_LINE`].
const AHEAD: usize = 4;
/// How often a call that waits for a line looks whether it is to end.
const PATIENCE: Duration = Duration::from_millis(50);

/// The lines of several files, one after the other, but for empty ones.
///
/// A thread reads ahead, so that a call can end while a pipe has no line or a file nothing but line
/// breaks.
pub struct Lines {
    paths: Vec<PathBuf>,
    /// From the first line that is asked for on.
    ahead: Option<Receiver<Result<Line>>>,
}

impl Lines {
    /// From the first line of the first file. Nothing is opened yet.
    pub fn new(paths: &[PathBuf]) -> Self {
        Lines {
            paths: paths.to_vec(),
            ahead: None,
        }
    }

    /// The next line.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be read or unpacked, or without a thread to read it;
    /// [`Error::Cancelled`] and [`Error::Deadline`] where the call is to end meanwhile.
    pub fn next_line(&mut self) -> Result<Option<Line>> {
        let ahead = match &self.ahead {
            Some(ahead) => ahead,
            None => {
                let (sender, receiver) = sync_channel(AHEAD);
                let paths = self.paths.clone();
                // It ends after the last line, or when its lines are not taken any more. One that waits
                // for a pipe ends with the pipe or with the process.
                std::thread::Builder::new()
                    .name("prefold-rows".into())
                    .spawn(move || read_ahead(&paths, &sender))
                    .map_err(Error::io("a thread that reads rows"))?;
                self.ahead.insert(receiver)
            }
        };
        loop {
            control::check()?;
            match ahead.recv_timeout(PATIENCE) {
                Ok(line) => return line.map(Some),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }
}

/// Sends the lines of all files, up to an error or to the last that is taken.
fn read_ahead(paths: &[PathBuf], sender: &SyncSender<Result<Line>>) {
    for (file, path) in paths.iter().enumerate() {
        let mut send = |number: u64, bytes: Vec<u8>| {
            let line = Line {
                file,
                number,
                bytes,
            };
            sender.send(Ok(line)).is_ok()
        };
        match each_line(path, &mut send) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                let _ = sender.send(Err(error));
                return;
            }
        }
    }
}

/// Hands out the lines of a file that are not empty, with their numbers, until `send` wants no more: false
/// then.
fn each_line(path: &Path, send: &mut dyn FnMut(u64, Vec<u8>) -> bool) -> Result<bool> {
    let mut reader = open(path)?;
    let mut number = 0;
    loop {
        let mut bytes = Vec::new();
        if !read_line(&mut *reader, &mut bytes, LONGEST_LINE).map_err(Error::io(path))? {
            return Ok(true);
        }
        number += 1;
        if number == 1 {
            bytes.drain(..mark(path, &bytes)?);
        }
        if !bytes.trim_ascii().is_empty() && !send(number, bytes) {
            return Ok(false);
        }
    }
}

/// Reads to the next line break and leaves it out; false at the end of the file. Of a line of more than
/// `longest` bytes one byte more is kept, and the rest passed over.
///
/// # Errors
/// The first error of `reader`.
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
/// The deserializer's error for anything else.
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
