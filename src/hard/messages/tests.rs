//! Bodies of the three interfaces: what may change, against what, and that nothing else does.

use std::cell::RefCell;

use serde_json::{Value, json};

use super::*;
use crate::hard::Budget;
use crate::random::Random;

/// Keeps the first words of a text, a token each.
fn first_words(tasks: &[Task]) -> Vec<Result<String>> {
    let short = |task: &Task| {
        task.text
            .split(' ')
            .take(task.target)
            .collect::<Vec<_>>()
            .join(" ")
    };
    tasks.iter().map(|task| Ok(short(task))).collect()
}

fn words(text: &str) -> Result<usize> {
    Ok(text.split(' ').count())
}

fn options() -> MessagesOptions {
    MessagesOptions {
        min_tokens: 10,
        ..MessagesOptions::default()
    }
}

fn run(body: &str, options: &MessagesOptions) -> MessagesResult {
    shorten_parts(body.as_bytes(), options, &words, &first_words).unwrap()
}

/// The reasons in order, and the questions that texts were ranked by.
fn reasons(body: &Value, options: &MessagesOptions) -> (Vec<Reason>, Vec<String>) {
    let asked = RefCell::new(Vec::new());
    let shorten = |tasks: &[Task]| {
        asked
            .borrow_mut()
            .extend(tasks.iter().map(|task| task.question.clone()));
        first_words(tasks)
    };
    let body = serde_json::to_string(body).unwrap();
    let result = shorten_parts(body.as_bytes(), options, &words, &shorten).unwrap();
    (
        result
            .decisions
            .iter()
            .map(|decision| decision.why)
            .collect(),
        asked.into_inner(),
    )
}

fn long(word: &str) -> String {
    format!("{word} ").repeat(40).trim_end().to_string()
}

#[test]
fn chat_completions() {
    use Reason::*;
    let body = json!({"model": "m", "temperature": 0.7, "messages": [
        {"role": "system", "content": long("system")},
        {"role": "developer", "content": [{"type": "text", "text": long("developer")}]},
        {"role": "user", "content": long("old")},
        {"role": "assistant", "content": long("answer"), "reasoning_content": long("think")},
        {"role": "user", "content": [
            {"type": "text", "text": "How deep is the lake?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{\"q\": \"lake\"}"}},
            {"id": "c2", "type": "function", "function": {"name": "read", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c2", "content": long("two")},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": long("one")}]},
        {"role": "tool", "tool_call_id": "c9", "content": "short"},
        {"role": "assistant", "content": long("after")}]});
    let (why, asked) = reasons(&body, &options());
    assert_eq!(
        why,
        [
            System, System, OldTurn, Thinking, OldTurn, NewestTurn, NotText, ToolCall, ToolCall,
            ToolResult, ToolResult, Short, NewestTurn
        ]
    );
    let question = "How deep is the lake?";
    assert_eq!(
        asked,
        [
            question.to_string(),
            question.to_string(),
            format!("read {{}}\n{question}"),
            format!("look_up {{\"q\": \"lake\"}}\n{question}")
        ]
    );
}

#[test]
fn anthropic_messages() {
    use Reason::*;
    let body = json!({"system": [{"type": "text", "text": long("system")}], "messages": [
        {"role": "user", "content": [
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": long("doc")}},
            {"type": "document", "source": {"type": "base64", "data": "AAAA"}},
            {"type": "document", "source": {"type": "text", "data": long("cited")}, "citations": {"enabled": true}},
            {"type": "text", "text": long("old")}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": long("t"), "signature": "s"},
            {"type": "redacted_thinking", "data": "AA"},
            {"type": "text", "text": long("cites"), "citations": [{"start_char_index": 3}]}]},
        {"role": "user", "content": "Which file fails?"},
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "t1", "name": "bash", "input": {"cmd": "make"}},
            {"type": "tool_use", "id": "t2", "name": "bash", "input": {"cmd": "ls"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "is_error": true, "content": long("broken")},
            {"type": "tool_result", "tool_use_id": "t2", "content": [
                {"type": "text", "text": long("listing")},
                {"type": "image", "source": {"type": "base64", "data": "AA"}}]}]}]});
    let (why, asked) = reasons(&body, &options());
    assert_eq!(
        why,
        [
            System,
            Document,
            NotText,
            Annotated,
            OldTurn,
            Thinking,
            NotText,
            Annotated,
            NewestTurn,
            ToolCall,
            ToolCall,
            ErrorOutput,
            ToolResult,
            NotText
        ]
    );
    assert_eq!(asked[2], "bash {\"cmd\":\"ls\"}\nWhich file fails?");
}

