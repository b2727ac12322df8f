//! What is trained on: rows of files, shuffled by seed, as samples in token ids.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::objective::Sample;
use super::rows::{LONGEST_LINE, Line, Lines, json_error};
use crate::error::{Error, Result};
use crate::random::Random;
use crate::text::Tokenizer;

/// Which objective rows are read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Pretraining: give the text back.
    Regen,
    /// Fine-tuning: answer from a context's memory tokens. Rows of text among those of questions keep
    /// it able to give texts back.
    Qa,
    /// Distribution alignment: answer, without memory tokens.
    Align,
}

impl Task {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Task::Regen => "regen",
            Task::Qa => "qa",
            Task::Align => "align",
        }
    }

    /// The fields of its rows, in words.
    const fn fields(self) -> &'static str {
        match self {
            Task::Regen => "`text` or `ids`",
            Task::Qa => {
                "`context`, `question` and `answers`, or `context_ids`, `question_ids` and \
                 `answer_ids`, or `text` or `ids`"
            }
            Task::Align => "`question` and `answer`, or `question_ids` and `answer_ids`",
        }
    }
}

/// How rows become samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// What for.
    pub task: Task,
    /// Longest text or context, in tokens: longer ones are cut.
    pub max_text_tokens: usize,
    /// Where `{}` stands the question; the answer follows it.
    pub question: String,
    /// Likewise for the answer.
    pub answer: String,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Positions that a decoder has for question and answer, or BOS and text, and what ends them.
    pub room: usize,
}

/// What a question and an answer are wrapped in, unless it is said otherwise.
pub const QUESTION: &str = "Question: {}\nAnswer:";
/// See [`QUESTION`].
pub const ANSWER: &str = " {}";

impl Reading {
    /// The sample of one row.
    ///
    /// # Errors
    /// What is wrong with the row, in a few words.
    pub fn sample(&self, tokenizer: Option<&Tokenizer>, line: &[u8]) -> Result<Sample, String> {
        if line.len() > LONGEST_LINE {
            return Err(format!("longer than {LONGEST_LINE} bytes"));
        }
        let row: Map<String, Value> = serde_json::from_slice(line)
            .map_err(|error| format!("no JSON object: {}", json_error(&error)))?;
        let row = Row {
            reading: self,
            tokenizer,
            row,
        };
        let sample = match self.task {
            Task::Regen => row.text(self)?,
            Task::Qa if row.is_text() => row.text(self)?,
            Task::Qa => Sample::Answer {
                context: self.cut(row.ids("context_ids", &["context"], "{}")?),
                question: row.ids("question_ids", &["question"], &self.question)?,
                answer: row.ids("answer_ids", &["answers", "answer"], &self.answer)?,
            },
            Task::Align => Sample::Align {
                question: row.ids("question_ids", &["question"], &self.question)?,
                answer: row.ids("answer_ids", &["answer", "answers"], &self.answer)?,
            },
        };
        let length = match &sample {
            Sample::Regenerate { text } => text.len() + 1,
            Sample::Answer {
                question, answer, ..
            }
            | Sample::Align { question, answer } => question.len() + answer.len(),
        };
        if length > self.room {
            let room = self.room;
            return Err(format!(
                "{length} tokens for the decoder, which has room for {room}"
            ));
        }
        Ok(sample)
    }

    fn cut(&self, mut ids: Vec<u32>) -> Vec<u32> {
        ids.truncate(self.max_text_tokens);
        ids
    }
}

struct Row<'a> {
    reading: &'a Reading,
    tokenizer: Option<&'a Tokenizer>,
    row: Map<String, Value>,
}

