//! `prefold train`: adapters from rows of text.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use prefold::gpu::Precision;
use prefold::model::config::Config;
use prefold::model::lora::Target;
use prefold::model::weights::Weights;
use prefold::prefix::Method;
use prefold::soft::Settings;
use prefold::train::MemoryStart;
use prefold::train::adamw::AdamW;
use prefold::train::checkpoint::Card;
use prefold::train::data::{self, BadRows, Order, Reading, Task};
use prefold::train::objective::{LoraShape, Objective};
use prefold::train::parameters::{Parameters, target};
use prefold::train::run::{Data, Event, Options, Start, Summary};
use prefold::train::schedule::Schedule;
use prefold::{Engine, Error};
use serde_json::{Map, Value, json};

use super::failure::{Failure, Outcome, say, usage};
use super::files::write_stdout;
use super::interrupt;
use super::model;
use super::soft::MethodName;
use super::train_progress::Progress;

/// Trains an adapter: a compressor's, or one for scoring
///
/// The model stays as it is. Rows are JSON, one a line, plain or packed (.xz, .zst). A run's folder is
/// an adapter at any time, and holds what `--resume` goes on with; the defaults are the papers'.
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
    /// and `answer_ids`. Begin with a pretrained adapter: --adapter.
    Qa(Box<RunArgs>),
    /// Distribution alignment: the model learns to answer as a larger one did, to score in its place
    ///
    /// Rows: `question` and `answer`, or `question_ids` and `answer_ids`. The adapter is for `compress
    /// --adapter`, or for `merge`.
    Align(Box<RunArgs>),
    Rank(Box<super::train_rank::Args>),
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
    precision: PrecisionName,
    /// Id that begins what the decoder gives back [default: the model's]
    #[arg(long, value_name = "ID", help_heading = "Model")]
    bos: Option<u32>,
    /// Id that ends every target [default: the model's]
    #[arg(long, value_name = "ID", help_heading = "Model")]
    eos: Option<u32>,

    /// Goes on from this adapter instead of a new one; a run begins anew with it
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
    /// Memory tokens
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = ADAPTER)]
    memory_tokens: usize,
    /// Where memory embeddings begin: at random, or at the mean of the model's embeddings
    #[arg(long, value_enum, default_value = "normal", help_heading = ADAPTER)]
    init: InitName,
    /// What the decoder reads: the memory tokens' K and V, or their output states [default:
    /// 500xcompressor, or as the given adapter was trained]
    #[arg(long, value_enum, help_heading = ADAPTER)]
    method: Option<MethodName>,

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
    bad_rows: BadRowsName,
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
    schedule: ScheduleName,
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

    /// The run's folder: the adapter, and what it takes to go on
    #[arg(long, value_name = "DIR", help_heading = RUN)]
    out: PathBuf,
    /// Goes on with the run in --out, if there is one
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

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PrecisionName {
    F32,
    Bf16,
}

#[derive(Clone, Copy, ValueEnum)]
enum InitName {
    Normal,
    Mean,
}

