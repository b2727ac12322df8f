//! The exact budget: within one token of the target for prompts of any length and script, never half
//! a character, and what must be kept is kept.

use crate::common;

use crate::common::Random;
use prefold::hard::{self, Count, Granularity, Options, Prompt, RankMethod, Reorder};
use prefold::model::{Scorer, Session};
use prefold::text::{Tokenizer, count_cl100k};
use prefold::{Device, Engine, Error};
use unicode_segmentation::UnicodeSegmentation;

/// Scores that depend on the ids alone. Whether a budget is kept must not depend on the scores, so
/// prompts of 50,000 tokens need no model.
struct AnyScores;

impl Scorer for AnyScores {
    fn max_positions(&self) -> usize {
        2048
    }

    fn session(&self) -> prefold::Result<Box<dyn Session + '_>> {
        unreachable!("the exact budget keeps no cache")
    }

    fn score_tails(&self, sequences: &[(&[u32], usize)]) -> prefold::Result<Vec<Vec<f32>>> {
        let nll = |pair: &[u32]| {
            let mut random = Random(u64::from(pair[0]) << 32 | u64::from(pair[1]));
            (random.below(4096)) as f32 / 256.0
        };
        Ok(sequences
            .iter()
            .map(|(ids, from)| {
                assert!(ids.len() <= self.max_positions());
                ids.windows(2)
                    .skip(from.saturating_sub(1))
                    .map(nll)
                    .collect()
            })
            .collect())
    }
}

fn engine() -> Option<&'static dyn Engine> {
    static ENGINE: std::sync::OnceLock<Option<Box<dyn Engine>>> = std::sync::OnceLock::new();
    ENGINE
        .get_or_init(|| Some(prefold::open(&common::smollm2()?, Device::Cpu).expect("it opens")))
        .as_deref()
}

fn tokenizer() -> Option<&'static Tokenizer> {
    engine().map(|engine| engine.tokenizer().expect("a tokenizer"))
}

/// Real text in several scripts and forms.
fn texts() -> Vec<(&'static str, String)> {
    let prose = include_str!("../../examples/peps/pep-0418.txt").to_string();
    let code = include_str!("../../src/hard/exact/fit.rs").to_string();
    let mixed = "東京タワーは1958年に完成した。高さは333メートルで、東京のシンボルです。\
        Привет, мир! Как дела? 한국어 텍스트입니다. नमस्ते दुनिया। สวัสดีชาวโลก 👩‍👩‍👧‍👦🏳️‍🌈🦀 \
        Ünïcödé naïve café — “quotes” … 1,234.5 kg\n"
        .repeat(12);
    let one_line = prose.split_whitespace().collect::<Vec<_>>().join(" ");
    let json = (0..120)
        .map(|i| format!("{{\"id\": {i}, \"name\": \"n{i}\"}}"))
        .collect::<Vec<_>>()
        .join(",\n");
    vec![
        ("prose", prose),
        ("code", code),
        ("mixed", mixed),
        ("one line", one_line),
        ("json", json),
    ]
}

/// The count that the options name.
fn tokens(tokenizer: &Tokenizer, count: Count, text: &str) -> usize {
    match count {
        Count::Cl100k => count_cl100k(text),
        Count::Scorer => tokenizer.encode(text, false, false).unwrap().ids.len(),
    }
}

fn check(prompt: &Prompt, options: &Options, what: &str) {
    let Some(tokenizer) = tokenizer() else { return };
    let parts = std::iter::once(&prompt.instruction)
        .chain(&prompt.context)
        .chain([&prompt.question]);
    let whole = parts.map(String::as_str).collect::<Vec<_>>().join("\n\n");
    let whole = whole.trim();
    let origin = tokens(tokenizer, options.count, whole);
    let want = match options.target_token {
        Some(target) => (target as usize).min(origin),
        None => (origin as f64 * options.rate).round() as usize,
    };
    let result = hard::compress(&AnyScores, tokenizer, prompt, options)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let got = tokens(tokenizer, options.count, &result.compressed_prompt);
    assert!(
        got.abs_diff(want) <= 1,
        "{what}: wanted {want} of {origin} tokens, got {got}"
    );
    let pieces: String = result.pieces.iter().map(|p| p.text.as_str()).collect();
    assert_eq!(pieces.trim(), whole, "{what}: the pieces are the prompt");
}