impl Row<'_> {
    /// Whether it has a text to reconstruct, and nothing of a question about one: a row whose other fields
    /// are misspelt is not taken for a text.
    fn is_text(&self) -> bool {
        let has = |names: &[&str]| names.iter().any(|&name| self.row.contains_key(name));
        has(&["ids", "text"])
            && !has(&["context", "context_ids", "question", "question_ids"])
            && !has(&["answers", "answer", "answer_ids"])
    }

    fn text(&self, reading: &Reading) -> Result<Sample, String> {
        Ok(Sample::Regenerate {
            text: reading.cut(self.ids("ids", &["text"], "{}")?),
        })
    }

    /// The ids of a field, or of the text in one of several others, put into `template`.
    fn ids(&self, ids: &str, texts: &[&str], template: &str) -> Result<Vec<u32>, String> {
        if let Some(value) = self.row.get(ids) {
            let list: Vec<u32> = Deserialize::deserialize(value)
                .map_err(|_| format!("`{ids}` is not a list of token ids"))?;
            let vocab = self.reading.vocab;
            if let Some(id) = list.iter().find(|&&id| id as usize >= vocab) {
                return Err(format!(
                    "`{ids}`: {id} is outside the vocabulary of {vocab}"
                ));
            }
            return filled(ids, list);
        }
        let Some((name, value)) = texts
            .iter()
            .find_map(|&name| Some((name, self.row.get(name)?)))
        else {
            return Err(format!("expected {}", self.reading.task.fields()));
        };
        let list: Vec<String> = super::rows::texts(value)
            .map_err(|_| format!("`{name}` is not text, nor a list that begins with one"))?;
        let text = list.first().map_or("", String::as_str);
        if text.is_empty() {
            return Err(format!("`{name}` is empty"));
        }
        let Some(tokenizer) = self.tokenizer else {
            return Err(format!(
                "`{name}` is text, but the model has no tokenizer: give ids"
            ));
        };
        let encoding = tokenizer
            .encode(&template.replacen("{}", text, 1), false, false)
            .map_err(|error| error.to_string())?;
        filled(name, encoding.ids)
    }
}

fn filled(name: &str, ids: Vec<u32>) -> Result<Vec<u32>, String> {
    match ids.is_empty() {
        true => Err(format!("`{name}` has no tokens")),
        false => Ok(ids),
    }
}

/// What becomes of a row that is not a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum BadRows {
    /// It is named and passed over.
    Skip,
    /// It ends the run.
    #[default]
    Fail,
}

/// How far the rows were drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// Times that all rows were drawn.
    pub epoch: u64,
    /// Rows drawn since.
    pub drawn: u64,
}

/// Samples without end: the rows of files in an order that the seed decides, another one each epoch.
///
/// A buffer is filled, a random one of its rows is taken and the next line put in its place, so that
/// a file of any size is shuffled in little memory, the better the larger the buffer.
pub struct Stream<'a> {
    reading: Reading,
    tokenizer: Option<&'a Tokenizer>,
    paths: Vec<PathBuf>,
    seed: u64,
    capacity: usize,
    bad_rows: BadRows,
    position: Position,
    lines: Lines,
    buffer: Vec<Line>,
    /// Bytes of the rows in it.
    held: usize,
    random: Random,
    /// Whether this epoch had a sample.
    fruitful: bool,
}

/// Bytes of rows at which no more are held.
const HELD: usize = 1 << 30;

/// How a [`Stream`] goes through its files.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// The files, as one.
    pub paths: Vec<PathBuf>,
    /// Decides the order.
    pub seed: u64,
    /// Rows that are held to be shuffled, or fewer where they would be more than a GiB; 0 and 1 leave
    /// the files' order.
    pub buffer: usize,
    /// What becomes of rows that are not samples.
    pub bad_rows: BadRows,
}

