//! The proxy: what passes is not changed by a byte.

use serde_json::json;

use super::client::{get, request};
use super::upstream::{Answer, EVENTS, JSON, Upstream};
use super::{document, server};

#[test]
fn only_the_long_result_of_a_body_changes() {
    let upstream = Upstream::start();
    let Some(server) = server(|o| o.upstream = Some(upstream.url())) else {
        return;
    };
    let result = document(3);
    // Spaces, escapes, the order of names and forms of numbers must survive.
    let head = "{ \"model\":\"m\",\n\t\"temperature\": 1.0e-1, \"x\": \"\\u00e9\\/\", \"messages\" : [{\"role\":\"user\",\
                \"content\":\"Who \\u0070ainted?\"} , {\"role\":\"tool\",\"tool_call_id\":\"c\",\"content\":\"";
    let tail = "\" } ],\"stream\" :false,\"seed\": 12345678901234567890 }\n";
    let body = format!("{head}{result}{tail}");
    let headers = [
        ("authorization", "Bearer key-of-the-client"),
        ("content-type", "application/json"),
        ("x-prefold-rate", "0.4"),
        ("x-own", "1"),
    ];
    let path = "/v1/chat/completions?beta=%20x&y";
    let response = request(server.address(), "POST", path, &headers, body.as_bytes());
    assert_eq!((response.status, response.text().as_str()), (200, JSON));
    assert_eq!(response.header("x-own"), Some("kept"));
    assert_eq!(response.header("x-prefold-status"), Some("compressed"));
    assert!(
        response
            .header("server-timing")
            .unwrap()
            .starts_with("prefold;dur=")
    );
    let saved: usize = response
        .header("x-prefold-tokens-saved")
        .unwrap()
        .parse()
        .unwrap();
    assert!(saved > 100);
    let sent = upstream.last();
    assert_eq!(sent.line, format!("POST {path} HTTP/1.1\r\n"));
    assert_eq!(
        sent.header("authorization"),
        Some("Bearer key-of-the-client")
    );
    assert_eq!(
        sent.header("host"),
        Some(upstream.address.to_string().as_str())
    );
    assert_eq!(sent.header("x-own"), Some("1"));
    assert!(
        !sent
            .headers
            .iter()
            .any(|(name, _)| name.starts_with("x-prefold"))
    );
    let text = sent.text();
    let short = text
        .strip_prefix(head)
        .and_then(|rest| rest.strip_suffix(tail))
        .expect("it is spliced");
    assert!(short.len() < result.len() / 2 + 20, "{short}");
}

#[test]
fn what_is_not_a_conversation_passes_as_it_is() {
    let upstream = Upstream::start();
    let Some(server) = server(|o| {
        o.upstream = Some(upstream.url());
        o.max_body = 8000;
    }) else {
        return;
    };
    let address = server.address();
    let body = json!({"messages": [{"role": "tool", "tool_call_id": "c", "content": document(3)}]})
        .to_string();
    let pass = |method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]| {
        let response = request(address, method, path, headers, body);
        assert_eq!(response.status, 200);
        let sent = upstream.last();
        assert_eq!(sent.line, format!("{method} {path} HTTP/1.1\r\n"));
        assert_eq!(sent.body, body);
        let header = |name: &str| response.header(name).unwrap_or_default().to_string();
        (header("x-prefold-status"), header("x-prefold-reason"))
    };
    let own = |status: &str, reason: &str| (status.to_string(), reason.to_string());
    assert_eq!(pass("GET", "/v1/models", &[], b""), own("", ""));
    assert_eq!(
        pass("POST", "/v1/embeddings", &[], body.as_bytes()),
        own("", "")
    );
    assert_eq!(
        pass("PUT", "/v1/files/a%2Fb", &[], &[0, 255, 10]),
        own("", "")
    );
    let chat = "/v1/chat/completions";
    assert_eq!(
        pass("POST", chat, &[], b"\xff not json"),
        own("passed-through", "unknown_form")
    );
    assert_eq!(
        pass("POST", chat, &[], b"{\"messages\": 3}"),
        own("passed-through", "unknown_form")
    );
    assert_eq!(
        pass("POST", chat, &[("x-prefold", "off")], body.as_bytes()),
        own("off", "")
    );
    assert_eq!(
        pass(
            "POST",
            chat,
            &[("x-headroom-bypass", "true")],
            body.as_bytes()
        ),
        own("off", "")
    );
    assert_eq!(
        pass("POST", chat, &[("x-prefold-rate", "7")], body.as_bytes()),
        own("passed-through", "options")
    );
    assert_eq!(
        pass("POST", chat, &[("content-encoding", "gzip")], b"\x1f\x8b"),
        own("passed-through", "encoding")
    );
    let long = json!({"messages": [{"role": "tool", "tool_call_id": "c", "content": document(3).repeat(9)}]});
    let long = long.to_string();
    assert_eq!(
        pass("POST", chat, &[], long.as_bytes()),
        own("passed-through", "body_too_large")
    );
    assert_eq!(
        pass("POST", chat, &[("x-prefold", "audit")], body.as_bytes()).0,
        "audit"
    );
    // The prompt of a completion is the user's own text.
    for prompt in [
        json!(document(4)),
        json!([document(4), document(5)]),
        json!([1, 2]),
    ] {
        let prompt = json!({"model": "m", "prompt": prompt}).to_string();
        assert_eq!(
            pass("POST", "/v1/completions", &[], prompt.as_bytes()),
            own("skipped", "")
        );
    }
    let input = json!({"model": "m", "input": [{"type": "function_call_output", "call_id": "c",
        "output": document(3)}]});
    let response = request(
        address,
        "POST",
        "/v1/responses",
        &[],
        input.to_string().as_bytes(),
    );
    assert_eq!(response.header("x-prefold-status"), Some("compressed"));
    assert!(upstream.last().body.len() < input.to_string().len());
    let metrics = get(address, "/metrics").text();
    for reason in ["unknown_form", "options", "encoding", "body_too_large"] {
        assert!(
            metrics.contains(&format!("prefold_passthrough_total{{reason=\"{reason}\"}}")),
            "{metrics}"
        );
    }
}

