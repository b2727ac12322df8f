//! What was sent once never changes: over turns, over conversations, over cache markers and replicas.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use prefold::serve::Server;

use super::client::{get, post, request};
use super::upstream::Upstream;
use super::{common, document, server};

const TURNS: usize = 50;

fn chat(server: &Server, messages: &[String]) -> super::client::Response {
    let body = format!(
        r#"{{"model": "m", "temperature": 0.70, "messages": [{}]}}"#,
        messages.join(", ")
    );
    request(
        server.address(),
        "POST",
        "/v1/chat/completions",
        &[],
        body.as_bytes(),
    )
}

/// A turn of an agent: a call, its long result, an answer and the next question.
fn turn(number: usize) -> Vec<String> {
    let result = document(number as u64);
    [
        json!({"role": "assistant", "content": null, "tool_calls": [{"id": format!("c{number}"),
            "type": "function", "function": {"name": "read", "arguments": "{\"page\": 1}"}}]}),
        json!({"role": "tool", "tool_call_id": format!("c{number}"), "content": result}),
        json!({"role": "assistant", "content": format!("Page {number} is read. ").repeat(60)}),
        json!({"role": "user", "content": format!("And who sold what in {}?", 1800 + number)}),
    ]
    .iter()
    .map(Value::to_string)
    .collect()
}

#[test]
fn a_request_begins_with_the_one_of_the_turn_before() {
    let upstream = Upstream::start();
    let Some(server) = server(|o| o.upstream = Some(upstream.url())) else {
        return;
    };
    let mut messages = vec![
        json!({"role": "system", "content": "Be brief. ".repeat(100)}).to_string(),
        json!({"role": "user", "content": "Who painted the lamp?"}).to_string(),
    ];
    let mut before = String::new();
    for number in 0..TURNS {
        messages.extend(turn(number));
        let response = chat(&server, &messages);
        assert_eq!(response.status, 200);
        // Every turn brings one new result.
        assert_eq!(
            response.header("x-prefold-status"),
            Some("compressed"),
            "turn {number}"
        );
        let sent = upstream.last().text();
        let open = sent.strip_suffix("]}").unwrap().to_string();
        assert!(sent.len() < messages.join(", ").len());
        assert!(
            open.starts_with(&before),
            "turn {number} changed what was sent before"
        );
        before = open;
    }
    // Each result was shortened, and the calls are still paired.
    let sent: Value = serde_json::from_str(&upstream.last().text()).unwrap();
    let sent = sent["messages"].as_array().unwrap();
    assert_eq!(sent.len(), messages.len());
    for (message, given) in sent.iter().zip(&messages) {
        let given: Value = serde_json::from_str(given).unwrap();
        match given["role"] == "tool" {
            true => {
                let (short, long) = (
                    message["content"].as_str().unwrap(),
                    given["content"].as_str().unwrap(),
                );
                assert!(
                    short.len() < long.len() * 85 / 100
                        && message["tool_call_id"] == given["tool_call_id"]
                );
            }
            false => assert_eq!(*message, given),
        }
    }
    // The same conversation again is known.
    let again = chat(&server, &messages);
    assert_eq!(again.header("x-prefold-status"), Some("cached"));
    assert_eq!(upstream.last().text(), format!("{before}]}}"));
}

#[test]
fn a_text_becomes_the_same_whatever_is_asked() {
    let Some(server) = server(|_| ()) else { return };
    let ask = |question: &str| {
        let messages = json!([
            {"role": "user", "content": question},
            {"role": "tool", "tool_call_id": "c", "content": document(7)}]);
        let answer = post(
            server.address(),
            "/v1/compress",
            &json!({"messages": messages}),
        )
        .json();
        answer["messages"][1]["content"]
            .as_str()
            .unwrap()
            .to_string()
    };
    let first = ask("Who painted the wall?");
    assert!(first.len() < document(7).len());
    assert_eq!(ask("What did the diver forget?"), first);
}

/// A conversation in Anthropic's form, its marker at message `marked`.
fn with_marker(turns: &[(String, String)], marked: Option<usize>) -> Value {
    let mut messages = vec![json!({"role": "user", "content": "Who sold the bridge?"})];
    for (number, (id, text)) in turns.iter().enumerate() {
        messages.push(json!({"role": "assistant", "content": [
            {"type": "tool_use", "id": id, "name": "read", "input": {"page": number}}]}));
        let mut block = json!({"type": "tool_result", "tool_use_id": id, "content": text});
        if marked == Some(number) {
            block["cache_control"] = json!({"type": "ephemeral"});
        }
        messages.push(json!({"role": "user", "content": [block]}));
    }
    json!({"model": "m", "max_tokens": 9, "messages": messages})
}

