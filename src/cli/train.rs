//! `prefold train`: adapters from rows of text.

use std::path::PathBuf;

use crate::gpu::Precision;
use crate::prefix::Method;
use crate::train::data;
use crate::train::{
    BadRows, Begin, Event, LoraShape, MemoryStart, Plan, Schedule, Summary, Task, targets,
};
use crate::{Engine, Error};
use clap::Subcommand;
use serde_json::json;

use super::failure::{Failure, Outcome, say, usage};
use super::files::write_stdout;
use super::interrupt;
use super::model;
use super::train_progress::Progress;

/// Trains an adapter: a compressor's, or one for scoring
///
/// The model stays as it is. Rows are JSON, one a line, plain or packed (.xz, .zst). A run's folder is
/// an adapter at any time, and holds what `--resume` continues from; the defaults are the papers'.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    task: TaskArgs,
}

#[derive(Subcommand)]
enum TaskArgs {
    /// Pretraining: a text's memory tokens give the text back
    ///
    /// Rows: `text`, or `ids`.
    Regen(Box<RunArgs>),
    /// Fine-tuning: a context's memory tokens answer a question
    ///
    /// Rows: `context`, `question` and `answers` (the first counts), or `context_ids`, `question_ids`
    /// and `answer_ids`. Rows of `text` or `ids` among them are given back, as in pretraining, so that
    /// one adapter does both. Begin with a pretrained adapter: --adapter.
    Qa(Box<RunArgs>),
    /// Distribution alignment: the model learns to answer as a larger one did, to score in its place
    ///
    /// Rows: `question` and `answer`, or `question_ids` and `answer_ids`. The adapter is for `compress
    /// --adapter`, or for `merge`.
    Align(Box<RunArgs>),
    Prefix(Box<super::train_prefix::Args>),
    Rank(Box<super::train_rank::Args>),
    Tokens(Box<super::train_tokens::Args>),
}

const ADAPTER: &str = "Adapter";
const ROWS: &str = "Rows";
const OPTIMISER: &str = "Optimiser";
const RUN: &str = "Run";

#[derive(clap::Args)]
struct RunArgs {
    #[command(flatten)]
    model: model::PathArgs,
    #[command(flatten)]
    device: model::DeviceArgs,
    /// What products are made of; bf16 needs a CUDA device
    #[arg(long, value_enum, default_value = "f32", help_heading = "Model")]
    precision: Precision,
    /// Id that begins what the decoder gives back [default: the model's]
    #[arg(long, value_name = "ID", help_heading = "Model")]
    bos: Option<u32>,
    /// Id that ends every target [default: the model's]
    #[arg(long, value_name = "ID", help_heading = "Model")]
    eos: Option<u32>,

