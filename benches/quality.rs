//! What a host still knows after compression: the nll of the gold answer and the F1 of its own, over
//! questions that come with ten documents.
//!
//! ```text
//! cargo bench --bench quality -- --data QA.jsonl --scorer SCORER.gguf --host HOST.gguf
//! ```
//!
//! A row of the data has `docs` (a list), `question` and `answers`; rows without `docs` are passed over.
//! Every way of shortening gets the same question at the same rate, and the table says what it spent of
//! the host's tokens. The host reads `CONTEXT\n\nQuestion: …\nAnswer:`.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Parser;
use indicatif::ProgressBar;
use prefold::hard::{Budget, Condition, Granularity, Options, Prompt, RankMethod, Reorder};
use prefold::soft::Sampling;
use prefold::{Device, Engine};
use serde::Deserialize;
use serde_json::json;

#[derive(Parser)]
struct Args {
    /// Questions with their documents, one JSON object a line
    #[arg(long, default_value = "../shared/data/qa_dev.jsonl")]
    data: PathBuf,
    /// The model that chooses what to keep
    #[arg(long, default_value = ".cache/models/SmolLM2-135M-Instruct-Q4_1.gguf")]
    scorer: PathBuf,
    /// The model that answers
    #[arg(
        long,
        default_value = ".cache/models/Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf"
    )]
    host: PathBuf,
    /// Questions to ask
    #[arg(long, default_value_t = 16)]
    questions: usize,
    /// Questions to pass over first
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// Shares of the tokens to keep
    #[arg(long, value_delimiter = ',', default_value = "0.5,0.25")]
    rates: Vec<f64>,
    /// Only these ways (see the table's first column)
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Leave out the host's own answers, and so the F1
    #[arg(long)]
    no_f1: bool,
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Deserialize)]
struct Row {
    docs: Option<Vec<String>>,
    context: String,
    question: String,
    answers: Vec<String>,
}

/// One way to shorten a prompt.
enum Way {
    /// All documents, at any rate.
    Full,
    /// No document.
    None,
    /// The documents that the answer is in.
    Gold,
    /// Words dropped at random.
    Random,
    /// By the library.
    Fold(Box<Options>),
}

