//! What a training is: rows, an adapter and an objective, made of a few choices.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::adamw::AdamW;
use super::data::{self, BadRows, Task};
use super::objective::{LoraShape, Objective};
use super::parameters::{self, Parameters};
use super::run::Options;
use super::schedule::Schedule;
use super::start::MemoryStart;
use super::study::Study;
use crate::error::{Error, Result};
use crate::kv_prefix::Method;
use crate::model::config::Config;
use crate::model::lora::Target;
use crate::soft::{SETTINGS, Settings};

/// The adapter that a training begins with.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Begin {
    /// A new one.
    New {
        /// Rank, alpha and projections.
        lora: LoraShape,
        /// Memory tokens; alignment has none.
        memory_tokens: usize,
        /// What their embeddings begin as.
        start: MemoryStart,
    },
    /// One in a folder. The run begins anew with it.
    Adapter(PathBuf),
}

/// A training run: what is trained on what, how, and where to.
///
/// [`Plan::new`] has the defaults of the papers. [`Training::run`](crate::Training::run) runs it.
///
/// ```no_run
/// use prefold::train::{Plan, Task};
/// use prefold::{Control, Engine};
///
/// let engine = Engine::open("SmolLM2-135M-Instruct-Q4_1.gguf")?;
/// let mut plan = Plan::new(Task::Regen, ["rows.jsonl"], "adapter", 1000);
/// plan.batch = 8;
/// let done = engine.training().run(&plan, &Control::default(), &mut |_| {})?;
/// println!("{} steps, loss {:?}", done.step, done.loss);
/// # Ok::<(), prefold::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Plan {
    /// What rows are read for.
    pub task: Task,
    /// The adapter that it begins with.
    pub begin: Begin,
    /// What the decoder reads of memory tokens. `None`: as the given adapter was trained, or
    /// [`Method::FiveHundredX`].
    pub method: Option<Method>,
    /// The first memory tokens are trained to stand alone: for each sample their number is drawn from 1 to
    /// all, and [`Adapter::first`](crate::Adapter::first) takes as many. What begins with an adapter that
    /// was trained so continues so.
    pub nested: bool,
    /// Begins what the decoder reconstructs. `None`: the model's.
    pub bos: Option<u32>,
    /// Ends every target. `None`: the model's.
    pub eos: Option<u32>,
    /// Files of rows to train on, read as one.
    pub data: Vec<PathBuf>,
    /// Rows to measure the loss on.
    pub dev: Option<PathBuf>,
    /// Most of those rows.
    pub dev_rows: usize,
    /// What becomes of a row that cannot be read.
    pub bad_rows: BadRows,
    /// Longest text or context, in tokens; longer ones are cut. `None`: as the given adapter was
    /// trained, or 500.
    pub max_text_tokens: Option<usize>,
    /// What a question of text stands in, at `{}`.
    pub question_template: String,
    /// What an answer of text stands in, at `{}`.
    pub answer_template: String,
    /// Rows held in memory to be shuffled; 1 keeps the files' order.
    pub shuffle_buffer: usize,
    /// Steps in all, those before a resume included.
    pub steps: u64,
    /// Samples of one pass.
    pub batch: usize,
    /// Passes of one step.
    pub accumulate: usize,
    /// Full learning rate.
    pub lr: f64,
    /// Steps in which it rises.
    pub warmup: u64,
    /// What it does then.
    pub schedule: Schedule,
    /// AdamW's decay.
    pub weight_decay: f64,
    /// Greatest norm of a gradient; 0 for any.
    pub clip: f64,
    /// Share of LoRA's inputs that are dropped, from 0 to below 1.
    pub dropout: f32,
    /// Decides the new adapter, the rows' order and dropout.
    pub seed: u64,
    /// What [`Plan::data`] was made by, where [`Training::questions`](crate::Training::questions) made it: a
    /// run of [`Training::prefix`](crate::Training::prefix) is resumed with the same. The others do not heed it.
    pub study: Option<Study>,
    /// The run's folder: an adapter at any time, and what a resume needs.
    pub out: PathBuf,
    /// The log, a line of JSON a step. `None`: beside [`Plan::out`].
    pub log: Option<PathBuf>,
    /// Continues the run in [`Plan::out`], if there is one.
    pub resume: bool,
    /// Steps from one evaluation to the next; 0: only after the last.
    pub eval_every: u64,
    /// Steps from one checkpoint to the next; 0: only after the last.
    pub save_every: u64,
    /// Bytes of activations that are kept; what does not fit is computed again, layer by layer, with the
    /// same values.
    pub activation_bytes: usize,
}

/// Text or context, in tokens: the paper's.
const MAX_TEXT_TOKENS: usize = 500;

