//! Token for token what llmlingua 0.2.2 gives with `use_llmlingua2=True`, over tiny random classifiers.

use crate::common;

use std::collections::BTreeMap;

use prefold::hard::LlmLingua2;
use prefold::hard::json::Call;
use prefold::{Control, Device, Effort, Engine, Exact, RankMethod, Request};
use serde_json::Value;

fn engine(name: &str) -> Engine {
    let golden = common::shared().expect("golden values").join("golden");
    let builder = Engine::builder(golden.join("encoders").join(name)).device(Device::Cpu);
    builder.build().expect("the classifier opens")
}

fn rows() -> Vec<Value> {
    let golden = common::shared().expect("golden values").join("golden");
    let text = std::fs::read_to_string(golden.join("encoders/llmlingua2.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What the reference refuses, and so does the library. Over an empty text, one without a known word and one
/// that holds a name of its own added tokens it fails where the library compresses.
const REFUSED: [&str; 4] = [
    "rate 0",
    "token_to_word unknown",
    "force_tokens: too many",
    "context filter by target_token 0",
];

#[test]
fn every_row_is_identical() {
    let engines: BTreeMap<&str, Engine> = ["mbert-tokens", "xlmr-tokens"]
        .map(|name| (name, engine(name)))
        .into();
    let rows = rows();
    assert!(rows.len() > 200);
    let mut failed = Vec::new();
    for row in &rows {
        let name = row["name"].as_str().unwrap();
        let mut args = row["args"].as_object().unwrap().clone();
        // `compress_prompt` hands its own default on.
        args.entry("use_context_level_filter")
            .or_insert(true.into());
        let model = row["model"].as_str().unwrap();
        let got = Call::new("compress_prompt_llmlingua2", args).and_then(|call| {
            let result = engines[model].compress(&call.request)?;
            call.answer(&result)
        });
        match (&got, row.get("result")) {
            (Ok(got), Some(want)) if got == want => {}
            (Err(_), None) if REFUSED.contains(&name) => {}
            (Ok(_), None) if !REFUSED.contains(&name) => {}
            (got, want) => {
                failed.push(format!("{model}, {name}:\n  want {want:?}\n  got  {got:?}"))
            }
        }
    }
    let shown = failed
        .iter()
        .take(12)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        failed.is_empty(),
        "{} of {}\n{shown}",
        failed.len(),
        rows.len()
    );
}

#[test]
fn kept_spans_are_of_the_given_text() {
    let engine = engine("xlmr-tokens");
    let given =
        "Speaker 1: The council votes on the motion. Is it clear? It is! Speaker 2: I second it.";
    let request = Request::new([given, "Another text."])
        .with_rate(0.5)
        .with_mode(LlmLingua2::default().with_force_tokens(vec!["?".into()]));
    let result = engine.compress(&request).unwrap();
    assert_eq!(result.contexts.len(), 2);
    for kept in &result.contexts {
        let text = &request.contexts[kept.index];
        let spans: String = kept.spans.iter().map(|span| &text[span.clone()]).collect();
        let letters = |text: &str| text.split_whitespace().collect::<String>();
        assert_eq!(letters(&spans), letters(&kept.text));
    }
    let pieces: String = result
        .pieces
        .iter()
        .map(|piece| piece.text.as_str())
        .collect();
    assert_eq!(pieces, format!("{given}\n\nAnother text."));
    assert!(result.tokens_after < result.tokens_before && result.text.contains('?'));
}

#[test]
fn texts_on_which_the_reference_fails_are_compressed() {
    for name in ["mbert-tokens", "xlmr-tokens"] {
        let engine = engine(name);
        let contexts = ["", "A text of some words.", "龘", "<|endoftext|> and more"];
        let options = LlmLingua2::default()
            .with_use_context_level_filter(true)
            .with_target_context(4);
        let request = Request::new(contexts).with_rate(0.5).with_mode(options);
        let result = engine.compress(&request).unwrap();
        assert_eq!(result.contexts.len(), 4, "{result:?}");
        let none = Request::new([""; 0]).with_mode(LlmLingua2::default());
        assert_eq!(engine.compress(&none).unwrap().text, "");
    }
}

#[test]
fn a_model_that_cannot_is_told_apart() {
    let request = Request::new(["A text."]).with_mode(LlmLingua2::default());
    let said = |name: &str| engine(name).compress(&request).unwrap_err().to_string();
    assert!(
        said("bert3").contains("a classifier of 3 labels"),
        "{}",
        said("bert3")
    );
    let modern = said("modernbert-tokens");
    assert!(
        modern.contains("mode llmlingua2 with modernbert"),
        "{modern}"
    );
    assert!(
        said("bert").contains("classifies no tokens"),
        "{}",
        said("bert")
    );
    if let Some(model) = common::smollm2() {
        let decoder = Engine::builder(&model).device(Device::Cpu).build().unwrap();
        let error = decoder.compress(&request).unwrap_err().to_string();
        assert!(
            error.contains("llmlingua2 needs a token classifier"),
            "{error}"
        );
    }
}

/// The tiny encoder says nothing of sense: what counts is that it is asked, and when.
#[test]
fn an_encoder_stands_beside_a_model() {
    let Some(model) = common::smollm2() else {
        return;
    };
    let golden = common::shared().expect("golden values").join("golden");
    let bert = golden.join("encoders/bert");
    let open = || Engine::builder(&model).device(Device::Cpu);
    let (alone, beside) = (
        open().build().unwrap(),
        open().encoder(&bert).build().unwrap(),
    );
    let texts: Vec<String> = [
        "The lighthouse was built by Ada Roy.",
        "Rain fell all day, and the market closed at noon.",
        "The town has a market and two schools.",
        "A keeper lived there until the winter of 1911.",
    ]
    .map(Into::into)
    .into();
    let (question, control) = ("Who built the lighthouse?", Control::default());
    let by = RankMethod::Sentbert;
    let own = Engine::builder(&bert).device(Device::Cpu).build().unwrap();
    let want = own.rank(question, &texts, &control).unwrap();
    assert_eq!(
        beside.rank_by(by, question, &texts, &control).unwrap(),
        want
    );
    let error = alone.rank_by(by, question, &texts, &control).unwrap_err();
    assert!(error.to_string().contains("without an encoder"), "{error}");

    let words = alone.rank(question, &texts, &control).unwrap();
    let both = beside.rank(question, &texts, &control).unwrap();
    // How both are weighed is a network's (`rank::` has its tests); here, that the cosines reach it.
    assert!(both.iter().all(|score| score.is_finite()), "{both:?}");
    let mut moved = both.iter().zip(&words);
    assert!(
        moved.any(|(both, words)| (both - words).abs() > 0.01),
        "{both:?}, {words:?}"
    );
    let ask = |effort: Effort| {
        let exact = Exact::default().with_effort(effort);
        Request::new(texts.clone())
            .with_question(question)
            .with_tokens(30)
            .with_mode(exact)
    };
    let compress = |engine: &Engine, effort| engine.compress(&ask(effort)).unwrap();
    let fast = compress(&beside, Effort::Fast);
    assert_eq!(fast, compress(&alone, Effort::Fast));
    for effort in [Effort::Balanced, Effort::Best] {
        assert!(compress(&beside, effort).tokens_after <= 30);
    }
    let reference = Request::new(texts.clone())
        .with_question(question)
        .with_tokens(10)
        .with_mode(
            prefold::LlmLingua::default()
                .with_rank_method(by)
                .with_context_budget("+0".into())
                .with_use_token_level_filter(false),
        );
    let kept = beside.compress(&reference).unwrap().contexts;
    let best = (0..4).max_by(|&a, &b| want[a].total_cmp(&want[b])).unwrap();
    assert!(
        kept.iter().any(|kept| kept.index == best),
        "{kept:?}, {want:?}"
    );
    assert!(alone.compress(&reference).is_err());
}

#[test]
fn a_question_chooses_the_contexts() {
    let engine = engine("mbert-tokens");
    let contexts = [
        "The council votes on the motion in May.",
        "The harbour is closed when it blows.",
        "The lighthouse was built by Ada Roy in 1874.",
        "A ferry leaves at seven from the old harbour.",
    ];
    let options = LlmLingua2::default()
        .with_use_context_level_filter(true)
        .with_target_context(1)
        .with_rank_by_question(true);
    let request = |options: &LlmLingua2, question: &str| {
        let request = Request::new(contexts)
            .with_rate(0.8)
            .with_question(question);
        request.with_mode(options.clone())
    };
    for (question, best) in [
        ("Who built the lighthouse?", 2),
        ("When does the ferry leave?", 3),
    ] {
        let result = engine.compress(&request(&options, question)).unwrap();
        let kept: Vec<usize> = result.contexts.iter().map(|kept| kept.index).collect();
        assert_eq!(kept, [best], "{question}: {result:?}");
    }
    // By JSON's keyword arguments too.
    let arguments = serde_json::json!({
        "context": contexts, "question": "Who built the lighthouse?", "rate": 0.8, "target_context": 1,
        "use_context_level_filter": true, "rank_by_question": true,
    });
    let read = Request::from_llmlingua2(arguments.as_object().unwrap().clone()).unwrap();
    assert_eq!(read, request(&options, "Who built the lighthouse?"));

    let said = |options: &LlmLingua2, question: &str| {
        let result = engine.compress(&request(options, question));
        result.unwrap_err().to_string()
    };
    for (options, question) in [
        (options.clone(), ""),
        (options.clone().with_use_context_level_filter(false), "Who?"),
    ] {
        let error = said(&options, question);
        assert!(error.contains("rank_by_question"), "{error}");
    }
    let error = said(&options.with_rank_by_question(false), "Who?");
    assert!(error.contains("question"), "{error}");
}

#[test]
fn chunks_of_a_long_text_overlap() {
    let engine = engine("xlmr-tokens");
    let short = "The council votes on the motion. Is it clear? It is!";
    let long: String = (0..150)
        .map(|i| format!("Item {i} of the motion is clear to the council. "))
        .collect();
    let kept = |text: &str, overlap: usize, threshold: f64| {
        let options = LlmLingua2::default()
            .with_overlap(overlap)
            .with_probability_threshold(Some(threshold));
        let request = Request::new([text]).with_mode(options);
        engine.compress(&request).map(|result| result.text)
    };
    for threshold in [0.0, 0.5] {
        // What fits has nothing around it.
        assert_eq!(
            kept(short, 64, threshold).unwrap(),
            kept(short, 0, threshold).unwrap()
        );
    }
    // No word is read twice or left out; the reference's chunks lose the space between them.
    let letters = |text: &str| -> String { text.split_whitespace().collect() };
    for overlap in [0, 1, 64, 192] {
        let all = kept(&long, overlap, 0.0).unwrap();
        assert!(letters(&all) == letters(&long), "{overlap}: {all}");
    }
    let error = kept(&long, 193, 0.5).unwrap_err().to_string();
    assert!(error.contains("overlap 193"), "{error}");
}

#[test]
fn a_threshold_keeps_what_is_above_it() {
    let engine = engine("mbert-tokens");
    let text =
        "Speaker 1: The council votes on the motion. Is it clear? It is! Speaker 2: I second it.";
    let kept = |threshold: f64| {
        let options = LlmLingua2::default().with_probability_threshold(Some(threshold));
        let request = Request::new([text]).with_mode(options);
        engine.compress(&request).map(|result| result.tokens_after)
    };
    let counts = [0.0, 0.3, 0.6, 0.9, 1.0].map(|threshold| kept(threshold).unwrap());
    assert!(counts.is_sorted_by(|a, b| a >= b), "{counts:?}");
    assert!(
        counts[0] > counts[2] && counts[2] > 0 && counts[4] == 0,
        "{counts:?}"
    );
    assert!(
        kept(1.5)
            .unwrap_err()
            .to_string()
            .contains("probability_threshold 1.5")
    );
}