#[test]
fn the_budget_is_kept_to_one_token() {
    for (name, text) in texts() {
        for count in [Count::Cl100k, Count::Scorer] {
            for granularity in [
                Granularity::Context,
                Granularity::Passage,
                Granularity::Sentence,
                Granularity::Token,
            ] {
                for (rate, length) in [
                    (0.5, 400),
                    (0.25, text.len()),
                    (0.8, 1500),
                    (0.1, 3000),
                    (0.97, 900),
                ] {
                    let end = (length.min(text.len())..=text.len())
                        .find(|&i| text.is_char_boundary(i))
                        .unwrap_or(text.len());
                    let prompt = Prompt {
                        context: vec![text[..end].to_string()],
                        ..Prompt::default()
                    };
                    let options = Options {
                        rate,
                        count,
                        granularity,
                        ..Options::default()
                    };
                    check(
                        &prompt,
                        &options,
                        &format!("{name}, {count:?}, {granularity:?}, {rate}, {end} bytes"),
                    );
                }
            }
        }
    }
}

#[test]
fn the_budget_is_kept_with_many_contexts_a_question_and_every_rank_method() {
    let context: Vec<String> = texts().into_iter().map(|(_, text)| text).collect();
    for rank_method in [
        None,
        Some(RankMethod::Llmlingua),
        Some(RankMethod::Longllmlingua),
        Some(RankMethod::Bm25),
        Some(RankMethod::Gzip),
    ] {
        for reorder in [
            None,
            Some(Reorder::Original),
            Some(Reorder::Sort),
            Some(Reorder::TwoStage),
        ] {
            let prompt = Prompt {
                instruction: "Answer from the text.".into(),
                context: context.clone(),
                question: "How tall is the tower of Tokyo?".into(),
            };
            let options = Options {
                rate: 0.3,
                rank_method,
                reorder_context: reorder,
                ..Options::default()
            };
            check(&prompt, &options, &format!("{rank_method:?}, {reorder:?}"));
        }
    }
}

#[test]
fn ten_tokens_and_fifty_thousand() {
    let prompt = |text: &str| Prompt {
        context: vec![text.to_string()],
        ..Prompt::default()
    };
    for rate in [0.1, 0.3, 0.5, 0.9] {
        let options = Options {
            rate,
            ..Options::default()
        };
        check(
            &prompt("The quick brown fox jumps over the lazy dog."),
            &options,
            "ten tokens",
        );
    }
    let long = include_str!("../../examples/peps/pep-0418.txt").repeat(140);
    assert!(count_cl100k(&long) > 50_000, "{}", count_cl100k(&long));
    for granularity in [Granularity::Passage, Granularity::Token] {
        let options = Options {
            rate: 0.5,
            granularity,
            ..Options::default()
        };
        check(&prompt(&long), &options, "fifty thousand tokens");
    }
    let options = Options {
        target_token: Some(1234.0),
        ..Options::default()
    };
    check(&prompt(&long), &options, "1,234 of fifty thousand");
}

#[test]
fn a_prompt_that_fits_stays_as_it_is() {
    let Some(tokenizer) = tokenizer() else { return };
    let prompt = Prompt {
        instruction: "Do.".into(),
        context: vec!["  One.\n".into(), "Two.".into()],
        question: "Why?".into(),
    };
    for options in [
        Options {
            rate: 1.0,
            ..Options::default()
        },
        Options {
            target_token: Some(1000.0),
            ..Options::default()
        },
    ] {
        let result = hard::compress(&AnyScores, tokenizer, &prompt, &options).unwrap();
        assert_eq!(result.compressed_prompt, "Do.\n\n  One.\n\n\nTwo.\n\nWhy?");
        assert_eq!(result.ratio, "1.0x");
    }
    let empty = hard::compress(
        &AnyScores,
        tokenizer,
        &Prompt::default(),
        &Options::default(),
    )
    .unwrap();
    assert_eq!(
        (empty.compressed_prompt.as_str(), empty.compressed_tokens),
        ("", 0)
    );
}