impl Plan {
    /// A training of a new adapter, with the papers' choices.
    pub fn new<P: Into<PathBuf>>(
        task: Task,
        data: impl IntoIterator<Item = P>,
        out: impl Into<PathBuf>,
        steps: u64,
    ) -> Self {
        Plan {
            task,
            begin: Begin::New {
                lora: LoraShape {
                    rank: 64,
                    alpha: 32.0,
                    targets: vec![Target::Q, Target::V],
                },
                memory_tokens: 16,
                start: MemoryStart::default(),
            },
            method: None,
            nested: false,
            bos: None,
            eos: None,
            data: data.into_iter().map(Into::into).collect(),
            dev: None,
            dev_rows: 100,
            bad_rows: BadRows::default(),
            max_text_tokens: None,
            question_template: data::QUESTION.into(),
            answer_template: data::ANSWER.into(),
            shuffle_buffer: 10_000,
            steps,
            batch: 4,
            accumulate: 1,
            lr: 1e-4,
            warmup: 300,
            schedule: Schedule::default(),
            weight_decay: 0.01,
            clip: 1.0,
            dropout: 0.05,
            seed: 0,
            study: None,
            out: out.into(),
            log: None,
            resume: false,
            eval_every: 500,
            save_every: 500,
            activation_bytes: 0,
        }
    }

    /// Checks what can be checked before anything is read.
    ///
    /// # Errors
    /// [`Error::Input`] naming the field, its value and the range.
    pub fn check(&self) -> Result<()> {
        self.options().check()?;
        if !(0.0..1.0).contains(&self.dropout) {
            let what = format!("dropout {}", self.dropout);
            return Err(Error::input(what, "expected 0 to below 1"));
        }
        for (name, template) in [
            ("question_template", &self.question_template),
            ("answer_template", &self.answer_template),
        ] {
            if template.matches("{}").count() != 1 {
                let reason = "expected {} once, where the text goes";
                return Err(Error::input(name, reason));
            }
        }
        if self.nested && self.task == Task::Align {
            return Err(Error::input("nested", "alignment has no memory tokens"));
        }
        if let Some(method) = self.method
            && self.task == Task::Align
        {
            let what = format!("method {}", method.name());
            return Err(Error::input(what, "alignment has no memory tokens"));
        }
        if let Begin::New { start, .. } = &self.begin
            && self.method == Some(Method::Pooled)
            && *start != MemoryStart::default()
        {
            let reason = "the method pooled has no memory embeddings to begin";
            return Err(Error::input("init", reason));
        }
        match self.begin {
            Begin::New {
                memory_tokens: 0, ..
            } if self.task != Task::Align => Err(Error::input(
                "memory_tokens 0",
                "a compressor needs at least 1",
            )),
            _ => Ok(()),
        }
    }

    /// How the loop goes.
    pub(crate) fn options(&self) -> Options {
        Options {
            steps: self.steps,
            batch: self.batch,
            accumulate: self.accumulate,
            lr: self.lr,
            warmup: self.warmup,
            schedule: self.schedule,
            adamw: AdamW {
                weight_decay: self.weight_decay,
                ..AdamW::default()
            },
            clip: (self.clip != 0.0).then_some(self.clip),
            seed: self.seed,
            eval_every: self.eval_every,
            save_every: self.save_every,
            out: self.out.clone(),
            log: Some(self.log.clone().unwrap_or_else(|| default_log(&self.out))),
            resume: self.resume,
            identity: Map::new(),
        }
    }

    /// What the decoder reads.
    ///
    /// An adapter that pools has no memory embeddings and the others have: those do not change over.
    pub(crate) fn method(&self, given: Option<&Settings>) -> Method {
        match (self.method, given) {
            (Some(method), _) => method,
            (None, Some(settings)) => settings.method,
            (None, None) => Method::FiveHundredX,
        }
    }

    /// An error where an adapter cannot be trained on by the method, or does not say what it takes.
    pub(crate) fn check_given(&self, given: Option<&Settings>) -> Result<()> {
        let (method, was) = (self.method(given), given.map(|settings| settings.method));
        let was = was.unwrap_or(Method::FiveHundredX);
        let pools = |method| method == Method::Pooled;
        let begins = matches!(self.begin, Begin::Adapter(_)) && self.task != Task::Align;
        if begins && pools(method) != pools(was) {
            let what = format!("method {}", method.name());
            let reason = format!("the given adapter was trained by {}", was.name());
            return Err(Error::input(what, reason));
        }
        if let Begin::Adapter(folder) = &self.begin
            && begins
            && pools(method)
            && given
                .and_then(|settings| settings.memory_tokens)
                .unwrap_or(0)
                == 0
        {
            let reason = "an adapter that pools says how many vectors: memory_tokens";
            return Err(Error::format(folder.join(SETTINGS), reason));
        }
        Ok(())
    }

