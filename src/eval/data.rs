//! Questions and texts from JSON lines, packed or not.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::train::rows::{LONGEST_LINE, Lines, json_error, texts};

/// A question with what it can be answered from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// Its name; its line in the file where it has none.
    #[serde(default)]
    pub id: String,
    /// The question itself.
    pub question: String,
    /// Right answers, at least one; the first is the one whose nll is taken. Rows may also have one
    /// `answer`, or SQuAD's `{"text": [...]}`.
    #[serde(alias = "answer", deserialize_with = "texts")]
    pub answers: Vec<String>,
    /// The text that the answer is in.
    pub context: String,
    /// All documents that came with it, those of `context` among them; empty: `context` alone.
    #[serde(default)]
    pub docs: Vec<String>,
}

/// A text to be regenerated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// Its name; its line in the file where it has none.
    #[serde(default)]
    pub id: String,
    /// The text itself.
    pub text: String,
}

impl Question {
    /// The first `limit` questions of a file after the first `skip`; `with_docs` passes over those
    /// that bring no documents of their own.
    ///
    /// # Errors
    /// [`Error::Format`] that names the line of a row with a field missing or empty, and for a file
    /// that has no such question; [`Error::Io`].
    pub fn read(path: &Path, skip: usize, limit: usize, with_docs: bool) -> Result<Vec<Self>> {
        let mut left = skip;
        rows(path, limit, "question", |line, mut row: Question| {
            let empty = [
                ("question", row.question.trim().is_empty()),
                (
                    "answers",
                    row.answers.iter().all(|text| text.trim().is_empty()),
                ),
                (
                    "context",
                    row.context.trim().is_empty() && row.docs.is_empty(),
                ),
            ];
            if let Some((field, _)) = empty.iter().find(|(_, empty)| *empty) {
                return Err(format!("`{field}` is empty"));
            }
            if with_docs && row.docs.is_empty() {
                return Ok(None);
            }
            if left > 0 {
                left -= 1;
                return Ok(None);
            }
            if row.id.is_empty() {
                row.id = line.to_string();
            }
            Ok(Some(row))
        })
    }

    /// Its documents; without any, the context.
    pub fn documents(&self) -> Vec<String> {
        match self.docs.is_empty() {
            true => vec![self.context.clone()],
            false => self.docs.clone(),
        }
    }
}

impl Text {
    /// The first `limit` texts of a file.
    ///
    /// # Errors
    /// [`Error::Format`] that names the line of a row with a field missing or empty; [`Error::Io`].
    pub fn read(path: &Path, limit: usize) -> Result<Vec<Self>> {
        rows(path, limit, "text", |line, mut row: Text| {
            if row.text.trim().is_empty() {
                return Err("`text` is empty".into());
            }
            if row.id.is_empty() {
                row.id = line.to_string();
            }
            Ok(Some(row))
        })
    }
}

/// The first `limit` rows that `take` wants; it is given the number of the line, from 1.
fn rows<T: DeserializeOwned>(
    path: &Path,
    limit: usize,
    what: &str,
    mut take: impl FnMut(u64, T) -> Result<Option<T>, String>,
) -> Result<Vec<T>> {
    let mut lines = Lines::new(&[path.to_owned()]);
    let mut rows = Vec::new();
    while rows.len() < limit
        && let Some(line) = lines.next_line()?
    {
        let row = match line.bytes.len() <= LONGEST_LINE {
            true => serde_json::from_slice(&line.bytes).map_err(|error| json_error(&error)),
            false => Err(format!("longer than {LONGEST_LINE} bytes")),
        };
        let row = row.and_then(|row| take(line.number, row));
        let wrong = |reason| Error::format(path, format!("line {}: {reason}", line.number));
        rows.extend(row.map_err(wrong)?);
    }
    match rows.is_empty() {
        true => Err(Error::format(path, format!("it has no {what} to ask for"))),
        false => Ok(rows),
    }
}