#[test]
fn what_must_be_kept_is_kept_or_refused() {
    let Some(tokenizer) = tokenizer() else { return };
    let text = "Alice has 12 apples and Bob has 340 pears. The rest of this text says very little, \
        and says it slowly, and could be dropped without any loss to anyone at all. MARK here.";
    let prompt = Prompt {
        context: vec![text.into()],
        ..Prompt::default()
    };
    let options = Options {
        rate: 0.4,
        granularity: Granularity::Token,
        force_tokens: vec!["MARK".into()],
        force_reserve_digit: true,
        ..Options::default()
    };
    let kept = hard::compress(&AnyScores, tokenizer, &prompt, &options)
        .unwrap()
        .compressed_prompt;
    for wanted in ["12", "340", "MARK"] {
        assert!(kept.contains(wanted), "{wanted} is not in {kept:?}");
    }
    let tight = Options {
        target_token: Some(2.0),
        ..options
    };
    let refused = hard::compress(&AnyScores, tokenizer, &prompt, &tight);
    assert!(
        matches!(refused, Err(Error::Budget { target: 2, .. })),
        "{refused:?}"
    );

    let tagged = Prompt {
        context: vec![format!(
            "<llmlingua, compress=False>Keep me whole.</llmlingua><llmlingua>{text}</llmlingua>"
        )],
        ..Prompt::default()
    };
    let options = Options {
        rate: 0.3,
        ..Options::default()
    };
    let kept = hard::compress_structured(&AnyScores, tokenizer, &tagged, &options).unwrap();
    assert!(
        kept.compressed_prompt.starts_with("Keep me whole."),
        "{}",
        kept.compressed_prompt
    );
    assert!(kept.compressed_tokens < count_cl100k(text));

    let forced = Prompt {
        context: vec!["One two three.".into(), text.into()],
        ..Prompt::default()
    };
    let options = Options {
        rate: 0.3,
        force_context_ids: Some(vec![0]),
        ..Options::default()
    };
    let kept = hard::compress(&AnyScores, tokenizer, &forced, &options)
        .unwrap()
        .compressed_prompt;
    assert!(kept.contains("One two three."), "{kept}");
}

const CAT: &str = "The cat sat on the mat near the old wooden door. It was raining outside all day. \
    Nobody came to visit the lonely house.";

fn alone(context: &str) -> Prompt {
    Prompt {
        context: vec![context.into()],
        ..Prompt::default()
    }
}

#[test]
fn structured_prompts_lose_no_text() {
    let Some(tokenizer) = tokenizer() else { return };
    let tagged = format!(
        "Intro text. <llmlingua, compress=False>if a < b: stop now</llmlingua>\nbetween the tags \
         <llmlingua, rate=0.5>{CAT}</llmlingua> tail <text>."
    );
    let plain = format!("Intro text. if a < b: stop now\nbetween the tags {CAT} tail <text>.");
    let compress = |text: &str, options: &Options| {
        hard::compress_structured(&AnyScores, tokenizer, &alone(text), options)
    };
    let all = Options {
        target_token: Some(1000.0),
        ..Options::default()
    };
    assert_eq!(compress(&tagged, &all).unwrap().compressed_prompt, plain);
    for rate in [0.1, 0.5] {
        let options = Options {
            rate,
            ..Options::default()
        };
        let result = compress(&tagged, &options).unwrap();
        let kept = &result.compressed_prompt;
        assert!(kept.contains("if a < b: stop now"), "{kept}");
        let pieces: String = result.pieces.iter().map(|p| p.text.as_str()).collect();
        assert_eq!(pieces, plain);
    }
    let untagged = "a < b and nothing else is said here at all";
    let result = compress(untagged, &Options::default()).unwrap();
    assert!(
        result
            .compressed_tokens
            .abs_diff(count_cl100k(untagged) / 2)
            <= 1,
        "{result:?}"
    );
}

#[test]
fn without_a_target_every_segment_keeps_its_own_share() {
    let Some(tokenizer) = tokenizer() else { return };
    let numbers = (0..60).map(|i| i.to_string()).collect::<Vec<_>>().join(" ");
    let long_cat = [CAT; 4].join(" ");
    let question = "Given everything that is said above about the weather, the house and its \
        visitors, please explain in detail why nobody came to visit.";
    for question in ["", question] {
        for instruction in ["", "Answer from the text alone, and in one sentence."] {
            for (fixed, rate) in [
                (numbers.as_str(), 0.1),
                ("{\"id\": \"a1f-09-77c2\", \"k\": [1,2,3,4]}", 0.2),
                ("Title", 0.7),
            ] {
                let prompt = Prompt {
                    instruction: instruction.into(),
                    context: vec![format!(
                        "<llmlingua, compress=False>{fixed}</llmlingua>\
                         <llmlingua, rate={rate}> {long_cat}</llmlingua>"
                    )],
                    question: question.into(),
                };
                let count = count_cl100k;
                let want = (count(&format!(" {long_cat}")) as f64 * rate).round() as usize
                    + [instruction, fixed, question]
                        .map(count)
                        .iter()
                        .sum::<usize>();
                let result =
                    hard::compress_structured(&AnyScores, tokenizer, &prompt, &Options::default())
                        .unwrap_or_else(|error| panic!("{fixed}, {rate}: {error}"));
                // The blank lines between the parts may take a token each.
                let got = result.compressed_tokens;
                assert!(
                    (want - 1..=want + 3).contains(&got),
                    "{fixed}, {rate}: wanted {want} tokens, got {got}"
                );
                assert!(result.compressed_prompt.contains(fixed));
            }
        }
    }
    // Nothing may be dropped: nothing is, whatever the rate of the rest would be.
    let contexts = ["Keep me.", "Me too, all of me.", "And me."];
    let prompt = Prompt {
        instruction: "Do.".into(),
        context: contexts
            .map(|c| format!("<llmlingua, compress=False>{c}</llmlingua>"))
            .into(),
        question: String::new(),
    };
    let options = Options {
        rate: 0.1,
        ..Options::default()
    };
    let result = hard::compress_structured(&AnyScores, tokenizer, &prompt, &options).unwrap();
    assert_eq!(
        result.compressed_prompt,
        format!("Do.\n\n{}", contexts.join("\n\n"))
    );
}