    /// Starts from this adapter's weights; steps and optimizer begin at 0
    #[arg(long, value_name = "DIR", help_heading = ADAPTER,
        conflicts_with_all = ["rank", "alpha", "targets", "memory_tokens", "init"])]
    adapter: Option<PathBuf>,
    /// Rank of LoRA's matrices
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = ADAPTER)]
    rank: usize,
    /// LoRA's scale times its rank
    #[arg(long, value_name = "X", default_value_t = 32.0, help_heading = ADAPTER)]
    alpha: f32,
    /// Projections: q, k, v, o, gate, up, down, or all
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "q,v",
        help_heading = ADAPTER)]
    targets: Vec<String>,
    /// Memory tokens, or with --method pooled the vectors that a text becomes
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = ADAPTER)]
    memory_tokens: usize,
    /// One adapter for any number of memory tokens up to all: for each sample as many are drawn, and
    /// `encode --memory-tokens` takes the first. An --adapter that was trained so goes on so
    #[arg(long, help_heading = ADAPTER)]
    nested: bool,
    /// Where memory embeddings begin: at random, or at the mean of the model's embeddings
    #[arg(long, value_enum, default_value = "normal", help_heading = ADAPTER)]
    init: MemoryStart,
    /// What the decoder reads: the memory tokens' K and V, their output states, or without memory tokens
    /// means of the text's own output states [default: 500xcompressor, or as the given adapter was trained]
    #[arg(long, value_enum, help_heading = ADAPTER)]
    method: Option<Method>,

    /// Rows to train on; several files are one
    #[arg(long, value_name = "ROWS.jsonl[.xz|.zst]", required = true, num_args = 1..,
        help_heading = ROWS)]
    data: Vec<PathBuf>,
    /// Rows to measure the loss on
    #[arg(long, value_name = "DEV.jsonl", help_heading = ROWS)]
    eval: Option<PathBuf>,
    /// Most of those rows
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = ROWS)]
    eval_rows: usize,
    /// What becomes of a row that is none: it is named, and then ends the run or is passed over
    #[arg(long, value_enum, default_value = "fail", help_heading = ROWS)]
    bad_rows: BadRows,
    /// Longest text or context, in tokens; longer ones are cut [default: 500, or as the given adapter
    /// was trained]
    #[arg(long, value_name = "N", help_heading = ROWS)]
    max_text_tokens: Option<usize>,
    /// What a question of text stands in
    #[arg(long, value_name = "TEXT", default_value = data::QUESTION, help_heading = ROWS)]
    question_template: String,
    /// What an answer of text stands in
    #[arg(long, value_name = "TEXT", default_value = data::ANSWER, help_heading = ROWS)]
    answer_template: String,
    /// Rows held in memory to be shuffled; 1 keeps the files' order
    #[arg(long, value_name = "N", default_value_t = 10_000, help_heading = ROWS)]
    shuffle_buffer: usize,

    /// Steps, those before a resume included
    #[arg(long, value_name = "N", help_heading = OPTIMISER)]
    steps: u64,
    /// Samples of one pass
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = OPTIMISER)]
    batch: usize,
    /// Passes of one step
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = OPTIMISER)]
    accumulate: usize,
    /// Learning rate
    #[arg(long, value_name = "X", default_value_t = 1e-4, help_heading = OPTIMISER)]
    lr: f64,
    /// Steps in which it rises
    #[arg(long, value_name = "N", default_value_t = 300, help_heading = OPTIMISER)]
    warmup: u64,
    /// What it does then
    #[arg(long, value_enum, default_value = "constant", help_heading = OPTIMISER)]
    schedule: Schedule,
    /// AdamW's decay
    #[arg(long, value_name = "X", default_value_t = 0.01, help_heading = OPTIMISER)]
    weight_decay: f64,
    /// Greatest norm of a gradient; 0 for any
    #[arg(long, value_name = "X", default_value_t = 1.0, help_heading = OPTIMISER)]
    clip: f64,
    /// Share of LoRA's inputs that are dropped
    #[arg(long, value_name = "P", default_value_t = 0.05, help_heading = OPTIMISER)]
    dropout: f32,
    /// Decides the new adapter, the rows' order and dropout
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = OPTIMISER)]
    seed: u64,

    /// The run's folder: the adapter, and what it takes to resume
    #[arg(long, value_name = "DIR", help_heading = RUN)]
    out: PathBuf,
    /// Resumes the run in --out, if there is one
    #[arg(long, help_heading = RUN)]
    resume: bool,
    /// The log, a line of JSON a step [default: DIR.log.jsonl]
    #[arg(long, value_name = "LOG.jsonl", help_heading = RUN)]
    log: Option<PathBuf>,
    /// Steps from one evaluation to the next; 0: only at the end
    #[arg(long, value_name = "N", default_value_t = 500, help_heading = RUN)]
    eval_every: u64,
    /// Steps from one checkpoint to the next; 0: only at the end
    #[arg(long, value_name = "N", default_value_t = 500, help_heading = RUN)]
    save_every: u64,
    /// Memory for activations that are kept; what does not fit is computed again, layer by layer,
    /// which gives the same values
    #[arg(long, value_name = "MB", default_value_t = 0, help_heading = RUN)]
    activation_mb: usize,
    /// Print how it ended as JSON
    #[arg(long, help_heading = RUN)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let (task, args) = match args.task {
        TaskArgs::Regen(args) => (Task::Regen, args),
        TaskArgs::Qa(args) => (Task::Qa, args),
        TaskArgs::Align(args) => (Task::Align, args),
        TaskArgs::Prefix(args) => return super::train_prefix::run(*args),
        TaskArgs::Rank(args) => return super::train_rank::run(*args),
        TaskArgs::Tokens(args) => return super::train_tokens::run(*args),
    };
    let plan = args.plan(task)?;
    usage(plan.check())?;
    let engine = open_to_train(&args.model, &args.device, args.precision)?;
    let mut progress = Progress::new(plan.steps);
    let control = interrupt::control();
    let mut watch = |event: Event<'_>| progress.hear(&event);
    let done = engine.training().run(&plan, &control, &mut watch);
    progress.end();
    let what = format!("the adapter is in {}", args.out.display());
    report(&plan, done?, interrupt::told(), args.json, &what)
}

