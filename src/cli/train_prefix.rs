//! `prefold train prefix`: K and V that are trained for one corpus.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::gpu::Precision;
use crate::soft::Source;
use crate::train::{BadRows, Event, Plan, QUESTION, Schedule, Study, Task, data};
use serde_json::json;

use super::failure::{Outcome, say, usage};
use super::files::read_text;
use super::interrupt;
use super::model::{self, Busy};
use super::train::{open_to_train, report};
use super::train_progress::Progress;

/// A KV prefix for one corpus: its K and V are what is trained (Cartridges, arXiv 2506.06266)
///
/// The model reads the corpus piece by piece, writes questions about it and answers them; then rows of K and V that
/// begin as those of the corpus' first tokens learn to answer without it. Or rows are given: `question` and `answers`
/// (the first counts), or `question_ids` and `answer_ids`. The run's folder holds prefix.safetensors, at any time.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: model::PathArgs,
    #[command(flatten)]
    device: model::DeviceArgs,
    /// What products are made of; bf16 needs a CUDA device
    #[arg(long, value_enum, default_value = "f32", help_heading = "Model")]
    precision: Precision,
    /// Id that ends every target [default: the model's]
    #[arg(long, value_name = "ID", help_heading = "Model")]
    eos: Option<u32>,

    /// Texts that the prefix is for; several are one, a blank line between them
    #[arg(long, value_name = "FILE", required = true, num_args = 1.., help_heading = CORPUS)]
    corpus: Vec<PathBuf>,
    /// Rows of K and V
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = CORPUS)]
    tokens: usize,
    /// Questions that the model is to write; they go to OUT.questions.jsonl, and are read there when a run is resumed
    #[arg(long, value_name = "N", default_value_t = Study::default().questions, conflicts_with = "data",
        help_heading = CORPUS)]
    questions: usize,
    /// Longest piece of the corpus that a question is about, in tokens
    #[arg(long, value_name = "N", default_value_t = Study::default().piece_tokens, conflicts_with = "data",
        help_heading = CORPUS)]
    piece_tokens: usize,
    /// Most tokens of a question
    #[arg(long, value_name = "N", default_value_t = Study::default().question_tokens, conflicts_with = "data",
        help_heading = CORPUS)]
    question_tokens: usize,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = Study::default().answer_tokens, conflicts_with = "data",
        help_heading = CORPUS)]
    answer_tokens: usize,
    /// Temperature of the questions; the likeliest answer is taken
    #[arg(long, value_name = "T", default_value_t = Study::default().temperature, conflicts_with = "data",
        help_heading = CORPUS)]
    temperature: f32,

    /// Rows to train on in place of questions that the model writes; several files are one
    #[arg(long, value_name = "ROWS.jsonl[.xz|.zst]", num_args = 1.., help_heading = ROWS)]
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
    /// What a question of text stands in
    #[arg(long, value_name = "TEXT", default_value = QUESTION, help_heading = ROWS)]
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
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = OPTIMISER)]
    batch: usize,
    /// Passes of one step
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = OPTIMISER)]
    accumulate: usize,
    /// Learning rate
    #[arg(long, value_name = "X", default_value_t = 0.02, help_heading = OPTIMISER)]
    lr: f64,
    /// Steps in which it rises
    #[arg(long, value_name = "N", default_value_t = 20, help_heading = OPTIMISER)]
    warmup: u64,
    /// What it does then
    #[arg(long, value_enum, default_value = "constant", help_heading = OPTIMISER)]
    schedule: Schedule,
    /// Greatest norm of a gradient; 0 for any
    #[arg(long, value_name = "X", default_value_t = 1.0, help_heading = OPTIMISER)]
    clip: f64,
    /// Decides the questions and the rows' order
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = OPTIMISER)]
    seed: u64,

    /// The run's folder: prefix.safetensors, and what it takes to resume
    #[arg(long, value_name = "DIR", help_heading = RUN)]
    out: PathBuf,
    /// Resumes the run in --out, if there is one
    #[arg(long, help_heading = RUN)]
    resume: bool,
    /// The log, a line of JSON a step [default: DIR.log.jsonl]
    #[arg(long, value_name = "LOG.jsonl", help_heading = RUN)]
    log: Option<PathBuf>,
    /// Steps from one evaluation to the next; 0: only at the end
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = RUN)]
    eval_every: u64,
    /// Steps from one checkpoint to the next; 0: only at the end
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = RUN)]
    save_every: u64,
    /// Memory for activations that are kept; what does not fit is computed again, layer by layer,
    /// which gives the same values
    #[arg(long, value_name = "MB", default_value_t = 0, help_heading = RUN)]
    activation_mb: usize,
    /// Print how it ended as JSON
    #[arg(long, help_heading = RUN)]
    json: bool,
}

