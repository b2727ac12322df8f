//! Texts that lose tokens window by window without a look at their scores, beside the loop that looks.

mod common;

use prefold::hard::request::Request;
use prefold::hard::{self, Compressed};
use prefold::model::weights::Weights;
use prefold::model::{Model, Scorer, Session, Thinned, Thinning};
use prefold::ops::Cpu;
use prefold::text::Tokenizer;
use serde_json::Value;

/// A model that thins itself, if it is told to.
struct Told<'m> {
    model: &'m dyn Scorer,
    thins: bool,
    thinned: std::sync::atomic::AtomicUsize,
}

impl<'m> Told<'m> {
    fn new(model: &'m dyn Scorer, thins: bool) -> Self {
        Told {
            model,
            thins,
            thinned: Default::default(),
        }
    }
}

impl Scorer for Told<'_> {
    fn max_positions(&self) -> usize {
        self.model.max_positions()
    }

    fn session(&self) -> prefold::Result<Box<dyn Session + '_>> {
        self.model.session()
    }

    fn score_tails(&self, sequences: &[(&[u32], usize)]) -> prefold::Result<Vec<Vec<f32>>> {
        self.model.score_tails(sequences)
    }

    fn thins(&self) -> bool {
        self.thins
    }

    fn thin(&self, texts: &[Thinning<'_>]) -> prefold::Result<Vec<Thinned>> {
        self.thinned
            .fetch_add(texts.len(), std::sync::atomic::Ordering::Relaxed);
        self.model.thin(texts)
    }
}

/// Every golden compression with the real model, by the ops of the CPU: which tokens stay depends on
/// nothing but scores, and those are the same.
#[test]
fn golden_rows_come_out_the_same() {
    let Some((shared, path)) = common::shared().zip(common::smollm2()) else {
        return;
    };
    let weights = Weights::open(&path).unwrap();
    let model = Model::load(Cpu::new(), &weights).unwrap();
    let tokenizer = Tokenizer::from_vocab(weights.gguf().unwrap().vocab().unwrap()).unwrap();
    let text = std::fs::read_to_string(shared.join("golden/llmlingua.jsonl")).unwrap();
    let (mut thinned, mut wrong) = (0, Vec::new());
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let compress: fn(&dyn Scorer, &Tokenizer, &hard::Prompt, &hard::Options) -> _ =
            match row["call"].as_str() {
                Some("compress_prompt") => hard::compress,
                Some("structured_compress_prompt") => hard::compress_structured,
                _ => continue,
            };
        let args = row["args"].as_object().unwrap().clone();
        let Request { prompt, options } = Request::from_python(args).unwrap();
        let told = Told::new(&model, true);
        let result: prefold::Result<Compressed> = compress(&told, &tokenizer, &prompt, &options);
        let got = match result {
            Ok(result) => serde_json::to_value(result).unwrap(),
            Err(error) => Value::String(error.to_string()),
        };
        let by_itself = told.thinned.into_inner();
        thinned += by_itself;
        eprintln!("{}: {by_itself} texts thinned", row["name"]);
        if got != row["result"] {
            wrong.push(format!("{}: {got}", row["name"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(thinned >= 20, "only {thinned} texts were thinned");
}