#[test]
fn what_a_reader_sees_as_one_character_is_never_cut() {
    let Some(tokenizer) = tokenizer() else { return };
    let family =
        "The family 👨‍👩‍👧‍👦 waved the flag 🇩🇪 and the thumbs 👍🏽 up while 🏳️‍🌈 flew above 👩🏾‍🚀 and 🇫🇷 too. ";
    let texts = [
        family.repeat(4),
        "Teams: 🇩🇪🇫🇷🇮🇹🇪🇸🇵🇹🇳🇱".into(),
        "भारत एक विशाल देश है। ".repeat(5),
        "e\u{301}a\u{300}o\u{302}\r\n".repeat(9),
    ];
    for text in &texts {
        let whole: Vec<&str> = text.graphemes(true).collect();
        let longest = whole.iter().map(|g| count_cl100k(g)).max().unwrap_or(0);
        for granularity in [Granularity::Passage, Granularity::Token] {
            for target in 1..count_cl100k(text.trim()) {
                let options = Options {
                    target_token: Some(target as f64),
                    granularity,
                    ..Options::default()
                };
                let result = hard::compress(&AnyScores, tokenizer, &alone(text), &options).unwrap();
                let kept = &result.compressed_prompt;
                for grapheme in kept.graphemes(true) {
                    assert!(
                        whole.contains(&grapheme) || matches!(grapheme, " " | "\n"),
                        "{granularity:?}, {target}: half of a character, {grapheme:?}, in {kept:?}"
                    );
                }
                let tokens = result.compressed_tokens;
                assert!(
                    tokens <= target && tokens + longest >= target,
                    "{granularity:?}: wanted {target} tokens, got {tokens}: {kept:?}"
                );
            }
        }
    }
}

#[test]
fn white_space_round_the_text_gives_way_to_the_budget() {
    let Some(tokenizer) = tokenizer() else { return };
    let space = " \n\t".repeat(200);
    for text in [
        format!("Hello world.{space}"),
        format!("{space}Hello world."),
        format!("{space}Hello world.{space}"),
    ] {
        for (target, want) in [(10.0, "Hello world."), (1000.0, text.as_str())] {
            let options = Options {
                target_token: Some(target),
                ..Options::default()
            };
            let result = hard::compress(&AnyScores, tokenizer, &alone(&text), &options).unwrap();
            assert_eq!(result.compressed_prompt, want);
            assert_eq!(result.compressed_tokens, count_cl100k(want));
        }
    }
}

