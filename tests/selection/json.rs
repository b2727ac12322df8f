//! JSON by any budget is JSON, with names and numbers as they were; so are conversations, in which nothing
//! else changes.

use crate::common::fake::{AnyScores, byte_tokenizer};
use prefold::hard::messages::{MessagesOptions, MessagesResult, Reason};
use prefold::hard::{
    self, Budget, Compressed, Count, Exact, JsonConfig, JsonRequest, Omission, Request,
};
use prefold::text::count_cl100k;
use serde_json::{Value, json};

const RESPONSE: &str = include_str!("../data/gallery/response.json");
const CONVERSATION: &str = include_str!("../data/gallery/conversation.json");

fn compress(contexts: &[&str], question: &str, budget: Budget, exact: Exact) -> Compressed {
    let request = Request::new(contexts.iter().copied())
        .with_question(question)
        .with_budget(budget)
        .with_mode(exact);
    hard::compress(&AnyScores, byte_tokenizer(), &request).unwrap()
}

/// Whether `part` is `whole` without some members, items and words of strings.
fn is_left_of(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => part
            .iter()
            .all(|(key, value)| whole.get(key).is_some_and(|own| is_left_of(value, own))),
        (Value::Array(part), Value::Array(whole)) => {
            let mut rest = whole.iter();
            part.iter()
                .all(|value| rest.any(|own| is_left_of(value, own)))
        }
        (Value::String(part), Value::String(whole)) => {
            let mut rest = whole.split_whitespace();
            part.split_whitespace()
                .all(|word| rest.any(|own| own == word))
        }
        _ => part == whole,
    }
}

/// The texts, and what questions they are asked.
fn cases() -> Vec<(String, &'static str)> {
    let whole: Value = serde_json::from_str(RESPONSE).unwrap();
    let rows: Vec<Value> = (0..120)
        .map(|i| json!({"id": 987_654 + i, "name": format!("user {i}"), "score": f64::from(i) / 8.0, "ok": i % 3 == 0}))
        .collect();
    let dictionary: serde_json::Map<String, Value> = (0..80)
        .map(|i| {
            (
                format!("package-{i}"),
                json!({"version": format!("{i}.{}.0", i * 7 % 10), "sha": "0a1b2c3d".repeat(4)}),
            )
        })
        .collect();
    vec![
        (RESPONSE.to_string(), "Which issue is about uploads?"),
        (RESPONSE.to_string(), ""),
        (whole.to_string(), "Who is admin?"),
        (serde_json::to_string(&rows).unwrap(), "What is the score of user 77?"),
        (serde_json::to_string_pretty(&rows).unwrap(), ""),
        (serde_json::to_string(&dictionary).unwrap(), "Which version has package-42?"),
        (serde_json::to_string(&(0..500).collect::<Vec<u32>>()).unwrap(), ""),
        (json!([[1, [2, [3, [4, "x".repeat(300)]]]], {"a": {"b": {"c": "A sentence of words. ".repeat(60)}}}]).to_string(), ""),
    ]
}

#[test]
fn json_parses_at_every_rate_and_budget() {
    for (text, question) in cases() {
        let value: Value = serde_json::from_str(&text).unwrap();
        let budgets = (1..20).map(|i| Budget::Rate(f64::from(i) * 0.05));
        let budgets = budgets.chain([5, 17, 60, 250, 1000, 5000].map(Budget::Tokens));
        for budget in budgets {
            let exact = Exact::default().with_keep_question(false);
            let result = compress(&[&text], question, budget, exact);
            let left: Value = serde_json::from_str(&result.text)
                .unwrap_or_else(|error| panic!("{error} at {budget:?}: {}", result.text));
            assert!(is_left_of(&left, &value), "{budget:?}: {}", result.text);
            assert!(result.tokens_after <= result.target.unwrap(), "{budget:?}");
            assert_eq!(result.tokens_after, count_cl100k(&result.text));
            if let Some(kept) = result.contexts.first() {
                assert_eq!(kept.text, result.text);
                let mut rest = kept.text.as_str();
                for span in &kept.spans {
                    let own = &text[span.clone()];
                    let at = rest.find(own).expect("spans are verbatim and in order");
                    assert!(
                        [" ", "\\n", "\\n\\n", ""].contains(&&rest[..at]),
                        "{:?}",
                        &rest[..at]
                    );
                    rest = &rest[at + own.len()..];
                }
            }
        }
    }
}

#[test]
fn most_of_a_budget_is_used() {
    for (text, question) in cases().into_iter().take(6) {
        for rate in [0.25, 0.5, 0.75] {
            let exact = Exact::default()
                .with_keep_question(false)
                .with_dedupe(false);
            let result = compress(&[&text], question, Budget::Rate(rate), exact);
            let (target, after) = (result.target.unwrap(), result.tokens_after);
            assert!(
                after * 10 >= target * 8,
                "{after} of {target} at {rate}: {}",
                &text[..60]
            );
        }
    }
}

