//! `prefold train`: adapters from rows of text.

use std::path::PathBuf;

use crate::prefix::Method;
use crate::train::{Begin, Event, LoraShape, MemoryStart, Plan, Task, targets};
use clap::Subcommand;

use super::failure::{Outcome, usage};
use super::interrupt;
use super::train_progress::Progress;
use super::train_run::{KeepArgs, ModelArgs, OPTIMISER, ROWS, RUN, RowArgs, StepArgs, report};

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
    /// and `answer_ids`. Rows of `text` or `ids` among them are reconstructed, as in pretraining, so that
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

#[derive(clap::Args)]
struct RunArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Id that begins what the decoder reconstructs [default: the model's]
    #[arg(long, value_name = "ID", help_heading = "Model")]
    bos: Option<u32>,

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
    /// `encode --memory-tokens` takes the first. An --adapter that was trained so continues so
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
    /// Longest text or context, in tokens; longer ones are cut [default: 500, or as the given adapter
    /// was trained]
    #[arg(long, value_name = "N", help_heading = ROWS)]
    max_text_tokens: Option<usize>,
    #[command(flatten)]
    rows: RowArgs,

    #[command(flatten)]
    step: StepArgs,
    /// Samples of one pass
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = OPTIMISER)]
    batch: usize,
    /// Learning rate
    #[arg(long, value_name = "X", default_value_t = 1e-4, help_heading = OPTIMISER)]
    lr: f64,
    /// Steps in which it rises
    #[arg(long, value_name = "N", default_value_t = 300, help_heading = OPTIMISER)]
    warmup: u64,
    /// AdamW's decay
    #[arg(long, value_name = "X", default_value_t = 0.01, help_heading = OPTIMISER)]
    weight_decay: f64,
    /// Share of LoRA's inputs that are dropped
    #[arg(long, value_name = "P", default_value_t = 0.05, help_heading = OPTIMISER)]
    dropout: f32,
    /// Decides the new adapter, the rows' order and dropout
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = OPTIMISER)]
    seed: u64,

    /// The run's folder: the adapter, and what it takes to resume
    #[arg(long, value_name = "DIR", help_heading = RUN)]
    out: PathBuf,
    #[command(flatten)]
    keep: KeepArgs,
    /// Steps from one evaluation to the next; 0: only at the end
    #[arg(long, value_name = "N", default_value_t = 500, help_heading = RUN)]
    eval_every: u64,
    /// Steps from one checkpoint to the next; 0: only at the end
    #[arg(long, value_name = "N", default_value_t = 500, help_heading = RUN)]
    save_every: u64,
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
    let engine = args.model.open()?;
    let mut progress = Progress::new(plan.steps);
    let control = interrupt::control();
    let mut watch = |event: Event<'_>| progress.report(&event);
    let done = engine.training().run(&plan, &control, &mut watch);
    progress.end();
    let what = format!("the adapter is in {}", args.out.display());
    report(&plan, done?, interrupt::told(), args.keep.json, &what)
}

impl RunArgs {
    /// What was asked for.
    fn plan(&self, task: Task) -> Outcome<Plan> {
        let mut plan = Plan::new(task, &self.data, &self.out, self.step.steps);
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
        plan.max_text_tokens = self.max_text_tokens;
        self.model.apply(&mut plan);
        self.rows.apply(&mut plan);
        self.step.apply(&mut plan);
        self.keep.apply(&mut plan);
        plan.batch = self.batch;
        plan.lr = self.lr;
        plan.warmup = self.warmup;
        plan.weight_decay = self.weight_decay;
        plan.dropout = self.dropout;
        plan.seed = self.seed;
        plan.eval_every = self.eval_every;
        plan.save_every = self.save_every;
        Ok(plan)
    }
}
