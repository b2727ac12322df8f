//! `prefold eval rank`: what rankings of passages keep, without a model.

use std::path::{Path, PathBuf};

use crate::Engine;
use crate::eval::Interval;
use crate::eval::rank::{Recall, recall};
use crate::hard::Ranker;
use crate::hard::rank::similarity_unit;
use crate::train::rank::{Example, Options, prompts, read, read_corpus, without_titles};
use serde_json::json;

use super::failure::Outcome;
use super::files::{check_target, write_stdout, write_whole};
use super::model::{Busy, open};
use super::models;

/// Rankings of passages at several budgets: are the right ones there whole, is the answer there?
///
/// Rows as for `train rank`. Rankings: the learned ranker; Okapi BM25 over words, and over runs of four
/// characters; random; and the right passages first, the most that fits. Tokens are cl100k's. No model is
/// needed.
#[derive(clap::Args)]
pub struct Args {
    /// Rows to rank; several files are one
    #[arg(long, value_name = "ROWS.jsonl[.xz|.zst]", required = true, num_args = 1..)]
    data: Vec<PathBuf>,
    /// Rows with `text`: passages for rows that bring few of their own
    #[arg(long, value_name = "CORPUS.jsonl[.xz|.zst]")]
    corpus: Option<PathBuf>,
    /// Weights of a ranker, by `train rank` [default: the one that is shipped]
    #[arg(long, value_name = "FILE")]
    ranker: Option<PathBuf>,
    /// Shares of the documents' tokens that are kept
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "0.05,0.1,0.15,0.25,0.5"
    )]
    rates: Vec<f64>,
    /// Only every Nth row, from the first on
    #[arg(long, value_name = "N", default_value_t = 1)]
    every: usize,
    /// Only rows with so many right passages
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Take titles off the passages
    #[arg(long)]
    without_titles: bool,
    /// An encoder to rank by as well, alone and beside the ranker: a folder, `minilm`, or a reranker
    #[arg(long, value_name = "MODEL")]
    encoder: Option<PathBuf>,
    /// Write the table as JSON too; `-` is standard output, in place of the table
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
    /// Of the random ranking, of draws from the corpus and of the intervals
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// Runs the command.
pub fn run(args: Args) -> Outcome {
    let json_out = args.json.as_deref().filter(|path| path.as_os_str() != "-");
    json_out.map(check_target).transpose()?;
    let ranker = args.ranker.as_deref().map(Ranker::open).transpose()?;
    let ranker = ranker.as_ref().unwrap_or_else(|| Ranker::shipped());
    let mut rows = read(&args.data)?;
    if let Some(corpus) = &args.corpus {
        let options = Options {
            seed: args.seed,
            ..Options::default()
        };
        rows = prompts(&rows, &read_corpus(corpus)?, &options);
    }
    let right = |row: &Example| row.gold.iter().filter(|&&gold| gold).count();
    let mut rows: Vec<Example> = rows
        .into_iter()
        .step_by(args.every.max(1))
        .filter(|row| args.steps.is_none_or(|steps| right(row) == steps))
        .collect();
    if args.without_titles {
        rows.iter_mut().for_each(without_titles);
    }
    let meaning = args
        .encoder
        .as_deref()
        .map(|name| similarities(name, &rows));
    let meaning = meaning.transpose()?;
    let meaning = meaning.as_ref().map(|(all, unit)| (&all[..], *unit));
    let table = recall(&rows, ranker, meaning, &args.rates, args.seed)?;
    let report = json!({ "rows": rows.len(), "rates": args.rates, "recall": table });
    match (&args.json, json_out) {
        (Some(_), None) => return write_stdout(&format!("{report:#}\n")),
        (_, Some(path)) => write_whole(path, &format!("{report:#}\n"))?,
        _ => {}
    }
    write_stdout(&render(rows.len(), &args.rates, &table))
}

/// How alike each row's question and documents are, and what a unit of that is worth.
fn similarities(name: &Path, rows: &[Example]) -> Outcome<(Vec<Vec<f64>>, f64)> {
    let path = models::locate(Some(name))?;
    let encoder = open(&path, Engine::builder(&path))?.engine;
    if encoder.config().encoder.is_none() {
        return Err(crate::Error::Unsupported {
            what: format!("{} as an encoder", path.display()),
            have: "encoders of sentences and rerankers".into(),
        }
        .into());
    }
    let busy = Busy::new(format!("{} questions by the encoder", rows.len()));
    let ranked = rows
        .iter()
        .map(|row| encoder.rank(&row.question, &row.docs, &busy.control()));
    Ok((
        ranked.collect::<Result<_, _>>()?,
        similarity_unit(encoder.config()),
    ))
}

/// Two tables: right passages whole, answers kept.
fn render(rows: usize, rates: &[f64], table: &[Recall]) -> String {
    let mut out = format!("{rows} rows\n");
    type Part = fn(&Recall) -> Option<Interval>;
    let parts: [(&str, Part); 2] = [
        ("right passages whole", |recall| recall.whole),
        ("answer kept", |recall| recall.answered),
    ];
    for (title, of) in parts {
        out += &format!("\n{title:22}");
        rates
            .iter()
            .for_each(|rate| out += &format!("  {rate:<18}"));
        out = out.trim_end().to_string() + "\n";
        for recalls in table.chunks(rates.len().max(1)) {
            let mut line = recalls
                .first()
                .map_or(String::new(), |r| format!("{:22}", r.ranking.name()));
            for recall in recalls {
                line += &of(recall).map_or(format!("  {:18}", "-"), |i| {
                    format!("  {:.3} [{:.3}, {:.3}]", i.mean, i.low, i.high)
                });
            }
            out += line.trim_end();
            out.push('\n');
        }
    }
    out
}
