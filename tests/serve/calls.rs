//! The server's own calls.

use prefold::hard::Request;
use serde_json::{Value, json};

use super::client::{get, post, request};
use super::{common::TempDir, document, engine, server};

#[test]
fn what_says_that_it_is_there() {
    let Some(server) = server(|_| ()) else { return };
    let address = server.address();
    assert_eq!(get(address, "/livez").json()["status"], "ok");
    assert_eq!(get(address, "/readyz").json()["status"], "ready");
    assert_eq!(get(address, "/status").json()["status"], "ok");
    let health = get(address, "/health").json();
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert!(health["model"].as_str().unwrap().contains("SmolLM2"));
    let interface = get(address, "/openapi.json").json();
    assert!(interface["openapi"].as_str().unwrap().starts_with("3."));
    let page = get(address, "/");
    assert!(page.text().contains("</html>"));
    assert!(
        page.header("content-security-policy")
            .unwrap()
            .contains("frame-ancestors 'none'")
    );
    let metrics = get(address, "/metrics").text();
    assert!(
        metrics.contains("prefold_requests_total{route=\"health\",status=\"200\"} 1"),
        "{metrics}"
    );
    assert!(metrics.ends_with("# EOF\n"));
    // Without an upstream there is nothing to forward to.
    assert_eq!(get(address, "/v1/models").status, 404);
    assert_eq!(get(address, "/v1/compress").status, 405);
}