#[test]
fn white_space_that_must_be_kept_is_kept() {
    let Some(tokenizer) = tokenizer() else { return };
    let lines = [
        "apple", "stone", "river", "cloud", "forest", "engine", "violin", "planet",
    ]
    .map(|word| format!("Line {word} tells about {word}s and nothing else."))
    .join("\n");
    for granularity in [
        Granularity::Passage,
        Granularity::Sentence,
        Granularity::Token,
    ] {
        let options = Options {
            rate: 0.4,
            granularity,
            force_tokens: vec!["\n".into()],
            ..Options::default()
        };
        for (text, breaks) in [(lines.clone(), 7), (format!("\n\n{lines}\n\n"), 11)] {
            let result = hard::compress(&AnyScores, tokenizer, &alone(&text), &options).unwrap();
            let kept = &result.compressed_prompt;
            assert_eq!(
                kept.matches('\n').count(),
                breaks,
                "{granularity:?}: {kept:?}"
            );
        }
    }
    for (text, want) in [
        (
            format!(
                "<llmlingua>{CAT}</llmlingua><llmlingua, compress=False>\n\nEND\n\n</llmlingua>"
            ),
            "\n\nEND\n\n",
        ),
        (
            format!("<llmlingua, compress=False>    indented:\n        more\n\n</llmlingua>{CAT}"),
            "    indented:\n        more\n\n",
        ),
    ] {
        for target in [None, Some(20.0)] {
            let options = Options {
                rate: 0.3,
                target_token: target,
                ..Options::default()
            };
            let result =
                hard::compress_structured(&AnyScores, tokenizer, &alone(&text), &options).unwrap();
            let kept = &result.compressed_prompt;
            assert!(kept.contains(want), "{kept:?}");
        }
    }
    // It does not give way to what may be dropped.
    let text = "Hello world.<llmlingua, compress=False>\n \n\t\n \n</llmlingua>";
    let tight = Options {
        target_token: Some(4.0),
        ..Options::default()
    };
    let result = hard::compress_structured(&AnyScores, tokenizer, &alone(text), &tight).unwrap();
    let kept = &result.compressed_prompt;
    assert!(kept.ends_with("\n \n\t\n \n"), "{kept:?}");
}

#[test]
fn sentences_to_keep_come_first_at_every_granularity() {
    let Some(tokenizer) = tokenizer() else { return };
    let prompt = Prompt {
        context: vec![
            "Alpha beta gamma delta. One two three four five. Zebra quagmire xylophone.".into(),
            CAT.into(),
            "The sky is blue today. My dog is very friendly. Quantum flux capacitors hum.".into(),
        ],
        ..Prompt::default()
    };
    for granularity in [
        Granularity::Context,
        Granularity::Passage,
        Granularity::Sentence,
        Granularity::Token,
    ] {
        let kept = |options: Options| {
            let options = Options {
                rate: 0.4,
                granularity,
                ..options
            };
            hard::compress(&AnyScores, tokenizer, &prompt, &options)
                .unwrap()
                .compressed_prompt
        };
        let ends = kept(Options {
            keep_first_sentence: 1,
            keep_last_sentence: 1,
            ..Options::default()
        });
        assert!(
            ends.starts_with("Alpha beta gamma delta.")
                && ends.ends_with("Quantum flux capacitors hum."),
            "{granularity:?}: {ends}"
        );
        let each = kept(Options {
            keep_sentence_number: 1,
            ..Options::default()
        });
        let whole: usize = prompt
            .context
            .iter()
            .map(|context| {
                let mut sentences = context.split_inclusive(". ").map(str::trim_end);
                usize::from(sentences.any(|sentence| each.contains(sentence)))
            })
            .sum();
        assert_eq!(whole, 3, "{granularity:?}: {each}");
    }
}

#[test]
fn an_instruction_longer_than_the_budget_is_refused() {
    let Some(tokenizer) = tokenizer() else { return };
    let prompt = Prompt {
        instruction: "A rather long instruction that takes many tokens by itself.".into(),
        context: vec!["Short.".into()],
        question: String::new(),
    };
    let options = Options {
        target_token: Some(3.0),
        ..Options::default()
    };
    let refused = hard::compress(&AnyScores, tokenizer, &prompt, &options).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("instruction and question alone"),
        "{refused}"
    );
}

#[test]
fn the_real_model_finds_what_the_question_asks_for() {
    let Some(engine) = engine() else { return };
    let filler = |city: &str, thing: &str| {
        format!(
            "{city} is a city in the north. It has a {thing} and a market. Its people are known for \
             their bread. The river runs through it from east to west. Trains leave every hour."
        )
    };
    let prompt = Prompt {
        context: vec![
            filler("Arden", "castle"),
            filler("Brook", "museum"),
            "The lighthouse of Cape Hollow was built in 1871 by the engineer Maria Stone. It is \
             forty metres tall, and its lamp can be seen from far away. It stands on a rock."
                .into(),
            filler("Dale", "theatre"),
        ],
        question: "Who built the lighthouse of Cape Hollow?".into(),
        ..Prompt::default()
    };
    let options = Options {
        rate: 0.4,
        ..Options::default()
    };
    let result = engine.compress(&prompt, &options).unwrap();
    assert!(
        result.compressed_prompt.contains("Maria Stone"),
        "{}",
        result.compressed_prompt
    );
    assert!(result.compressed_prompt.ends_with(&prompt.question));
}
