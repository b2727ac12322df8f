//! Any task from its first pair to its report; what was answered before a run was cut off is kept.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use super::bootstrap::{Interval, interval};
use crate::control::Control;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::files::{regular_file, whole_lines};

/// An item (a question, a text) and a case (a way at a rate), by their places in the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// Which question or text.
    pub item: usize,
    /// Which way.
    pub case: usize,
}

/// Where a model runs, as far as answers depend on it: the number of a CPU's threads changes none.
pub(super) fn place(engine: &Engine) -> &str {
    let device = &engine.info().device;
    match device.starts_with("cpu") {
        true => "cpu",
        false => device,
    }
}

/// What came of one pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The item's name.
    pub id: String,
    /// What the host read in place of a context, in its tokens or in rows of a prefix.
    pub host_tokens: usize,
    /// What it said.
    pub said: String,
    /// By the names of [`Task::metrics`].
    #[serde(deserialize_with = "null_is_nan")]
    pub scores: BTreeMap<String, f64>,
}

/// JSON has no NaN: it is written as null.
fn null_is_nan<'de, D: Deserializer<'de>>(
    from: D,
) -> std::result::Result<BTreeMap<String, f64>, D::Error> {
    let read = BTreeMap::<String, Option<f64>>::deserialize(from)?;
    let values = read.into_iter();
    Ok(values.map(|(k, v)| (k, v.unwrap_or(f64::NAN))).collect())
}

/// Something to measure.
pub trait Task {
    /// Its name in reports.
    fn name(&self) -> &'static str;
    /// Names of the scores, in the order of a table.
    fn metrics(&self) -> &'static [&'static str];
    /// Number of items.
    fn items(&self) -> usize;
    /// The ways with their rates, in the order of a table.
    fn cases(&self) -> Vec<(String, Option<f64>)>;
    /// Items that are best asked for together.
    fn batch(&self) -> usize;
    /// A hash of all that an answer depends on.
    fn key(&self, pair: Pair) -> String;
    /// Asks, and gives an answer for each pair; `tick` is called twice for each.
    ///
    /// # Errors
    /// [`Error::Input`] or [`Error::Budget`] for a compression that cannot be made; [`Error::Device`] if the
    /// device fails; [`Error::Cancelled`] or [`Error::Deadline`] where `control` ends it.
    fn ask(&self, pairs: &[Pair], control: &Control, tick: &mut dyn FnMut())
    -> Result<Vec<Answer>>;
}

/// A way at a rate, over all items.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub way: String,
    /// Share of the tokens that was asked for, where it has one.
    pub rate: Option<f64>,
    /// Mean of what the host read in place of a context: tokens, or rows of a prefix.
    pub host_tokens: f64,
    /// Means over the items, by the names of the task's metrics.
    #[serde(flatten)]
    pub scores: BTreeMap<String, Interval>,
}

/// A row less another at the same rate, item by item.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The row that is taken off from.
    pub way: String,
    /// The row that is taken off.
    pub less: String,
    /// Their rate; of the second only where it has one.
    pub rate: Option<f64>,
    /// Means of the differences, with paired intervals.
    #[serde(flatten)]
    pub scores: BTreeMap<String, Interval>,
}

/// All rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// `qa` or `regen`.
    pub task: &'static str,
    /// Questions or texts that each row is computed of.
    pub items: usize,
    /// Names of the scores, in the order of a table.
    pub metrics: &'static [&'static str],
    /// What the intervals were drawn with.
    pub seed: u64,
    /// A row for each way and rate.
    pub rows: Vec<Row>,
    /// Of the row asked for to all others.
    pub differences: Vec<Difference>,
}