fn ways() -> Vec<(&'static str, Way)> {
    let fold = |options: Options| Way::Fold(Box::new(options));
    let ours = |granularity| {
        fold(Options {
            granularity,
            ..Options::default()
        })
    };
    let reference = Options {
        budget: Budget::Reference,
        ..Options::default()
    };
    vec![
        ("full", Way::Full),
        ("none", Way::None),
        ("gold", Way::Gold),
        ("random", Way::Random),
        ("llmlingua", fold(reference.clone())),
        (
            // The preset of LongLLMLingua's own documentation.
            "longllmlingua",
            fold(Options {
                rank_method: Some(RankMethod::Longllmlingua),
                condition_in_question: Condition::AfterCondition,
                reorder_context: Some(Reorder::Sort),
                dynamic_context_compression_ratio: 0.3,
                condition_compare: true,
                context_budget: "+100".into(),
                ..reference
            }),
        ),
        ("passage", fold(Options::default())),
        (
            "passage, as given",
            fold(Options {
                reorder_context: Some(Reorder::Original),
                ..Options::default()
            }),
        ),
        ("context", ours(Granularity::Context)),
        ("sentence", ours(Granularity::Sentence)),
        ("token", ours(Granularity::Token)),
    ]
}

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let text = std::fs::read_to_string(&args.data)
        .map_err(|error| format!("{}: {error}; give --data", args.data.display()))?;
    let rows = text
        .lines()
        .map(serde_json::from_str::<Row>)
        .filter(|row| !matches!(row, Ok(Row { docs: None, .. })))
        .skip(args.skip)
        .take(args.questions)
        .collect::<Result<Vec<_>, _>>()?;
    let scorer = prefold::open(&args.scorer, Device::Auto)?;
    let host = prefold::open(&args.host, Device::Auto)?;
    let mut cases = Vec::new();
    for (name, way) in ways() {
        if args.only.is_empty() || args.only.iter().any(|only| only == name) {
            let fixed = matches!(way, Way::Full | Way::None | Way::Gold);
            for &rate in if fixed { &[1.0][..] } else { &args.rates } {
                cases.push((name, rate));
            }
        }
    }
    let ways: HashMap<&str, Way> = ways().into_iter().collect();
    let bar = ProgressBar::new((cases.len() * rows.len()) as u64);
    if !args.json {
        println!(
            "{} questions, scorer {}, host {}",
            rows.len(),
            args.scorer.display(),
            args.host.display()
        );
        println!(
            "{:<18} {:>5} {:>8} {:>24} {:>22}",
            "way", "rate", "tokens", "nll of the gold answer", "F1"
        );
    }
    for (name, rate) in cases {
        let mut nll = Vec::new();
        let mut f1 = Vec::new();
        let mut tokens = 0;
        for row in &rows {
            let context = shorten(&*scorer, &ways[name], rate, row)?;
            let answer = ask(&*host, &context, row, !args.no_f1)?;
            nll.push(answer.nll);
            f1.extend(answer.f1);
            tokens += answer.context_tokens;
            bar.inc(1);
        }
        let tokens = tokens as f64 / rows.len() as f64;
        let (nll, f1) = (interval(&nll), interval(&f1));
        if args.json {
            let line = json!({"way": name, "rate": rate, "host_tokens": tokens,
                "nll": nll, "f1": f1, "questions": rows.len()});
            println!("{line}");
        } else {
            let [mean, low, high] = nll;
            let f1 = match args.no_f1 {
                true => String::new(),
                false => format!("{:>6.3} [{:.3}, {:.3}]", f1[0], f1[1], f1[2]),
            };
            bar.suspend(|| {
                println!(
                    "{name:<18} {rate:>5} {tokens:>8.0} {mean:>8.3} [{low:.3}, {high:.3}] {f1:>22}"
                );
            });
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// What is left of a question's documents.
fn shorten(scorer: &dyn Engine, way: &Way, rate: f64, row: &Row) -> Result<String, Failure> {
    let docs = row.docs.clone().unwrap_or_default();
    Ok(match way {
        Way::Full => docs.join("\n\n"),
        Way::None => String::new(),
        Way::Gold => row.context.clone(),
        Way::Random => {
            let mut random = Random(row.question.len() as u64);
            let text = docs.join("\n\n");
            let kept = text.split_inclusive(' ').filter(|_| random.share() < rate);
            kept.collect()
        }
        Way::Fold(options) => {
            let prompt = Prompt {
                context: docs,
                question: row.question.clone(),
                ..Prompt::default()
            };
            let options = Options {
                rate,
                ..(**options).clone()
            };
            let text = scorer.compress(&prompt, &options)?.compressed_prompt;
            // The host's own form of the question follows.
            let context = text.strip_suffix(&row.question).unwrap_or(&text);
            context.trim_end().to_string()
        }
    })
}

struct Answer {
    nll: f64,
    f1: Option<f64>,
    context_tokens: usize,
}

/// What the host makes of it.
fn ask(host: &dyn Engine, context: &str, row: &Row, f1: bool) -> Result<Answer, Failure> {
    let tokenizer = host.tokenizer()?;
    let gap = if context.is_empty() { "" } else { "\n\n" };
    let question = format!("{context}{gap}Question: {}\nAnswer:", row.question);
    let prompt = tokenizer.encode(&question, true, false)?.ids;
    let gold = row.answers.first().map_or("", String::as_str);
    let gold_ids = tokenizer.encode(&format!(" {gold}"), false, false)?.ids;
    let whole = [&prompt[..], &gold_ids].concat();
    let tail = host.score_tail(&whole, prompt.len())?;
    let nll = tail.iter().map(|&x| f64::from(x)).sum::<f64>() / tail.len().max(1) as f64;
    let f1 = if f1 {
        let sampling = Sampling {
            max_new_tokens: 24,
            ..Sampling::default()
        };
        let mut ids = Vec::new();
        host.generate(None, &prompt, &sampling, &mut |id| {
            ids.push(id);
            match tokenizer.token_bytes(id).contains(&b'\n') {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        let said = tokenizer.decode(&ids);
        let said = said.lines().next().unwrap_or("").to_string();
        let best = row.answers.iter().map(|gold| token_f1(&said, gold));
        Some(best.fold(0.0, f64::max))
    } else {
        None
    };
    let context_tokens = tokenizer.encode(context, false, false)?.ids.len();
    Ok(Answer {
        nll,
        f1,
        context_tokens,
    })
}

/// Words of an answer as SQuAD's own evaluation normalises it.
fn answer_words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let bare: String = lower
        .chars()
        .filter(|c| !c.is_ascii_punctuation())
        .collect();
    bare.split_whitespace()
        .filter(|w| !["a", "an", "the"].contains(w))
        .map(str::to_string)
        .collect()
}

/// The harmonic mean of precision and recall over words.
fn token_f1(said: &str, gold: &str) -> f64 {
    let (said, gold) = (answer_words(said), answer_words(gold));
    let mut left = gold.clone();
    let common = said
        .iter()
        .filter(|word| match left.iter().position(|w| w == *word) {
            Some(at) => {
                left.swap_remove(at);
                true
            }
            None => false,
        })
        .count() as f64;
    if common == 0.0 {
        return f64::from(u8::from(said.is_empty() && gold.is_empty()));
    }
    let (precision, recall) = (common / said.len() as f64, common / gold.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

/// The mean and its 95% interval, by 2,000 bootstrap draws over the questions.
fn interval(values: &[f64]) -> [f64; 3] {
    if values.is_empty() {
        return [f64::NAN; 3];
    }
    let n = values.len();
    let mean = values.iter().sum::<f64>() / n as f64;
    let mut random = Random(1);
    let mut means: Vec<f64> = (0..2000)
        .map(|_| {
            (0..n)
                .map(|_| values[(random.share() * n as f64) as usize])
                .sum::<f64>()
                / n as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    [mean, means[50], means[1949]]
}

/// SplitMix64.
struct Random(u64);

impl Random {
    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64
    }
}