const CORPUS: &str = "Corpus";
const ROWS: &str = "Rows";
const OPTIMISER: &str = "Optimiser";
const RUN: &str = "Run";

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let study = args.study();
    usage(study.check())?;
    let written = questions_path(&args.out);
    let asks = args.data.is_empty();
    let data = match asks {
        true => vec![written.clone()],
        false => args.data.clone(),
    };
    let mut plan = args.plan(data);
    plan.study = asks.then(|| study.clone());
    usage(plan.check())?;
    let texts: Vec<String> = args
        .corpus
        .iter()
        .map(|file| read_text(file))
        .collect::<Outcome<_>>()?;
    if texts.iter().all(String::is_empty) {
        return Err(Error::input("corpus", "it has no tokens").into());
    }
    let text = texts.join("\n\n");
    let engine = open_to_train(&args.model, &args.device, args.precision)?;
    let ids = engine.tokenizer()?.encode(&text, true, false)?.ids;
    let corpus = Source::text(&text, ids);
    let training = engine.training();
    let resumes = training.check_prefix(&corpus, args.tokens, &plan)?;
    // Questions belong to a run: those of one that is resumed are read, any others are of another corpus for
    // all that is known.
    if asks && !resumes {
        if written.exists() && !args.resume {
            let reason = "it is there already, with an earlier run's questions; move it away, or name \
                another `out`";
            return Err(Error::input(written.display().to_string(), reason).into());
        }
        let busy = Busy::new(format!("writing {} questions", study.questions));
        let rows = training.questions(&corpus, &study, &busy.control())?;
        drop(busy);
        let lines: String = rows
            .iter()
            .map(|(question, answer)| {
                format!("{}\n", json!({"question": question, "answer": answer}))
            })
            .collect();
        crate::files::write_whole(&written, lines.as_bytes())?;
        say(&format!(
            "{} of {} questions in {}",
            rows.len(),
            study.questions,
            written.display()
        ));
    }
    let mut progress = Progress::new(plan.steps);
    let control = interrupt::control();
    let mut watch = |event: Event<'_>| progress.hear(&event);
    let done = training.prefix(&corpus, args.tokens, &plan, &control, &mut watch);
    progress.end();
    let what = format!(
        "the prefix is {}",
        args.out.join("prefix.safetensors").display()
    );
    report(&plan, done?, interrupt::told(), args.json, &what)
}

/// Where the questions go that the model writes: beside the run's folder, which is replaced.
fn questions_path(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".questions.jsonl");
    out.with_file_name(name)
}

impl Args {
    fn study(&self) -> Study {
        Study {
            questions: self.questions,
            piece_tokens: self.piece_tokens,
            question_tokens: self.question_tokens,
            answer_tokens: self.answer_tokens,
            temperature: self.temperature,
            question_template: self.question_template.clone(),
            seed: self.seed,
        }
    }

    fn plan(&self, data: Vec<PathBuf>) -> Plan {
        let mut plan = Plan::new(Task::Align, data, &self.out, self.steps);
        plan.eos = self.eos;
        plan.dev = self.eval.clone();
        plan.dev_rows = self.eval_rows;
        plan.bad_rows = self.bad_rows;
        plan.question_template = self.question_template.clone();
        plan.answer_template = self.answer_template.clone();
        plan.shuffle_buffer = self.shuffle_buffer;
        plan.batch = self.batch;
        plan.accumulate = self.accumulate;
        plan.lr = self.lr;
        plan.warmup = self.warmup;
        plan.schedule = self.schedule;
        plan.clip = self.clip;
        plan.seed = self.seed;
        plan.log = self.log.clone();
        plan.resume = self.resume;
        plan.eval_every = self.eval_every;
        plan.save_every = self.save_every;
        plan.activation_bytes = self.activation_mb.saturating_mul(1 << 20);
        plan
    }
}
