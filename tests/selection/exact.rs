//! The exact budget: a ceiling for prompts of any length and script, never half a character, and what
//! must be kept is kept.

use crate::common;

use crate::common::fake::AnyScores;
use prefold::hard::{
    self, Budget, Compressed, ContentKind, Count, Exact, Granularity, LlmLingua, Mode, RankMethod,
    Reorder, Request,
};
use prefold::text::{Tokenizer, count_cl100k};
use prefold::{Device, Engine, Error};
use unicode_segmentation::UnicodeSegmentation;

fn engine() -> Option<&'static Engine> {
    static ENGINE: std::sync::OnceLock<Option<Engine>> = std::sync::OnceLock::new();
    ENGINE
        .get_or_init(|| {
            Some(
                Engine::builder(&common::smollm2()?)
                    .device(Device::Cpu)
                    .build()
                    .expect("it opens"),
            )
        })
        .as_ref()
}

fn tokenizer() -> Option<&'static Tokenizer> {
    engine().map(|engine| engine.tokenizer().expect("a tokenizer"))
}

/// Real text in several scripts and forms.
fn texts() -> Vec<(&'static str, String)> {
    let prose = include_str!("../../examples/peps/pep-0418.txt").to_string();
    let code = include_str!("../../src/hard/exact/budget_search.rs").to_string();
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
fn tokens(tokenizer: &Tokenizer, count: &Count, text: &str) -> usize {
    count.tokens(text, tokenizer).unwrap()
}

fn compress(request: &Request) -> prefold::Result<Compressed> {
    let tokenizer = tokenizer().expect("the caller looked");
    let result = hard::compress(&AnyScores, tokenizer, request);
    if let Ok(result) = &result {
        check_contexts(request, result);
    }
    result
}

/// The result is the instruction, each context's own result and the question; that result is the spans of
/// the context that were kept, with or without white space between them.
fn check_contexts(request: &Request, result: &Compressed) {
    let Mode::Exact(options) = &request.mode else {
        unreachable!("these tests have one mode");
    };
    let question = match options.keep_question {
        true => request.question.as_str(),
        false => "",
    };
    let parts = std::iter::once(request.instruction.as_str())
        .chain(result.contexts.iter().map(|kept| kept.text.as_str()))
        .chain([question]);
    let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    // Where all fits but for the white space around the prompt, that goes.
    assert_eq!(result.text.trim(), parts.join("\n\n").trim());
    let tokenizer = tokenizer().expect("the caller looked");
    for kept in &result.contexts {
        let given = &request.contexts[kept.index];
        assert_eq!(kept.tokens, tokens(tokenizer, &options.count, &kept.text));
        let mut rest = kept.text.as_str();
        let mut end = 0;
        for span in &kept.spans {
            assert!(
                end <= span.start && span.start < span.end,
                "{:?}",
                kept.spans
            );
            end = span.end;
            let at = rest.find(&given[span.clone()]).expect("verbatim");
            assert!(is_gap(&rest[..at]), "{:?} of {given:?}", &rest[..at]);
            rest = &rest[at + span.len()..];
        }
        assert!(is_gap(rest), "{rest:?} of {given:?}");
    }
    assert_eq!(
        tokens(tokenizer, &options.count, &result.text),
        result.tokens_after
    );
}

/// What may stand where something was dropped: white space, and in code a comment.
fn is_gap(text: &str) -> bool {
    text.trim().is_empty() || text.trim() == "// …"
}

fn check(request: &Request, what: &str) {
    let Some(tokenizer) = tokenizer() else { return };
    let Mode::Exact(options) = &request.mode else {
        unreachable!("these tests have one mode");
    };
    let parts = std::iter::once(&request.instruction)
        .chain(&request.contexts)
        .chain([&request.question]);
    let whole = parts.map(String::as_str).collect::<Vec<_>>().join("\n\n");
    let whole = whole.trim();
    let origin = tokens(tokenizer, &options.count, whole);
    let target = match request.budget {
        Budget::Tokens(target) => target,
        Budget::Rate(rate) => (origin as f64 * rate).round() as usize,
        other => unreachable!("{other:?}"),
    };
    let result = compress(request).unwrap_or_else(|error| panic!("{what}: {error}"));
    let got = tokens(tokenizer, &options.count, &result.text);
    let want = target.min(origin);
    assert!(
        got <= want,
        "{what}: wanted {want} of {origin} tokens, got {got}"
    );
    // Only what is never cut leaves more than a few tokens.
    let is_text = |context: &String| ContentKind::of(context) == ContentKind::Text;
    assert!(
        !options.fill || got + 3 >= want || !request.contexts.iter().all(is_text),
        "{what}: wanted {want} of {origin} tokens, got {got}"
    );
    let figures = (result.tokens_before, result.tokens_after, result.target);
    assert_eq!(figures, (origin, got, Some(target)), "{what}");
    let pieces: String = result.pieces.iter().map(|p| p.text.as_str()).collect();
    assert_eq!(pieces.trim(), whole, "{what}: the pieces are the prompt");
}

#[test]
fn the_budget_is_a_ceiling_and_met_on_request() {
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
                    for fill in [false, true] {
                        let options = Exact::default()
                            .with_count(count.clone())
                            .with_granularity(granularity)
                            .with_dedupe(false)
                            .with_fill(fill);
                        check(
                            &Request::new([&text[..end]])
                                .with_rate(rate)
                                .with_mode(options),
                            &format!(
                                "{name}, {count:?}, {granularity:?}, {rate}, {end} bytes, {fill}"
                            ),
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn the_budget_is_kept_with_many_contexts_a_question_and_every_rank_method() {
    let contexts: Vec<String> = texts().into_iter().map(|(_, text)| text).collect();
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
            let options = Exact::default()
                .with_rank_method(rank_method)
                .with_reorder(reorder);
            let request = Request::new(contexts.clone())
                .with_instruction("Answer from the text.")
                .with_question("How tall is the tower of Tokyo?")
                .with_rate(0.3)
                .with_mode(options);
            check(&request, &format!("{rank_method:?}, {reorder:?}"));
        }
    }
}

#[test]
fn ten_tokens_and_fifty_thousand() {
    for rate in [0.1, 0.3, 0.5, 0.9] {
        let short = Request::new(["The quick brown fox jumps over the lazy dog."]);
        check(&short.with_rate(rate), "ten tokens");
    }
    let long = include_str!("../../examples/peps/pep-0418.txt").repeat(140);
    assert!(count_cl100k(&long) > 50_000, "{}", count_cl100k(&long));
    let long = Request::new([long]);
    for granularity in [Granularity::Passage, Granularity::Token] {
        let options = Exact::default().with_granularity(granularity);
        check(&long.clone().with_mode(options), "fifty thousand tokens");
    }
    check(&long.with_tokens(1234), "1,234 of fifty thousand");
}

#[test]
fn a_prompt_that_fits_stays_as_it_is() {
    if tokenizer().is_none() {
        return;
    }
    let request = Request::new(["  One.\n", "Two."])
        .with_instruction("Do.")
        .with_question("Why?");
    for request in [
        request.clone().with_rate(1.0),
        request.clone().with_tokens(1000),
    ] {
        let result = compress(&request).unwrap();
        assert_eq!(result.text, "Do.\n\n  One.\n\n\nTwo.\n\nWhy?");
        assert_eq!((result.ratio(), result.rate()), (1.0, 1.0));
        assert_eq!(result.llmlingua().ratio, "1.0x");
        let contexts = result.contexts.iter();
        let kept: Vec<_> = contexts.map(|kept| (kept.index, &kept.spans[..])).collect();
        assert_eq!(kept.len(), 2);
        assert!(kept[0] == (0, std::slice::from_ref(&(0..7))));
        assert!(kept[1] == (1, std::slice::from_ref(&(0..4))));
    }
    let empty = compress(&Request::default()).unwrap();
    assert_eq!((empty.text.as_str(), empty.tokens_after), ("", 0));
}

#[test]
fn what_must_be_kept_is_kept_or_refused() {
    if tokenizer().is_none() {
        return;
    }
    let text = "Alice has 12 apples and Bob has 340 pears. The rest of this text says very little, \
        and says it slowly, and could be dropped without any loss to anyone at all. MARK here.";
    let options = Exact::default()
        .with_granularity(Granularity::Token)
        .with_force_tokens(vec!["MARK".into()])
        .with_force_digits(true);
    let request = Request::new([text]).with_rate(0.4).with_mode(options);
    let kept = compress(&request).unwrap().text;
    for wanted in ["12", "340", "MARK"] {
        assert!(kept.contains(wanted), "{wanted} is not in {kept:?}");
    }
    let refused = compress(&request.with_tokens(2));
    assert!(
        matches!(refused, Err(Error::Budget { target: 2, .. })),
        "{refused:?}"
    );

    let tagged = format!(
        "<llmlingua, compress=False>Keep me whole.</llmlingua><llmlingua>{text}</llmlingua>"
    );
    let kept = compress(&tagged_request(&tagged).with_rate(0.3)).unwrap();
    assert!(kept.text.starts_with("Keep me whole."), "{}", kept.text);
    assert!(kept.tokens_after < count_cl100k(text));

    let forced = Request::new(["One two three.", text])
        .with_rate(0.3)
        .with_mode(Exact::default().with_force_contexts(vec![0]));
    let kept = compress(&forced).unwrap().text;
    assert!(kept.contains("One two three."), "{kept}");
    let nowhere = forced.with_mode(Exact::default().with_force_contexts(vec![2]));
    let refused = compress(&nowhere).unwrap_err().to_string();
    assert!(refused.starts_with("force_contexts 2: "), "{refused}");
}

const CAT: &str = "The cat sat on the mat near the old wooden door. It was raining outside all day. \
    Nobody came to visit the lonely house.";

fn tagged_request(context: &str) -> Request {
    Request::new([context]).with_structured(true)
}

#[test]
fn structured_prompts_lose_no_text() {
    if tokenizer().is_none() {
        return;
    }
    let tagged = format!(
        "Intro text. <llmlingua, compress=False>if a < b: stop now</llmlingua>\nbetween the tags \
         <llmlingua, rate=0.5>{CAT}</llmlingua> tail <text>."
    );
    let plain = format!("Intro text. if a < b: stop now\nbetween the tags {CAT} tail <text>.");
    let tagged = tagged_request(&tagged);
    assert_eq!(
        compress(&tagged.clone().with_tokens(1000)).unwrap().text,
        plain
    );
    for rate in [0.1, 0.5] {
        let result = compress(&tagged.clone().with_rate(rate)).unwrap();
        let kept = &result.text;
        assert!(kept.contains("if a < b: stop now"), "{kept}");
        let pieces: String = result.pieces.iter().map(|p| p.text.as_str()).collect();
        assert_eq!(pieces, plain);
    }
    let untagged = "a < b and nothing else is said here at all";
    let result = compress(&tagged_request(untagged)).unwrap();
    // A share is rounded to whole tokens.
    let half = count_cl100k(untagged).div_ceil(2);
    assert_eq!(result.target, Some(half));
    assert!(
        (half - 1..=half).contains(&result.tokens_after),
        "{result:?}"
    );
}

#[test]
fn without_a_target_every_segment_keeps_its_own_share() {
    if tokenizer().is_none() {
        return;
    }
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
                let tagged = format!(
                    "<llmlingua, compress=False>{fixed}</llmlingua>\
                     <llmlingua, rate={rate}> {long_cat}</llmlingua>"
                );
                let request = tagged_request(&tagged)
                    .with_instruction(instruction)
                    .with_question(question)
                    .with_mode(Exact::default().with_dedupe(false));
                let count = count_cl100k;
                let want = (count(&format!(" {long_cat}")) as f64 * rate).round() as usize
                    + [instruction, fixed, question]
                        .map(count)
                        .iter()
                        .sum::<usize>();
                let result =
                    compress(&request).unwrap_or_else(|error| panic!("{fixed}, {rate}: {error}"));
                // The blank lines between the parts may take a token each; sentences are whole.
                let got = result.tokens_after;
                assert!(
                    (want - 14..=want + 3).contains(&got),
                    "{fixed}, {rate}: wanted {want} tokens, got {got}"
                );
                assert!(result.text.contains(fixed));
            }
        }
    }
    // Nothing may be dropped: nothing is, whatever the rate of the rest would be.
    let contexts = ["Keep me.", "Me too, all of me.", "And me."];
    let tagged = contexts.map(|c| format!("<llmlingua, compress=False>{c}</llmlingua>"));
    let request = Request::new(tagged)
        .with_instruction("Do.")
        .with_structured(true)
        .with_rate(0.1);
    let result = compress(&request).unwrap();
    assert_eq!(result.text, format!("Do.\n\n{}", contexts.join("\n\n")));
}