#[test]
fn the_question_finds_its_record() {
    let exact = Exact::default().with_keep_question(false);
    let question = "Which issue is about search and umlauts?";
    let result = compress(&[RESPONSE], question, Budget::Rate(0.2), exact);
    let left: Value = serde_json::from_str(&result.text).unwrap();
    let titles: Vec<&str> = left["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|item| item["title"].as_str())
        .collect();
    assert!(
        titles.contains(&"search ignores umlauts"),
        "{}",
        result.text
    );
}

#[test]
fn what_arrays_lost_is_said_on_request() {
    let rows: Vec<Value> = (0..40)
        .map(|i| json!({"id": i, "name": format!("name {i}")}))
        .collect();
    let text = serde_json::to_string(&rows).unwrap();
    let with = |omission| {
        let exact = Exact::default()
            .with_keep_question(false)
            .with_omitted_items(omission);
        let result = compress(&[&text], "", Budget::Rate(0.3), exact);
        assert!(result.tokens_after <= result.target.unwrap());
        serde_json::from_str::<Vec<Value>>(&result.text).unwrap()
    };
    let strings = |left: &[Value]| -> Vec<String> {
        left.iter()
            .filter_map(|item| Some(item.as_str()?.to_string()))
            .collect()
    };
    assert!(strings(&with(Omission::Silent)).is_empty());
    assert_eq!(strings(&with(Omission::Element)), ["…"]);
    let counted = with(Omission::Count);
    let lost = rows.len() - (counted.len() - 1);
    assert_eq!(strings(&counted), [format!("… {lost} of 40 items omitted")]);
}

#[test]
fn json_among_other_contexts_is_json_or_absent() {
    let prose =
        "The mill stands by the river. It was built in 1901. Nine people work there. ".repeat(20);
    for tokens in [30, 120, 600] {
        let result = compress(
            &[RESPONSE, &prose],
            "When was the mill built?",
            Budget::Tokens(tokens),
            Exact::default(),
        );
        assert!(result.tokens_after <= tokens);
        for kept in &result.contexts {
            if kept.index == 0 {
                assert!(
                    serde_json::from_str::<Value>(&kept.text).is_ok(),
                    "{}",
                    kept.text
                );
            }
        }
    }
    let exact = Exact::default().with_as_kind(Some(hard::ContentKind::Json));
    let request = Request::new([RESPONSE, "no JSON"]).with_mode(exact);
    let error = hard::compress(&AnyScores, byte_tokenizer(), &request).unwrap_err();
    assert!(
        error.to_string().contains("context 1 is not JSON"),
        "{error}"
    );
}

#[test]
fn budgets_by_other_counts_hold_too() {
    for count in [Count::O200k, Count::Scorer] {
        let exact = Exact::default()
            .with_keep_question(false)
            .with_count(count.clone());
        let result = compress(&[RESPONSE], "", Budget::Rate(0.4), exact);
        assert_eq!(
            result.tokens_before,
            count.tokens(RESPONSE.trim(), byte_tokenizer()).unwrap()
        );
        assert_eq!(
            result.tokens_after,
            count.tokens(&result.text, byte_tokenizer()).unwrap()
        );
        assert!(result.tokens_after <= result.target.unwrap());
    }
}

fn config(rate: f64, pair_remove: bool) -> JsonConfig {
    let entry = |compress: bool, value_type: &str| json!({"rate": rate, "compress": compress, "value_type": value_type, "pair_remove": pair_remove});
    serde_json::from_value(json!({
        "id": entry(true, "int"), "name": entry(false, "str"), "text": entry(true, "str"),
        "tags": entry(true, "list"), "more": entry(true, "dict")
    }))
    .unwrap()
}

#[test]
fn compress_json_keeps_names_numbers_and_types() {
    let text: String = (0..30)
        .map(|i| format!("Sentence {i} tells of the number {i},{i}00. "))
        .collect();
    let data = json!({
        "id": 987654, "name": "A, name, with < and \"quotes\"", "text": text,
        "tags": (0..60).map(|i| format!("tag {i}")).collect::<Vec<_>>(),
        "more": {"first": 1.5, "long": text, "last": null}
    });
    for rate in (1..20).map(|i| f64::from(i) * 0.05) {
        for pair_remove in [false, true] {
            for drop_members in [false, true] {
                let mut request = JsonRequest::new(data.to_string(), config(rate, pair_remove));
                request.drop_members = drop_members;
                request.question = "What does sentence 17 tell?".into();
                let result = hard::compress_json(&AnyScores, byte_tokenizer(), &request).unwrap();
                let left: Value = serde_json::from_str(&result.text).unwrap();
                assert!(is_left_of(&left, &data), "{}", result.text);
                assert_eq!(left["name"], data["name"]);
                if !pair_remove || !drop_members {
                    assert_eq!(left["id"], 987654);
                    let names = |value: &Value| {
                        value
                            .as_object()
                            .unwrap()
                            .keys()
                            .cloned()
                            .collect::<Vec<_>>()
                    };
                    assert_eq!(names(&left), names(&data), "{}", result.text);
                }
                let tokens = |value: &Value| count_cl100k(&value.to_string()) as f64;
                let all = tokens(&data);
                let kept = result.tokens_after as f64;
                assert!(kept < all * (rate + 0.25), "{kept} of {all} at {rate}");
            }
        }
    }
    // A number of tokens is a ceiling, and an error where it cannot be.
    let mut request = JsonRequest::new(data.to_string(), config(0.5, false));
    request.target = Some(300);
    let result = hard::compress_json(&AnyScores, byte_tokenizer(), &request).unwrap();
    assert!(result.tokens_after <= 300);
    request.target = Some(10);
    let error = hard::compress_json(&AnyScores, byte_tokenizer(), &request).unwrap_err();
    assert!(matches!(error, prefold::Error::Budget { .. }), "{error}");
}

fn shorten(body: &str, options: &MessagesOptions) -> MessagesResult {
    hard::compress_messages(&AnyScores, byte_tokenizer(), body.as_bytes(), options).unwrap()
}

#[test]
fn a_conversation_keeps_all_but_results_and_old_turns() {
    let before: Value = serde_json::from_str(CONVERSATION).unwrap();
    for rate in (1..20).map(|i| f64::from(i) * 0.05) {
        let options = MessagesOptions::default()
            .with_budget(Budget::Rate(rate))
            .with_min_tokens(50)
            .with_min_saving(0.0);
        let result = shorten(CONVERSATION, &options);
        let text = String::from_utf8(result.body).unwrap();
        let after: Value = serde_json::from_str(&text).unwrap();
        for fixed in ["model", "max_tokens", "system", "tools"] {
            assert_eq!(after[fixed], before[fixed]);
        }
        let (is, was) = (&after["messages"], &before["messages"]);
        assert_eq!(is[1]["content"][0], was[1]["content"][0]);
        assert_eq!(is[2], was[2]);
        assert_eq!(is[3], was[3]);
        assert!(is_left_of(&after, &before));
        // Call and result stay paired.
        for i in 0..2 {
            assert_eq!(
                is[4]["content"][i]["tool_use_id"],
                was[3 + 1]["content"][i]["tool_use_id"]
            );
        }
        // Whole lines of the listing.
        let lines = |value: &Value| {
            value
                .as_str()
                .unwrap()
                .lines()
                .map(String::from)
                .collect::<Vec<_>>()
        };
        let all = lines(&was[4]["content"][0]["content"]);
        assert!(
            lines(&is[4]["content"][0]["content"])
                .iter()
                .all(|line| all.contains(line))
        );
        let changed = result.decisions.iter().filter(|d| d.after < d.before);
        for decision in changed {
            assert!(matches!(decision.why, Reason::ToolResult | Reason::OldTurn));
            assert!(decision.after as f64 <= (decision.before as f64 * rate).round() + 0.5);
        }
        assert!(result.tokens_after < result.tokens_before);
    }
}

#[test]
fn a_conversation_has_a_budget_as_a_whole() {
    let options = |tokens| {
        MessagesOptions::default()
            .with_budget(Budget::Tokens(tokens))
            .with_min_tokens(50)
    };
    let all = shorten(CONVERSATION, &options(1 << 20));
    assert_eq!(all.body, CONVERSATION.as_bytes());
    for share in [0.5, 0.7, 0.9] {
        let target = (all.tokens_before as f64 * share) as usize;
        let result = shorten(CONVERSATION, &options(target));
        assert!(
            result.tokens_after <= target && result.tokens_after * 10 >= target * 8,
            "{} of {target}",
            result.tokens_after
        );
        assert!(serde_json::from_slice::<Value>(&result.body).is_ok());
    }
    let error = hard::compress_messages(
        &AnyScores,
        byte_tokenizer(),
        CONVERSATION.as_bytes(),
        &options(20),
    );
    assert!(error.unwrap_err().to_string().contains("must not change"));
}

#[test]
fn a_result_that_is_json_stays_json() {
    let body = json!({"messages": [
        {"role": "user", "content": "Which issue is about uploads?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "list_issues", "arguments": "{\"repo\": \"x\"}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": RESPONSE}]});
    for rate in [0.1, 0.3, 0.6] {
        let options = MessagesOptions::default().with_budget(Budget::Rate(rate));
        let result = shorten(&body.to_string(), &options);
        let after: Value = serde_json::from_slice(&result.body).unwrap();
        let content = after["messages"][2]["content"].as_str().unwrap();
        let left: Value = serde_json::from_str(content).unwrap();
        assert!(is_left_of(&left, &serde_json::from_str(RESPONSE).unwrap()));
        assert!(content.len() < RESPONSE.len() * 8 / 10);
    }
}