#[test]
fn responses() {
    use Reason::*;
    let body = json!({"instructions": long("i"), "input": [
        {"role": "user", "content": [{"type": "input_text", "text": long("old")}]},
        {"type": "message", "role": "assistant", "content": [
            {"type": "output_text", "text": long("said"), "annotations": []},
            {"type": "output_text", "text": long("cited"), "annotations": [{"index": 3}]}]},
        {"role": "user", "content": "And the mill?"},
        {"type": "reasoning", "id": "r", "encrypted_content": "AA", "summary": []},
        {"type": "function_call", "id": "f", "call_id": "k", "name": "find", "arguments": "{\"a\":1}"},
        {"type": "function_call_output", "call_id": "k", "output": long("found")},
        {"type": "item_reference", "id": "x"}]});
    let (why, asked) = reasons(&body, &options());
    assert_eq!(
        why,
        [
            System, OldTurn, OldTurn, Annotated, NewestTurn, Thinking, ToolCall, ToolResult,
            NotText
        ]
    );
    assert_eq!(asked[2], "find {\"a\":1}\nAnd the mill?");
    let (why, _) = reasons(&json!({"input": long("all")}), &options());
    assert_eq!(why, [NewestTurn]);
    // A bare list of messages.
    let (why, _) = reasons(
        &json!([{"role": "user", "content": long("a")}, {"role": "user", "content": "b"}]),
        &options(),
    );
    assert_eq!(why, [OldTurn, NewestTurn]);
}