impl<'a> Stream<'a> {
    /// Goes to `position`: the rows of its epoch that were drawn before are read again and passed
    /// over.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be read; [`Error::Format`] where there are not so many
    /// rows.
    pub fn open(
        order: Order,
        reading: Reading,
        tokenizer: Option<&'a Tokenizer>,
        position: Position,
    ) -> Result<Self> {
        let mut stream = Stream {
            reading,
            tokenizer,
            lines: Lines::new(&order.paths),
            paths: order.paths,
            seed: order.seed,
            capacity: order.buffer.max(1),
            bad_rows: order.bad_rows,
            position: Position {
                epoch: position.epoch,
                drawn: 0,
            },
            buffer: Vec::new(),
            held: 0,
            random: Random::of(order.seed, &[position.epoch]),
            fruitful: position.drawn > 0,
        };
        while stream.position.drawn < position.drawn {
            if stream.draw()?.is_none() {
                let reason = format!(
                    "{} rows, but {} were drawn before: not the file that it was",
                    stream.position.drawn, position.drawn
                );
                return Err(Error::format(stream.name(0), reason));
            }
        }
        Ok(stream)
    }

    /// Where it stands: a stream opened there continues with the same samples.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next sample; a row that is skipped is told to `skipped` in one line.
    ///
    /// # Errors
    /// [`Error::Format`], with file and line, for a row that cannot be read where those are fatal, and for
    /// files without a single sample; [`Error::Io`].
    pub fn next(&mut self, skipped: &mut dyn FnMut(&str)) -> Result<Sample> {
        loop {
            let Some(line) = self.draw()? else {
                if !self.fruitful {
                    return Err(Error::format(self.name(0), "no row to train on found"));
                }
                self.fruitful = false;
                self.position = Position {
                    epoch: self.position.epoch + 1,
                    drawn: 0,
                };
                self.lines = Lines::new(&self.paths);
                self.random = Random::of(self.seed, &[self.position.epoch]);
                continue;
            };
            match self.reading.sample(self.tokenizer, &line.bytes) {
                Ok(sample) => {
                    self.fruitful = true;
                    return Ok(sample);
                }
                Err(reason) => {
                    let error = bad_row(self.name(line.file), line.number, &reason);
                    match self.bad_rows {
                        BadRows::Fail => return Err(error),
                        BadRows::Skip => skipped(&error.to_string()),
                    }
                }
            }
        }
    }

    /// A random row of the buffer, whose place the next line takes.
    fn draw(&mut self) -> Result<Option<Line>> {
        while self.buffer.len() < self.capacity && self.held < HELD {
            match self.lines.next_line()? {
                Some(line) => {
                    self.held += line.bytes.len();
                    self.buffer.push(line);
                }
                None => break,
            }
        }
        if self.buffer.is_empty() {
            return Ok(None);
        }
        self.position.drawn += 1;
        let at = self.random.below(self.buffer.len());
        let line = self.buffer.swap_remove(at);
        self.held -= line.bytes.len();
        Ok(Some(line))
    }

    fn name(&self, file: usize) -> &Path {
        self.paths.get(file).map_or(Path::new(""), PathBuf::as_path)
    }
}

/// All samples of a file in its order, at most `most` of them.
///
/// # Errors
/// [`Error::Format`], with file and line, for a row that cannot be read where those are fatal, and for files
/// without a single sample; [`Error::Io`].
pub fn read_all(
    path: &Path,
    reading: &Reading,
    tokenizer: Option<&Tokenizer>,
    bad_rows: BadRows,
    max: usize,
    skipped: &mut dyn FnMut(&str),
) -> Result<Vec<Sample>> {
    let mut lines = Lines::new(&[path.to_owned()]);
    let mut samples = Vec::new();
    while samples.len() < max {
        let Some(line) = lines.next_line()? else {
            break;
        };
        match reading.sample(tokenizer, &line.bytes) {
            Ok(sample) => samples.push(sample),
            Err(reason) => {
                let error = bad_row(path, line.number, &reason);
                match bad_rows {
                    BadRows::Fail => return Err(error),
                    BadRows::Skip => skipped(&error.to_string()),
                }
            }
        }
    }
    if samples.is_empty() {
        return Err(Error::format(path, "no row to measure found"));
    }
    Ok(samples)
}

fn bad_row(path: &Path, number: u64, reason: &str) -> Error {
    Error::format(path, format!("line {number}: {reason}"))
}