/// Asks for every pair that `log` has no answer to and reports on all.
///
/// `log`, JSON lines, grows with every batch, so that a run that was cut off continues where it was.
/// `base` names the way whose differences to the others are reported. `tick` is called twice for each
/// of the task's pairs.
///
/// # Errors
/// [`Error::Io`] and [`Error::Format`] for the log; [`Error::Input`] or [`Error::Budget`] for a compression
/// that cannot be made; [`Error::Device`] if the device fails; [`Error::Cancelled`] or [`Error::Deadline`]
/// where `control` ends it.
pub fn run(
    task: &dyn Task,
    seed: u64,
    base: Option<&str>,
    log: Option<&Path>,
    control: &Control,
    tick: &mut dyn FnMut(),
) -> Result<Report> {
    let mut log = match log {
        Some(path) => Log::open(path)?,
        None => Log::default(),
    };
    let cases = task.cases();
    let mut answers: Vec<Vec<Option<Answer>>> = vec![vec![None; task.items()]; cases.len()];
    let items: Vec<usize> = (0..task.items()).collect();
    for items in items.chunks(task.batch().max(1)) {
        let mut pairs = Vec::new();
        for &item in items {
            for (case, answers) in answers.iter_mut().enumerate() {
                let pair = Pair { item, case };
                let key = task.key(pair);
                match log.known.get(&key) {
                    Some(answer) => {
                        answers[item] = Some(answer.clone());
                        tick();
                        tick();
                    }
                    None => pairs.push((pair, key)),
                }
            }
        }
        if pairs.is_empty() {
            continue;
        }
        let asked: Vec<Pair> = pairs.iter().map(|(pair, _)| *pair).collect();
        for (answer, (pair, key)) in task.ask(&asked, control, tick)?.into_iter().zip(pairs) {
            let (way, rate) = &cases[pair.case];
            log.add(&key, way, *rate, &answer)?;
            answers[pair.case][pair.item] = Some(answer);
        }
    }
    let answers: Vec<Vec<Answer>> = answers
        .into_iter()
        .map(|row| row.into_iter().flatten().collect())
        .collect();

    let rows = cases
        .iter()
        .zip(&answers)
        .map(|((way, rate), answers)| Row {
            way: way.clone(),
            rate: *rate,
            host_tokens: answers.iter().map(|a| a.host_tokens as f64).sum::<f64>()
                / answers.len().max(1) as f64,
            scores: means(task, seed, |metric, item| {
                answers.get(item)?.scores.get(metric).copied()
            }),
        });
    let mut differences = Vec::new();
    for (own, (way, rate)) in cases.iter().enumerate() {
        if Some(way.as_str()) != base {
            continue;
        }
        for (other, (less, its_rate)) in cases.iter().enumerate() {
            if less == way || (its_rate.is_some() && its_rate != rate) {
                continue;
            }
            differences.push(Difference {
                way: way.clone(),
                less: less.clone(),
                rate: *rate,
                scores: means(task, seed, |metric, item| {
                    let [a, b] = [own, other].map(|row| answers[row].get(item));
                    Some(a?.scores.get(metric)? - b?.scores.get(metric)?)
                }),
            });
        }
    }
    Ok(Report {
        task: task.name(),
        items: task.items(),
        metrics: task.metrics(),
        seed,
        rows: rows.collect(),
        differences,
    })
}

fn means(
    task: &dyn Task,
    seed: u64,
    value: impl Fn(&str, usize) -> Option<f64>,
) -> BTreeMap<String, Interval> {
    let mean = |metric: &&'static str| {
        let values: Vec<f64> = (0..task.items())
            .filter_map(|item| value(metric, item))
            .collect();
        Some((metric.to_string(), interval(&values, seed)?))
    };
    task.metrics().iter().filter_map(mean).collect()
}

/// Answers by their keys, and the file that they are in.
#[derive(Default)]
struct Log {
    known: HashMap<String, Answer>,
    file: Option<(std::path::PathBuf, File)>,
}

#[derive(Serialize, Deserialize)]
struct Line<A> {
    key: String,
    way: String,
    rate: Option<f64>,
    #[serde(flatten)]
    answer: A,
}

impl Log {
    /// Reads what is there. A last line that was cut off is dropped.
    fn open(path: &Path) -> Result<Self> {
        if path.exists() {
            regular_file(path)?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(Error::io(path))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(Error::io(path))?;
        let whole = whole_lines(&text);
        let mut known = HashMap::new();
        for (number, line) in (1..).zip(text[..whole].split(|&b| b == b'\n')) {
            if line.is_empty() {
                continue;
            }
            let line: Line<Answer> = serde_json::from_slice(line).map_err(|error| {
                Error::format(path, format!("line {number} is not an answer: {error}"))
            })?;
            known.insert(line.key, line.answer);
        }
        if whole < text.len() {
            // Only a line that begins as ours do was cut off; anything else is not ours to cut.
            if !text[whole..].starts_with(b"{\"key\":") {
                return Err(Error::format(path, "its last line is not an answer"));
            }
            file.set_len(whole as u64).map_err(Error::io(path))?;
        }
        file.seek(SeekFrom::End(0)).map_err(Error::io(path))?;
        Ok(Log {
            known,
            file: Some((path.to_path_buf(), file)),
        })
    }

    fn add(&mut self, key: &str, way: &str, rate: Option<f64>, answer: &Answer) -> Result<()> {
        let Some((path, file)) = &mut self.file else {
            return Ok(());
        };
        let line = Line {
            key: key.into(),
            way: way.into(),
            rate,
            answer,
        };
        let mut text =
            serde_json::to_vec(&line).map_err(|error| Error::format(&*path, error.to_string()))?;
        text.push(b'\n');
        file.write_all(&text).map_err(Error::io(&*path))
    }
}