#[test]
fn a_conversation_comes_back_with_its_long_results_shortened() {
    let Some(server) = server(|_| ()) else { return };
    let messages = json!([
        {"role": "system", "content": document(1)},
        {"role": "user", "content": document(2)},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function",
            "function": {"name": "read", "arguments": "{\"a\": 1.0}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": document(3)},
        {"role": "user", "content": "Who painted the wall?"}]);
    let body = json!({"model": "gpt-4o", "messages": messages, "config": {"target_ratio": 0.4, "other": []}});
    let response = post(server.address(), "/v1/compress", &body);
    assert_eq!(response.status, 200);
    assert_eq!(response.header("x-prefold-status"), Some("compressed"));
    let answer = response.json();
    for place in [0, 1, 2, 4] {
        assert_eq!(answer["messages"][place], messages[place]);
    }
    let (before, after) = (&answer["tokens_before"], &answer["tokens_after"]);
    let (before, after) = (before.as_u64().unwrap(), after.as_u64().unwrap());
    assert_eq!(answer["tokens_saved"], before - after);
    assert_eq!(answer["compression_ratio"], after as f64 / before as f64);
    assert_eq!(answer["transforms_applied"], json!(["prefold:tool_result"]));
    assert_eq!(answer["ccr_hashes"], json!([]));
    let decision = &answer["decisions"][3];
    assert_eq!(
        (&decision["message"], &decision["why"]),
        (&json!(3), &json!("tool_result"))
    );
    let (own_before, own_after) = (&decision["before"], &decision["after"]);
    let share = own_after.as_f64().unwrap() / own_before.as_f64().unwrap();
    assert!((0.25..=0.405).contains(&share), "{share}");
    let tokens: u64 = answer["decisions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["after"].as_u64().unwrap())
        .sum();
    assert_eq!(tokens, after);

    // A budget for the whole is kept to.
    let budget = json!({"messages": messages, "token_budget": before - 200});
    let answer = post(server.address(), "/v1/compress", &budget).json();
    assert!(
        answer["tokens_after"].as_u64().unwrap() <= before - 200,
        "{answer}"
    );
    // One that cannot be met leaves everything.
    let answer = post(
        server.address(),
        "/v1/compress",
        &json!({"messages": messages, "token_budget": 9}),
    );
    assert_eq!(answer.header("x-prefold-reason"), Some("budget"));
    assert_eq!(answer.json()["messages"], messages);
    // Bypassed, it is not looked at.
    let text = serde_json::to_vec(&body).unwrap();
    let headers = [("x-headroom-bypass", "true")];
    let answer = request(server.address(), "POST", "/v1/compress", &headers, &text).json();
    assert_eq!(
        (&answer["messages"], &answer["status"]),
        (&messages, &json!("off"))
    );
    assert_eq!(answer["compression_ratio"], 1.0);
}

#[test]
fn audit_measures_and_changes_nothing() {
    let Some(server) = server(|_| ()) else { return };
    let messages = json!([{"role": "user", "content": "Who?"},
        {"role": "tool", "tool_call_id": "c", "content": document(3)}]);
    let body = json!({"messages": messages, "prefold": {"mode": "audit", "rate": 0.3}});
    let answer = post(server.address(), "/v1/compress", &body).json();
    assert_eq!(answer["messages"], messages);
    assert_eq!(answer["status"], "audit");
    assert!(answer["tokens_after"].as_u64() < answer["tokens_before"].as_u64());
    assert_eq!(answer["transforms_applied"], json!([]));
}

#[test]
fn what_must_not_be_cut_is_not_cut() {
    let Some(server) = server(|o| o.min_tokens = 20) else {
        return;
    };
    let list: Vec<Value> = (0..40)
        .map(|i| json!({"id": i, "note": document(i)[..60]}))
        .collect();
    let texts = [
        ("short", "A short result.".to_string()),
        (
            "diff",
            format!(
                "diff --git a/x b/x\n@@ -1,3 +1,3 @@\n-{0}\n+{0}\n",
                document(4)
            ),
        ),
        (
            "matches",
            (0..60)
                .map(|i| format!("src/a.rs:{i}:let x{i} = {i} + y;\n"))
                .collect(),
        ),
        (
            "code",
            (0..40)
                .map(|i| {
                    format!("fn f{i}(x: u32) -> u32 {{\n    let y = x + {i};\n    y * 2\n}}\n")
                })
                .collect(),
        ),
        (
            "trace",
            format!(
                "Traceback (most recent call last):\n  File \"x.py\", line 3\n{}",
                document(5)
            ),
        ),
    ];
    for (name, text) in texts {
        let messages = json!([{"role": "user", "content": "Why?"},
            {"role": "tool", "tool_call_id": "c", "content": text}]);
        let answer = post(
            server.address(),
            "/v1/compress",
            &json!({"messages": messages}),
        )
        .json();
        assert_eq!(answer["messages"], messages, "{name}");
    }
    // JSON and fences are whole, however much of them is left.
    let fenced = format!(
        "{}\n```rust\nfn main() {{\n    run();\n}}\n```\n{}",
        document(6),
        document(7)
    );
    for rate in [0.1, 0.3, 0.6] {
        for text in [json!(list).to_string(), fenced.clone()] {
            let messages = json!([{"role": "user", "content": "Why?"},
                {"role": "tool", "tool_call_id": "c", "content": text}]);
            let body = json!({"messages": messages, "prefold": {"rate": rate}});
            let answer = post(server.address(), "/v1/compress", &body).json();
            let left = answer["messages"][1]["content"].as_str().unwrap();
            match text.starts_with('[') {
                true => assert!(serde_json::from_str::<Value>(left).is_ok(), "{left}"),
                false => {
                    assert_eq!(left.matches("```").count() % 2, 0, "{left}");
                    assert!(!left.contains("```") || left.contains("fn main() {\n    run();\n}\n"));
                }
            }
        }
    }
}

#[test]
fn an_original_can_be_had_again() {
    let Some(server) = server(|_| ()) else { return };
    let text = format!("{}\r\n\u{1f9ed} tab\t", document(21));
    let messages = json!([{"role": "user", "content": "Who?"},
        {"role": "tool", "tool_call_id": "c", "content": text}]);
    let body = json!({"messages": messages, "prefold": {"retrieve": true}});
    let answer = post(server.address(), "/v1/compress", &body).json();
    let hash = answer["ccr_hashes"][0].as_str().unwrap();
    let short = answer["messages"][1]["content"].as_str().unwrap();
    assert!(short.contains(&format!("retrieve hash={hash}")), "{short}");
    assert!(
        answer["tokens_after"].as_u64().unwrap() * 100
            <= answer["tokens_before"].as_u64().unwrap() * 60
    );
    let path = format!("/v1/retrieve/{hash}");
    let original = get(server.address(), &path).json();
    assert_eq!(
        (&original["original_content"], &original["hash"]),
        (&json!(text), &json!(hash))
    );
    let by_body = post(server.address(), "/v1/retrieve", &json!({"hash": hash}));
    assert_eq!(by_body.json(), original);
    let headers = [("accept", "text/plain")];
    let original = request(server.address(), "GET", &path, &headers, b"");
    assert_eq!(original.body, text.as_bytes());
    // It comes with a known result as well.
    let again = post(server.address(), "/v1/compress", &body).json();
    assert_eq!(
        (&again["ccr_hashes"], &again["status"]),
        (&answer["ccr_hashes"], &json!("cached"))
    );
    for unknown in ["000000000000000000000000", "x", "..%2f"] {
        assert_eq!(
            get(server.address(), &format!("/v1/retrieve/{unknown}")).status,
            404
        );
    }
}

#[test]
fn llmlinguas_arguments_give_its_dictionary() {
    let Some(server) = server(|_| ()) else { return };
    let engine = engine().unwrap();
    let arguments =
        json!({"context": [document(1), document(2)], "rate": 0.5, "question": "Who painted?"});
    let answer = post(server.address(), "/v1/compress_prompt", &arguments).json();
    let Value::Object(arguments) = arguments else {
        unreachable!()
    };
    let want = engine
        .compress(&Request::from_python(arguments, false).unwrap())
        .unwrap();
    let dictionary = serde_json::to_value(want.llmlingua()).unwrap();
    for (name, value) in dictionary.as_object().unwrap() {
        assert_eq!(answer[name], *value, "{name}");
    }
    assert_eq!(
        answer["contexts"],
        serde_json::to_value(&want.contexts).unwrap()
    );
    for (body, word) in [
        (json!({"context": 3}), "context"),
        (json!({"context": "a", "ratio": 1}), "ratio"),
    ] {
        let answer = post(server.address(), "/v1/compress_prompt", &body);
        assert_eq!(answer.status, 400);
        assert!(
            answer.json()["error"]["message"]
                .as_str()
                .unwrap()
                .contains(word)
        );
    }
}

#[test]
fn kongs_calls() {
    let Some(server) = server(|_| ()) else { return };
    let text = document(31);
    let tagged =
        format!("Keep this sentence as it is. <LLMLINGUA>{text}</LLMLINGUA> And this one.");
    let params = json!({
        "text": [{"msg_id": 1, "text": text}, {"msg_id": "b", "text": "Short."}, {"msg_id": 3, "text": tagged}],
        "compressor_type": "rate",
        "compression_ranges": [{"min_tokens": 50, "max_tokens": 5000, "value": 0.4}],
        "model_name": "ignored"});
    let answer = post(server.address(), "/llm/v1/compressPrompt", &params).json();
    let texts = answer["text"].as_array().unwrap();
    assert_eq!(texts.len(), 3);
    let figures = &texts[0]["compressor_results"];
    let count = |name: &str| figures[name].as_u64().unwrap();
    assert_eq!(
        count("save_token_count"),
        count("original_token_count") - count("compress_token_count")
    );
    assert!(count("compress_token_count") * 10 <= count("original_token_count") * 4 + 10);
    assert_eq!(texts[1]["compress_prompt"], "Short.");
    assert_eq!(texts[1]["msg_id"], "b");
    let short = texts[2]["compress_prompt"].as_str().unwrap();
    assert!(
        short.starts_with("Keep this sentence as it is. ") && short.ends_with(" And this one.")
    );
    assert!(!short.contains("LLMLINGUA") && short.len() < text.len());

    let call =
        json!({"jsonrpc": "2.0", "id": 7, "method": "llm.v1.compressPrompt", "params": params});
    let by_rpc = post(server.address(), "/", &call).json();
    assert_eq!(
        (&by_rpc["id"], &by_rpc["result"]["text"]),
        (&json!(7), &answer["text"])
    );
    let code = |call: Value| post(server.address(), "/", &call).json()["error"]["code"].clone();
    assert_eq!(
        code(json!({"jsonrpc": "2.0", "id": 1, "method": "x"})),
        -32601
    );
    assert_eq!(
        code(json!({"jsonrpc": "2.0", "id": 1, "method": "llm.v1.compressPrompt", "params": 3})),
        -32602
    );
    assert_eq!(code(json!({"id": 1})), -32600);
    let broken = request(server.address(), "POST", "/", &[], b"{").json();
    assert_eq!(broken["error"]["code"], -32700);
    let batch = json!([call, {"jsonrpc": "2.0", "id": 8, "method": "x"}]);
    assert_eq!(
        post(server.address(), "/", &batch)
            .json()
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let target = json!({"text": text, "compressor_type": "target_token",
        "compression_ranges": [{"min_tokens": 0, "max_tokens": 9999, "value": 80}]});
    let answer = post(server.address(), "/llm/v1/compressPrompt", &target).json();
    let tokens = answer["text"][0]["compressor_results"]["compress_token_count"]
        .as_u64()
        .unwrap();
    assert!((60..=80).contains(&tokens), "{tokens}");
}

#[test]
fn ranks_and_scores() {
    let Some(server) = server(|_| ()) else { return };
    let engine = engine().unwrap();
    let documents = [
        "Bread is made of flour, water and salt.",
        "The lighthouse at Skagen is 46 metres high and was built in 1858.",
        "The train leaves at nine.",
    ];
    let body = json!({"query": "How high is the lighthouse at Skagen?", "model": "any", "top_n": 2,
        "documents": [documents[0], {"text": documents[1]}, documents[2]], "return_documents": true});
    let answer = post(server.address(), "/v1/rank", &body).json();
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    assert_eq!(
        (&results[0]["index"], &results[0]["document"]["text"]),
        (&json!(1), &json!(documents[1]))
    );
    let scores: Vec<f64> = results
        .iter()
        .map(|r| r["relevance_score"].as_f64().unwrap())
        .collect();
    assert!(scores[0] > scores[1] && scores[0] < 1.0 && scores[1] > 0.0);
    assert_eq!(
        post(
            server.address(),
            "/v1/rank",
            &json!({"query": "x", "documents": []})
        )
        .status,
        400
    );

    let answer = post(
        server.address(),
        "/v1/score",
        &json!({"text": documents[1]}),
    )
    .json();
    let ids = engine.tokenize(documents[1], true, false).unwrap();
    let nll = engine.score(&ids, &prefold::Control::default()).unwrap();
    assert_eq!(answer["ids"], json!(ids));
    let logprobs = answer["logprobs"].as_array().unwrap();
    let logprobs: Vec<f32> = logprobs
        .iter()
        .map(|x| x.as_f64().unwrap() as f32)
        .collect();
    assert_eq!(logprobs, nll.iter().map(|nll| -nll).collect::<Vec<f32>>());
    for bad in [
        json!({}),
        json!({"text": "a", "ids": [1]}),
        json!({"ids": [4_000_000]}),
    ] {
        assert_eq!(
            post(server.address(), "/v1/score", &bad).status,
            400,
            "{bad}"
        );
    }
}

#[test]
fn a_token_is_asked_for_where_one_is_set_and_other_sites_are_refused() {
    let folder = TempDir::new();
    let file = folder.write("token", "0123456789abcdef\n");
    let Some(server) = server(|o| o.token_file = Some(file)) else {
        return;
    };
    let address = server.address();
    let with = |headers: &[(&str, &str)]| request(address, "GET", "/metrics", headers, b"").status;
    assert_eq!(with(&[]), 401);
    assert_eq!(with(&[("x-prefold-token", "0123456789abcdeX")]), 401);
    assert_eq!(with(&[("x-prefold-token", "0123456789abcdef")]), 200);
    assert_eq!(with(&[("authorization", "Bearer 0123456789abcdef")]), 200);
    assert_eq!(get(address, "/livez").status, 200);
    drop(server);

    let server = super::server(|_| ()).unwrap();
    let with = |headers: &[(&str, &str)]| {
        request(server.address(), "GET", "/metrics", headers, b"").status
    };
    assert_eq!(with(&[]), 200);
    assert_eq!(with(&[("origin", "http://localhost:3000")]), 200);
    assert_eq!(with(&[("origin", "https://evil.example")]), 403);
    assert_eq!(with(&[("host", "evil.example")]), 403);
}