#[test]
fn events_chunks_and_trailers_pass_as_bytes() {
    let upstream = Upstream::start();
    let Some(server) = server(|o| o.upstream = Some(upstream.url())) else {
        return;
    };
    upstream.answer(Answer::Events);
    let body = json!({"stream": true, "messages": [{"role": "user", "content": "Hi"},
        {"role": "tool", "tool_call_id": "c", "content": document(8)}]})
    .to_string();
    let headers = [("te", "trailers"), ("accept", "text/event-stream")];
    let response = request(
        server.address(),
        "POST",
        "/v1/chat/completions",
        &headers,
        body.as_bytes(),
    );
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-type"), Some("text/event-stream"));
    assert_eq!(response.header("x-prefold-status"), Some("compressed"));
    assert_eq!(response.text(), EVENTS.concat());
    assert!(response.whole);
    assert_eq!(response.trailers, [("x-sum".to_string(), "42".to_string())]);
    assert_eq!(upstream.last().header("te"), Some("trailers"));
}

#[test]
fn what_a_client_marks_as_context_is_shortened_where_it_stands() {
    let upstream = Upstream::start();
    let Some(server) = server(|o| o.upstream = Some(upstream.url())) else {
        return;
    };
    let (one, two) = (document(12), document(13));
    let around = |a: &str, b: &str| {
        format!(
            "Answer briefly.\n<context id=1>{a}</context>\n<context>{b}</context>\nWho painted the wall?"
        )
    };
    let marked = around(&one, &two);
    let send = |path: &str, body: serde_json::Value| {
        let response = request(
            server.address(),
            "POST",
            path,
            &[],
            body.to_string().as_bytes(),
        );
        assert_eq!(response.status, 200);
        let status = response.header("x-prefold-status").unwrap().to_string();
        let sent: serde_json::Value = serde_json::from_str(&upstream.last().text()).unwrap();
        (status, sent)
    };
    let (status, sent) = send(
        "/v1/completions",
        json!({"model": "m", "prompt": marked, "max_tokens": 3}),
    );
    assert_eq!(status, "compressed");
    let short = sent["prompt"].as_str().unwrap().to_string();
    let inside = |open: &str, text: &str| {
        let from = text.find(open).unwrap() + open.len();
        text[from..from + text[from..].find("</context>").unwrap()].to_string()
    };
    let (a, b) = (
        inside("<context id=1>", &short),
        inside("<context>", &short),
    );
    assert_eq!(short, around(&a, &b));
    for (part, whole) in [(&a, &one), (&b, &two)] {
        assert!(!part.is_empty() && part.len() < whole.len() * 6 / 10);
    }
    // The same texts become the same in a chat, in its newest turn and in an older one.
    let (status, sent) = send(
        "/v1/chat/completions",
        json!({"messages": [{"role": "user", "content": marked}]}),
    );
    assert_eq!(
        (status.as_str(), &sent["messages"][0]["content"]),
        ("cached", &json!(short))
    );
    let (status, sent) = send(
        "/v1/chat/completions",
        json!({"messages": [{"role": "user", "content": marked},
            {"role": "assistant", "content": "The clerk."}, {"role": "user", "content": "When?"}]}),
    );
    assert_eq!(
        (status.as_str(), &sent["messages"][0]["content"]),
        ("cached", &json!(short))
    );
}

#[test]
fn documents_of_the_newest_turn_are_shortened() {
    let upstream = Upstream::start();
    let Some(server) = server(|o| o.upstream = Some(upstream.url())) else {
        return;
    };
    let body = json!({"max_tokens": 5, "messages": [{"role": "user", "content": [
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": document(14)}},
        {"type": "text", "text": document(15)}]}]});
    let response = request(
        server.address(),
        "POST",
        "/v1/messages",
        &[],
        body.to_string().as_bytes(),
    );
    assert_eq!(response.header("x-prefold-status"), Some("compressed"));
    let sent: serde_json::Value = serde_json::from_str(&upstream.last().text()).unwrap();
    let content = &sent["messages"][0]["content"];
    let short = content[0]["source"]["data"].as_str().unwrap();
    assert!(short.len() < document(14).len() * 6 / 10);
    assert_eq!(content[1], body["messages"][0]["content"][1]);
}