#[derive(Clone, Copy, ValueEnum)]
enum BadRowsName {
    Fail,
    Skip,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScheduleName {
    Constant,
    Linear,
    Cosine,
}

/// Text or context, in tokens: the paper's.
const MAX_TEXT_TOKENS: usize = 500;

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let (task, args) = match args.task {
        TaskArgs::Regen(args) => (Task::Regen, args),
        TaskArgs::Qa(args) => (Task::Qa, args),
        TaskArgs::Align(args) => (Task::Align, args),
        TaskArgs::Rank(args) => return super::train_rank::run(*args),
    };
    let mut options = args.options();
    usage(options.check())?;
    args.check(task)?;
    let path = args.model.path()?;
    let weights = Weights::open(&path)?;
    let config = weights.config();
    let precision = match args.precision {
        PrecisionName::F32 => Precision::F32,
        PrecisionName::Bf16 => Precision::Bf16,
    };
    let builder = Engine::builder(&path)
        .device(args.device.device()?)
        .precision(precision);
    let model = model::open(&path, builder)?;
    if args.precision == PrecisionName::Bf16 && model.engine.info().device.starts_with("cpu") {
        return Err(Failure::Failed(Error::Unsupported {
            what: "--precision bf16 on a CPU".into(),
            have: "--precision f32 there, and bf16 on a CUDA device".into(),
        }));
    }
    let parameters = args.parameters(task, &model.engine, config)?;
    let given = args.given_settings()?;
    let method = match (args.method, &given) {
        (Some(name), _) => name.method(),
        (None, Some(settings)) => settings.method,
        (None, None) => Method::FiveHundredX,
    };
    let num_mem = parameters.memory_tokens();
    let room = config.max_positions - num_mem.min(config.max_positions);
    let most = room.saturating_sub(1);
    let wanted = args.max_text_tokens;
    let kept = given.as_ref().and_then(|settings| settings.max_text_tokens);
    let max_text_tokens = match wanted.or(kept) {
        Some(0) => return Err(input("--max-text-tokens 0", "expected at least 1")),
        Some(n) if n > most => {
            let reason = format!("the model has room for {most} beside {num_mem} memory tokens");
            return Err(input(&format!("--max-text-tokens {n}"), &reason));
        }
        Some(n) => n,
        None if most == 0 => {
            let reason = format!("the model has {} positions", config.max_positions);
            return Err(input(&format!("{num_mem} memory tokens"), &reason));
        }
        None => MAX_TEXT_TOKENS.min(most),
    };
    let id = |name: &str, given: Option<u32>, own: Option<u32>| match given.or(own) {
        Some(id) if (id as usize) < config.vocab => Ok(id),
        Some(id) => {
            let reason = format!("it is outside the vocabulary of {}", config.vocab);
            Err(input(&format!("--{name} {id}"), &reason))
        }
        None => Err(input(
            &format!("--{name}"),
            "the model names none: give one",
        )),
    };
    let eos = id("eos", args.eos, config.eos)?;
    let bos = match task {
        Task::Regen => id("bos", args.bos, config.bos)?,
        // Nothing is given back.
        Task::Qa | Task::Align => args.bos.or(config.bos).unwrap_or(eos),
    };
    let objective = Objective {
        method,
        bos,
        eos,
        dropout: args.dropout,
    };
    // Texts are read as long as they are, and the decoder goes on behind the memory tokens: what an
    // adapter from elsewhere was trained with beside that ends here.
    let settings = (task != Task::Align).then(|| Settings {
        method,
        max_text_tokens: Some(max_text_tokens),
        model: Some(model.engine.info().fingerprint.clone()),
        ..Settings::default()
    });
    let reading = Reading {
        task,
        max_text_tokens,
        question: args.question_template.clone(),
        answer: args.answer_template.clone(),
        vocab: config.vocab,
        room,
    };
    options.identity = args.identity(task, &objective, &parameters, max_text_tokens)?;
    let fingerprint = model.engine.info().fingerprint.clone();
    options.identity.insert("model".into(), fingerprint.into());

    let mut source = model.engine.training().source(
        parameters.lora.clone(),
        objective,
        args.activation_mb.saturating_mul(1 << 20),
    )?;
    // Rows of ids need none, and a row of text says that there is none.
    let tokenizer = model.engine.tokenizer().ok();
    let mut progress = Progress::new(options.steps);
    let own = Settings::default();
    if let (Some(folder), Some(given)) = (&args.adapter, &given)
        && (given.pad_to, given.next_position) != (own.pad_to, own.next_position)
    {
        progress.say(&format!(
            "{} was trained with padded texts or positions of its own; it goes on without",
            folder.display()
        ));
    }
    let dev = match &args.eval {
        Some(path) => data::read_all(
            path,
            &reading,
            tokenizer,
            args.bad_rows(),
            args.eval_rows,
            &mut |line| progress.say(line),
        )?,
        None => Vec::new(),
    };
    let start = Start {
        config,
        card: Card {
            model: model.name.clone(),
            dropout: args.dropout,
            settings,
        },
        parameters,
    };
    let data = Data {
        reading,
        order: Order {
            paths: args.data.clone(),
            seed: args.seed,
            buffer: args.shuffle_buffer,
            bad_rows: args.bad_rows(),
        },
        tokenizer,
        dev: &dev,
    };
    let control = interrupt::control();
    let mut watch = |event: Event<'_>| progress.hear(&event);
    let training = model.engine.training();
    let done = training.run(&mut *source, start, data, &options, &control, &mut watch);
    progress.end();
    args.report(done?, interrupt::told())
}

fn input(what: &str, reason: &str) -> Failure {
    Failure::Failed(Error::Input {
        what: what.into(),
        reason: reason.into(),
    })
}