#[test]
fn what_a_reader_sees_as_one_character_is_never_cut() {
    if tokenizer().is_none() {
        return;
    }
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
                let options = Exact::default()
                    .with_granularity(granularity)
                    .with_dedupe(false)
                    .with_fill(true);
                let request = Request::new([text]).with_tokens(target).with_mode(options);
                let result = compress(&request).unwrap();
                let kept = &result.text;
                for grapheme in kept.graphemes(true) {
                    assert!(
                        whole.contains(&grapheme) || matches!(grapheme, " " | "\n"),
                        "{granularity:?}, {target}: half of a character, {grapheme:?}, in {kept:?}"
                    );
                }
                let tokens = result.tokens_after;
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
    if tokenizer().is_none() {
        return;
    }
    let space = " \n\t".repeat(200);
    for text in [
        format!("Hello world.{space}"),
        format!("{space}Hello world."),
        format!("{space}Hello world.{space}"),
    ] {
        for (target, want) in [(10, "Hello world."), (1000, text.as_str())] {
            let result = compress(&Request::new([&text]).with_tokens(target)).unwrap();
            assert_eq!(result.text, want);
            assert_eq!(result.tokens_after, count_cl100k(want));
        }
    }
}

#[test]
fn white_space_that_must_be_kept_is_kept() {
    if tokenizer().is_none() {
        return;
    }
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
        let options = Exact::default()
            .with_granularity(granularity)
            .with_force_tokens(vec!["\n".into()]);
        for (text, breaks) in [(lines.clone(), 7), (format!("\n\n{lines}\n\n"), 11)] {
            let request = Request::new([text]).with_rate(0.4);
            let result = compress(&request.with_mode(options.clone())).unwrap();
            let kept = &result.text;
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
        for budget in [Budget::Rate(0.3), Budget::Tokens(20)] {
            let result = compress(&tagged_request(&text).with_budget(budget)).unwrap();
            let kept = &result.text;
            assert!(kept.contains(want), "{kept:?}");
        }
    }
    // It does not give way to what may be dropped.
    let text = "Hello world.<llmlingua, compress=False>\n \n\t\n \n</llmlingua>";
    let result = compress(&tagged_request(text).with_tokens(4)).unwrap();
    let kept = &result.text;
    assert!(kept.ends_with("\n \n\t\n \n"), "{kept:?}");
}