/// Opens a model at the precision that was asked for, or not at all.
pub fn open_to_train(
    model: &model::PathArgs,
    device: &model::DeviceArgs,
    precision: Precision,
) -> Outcome<Engine> {
    let path = model.path()?;
    let builder = Engine::builder(&path)
        .device(device.device()?)
        .precision(precision);
    let engine = model::open(&path, builder)?.engine;
    if engine.info().precision != precision {
        return Err(Failure::Failed(Error::Unsupported {
            what: "--precision bf16 on a CPU".into(),
            have: "--precision f32 there, and bf16 on a CUDA device".into(),
        }));
    }
    Ok(engine)
}

/// Says how a run ended, and where what it made is.
pub fn report(plan: &Plan, done: Summary, told: bool, as_json: bool, what: &str) -> Outcome {
    let out = plan.out.display();
    if as_json {
        let report = json!({
            "step": done.step,
            "stopped": done.stopped,
            "loss": done.loss,
            "dev_loss": done.dev_loss,
            "tokens": done.tokens,
            "seconds": done.seconds,
            "out": plan.out.to_string_lossy(),
        });
        write_stdout(&format!("{report}\n"))?;
    }
    if done.stopped && told {
        return Err(Failure::Interrupted(format!(
            "stopped after step {} of {}, which is saved in {out}; --resume continues",
            done.step, plan.steps
        )));
    }
    let loss = |name: &str, loss: Option<f64>| match loss {
        Some(loss) => format!(", {name} {loss:.4}"),
        None => String::new(),
    };
    say(&format!(
        "{} steps{}{}, {} tokens in {:.0} s; {what}",
        done.step,
        loss("loss", done.loss),
        loss("dev loss", done.dev_loss),
        done.tokens,
        done.seconds,
    ));
    Ok(())
}

impl RunArgs {
    /// What was asked for.
    fn plan(&self, task: Task) -> Outcome<Plan> {
        let mut plan = Plan::new(task, &self.data, &self.out, self.steps);
        plan.begin = match &self.adapter {
            Some(folder) => Begin::Adapter(folder.clone()),
            None => Begin::New {
                lora: LoraShape {
                    rank: self.rank,
                    alpha: self.alpha,
                    targets: usage(targets(&self.targets))?,
                },
                memory_tokens: self.memory_tokens,
                start: self.init,
            },
        };
        plan.method = self.method;
        plan.nested = self.nested;
        plan.bos = self.bos;
        plan.eos = self.eos;
        plan.dev = self.eval.clone();
        plan.dev_rows = self.eval_rows;
        plan.bad_rows = self.bad_rows;
        plan.max_text_tokens = self.max_text_tokens;
        plan.question_template = self.question_template.clone();
        plan.answer_template = self.answer_template.clone();
        plan.shuffle_buffer = self.shuffle_buffer;
        plan.batch = self.batch;
        plan.accumulate = self.accumulate;
        plan.lr = self.lr;
        plan.warmup = self.warmup;
        plan.schedule = self.schedule;
        plan.weight_decay = self.weight_decay;
        plan.clip = self.clip;
        plan.dropout = self.dropout;
        plan.seed = self.seed;
        plan.log = self.log.clone();
        plan.resume = self.resume;
        plan.eval_every = self.eval_every;
        plan.save_every = self.save_every;
        plan.activation_bytes = self.activation_mb.saturating_mul(1 << 20);
        Ok(plan)
    }
}