#[test]
fn a_moving_cache_marker_changes_nothing_before_it() {
    let upstream = Upstream::start();
    let Some(server) = server(|o| o.upstream = Some(upstream.url())) else {
        return;
    };
    let turns: Vec<(String, String)> = (0..4)
        .map(|i| (format!("t{i}"), document(100 + i)))
        .collect();
    let sent = |count: usize, marked: Option<usize>| -> Vec<String> {
        let body = with_marker(&turns[..count], marked);
        let response = post(server.address(), "/v1/messages", &body);
        assert_eq!(response.status, 200);
        let sent: Value = serde_json::from_str(&upstream.last().text()).unwrap();
        (0..count)
            .map(|i| {
                sent["messages"][2 + 2 * i]["content"][0]["content"]
                    .as_str()
                    .unwrap()
                    .to_string()
            })
            .collect()
    };
    // The first is sent after no marker, and shortened; the second carries one, and is not.
    let first = sent(1, None);
    assert!(first[0].len() < turns[0].1.len());
    let second = sent(2, Some(1));
    assert_eq!(second[0], first[0]);
    assert_eq!(second[1], turns[1].1);
    // Then the marker moves on, and away: all stays what it was.
    let third = sent(3, Some(0));
    assert_eq!(third[..2], second[..]);
    assert!(third[2].len() < turns[2].1.len());
    assert_eq!(sent(4, Some(3))[..3], third[..]);
    assert_eq!(sent(3, None), third);
}

#[test]
fn what_was_passed_on_once_is_passed_on_again() {
    let upstream = Upstream::start();
    let Some(server) = server(|o| o.upstream = Some(upstream.url())) else {
        return;
    };
    let body = json!({"messages": [{"role": "user", "content": "Who?"},
        {"role": "tool", "tool_call_id": "c", "content": document(55)}]});
    let body = body.to_string();
    let send = |headers: &[(&str, &str)]| {
        request(
            server.address(),
            "POST",
            "/v1/chat/completions",
            headers,
            body.as_bytes(),
        )
    };
    let late = send(&[("x-prefold-deadline", "0ms")]);
    assert_eq!(late.status, 200);
    assert_eq!(late.header("x-prefold-status"), Some("passed-through"));
    assert_eq!(late.header("x-prefold-reason"), Some("deadline"));
    assert_eq!(upstream.last().text(), body);
    let later = send(&[]);
    assert_eq!(later.header("x-prefold-status"), Some("skipped"));
    assert_eq!(upstream.last().text(), body);
    let metrics = get(server.address(), "/metrics").text();
    assert!(
        metrics.contains("prefold_passthrough_total{reason=\"deadline\"} 1"),
        "{metrics}"
    );
}

/// A real Redis on a port of its own.
pub struct Redis {
    process: Child,
    port: u16,
}

impl Redis {
    pub fn start(port: u16) -> Option<Self> {
        let spawned = Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--save",
                "",
                "--appendonly",
                "no",
            ])
            .args(["--bind", "127.0.0.1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(process) = spawned else {
            assert!(std::env::var_os("CI").is_none(), "redis-server is missing");
            common::say("skipped: replicas: redis-server is not installed");
            return None;
        };
        let redis = Redis { process, port };
        let start = Instant::now();
        while !redis.answers() {
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "redis-server does not answer"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(redis)
    }

    fn answers(&self) -> bool {
        std::net::TcpStream::connect(("127.0.0.1", self.port))
            .and_then(|mut stream| stream.write_all(b"PING\r\n"))
            .is_ok()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn replicas_agree_by_redis_and_continue_without_it() {
    let port = free_port();
    let Some(redis) = Redis::start(port) else {
        return;
    };
    let replica = || server(|o| o.cache = format!("redis://127.0.0.1:{port}").parse().unwrap());
    let Some(one) = replica() else { return };
    let two = replica().unwrap();
    let ask = |server: &Server, question: &str, number: u64| {
        let messages = json!([
            {"role": "user", "content": question},
            {"role": "tool", "tool_call_id": "c", "content": document(number)}]);
        let answer = post(
            server.address(),
            "/v1/compress",
            &json!({"messages": messages}),
        )
        .json();
        let text = answer["messages"][1]["content"]
            .as_str()
            .unwrap()
            .to_string();
        (text, answer["status"].as_str().unwrap().to_string())
    };
    let (first, status) = ask(&one, "Who painted the wall?", 1);
    assert_eq!(status, "compressed");
    assert_eq!(
        ask(&two, "Who lost a letter?", 1),
        (first.clone(), "cached".into())
    );
    let (second, _) = ask(&two, "Who sold the map?", 2);
    // A replica dies: the other one knows what it gave.
    drop(two);
    assert_eq!(ask(&one, "Where?", 2), (second.clone(), "cached".into()));
    // Redis dies: nothing that is known is lost, and new texts are still shortened.
    drop(redis);
    assert_eq!(ask(&one, "When?", 2), (second.clone(), "cached".into()));
    let (third, status) = ask(&one, "Who measured the bridge?", 3);
    assert_eq!(status, "compressed");
    let errors = |server: &Server| {
        let metrics = get(server.address(), "/metrics").text();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("prefold_store_errors_total"));
        line.unwrap()
            .rsplit(' ')
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    assert!(errors(&one) > 0);
    assert_eq!(ask(&one, "Who?", 3), (third, "cached".into()));
    // Redis comes back, empty: it is used again.
    let _redis = Redis::start(port).unwrap();
    let start = Instant::now();
    let mut number = 10;
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let before = errors(&one);
        ask(&one, "Who?", number);
        if errors(&one) == before {
            break;
        }
        number += 1;
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "Redis is not used again"
        );
    }
    let three = replica().unwrap();
    assert_eq!(
        ask(&three, "Which?", number),
        (ask(&one, "Who?", number).0, "cached".into())
    );
}