#[test]
fn sentences_to_keep_come_first_at_every_granularity() {
    if tokenizer().is_none() {
        return;
    }
    let request = Request::new([
        "Alpha beta gamma delta. One two three four five. Zebra quagmire xylophone.",
        CAT,
        "The sky is blue today. My dog is very friendly. Quantum flux capacitors hum.",
    ])
    .with_rate(0.4);
    for granularity in [
        Granularity::Context,
        Granularity::Passage,
        Granularity::Sentence,
        Granularity::Token,
    ] {
        let options = Exact::default().with_granularity(granularity);
        let kept = |options: Exact| compress(&request.clone().with_mode(options)).unwrap().text;
        let ends = kept(
            options
                .clone()
                .with_keep_first_sentence(1)
                .with_keep_last_sentence(1),
        );
        assert!(
            ends.starts_with("Alpha beta gamma delta.")
                && ends.ends_with("Quantum flux capacitors hum."),
            "{granularity:?}: {ends}"
        );
        let each = kept(options.with_keep_sentence_number(1));
        let whole: usize = request
            .contexts
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
    if tokenizer().is_none() {
        return;
    }
    let request = Request::new(["Short."])
        .with_instruction("A rather long instruction that takes many tokens by itself.")
        .with_tokens(3);
    let refused = compress(&request).unwrap_err();
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
    let question = "Who built the lighthouse of Cape Hollow?";
    let request = Request::new([
        filler("Arden", "castle"),
        filler("Brook", "museum"),
        "The lighthouse of Cape Hollow was built in 1871 by the engineer Maria Stone. It is \
         forty metres tall, and its lamp can be seen from far away. It stands on a rock."
            .into(),
        filler("Dale", "theatre"),
    ])
    .with_question(question)
    .with_rate(0.4);
    let result = engine.compress(&request).unwrap();
    assert!(result.text.contains("Maria Stone"), "{}", result.text);
    assert!(result.text.ends_with(question));
    // The best context stands last.
    assert_eq!(result.contexts.last().map(|kept| kept.index), Some(2));
}

#[test]
fn contexts_are_taken_by_the_scores_that_the_caller_gives() {
    if tokenizer().is_none() {
        return;
    }
    let contexts = [
        "The baker opens at six.",
        "The mayor sails.",
        "A market is held.",
    ];
    let tokens: Vec<usize> = contexts.iter().map(|c| count_cl100k(c)).collect();
    for (scores, best) in [
        ([0.0, 2.0, 1.0], 1),
        ([3.0, 2.0, 1.0], 0),
        ([-3.0, -2.0, -1.0], 2),
    ] {
        for granularity in [
            Granularity::Context,
            Granularity::Passage,
            Granularity::Sentence,
        ] {
            let options = Exact::default()
                .with_granularity(granularity)
                .with_context_scores(scores.to_vec())
                .with_keep_question(false);
            let request = Request::new(contexts)
                .with_question("When does the baker open?")
                .with_tokens(tokens[best])
                .with_mode(options);
            let result = compress(&request).unwrap();
            assert_eq!(result.text, contexts[best], "{granularity:?}, {scores:?}");
        }
        let options = LlmLingua::default()
            .with_context_scores(scores.to_vec())
            .with_context_budget("+0".into())
            .with_use_token_level_filter(false);
        let request = Request::new(contexts).with_tokens(1).with_mode(options);
        let tokenizer = tokenizer().expect("it was looked for");
        let result = hard::compress(&AnyScores, tokenizer, &request).unwrap();
        assert_eq!(result.text, contexts[best]);
    }
    for scores in [vec![1.0], vec![f64::NAN; 3]] {
        for mode in [
            Mode::from(Exact::default().with_context_scores(scores.clone())),
            LlmLingua::default()
                .with_context_scores(scores.clone())
                .into(),
        ] {
            let refused = Request::new(contexts).with_mode(mode).check();
            assert!(
                refused
                    .unwrap_err()
                    .to_string()
                    .starts_with("context_scores")
            );
        }
    }
}