impl RunArgs {
    fn options(&self) -> Options {
        Options {
            steps: self.steps,
            batch: self.batch,
            accumulate: self.accumulate,
            lr: self.lr,
            warmup: self.warmup,
            schedule: match self.schedule {
                ScheduleName::Constant => Schedule::Constant,
                ScheduleName::Linear => Schedule::Linear,
                ScheduleName::Cosine => Schedule::Cosine,
            },
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

    /// What the loop does not know of.
    fn check(&self, task: Task) -> Outcome {
        if !(0.0..1.0).contains(&self.dropout) {
            let what = format!("--dropout {}", self.dropout);
            return Err(input(&what, "expected 0 to below 1"));
        }
        for (name, template) in [
            ("--question-template", &self.question_template),
            ("--answer-template", &self.answer_template),
        ] {
            if template.matches("{}").count() != 1 {
                return Err(input(name, "expected {} once, where the text goes"));
            }
        }
        if task != Task::Align && self.adapter.is_none() && self.memory_tokens == 0 {
            return Err(input("--memory-tokens 0", "a compressor needs at least 1"));
        }
        self.lora()?;
        Ok(())
    }

    fn bad_rows(&self) -> BadRows {
        match self.bad_rows {
            BadRowsName::Fail => BadRows::Fail,
            BadRowsName::Skip => BadRows::Skip,
        }
    }

    /// Rank, alpha and projections of a new adapter.
    fn lora(&self) -> Outcome<LoraShape> {
        let targets = match &self.targets[..] {
            [one] if one == "all" => Target::ALL.iter().map(|&(target, _)| target).collect(),
            several => several
                .iter()
                .map(|name| {
                    let have = "expected some of q, k, v, o, gate, up, down, or all";
                    target(name).ok_or_else(|| input(&format!("--targets {name}"), have))
                })
                .collect::<Outcome<_>>()?,
        };
        Ok(LoraShape {
            rank: self.rank,
            alpha: self.alpha,
            targets,
        })
    }

    fn parameters(&self, task: Task, engine: &Engine, config: &Config) -> Outcome<Parameters> {
        let with_memory = task != Task::Align;
        if let Some(folder) = &self.adapter {
            return Ok(Parameters::open(folder, config, with_memory)?);
        }
        let memory_tokens = if with_memory { self.memory_tokens } else { 0 };
        let start = match self.init {
            InitName::Normal => MemoryStart::Normal,
            InitName::Mean => MemoryStart::Mean,
        };
        let training = engine.training();
        Ok(training.new_adapter(self.lora()?, memory_tokens, start, self.seed)?)
    }

    /// How the given adapter was trained, if it says so.
    fn given_settings(&self) -> Outcome<Option<Settings>> {
        match &self.adapter {
            Some(folder) => Ok(Settings::open(folder)?),
            None => Ok(None),
        }
    }

    /// All that decides what a step does, but for the model.
    fn identity(
        &self,
        task: Task,
        objective: &Objective,
        parameters: &Parameters,
        max_text_tokens: usize,
    ) -> Outcome<Map<String, Value>> {
        let mut files = Vec::new();
        for path in &self.data {
            let bytes = std::fs::metadata(path).map_err(Error::io(path))?.len();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            files.push(format!("{name}, {bytes} bytes"));
        }
        let schedule = self.options().schedule;
        let mut identity = json!({
            "task": task.name(),
            "method": objective.method.name(),
            "bos": objective.bos,
            "eos": objective.eos,
            "rank": parameters.lora.rank,
            "alpha": parameters.lora.alpha,
            "targets": parameters.targets(),
            "memory-tokens": parameters.memory_tokens(),
            "data": files,
            "max-text-tokens": max_text_tokens,
            "shuffle-buffer": self.shuffle_buffer.max(1),
            "batch": self.batch,
            "accumulate": self.accumulate,
            "lr": self.lr,
            "warmup": self.warmup,
            "schedule": schedule,
            "weight-decay": self.weight_decay,
            "clip": self.clip,
            "dropout": self.dropout,
            "precision": match self.precision {
                PrecisionName::F32 => "f32",
                PrecisionName::Bf16 => "bf16",
            },
            "seed": self.seed,
        });
        if schedule != Schedule::Constant {
            identity["steps"] = self.steps.into();
        }
        if task != Task::Regen {
            identity["question-template"] = self.question_template.clone().into();
            identity["answer-template"] = self.answer_template.clone().into();
        }
        match identity {
            Value::Object(identity) => Ok(identity),
            _ => Ok(Map::new()),
        }
    }

    fn report(&self, done: Summary, told: bool) -> Outcome {
        let out = self.out.display();
        if self.json {
            let report = json!({
                "step": done.step,
                "stopped": done.stopped,
                "loss": done.loss,
                "dev_loss": done.dev_loss,
                "tokens": done.tokens,
                "seconds": done.seconds,
                "out": self.out.to_string_lossy(),
            });
            write_stdout(&format!("{report}\n"))?;
        }
        if done.stopped && told {
            return Err(Failure::Interrupted(format!(
                "stopped behind step {} of {}, which is saved in {out}; --resume goes on",
                done.step, self.steps
            )));
        }
        let loss = |name: &str, loss: Option<f64>| match loss {
            Some(loss) => format!(", {name} {loss:.4}"),
            None => String::new(),
        };
        say(&format!(
            "{} steps{}{}, {} tokens in {:.0} s; the adapter is in {out}",
            done.step,
            loss("loss", done.loss),
            loss("dev loss", done.dev_loss),
            done.tokens,
            done.seconds,
        ));
        Ok(())
    }
}

/// Beside a run's folder, which is replaced with every checkpoint.
fn default_log(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".log.jsonl");
    out.with_file_name(name)
}