    /// What depends on the model and on the adapter that it begins with.
    pub(crate) fn settle(
        &self,
        config: &Config,
        parameters: &Parameters,
        given: Option<&Settings>,
    ) -> Result<Settled> {
        let method = self.method(given);
        let memory_tokens = match (method, &self.begin) {
            (Method::Pooled, Begin::New { memory_tokens, .. }) => *memory_tokens,
            (Method::Pooled, Begin::Adapter(_)) => given
                .and_then(|settings| settings.memory_tokens)
                .unwrap_or(0),
            _ => parameters.memory_tokens(),
        };
        let room = config.max_positions.saturating_sub(memory_tokens);
        let max = room.saturating_sub(1);
        let kept = given.and_then(|settings| settings.max_text_tokens);
        let max_text_tokens = match self.max_text_tokens.or(kept) {
            Some(0) => return Err(Error::input("max_text_tokens 0", "expected at least 1")),
            Some(n) if n > max => {
                let what = format!("max_text_tokens {n}");
                let reason =
                    format!("the model has room for {max} beside {memory_tokens} memory tokens");
                return Err(Error::input(what, reason));
            }
            Some(n) => n,
            None if max == 0 => {
                let reason = format!("the model has {} positions", config.max_positions);
                return Err(Error::input(
                    format!("memory_tokens {memory_tokens}"),
                    reason,
                ));
            }
            None => MAX_TEXT_TOKENS.min(max),
        };
        let id = |name: &str, given: Option<u32>, own: Option<u32>| match given.or(own) {
            Some(id) if (id as usize) < config.vocab => Ok(id),
            Some(id) => {
                let reason = format!("it is outside the vocabulary of {}", config.vocab);
                Err(Error::input(format!("{name} {id}"), reason))
            }
            None => Err(Error::input(name, "the model names none: give one")),
        };
        let eos = id("eos", self.eos, config.eos)?;
        let bos = match self.task {
            Task::Regen => id("bos", self.bos, config.bos)?,
            // Nothing is regenerated.
            Task::Qa | Task::Align => self.bos.or(config.bos).unwrap_or(eos),
        };
        Ok(Settled {
            objective: Objective {
                method,
                bos,
                eos,
                dropout: self.dropout,
                nested: self.task != Task::Align
                    && (self.nested || given.is_some_and(|settings| settings.nested)),
                vectors: memory_tokens,
            },
            max_text_tokens,
            room,
        })
    }

    /// All that decides what a step does: what must be the same when a run is resumed.
    pub(crate) fn identity(
        &self,
        fingerprint: &str,
        precision: Value,
        objective: &Objective,
        parameters: &Parameters,
        max_text_tokens: usize,
    ) -> Result<Map<String, Value>> {
        let mut files = Vec::new();
        for path in &self.data {
            let bytes = std::fs::metadata(path).map_err(Error::io(path))?.len();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            files.push(format!("{name}, {bytes} bytes"));
        }
        let mut identity = json!({
            "task": self.task.name(),
            "method": objective.method.name(),
            "bos": objective.bos,
            "eos": objective.eos,
            "rank": parameters.lora.rank,
            "alpha": parameters.lora.alpha,
            "targets": parameters.targets(),
            "memory-tokens": match objective.method {
                Method::Pooled => objective.vectors,
                _ => parameters.memory_tokens(),
            },
            "data": files,
            "max-text-tokens": max_text_tokens,
            "shuffle-buffer": self.shuffle_buffer.max(1),
            "batch": self.batch,
            "accumulate": self.accumulate,
            "lr": self.lr,
            "warmup": self.warmup,
            "schedule": self.schedule,
            "weight-decay": self.weight_decay,
            "clip": self.clip,
            "dropout": self.dropout,
            "precision": precision,
            "seed": self.seed,
        });
        // Runs of before there was a choice have none to compare.
        if objective.nested {
            identity["nested"] = true.into();
        }
        if self.schedule != Schedule::Constant {
            identity["steps"] = self.steps.into();
        }
        if self.task != Task::Regen {
            identity["question-template"] = self.question_template.clone().into();
            identity["answer-template"] = self.answer_template.clone().into();
        }
        identity["model"] = fingerprint.into();
        match identity {
            Value::Object(identity) => Ok(identity),
            _ => Ok(Map::new()),
        }
    }
}

/// What a plan comes to with a model.
pub(crate) struct Settled {
    pub objective: Objective,
    pub max_text_tokens: usize,
    /// Positions beside the memory tokens.
    pub room: usize,
}

/// Projections by their short names: `q`, `k`, `v`, `o`, `gate`, `up`, `down`, or `all`.
///
/// # Errors
/// [`Error::Input`] naming the one that is not known.
pub fn targets<S: AsRef<str>>(names: &[S]) -> Result<Vec<Target>> {
    match names {
        [one] if one.as_ref() == "all" => {
            Ok(Target::ALL.iter().map(|&(target, _)| target).collect())
        }
        several => several
            .iter()
            .map(|name| {
                let have = "expected some of q, k, v, o, gate, up, down, or all";
                let name = name.as_ref();
                parameters::target(name)
                    .ok_or_else(|| Error::input(format!("targets {name}"), have))
            })
            .collect(),
    }
}

/// Beside a run's folder, which is replaced with every checkpoint.
fn default_log(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".log.jsonl");
    out.with_file_name(name)
}
