//! One engine, many calls from two threads: every answer is that of the first time, and memory stays where it was.
//!
//! Two seconds of it in every run of the tests; `PREFOLD_SOAK_SECONDS=3600` for an hour.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prefold::hard::{Exact, Granularity, LlmLingua, Request};
use prefold::prefix::Dtype;
use prefold::soft::{PrefillOptions, Source};
use prefold::{Control, Device, Engine};

use crate::common::{self, Random, tiny};

/// Bytes of a text; longer ones take their time and find nothing more.
const LONGEST: usize = 1500;
/// Kinds of calls.
const CALLS: usize = 6;

/// What a call says, to the last bit.
fn answer(engine: &Engine, text: &str, call: usize) -> Vec<u8> {
    let prompt = Request::new(text.split("\n\n"))
        .with_question("Which value failed?")
        .with_tokens(text.len() / 3);
    let words = |request: Request| match engine.compress(&request) {
        Ok(compressed) => compressed.text.into_bytes(),
        Err(error) => error.to_string().into_bytes(),
    };
    let ids = |end: usize| {
        let mut ids = engine.tokenize(text, false, false).unwrap();
        ids.truncate(end);
        ids
    };
    match call {
        0 => words(prompt.with_mode(Exact::default())),
        1 => words(prompt.with_mode(Exact::default().with_granularity(Granularity::Token))),
        2 => words(prompt.with_mode(LlmLingua::default())),
        3 => words(prompt.with_structured(true)),
        4 => {
            let scores = engine.score(&ids(200), &Control::default()).unwrap();
            scores
                .iter()
                .flat_map(|score| score.to_le_bytes())
                .collect()
        }
        _ => {
            let source = Source::ids(ids(64));
            let prefix = engine
                .prefixes()
                .prefill(&source, &PrefillOptions::default());
            prefix.unwrap().to_bytes(Dtype::F32).unwrap()
        }
    }
}

/// Bytes of this process in memory; `None` where the system does not say.
fn resident() -> Option<usize> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(pages.split(' ').nth(1)?.parse::<usize>().ok()? * 4096)
}

#[test]
fn answers_and_memory_stay() {
    let seconds = common::number("PREFOLD_SOAK_SECONDS", 2);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gallery");
    if !folder.exists() {
        common::say("skipped: a packed crate has no texts");
        return;
    }
    let mut texts: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default())
        .flat_map(|text| {
            let half = text.floor_char_boundary(text.len() / 2);
            [text[..half].to_owned(), text[half..].to_owned()]
        })
        .map(|mut text| {
            text.truncate(text.floor_char_boundary(LONGEST));
            text
        })
        .collect();
    texts.retain(|text| !text.is_empty());
    texts.sort();
    let model = tiny::byte_model(512);
    let builder = Engine::builder(model.path()).device(Device::Cpu).threads(1);
    let engine = builder.build().unwrap();

    let first: Mutex<HashMap<(usize, usize), Vec<u8>>> = Mutex::default();
    let calls = AtomicUsize::new(0);
    let start = Instant::now();
    let (warm, end) = (
        Duration::from_secs(seconds) / 4,
        Duration::from_secs(seconds),
    );
    let settled = Mutex::new(None);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (engine, texts, first, calls, settled) =
                (&engine, &texts, &first, &calls, &settled);
            scope.spawn(move || {
                let mut random = Random(thread);
                while start.elapsed() < end {
                    let (text, call) = (random.below(texts.len()), random.below(CALLS));
                    let got = answer(engine, &texts[text], call);
                    let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                    let want = first.entry((text, call)).or_insert_with(|| got.clone());
                    assert!(*want == got, "text {text}, call {call}: another answer");
                    drop(first);
                    calls.fetch_add(1, Ordering::Relaxed);
                    if start.elapsed() > warm {
                        let mut settled = settled.lock().unwrap();
                        *settled = settled.or_else(resident);
                    }
                }
            });
        }
    });
    let (calls, kinds) = (calls.into_inner(), first.into_inner().unwrap().len());
    let memory = settled.into_inner().unwrap().zip(resident());
    if let Some((settled, last)) = memory {
        let mb = |bytes: usize| bytes as f64 / 1e6;
        common::say(&format!(
            "{calls} calls of {kinds} kinds in {seconds} s; {:.1} MB after a quarter of it, {:.1} MB at the end",
            mb(settled),
            mb(last)
        ));
        // In a short run other tests of this process have their share of it.
        if seconds >= 60 {
            assert!(last < settled + settled / 10 + 16_000_000, "memory grows");
        }
    }
    assert!(calls > kinds, "{calls} calls");
}