#[test]
fn what_stands_before_a_cache_marker_does_not_change() {
    use Reason::*;
    let result = |id: &str, cached: bool| {
        let mut block = json!({"type": "tool_result", "tool_use_id": id, "content": long(id)});
        if cached {
            block["cache_control"] = json!({"type": "ephemeral"});
        }
        block
    };
    let body = |marks: [bool; 3]| {
        json!({"messages": [
            {"role": "user", "content": long("old")},
            {"role": "user", "content": "Why?"},
            {"role": "user", "content": [result("a", marks[0]), result("b", marks[1]), result("c", marks[2])]}]})
    };
    let why = |body: &Value| reasons(body, &options()).0;
    let (old, kept, short) = (OldTurn, Cached, ToolResult);
    assert_eq!(
        why(&body([false; 3])),
        [old, NewestTurn, short, short, short]
    );
    assert_eq!(
        why(&body([false, true, false])),
        [kept, NewestTurn, kept, kept, short]
    );
    assert_eq!(
        why(&body([false, false, true])),
        [kept, NewestTurn, kept, kept, kept]
    );
    // A marker of tools or of the system prompt stands before all messages.
    let mut system = body([false; 3]);
    system["system"] =
        json!([{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]);
    system["tools"] = json!([{"name": "x", "cache_control": {"type": "ephemeral"}}]);
    assert_eq!(why(&system), [System, old, NewestTurn, short, short, short]);
    let mut all = body([false; 3]);
    all["cache_control"] = json!({"type": "ephemeral"});
    assert_eq!(why(&all), [kept, NewestTurn, kept, kept, kept]);
}

#[test]
fn each_role_has_its_policy() {
    use Reason::*;
    let body = json!({"messages": [
        {"role": "user", "content": long("u")}, {"role": "assistant", "content": long("a")},
        {"role": "tool", "name": "t", "content": long("r")}, {"role": "user", "content": "q"},
        {"role": "tool", "name": "t", "content": format!("{}\nTraceback (most recent call last):\n", long("r"))}]});
    let with = |set: fn(&mut MessagesOptions)| {
        let mut options = options();
        set(&mut options);
        options
    };
    let why = |options: &MessagesOptions| reasons(&body, options).0;
    assert_eq!(
        why(&options()),
        [OldTurn, OldTurn, ToolResult, NewestTurn, ErrorOutput]
    );
    let keep = with(|o| {
        o.user = super::Policy::Keep;
        o.errors_up_to = 20;
        o.recent = 3;
    });
    assert_eq!(
        why(&keep),
        [super::Reason::Policy, OldTurn, Recent, NewestTurn, Recent]
    );
    let errors = with(|o| o.errors_up_to = 20);
    assert_eq!(why(&errors)[4], ToolResult);
    let own = with(|o| {
        o.user = super::Policy::Rate(0.25);
        o.assistant = super::Policy::Rate(1.0);
    });
    let result = run(&body.to_string(), &own);
    let after: Vec<usize> = result
        .decisions
        .iter()
        .map(|decision| decision.after)
        .collect();
    assert_eq!(after[..4], [10, 40, 20, 1]);
    assert_eq!(result.decisions[1].why, HardlyShorter);
    let named = with(|o| o.question = Some("What else?".into()));
    assert_eq!(reasons(&body, &named).1, ["What else?"; 3]);
}

#[test]
fn a_target_holds_for_the_whole_conversation() {
    let body = json!({"messages": [
        {"role": "system", "content": long("s")}, {"role": "user", "content": long("a")},
        {"role": "tool", "content": format!("{} {}", long("b"), long("b"))},
        {"role": "user", "content": "one two"}]})
    .to_string();
    let with = |target| MessagesOptions {
        budget: Budget::Tokens(target),
        ..options()
    };
    for target in [44, 50, 100, 150, 161] {
        let result = run(&body, &with(target));
        assert_eq!(result.tokens_before, 162);
        assert!(result.tokens_after <= target && result.tokens_after + 3 > target);
    }
    assert_eq!(run(&body, &with(162)).body, body.as_bytes());
    for target in [0, 41, 43] {
        let error =
            shorten_parts(body.as_bytes(), &with(target), &words, &first_words).unwrap_err();
        let needed = if target == 43 {
            "is 44 tokens"
        } else {
            "is 42 tokens"
        };
        assert!(error.to_string().contains(needed), "{error}");
    }
}

#[test]
fn every_other_byte_is_copied() {
    let head = "\u{feff} {\n\t\"messages\" :[ {\"role\":\"tool\", \"x\": 1.50e+03, \"content\": \"";
    let text = r#"caf\u00e9 \"a\" \/ \ud83d\ude00 one two three four five six seven eight nine ten \n eleven twelve"#;
    let tail = "\" , \"tool_call_id\":\"\\u0061\" } , {\"role\":\"user\",\"content\":\"caf\u{e9}\"}], \"n\": -0}\n";
    let body = format!("{head}{text}{tail}");
    let result = run(&body, &options());
    let left = r#""caf\u00e9 \"a\" / \ud83d\ude00 one two three four five""#;
    assert_eq!(
        String::from_utf8(result.body).unwrap(),
        format!(
            "{head}{}{tail}",
            left.trim_matches('"').trim_end_matches('\\')
        )
    );
}

#[test]
fn what_comes_out_differs_in_shortened_strings_alone() {
    let mut random = Random(11);
    let mut shortened = 0;
    for _ in 0..200 {
        let mut messages = Vec::new();
        for i in 0..random.below(9) {
            let text = [
                "caf\u{e9} \\ \"q\" ",
                "line\nbreak ",
                "\u{1f600} ",
                "w\u{1} ",
            ][random.below(4)]
            .repeat(random.below(30));
            messages.push(match random.below(5) {
                0 => json!({"role": "user", "content": text}),
                1 => json!({"role": "assistant", "content": [{"type": "text", "text": text}], "tool_calls":
                    [{"id": format!("c{i}"), "function": {"name": "f", "arguments": "{}"}}]}),
                2 => json!({"role": "tool", "tool_call_id": format!("c{}", random.below(9)), "content": text}),
                3 => json!({"role": "user", "content": [{"type": "tool_result", "content": [
                    {"type": "text", "text": text, "cache_control": if random.below(9) == 0 { json!({}) } else { Value::Null }}]}]}),
                _ => json!({"type": "function_call_output", "call_id": 7, "output": text}),
            });
        }
        let value = json!({"stream": true, "messages": messages, "top_p": 0.1});
        let body = match random.below(2) {
            0 => serde_json::to_string(&value),
            _ => serde_json::to_string_pretty(&value),
        }
        .unwrap();
        let result = run(&body, &options());
        let after = String::from_utf8(result.body).unwrap();
        // The bytes outside of the strings that changed are those of the body, in order.
        let (was, is) = (Tree::parse(&body).unwrap(), Tree::parse(&after).unwrap());
        assert_eq!(was.nodes.len(), is.nodes.len());
        let (mut at, mut now, mut changed) = (0, 0, 0);
        let mut places: Vec<usize> = (0..was.nodes.len()).collect();
        places.sort_by_key(|&node| was.nodes[node].value.start);
        for node in places {
            if was.raw(node) != is.raw(node) && was.nodes[node].children.is_empty() {
                let (from, to) = (&was.nodes[node].value, &is.nodes[node].value);
                assert_eq!(body[at..from.start], after[now..to.start]);
                (at, now) = (from.end, to.end);
                changed += 1;
            }
        }
        assert_eq!(body[at..], after[now..]);
        let wanted = result
            .decisions
            .iter()
            .filter(|d| d.after < d.before)
            .count();
        assert_eq!(changed, wanted);
        shortened += changed;
    }
    assert!(shortened > 100, "{shortened}");
}

#[test]
fn what_is_not_a_text_stays() {
    let long = long("x");
    let half = format!("\"{long} \\ud83d {long}\"");
    for content in [
        half.as_str(),
        "17",
        "{\"a\": [1, 2]}",
        "null",
        "[3]",
        "[[\"x\"]]",
    ] {
        let body = format!(
            "[{{\"role\":\"tool\",\"content\":{content}}},{{\"role\":\"user\",\"content\":\"q\"}}]"
        );
        let result = run(&body, &options());
        assert_eq!(result.body, body.as_bytes());
        let block = format!(
            "[{{\"role\":\"tool\",\"content\":[{{\"type\":\"text\",\"text\":{content}}}]}},{{\"role\":\"user\",\"content\":\"q\"}}]"
        );
        let result = run(&block, &options());
        assert_eq!(result.body, block.as_bytes());
        assert_eq!(result.decisions[0].why, Reason::NotText);
    }
}

#[test]
fn bodies_that_are_none_are_refused_in_a_line() {
    for (body, says) in [
        (&b"{"[..], "not JSON"),
        (b"{\"model\": 1}", "neither `messages` nor `input`"),
        (b"{\"messages\": 3}", "neither `messages` nor `input`"),
        (b"\xff", "not UTF-8"),
        (b"7", "neither"),
    ] {
        let error = shorten_parts(body, &options(), &words, &first_words)
            .unwrap_err()
            .to_string();
        assert!(error.contains(says) && !error.contains('\n'), "{error}");
    }
    assert_eq!(run("{\"messages\": []}", &options()).decisions, []);
    for bad in [0.0, 1.5, f64::NAN] {
        let rate = MessagesOptions {
            budget: Budget::Rate(bad),
            ..options()
        };
        let policy = MessagesOptions {
            user: Policy::Rate(bad),
            ..options()
        };
        assert!(rate.check().is_err() && policy.check().is_err());
    }
}

#[test]
fn stack_traces_are_seen_and_prose_is_not() {
    use Reason::*;
    let why = |text: &str| {
        let content = format!("{}\n{text}\n{}", long("x"), long("y"));
        reasons(
            &json!([{"role": "tool", "content": content}, {"role": "user", "content": "q"}]),
            &options(),
        )
        .0[0]
    };
    for trace in [
        "thread 'main' (7) panicked at src/main.rs:2:5:",
        "Exception in thread \"main\" java.lang.IllegalStateException",
        "    at com.example.Main.run(Main.java:17)",
        "    at Object.<anonymous> (/app/index.js:3:9)",
        "goroutine 1 [running]:",
        "error[E0502]: cannot borrow\n  --> src/lib.rs:3:1",
        "main.c:3:5: error: expected ';'",
        "E   AssertionError: assert 1 == 2",
    ] {
        assert_eq!(why(trace), ErrorOutput, "{trace}");
    }
    for prose in [
        "an error: it was cold",
        "We met at noon (all of us).",
        "panic at the disco",
    ] {
        assert_eq!(why(prose), ToolResult, "{prose}");
    }
}

#[test]
fn marked_contexts_are_shortened_where_they_stand() {
    use Reason::*;
    let marking = || {
        options()
            .with_context_tags(vec!["context".into(), "doc".into()])
            .with_user(super::Policy::Keep)
    };
    let text = format!(
        "Read this. <context>{}</context> and <doc id=\"2\">{}</doc> but not <contexts>{}</contexts>. Why?",
        long("a"),
        long("b"),
        long("c")
    );
    let body = json!({"messages": [
        {"role": "user", "content": text}, {"role": "assistant", "content": "so"},
        {"role": "user", "content": format!("<context>{}</context> Which?", long("d"))}]});
    let (why, asked) = reasons(&body, &marking());
    assert_eq!(why, [Document, Policy, Document]);
    assert_eq!(asked, vec!["<context></context> Which?"; 3]);
    let result = run(&body.to_string(), &marking());
    let out: Value = serde_json::from_slice(&result.body).unwrap();
    let half = |word: &str| vec![word; 20].join(" ");
    let want = text
        .replace(&long("a"), &half("a"))
        .replace(&long("b"), &half("b"));
    assert_eq!(out["messages"][0]["content"], want);
    let count = |text: &str| words(text).unwrap();
    assert_eq!(
        (result.decisions[0].before, result.decisions[0].after),
        (count(&text), count(&want))
    );
    // Where the whole turn is shortened its marks are text, and without names nothing is marked.
    let (why, asked) = reasons(&body, &marking().with_user(super::Policy::Shorten));
    assert_eq!((&why[0], asked.len()), (&OldTurn, 2));
    let kept = marking().with_context_tags(Vec::new());
    assert_eq!(
        run(&body.to_string(), &kept).body,
        body.to_string().as_bytes()
    );
    // What has no end, or is short, stays; a prompt is a text of the user.
    for text in [
        format!("<context>{}", long("a")),
        format!("<context>{}</context>", "a b c"),
        format!("<context {}</context>", long("a")),
        "<context></context><".into(),
    ] {
        let body = json!({"prompt": text}).to_string();
        assert_eq!(run(&body, &marking()).body, body.as_bytes(), "{text}");
    }
    let body = json!({"prompt": format!("<context>{}</context>", long("a"))}).to_string();
    assert_eq!(run(&body, &marking()).decisions[0].why, Document);
    assert!(
        marking()
            .with_context_tags(vec!["a b".into()])
            .check()
            .is_err()
    );
}

#[test]
fn marked_contexts_share_a_budget_in_tokens() {
    let body = json!({"messages": [{"role": "user",
        "content": format!("<context>{}</context> Which of these {}?", long("d"), long("e"))},
        {"role": "tool", "content": long("t")}]});
    for target in [60, 80, 100, 119] {
        let marking = options()
            .with_context_tags(vec!["context".into()])
            .with_budget(Budget::Tokens(target));
        let result = run(&body.to_string(), &marking);
        assert!(
            result.tokens_after <= target,
            "{} of {target}",
            result.tokens_after
        );
        assert!(result.tokens_after + 12 >= target);
    }
}

#[test]
fn a_cache_marker_covers_marked_contexts() {
    let marking = options().with_context_tags(vec!["context".into()]);
    let text = format!("<context>{}</context> Which?", long("d"));
    let body = json!({"messages": [{"role": "user", "content": [
        {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}]}]});
    assert_eq!(
        run(&body.to_string(), &marking).body,
        body.to_string().as_bytes()
    );
    // What it became when it was first sent is put in again.
    let frozen = |tasks: &[Task]| {
        assert_eq!(tasks[0].text, long("d"));
        vec![Some("d d".to_string())]
    };
    let result = compress_frozen(
        body.to_string().as_bytes(),
        &marking,
        &words,
        &first_words,
        &frozen,
    );
    let out: Value = serde_json::from_slice(&result.unwrap().body).unwrap();
    assert_eq!(
        out["messages"][0]["content"][0]["text"],
        "<context>d d</context> Which?"
    );
}
