//! `prefold train prefix`: K and V that are trained for one corpus.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::soft::Source;
use crate::train::{Event, Plan, Study, Task};
use serde_json::json;

use super::failure::{Outcome, say, usage};
use super::files::read_text;
use super::interrupt;
use super::model::Busy;
use super::train_progress::Progress;
use super::train_run::{KeepArgs, ModelArgs, OPTIMISER, ROWS, RUN, RowArgs, StepArgs, report};

/// A KV prefix for one corpus: its K and V are what is trained (Cartridges, arXiv 2506.06266)
///
/// The model reads the corpus piece by piece, writes questions about it and answers them; then rows of K and V that
/// begin as those of the corpus' first tokens learn to answer without it. Or rows are given: `question` and `answers`
/// (the first counts), or `question_ids` and `answer_ids`. The run's folder holds prefix.safetensors, at any time.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,

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
    #[command(flatten)]
    rows: RowArgs,

    #[command(flatten)]
    step: StepArgs,
    /// Samples of one pass
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = OPTIMISER)]
    batch: usize,
    /// Learning rate
    #[arg(long, value_name = "X", default_value_t = 0.02, help_heading = OPTIMISER)]
    lr: f64,
    /// Steps in which it rises
    #[arg(long, value_name = "N", default_value_t = 20, help_heading = OPTIMISER)]
    warmup: u64,
    /// Decides the questions and the rows' order
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = OPTIMISER)]
    seed: u64,

    /// The run's folder: prefix.safetensors, and what it takes to resume
    #[arg(long, value_name = "DIR", help_heading = RUN)]
    out: PathBuf,
    #[command(flatten)]
    keep: KeepArgs,
    /// Steps from one evaluation to the next; 0: only at the end
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = RUN)]
    eval_every: u64,
    /// Steps from one checkpoint to the next; 0: only at the end
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = RUN)]
    save_every: u64,
}

const CORPUS: &str = "Corpus";

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
    let engine = args.model.open()?;
    let ids = engine.tokenizer()?.encode(&text, true, false)?.ids;
    let corpus = Source::text(&text, ids);
    let training = engine.training();
    let resumes = training.check_prefix(&corpus, args.tokens, &plan)?;
    // Questions belong to a run: those of one that is resumed are read, any others are of another corpus for
    // all that is known.
    if asks && !resumes {
        if written.exists() && !args.keep.resume {
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
    let mut watch = |event: Event<'_>| progress.report(&event);
    let done = training.prefix(&corpus, args.tokens, &plan, &control, &mut watch);
    progress.end();
    let what = format!(
        "the prefix is {}",
        args.out.join("prefix.safetensors").display()
    );
    report(&plan, done?, interrupt::told(), args.keep.json, &what)
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
            question_template: self.rows.question_template.clone(),
            seed: self.seed,
        }
    }

    fn plan(&self, data: Vec<PathBuf>) -> Plan {
        let mut plan = Plan::new(Task::Align, data, &self.out, self.step.steps);
        self.model.apply(&mut plan);
        self.rows.apply(&mut plan);
        self.step.apply(&mut plan);
        self.keep.apply(&mut plan);
        plan.batch = self.batch;
        plan.lr = self.lr;
        plan.warmup = self.warmup;
        plan.seed = self.seed;
        plan.eval_every = self.eval_every;
        plan.save_every = self.save_every;
        plan
    }
}
