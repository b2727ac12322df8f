//! What goes wrong: upstreams, clients, requests that make no sense, too many of them, and the end.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{connect, get, post, read, request, send};
use super::common::Random;
use super::upstream::{Answer, JSON, Upstream};
use super::{document, server};

/// A counter's value; 0 where it was never counted.
fn metric(address: std::net::SocketAddr, name: &str) -> u64 {
    let text = get(address, "/metrics").text();
    let line = text
        .lines()
        .find(|line| line.split(' ').next() == Some(name));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[test]
fn upstreams_that_fail_are_told() {
    let upstream = Upstream::start();
    let Some(server) = server(|o| {
        o.upstream = Some(upstream.url());
        o.upstream_idle = Duration::from_millis(700);
    }) else {
        return;
    };
    let address = server.address();
    let ask = || post(address, "/v1/chat/completions", &json!({"messages": []}));
    upstream.answer(Answer::Gone);
    let gone = ask();
    assert_eq!(
        (gone.status, gone.json()["error"]["type"].as_str()),
        (502, Some("upstream_error"))
    );
    assert!(metric(address, "prefold_upstream_errors_total{reason=\"broken\"}") >= 1);
    upstream.answer(Answer::Half);
    let half = ask();
    assert!(!half.whole && JSON.as_bytes().starts_with(&half.body));
    upstream.answer(Answer::Slow(Duration::from_secs(3)));
    assert_eq!(ask().status, 504);
    assert_eq!(
        metric(address, "prefold_upstream_errors_total{reason=\"timeout\"}"),
        1
    );
    upstream.answer(Answer::Json);
    assert_eq!(ask().text(), JSON);
    let nowhere = super::server(|o| o.upstream = Some("http://127.0.0.1:1".into())).unwrap();
    assert_eq!(
        post(nowhere.address(), "/v1/messages", &json!({"messages": []})).status,
        502
    );
    assert_eq!(
        metric(
            nowhere.address(),
            "prefold_upstream_errors_total{reason=\"connect\"}"
        ),
        1
    );
}

#[test]
fn a_full_queue_lets_originals_pass_and_short_ones_overtake() {
    let upstream = Upstream::start();
    let Some(server) = server(|o| {
        o.upstream = Some(upstream.url());
        o.queue = 3;
    }) else {
        return;
    };
    let address = server.address();
    let long = json!({"text": document(1).repeat(200)}).to_string();
    let start_long = || {
        let mut stream = connect(address);
        send(
            &mut stream,
            address,
            "POST",
            "/v1/score",
            &[],
            long.as_bytes(),
        );
        stream
    };
    let wait_for = |depth: u64| {
        let start = Instant::now();
        while metric(address, "prefold_queue_depth") != depth {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "the queue is not {depth} deep"
            );
            thread::sleep(Duration::from_millis(5));
        }
    };
    let mut in_progress = vec![start_long(), start_long()];
    wait_for(2);
    let short = post(
        address,
        "/v1/score",
        &json!({"text": "A short text, scored meanwhile."}),
    );
    assert_eq!(short.status, 200);
    assert_eq!(
        metric(address, "prefold_queue_depth"),
        2,
        "the long ones are still in progress"
    );
    in_progress.push(start_long());
    wait_for(3);
    // No place is left.
    let body = json!({"messages": [{"role": "user", "content": "Who?"},
        {"role": "tool", "tool_call_id": "c", "content": document(9)}]})
    .to_string();
    let passed = request(
        address,
        "POST",
        "/v1/chat/completions",
        &[],
        body.as_bytes(),
    );
    assert_eq!(
        (passed.status, passed.header("x-prefold-reason")),
        (200, Some("queue_full"))
    );
    assert_eq!(upstream.last().text(), body);
    drop(in_progress);
    wait_for(0);
}

#[test]
fn work_ends_when_its_client_leaves() {
    let Some(server) = server(|_| ()) else { return };
    let address = server.address();
    let body = json!({"text": document(1).repeat(400)}).to_string();
    let mut stream = connect(address);
    send(
        &mut stream,
        address,
        "POST",
        "/v1/score",
        &[],
        body.as_bytes(),
    );
    while metric(address, "prefold_queue_depth") == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    thread::sleep(Duration::from_millis(200));
    assert_eq!(metric(address, "prefold_queue_depth"), 1);
    drop(stream);
    let start = Instant::now();
    while metric(address, "prefold_queue_depth") > 0 {
        // A forward pass takes up to 200 ms on the CPU, and more where other tests share the cores. All
        // of the text would take minutes.
        assert!(start.elapsed() < Duration::from_secs(2), "it still works");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn ten_thousand_requests_that_make_no_sense() {
    let upstream = Upstream::start();
    let Some(server) = server(|o| {
        o.upstream = Some(upstream.url());
        o.max_body = 4000;
        o.max_head = 8192;
        o.idle = Duration::from_secs(5);
    }) else {
        return;
    };
    let address = server.address();
    let mut random = Random(5);
    let paths = [
        "/v1/compress",
        "/v1/compress_prompt",
        "/v1/rank",
        "/v1/score",
        "/llm/v1/compressPrompt",
        "/",
        "/v1/chat/completions",
        "/v1/messages",
        "/v1/retrieve/%ff",
        "/v1/preview",
    ];
    let good = [
        json!({"messages": [{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}]}).to_string(),
        json!({"query": "q", "documents": ["a", {"text": "b"}]}).to_string(),
        json!({"context": ["a b c"], "rate": 0.5, "question": "q"}).to_string(),
        json!({"jsonrpc": "2.0", "id": 1, "method": "llm.v1.compressPrompt", "params": {"text": "a"}}).to_string(),
    ];
    let mut stream = connect(address);
    for number in 0..10_000 {
        let path = paths[random.below(paths.len())];
        let mut body = good[random.below(good.len())].clone().into_bytes();
        match random.below(6) {
            0 => body.truncate(random.below(body.len())),
            1 => body = vec![b'['; 1 + random.below(3000)],
            2 => body = vec![b'x'; 4001],
            3 => {
                body = (0..random.below(200))
                    .map(|_| random.below(256) as u8)
                    .collect()
            }
            _ => {
                for _ in 0..1 + random.below(4) {
                    let at = random.below(body.len());
                    body[at] = random.below(256) as u8;
                }
            }
        }
        if number % 50 == 0 {
            // Not even HTTP, or a head without an end.
            let mut raw = TcpStream::connect(address).unwrap();
            let garbage: Vec<u8> = match number % 100 {
                0 => (0..300).map(|_| random.below(256) as u8).collect(),
                _ => [b"GET / HTTP/1.1\r\nx: ".to_vec(), vec![b'a'; 20_000]].concat(),
            };
            let _ = raw.write_all(&garbage);
            let _ = raw.shutdown(std::net::Shutdown::Write);
            raw.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut answer = Vec::new();
            let _ = raw.read_to_end(&mut answer);
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"));
        }
        send(&mut stream, address, "POST", path, &[], &body);
        let response = read(&mut BufReader::new(&stream), false);
        // Where a body was refused unread, the connection ends with it.
        if response.status == 0
            || !response.whole
            || response.header("connection") == Some("close")
            || response.status == 413
        {
            stream = connect(address);
            assert!(
                body.len() > 4000 || response.status != 0,
                "{path}: no answer to {body:?}"
            );
            continue;
        }
        assert!(
            (200..500).contains(&response.status),
            "{path}: {} to {body:?}",
            response.status
        );
    }
    assert_eq!(get(address, "/readyz").status, 200);
    assert_eq!(metric(address, "prefold_queue_depth"), 0);
    let works =
        json!({"messages": [{"role": "tool", "tool_call_id": "c", "content": document(3)}]});
    assert_eq!(post(address, "/v1/compress", &works).status, 200);
}

#[test]
fn on_failure_error_says_so() {
    let Some(server) = server(|o| o.on_failure = prefold::serve::OnFailure::Error) else {
        return;
    };
    let body = json!({"messages": [{"role": "user", "content": "Who?"},
        {"role": "tool", "tool_call_id": "c", "content": document(9)}]})
    .to_string();
    let headers = [("x-prefold-deadline", "0ms")];
    let answer = request(
        server.address(),
        "POST",
        "/v1/compress",
        &headers,
        body.as_bytes(),
    );
    assert_eq!(
        (answer.status, answer.header("x-prefold-reason")),
        (503, Some("deadline"))
    );
}

#[test]
fn requests_in_progress_finish_when_the_server_stops() {
    let upstream = Upstream::start();
    let Some(server) = server(|o| o.upstream = Some(upstream.url())) else {
        return;
    };
    let address = server.address();
    upstream.answer(Answer::Slow(Duration::from_millis(1500)));
    let asked =
        thread::spawn(move || post(address, "/v1/chat/completions", &json!({"messages": []})));
    while upstream.state().received.is_empty() {
        thread::sleep(Duration::from_millis(5));
    }
    // A connection that does nothing does not hold the end up.
    let idle = connect(address);
    let start = Instant::now();
    assert!(server.stop());
    assert!(start.elapsed() < Duration::from_secs(20));
    let answer = asked.join().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, JSON));
    assert!(TcpStream::connect(address).is_err());
    drop(idle);
}

/// A conversation with a result of so many different documents.
fn long_result(documents: std::ops::Range<u64>) -> String {
    let text: Vec<String> = documents.map(document).collect();
    json!({"messages": [{"role": "user", "content": "Who painted the wall?"},
        {"role": "tool", "tool_call_id": "c", "content": text.join("\n\n")}]})
    .to_string()
}

#[test]
fn a_client_that_leaves_ends_its_compression_and_nothing_is_sent_or_decided() {
    let upstream = Upstream::start();
    let Some(server) = server(|o| o.upstream = Some(upstream.url())) else {
        return;
    };
    let (address, path) = (server.address(), "/v1/chat/completions");
    let body = long_result(0..60);
    let mut stream = connect(address);
    send(&mut stream, address, "POST", path, &[], body.as_bytes());
    while metric(address, "prefold_queue_depth") == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    drop(stream);
    let start = Instant::now();
    while metric(address, "prefold_queue_depth") > 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "it still works");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(metric(address, "prefold_cancelled_total"), 1);
    assert!(upstream.state().received.is_empty());
    // Had the text been frozen as it is, no deadline would matter.
    let later = [("x-prefold-deadline", "0ms")];
    let later = request(address, "POST", path, &later, body.as_bytes());
    assert_eq!(later.header("x-prefold-reason"), Some("deadline"));
}

#[test]
fn a_text_too_long_for_its_deadline_is_first_cut_by_words() {
    let Some(server) = server(|_| ()) else { return };
    let body = long_result(100..400);
    let start = Instant::now();
    let headers = [("x-prefold-deadline", "8s")];
    let answer = request(
        server.address(),
        "POST",
        "/v1/compress",
        &headers,
        body.as_bytes(),
    );
    assert!(
        start.elapsed() < Duration::from_secs(16),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(answer.status, 200);
    assert_eq!(metric(server.address(), "prefold_lexical_cuts_total"), 1);
    let answer = answer.json();
    // On a machine that became much slower meanwhile the original comes back.
    match answer["status"].as_str().unwrap() {
        "compressed" => {
            let ratio = answer["compression_ratio"].as_f64().unwrap();
            assert!((0.2..=0.51).contains(&ratio), "{ratio}");
        }
        status => assert_eq!(
            (status, &answer["reason"]),
            ("passed-through", &json!("deadline"))
        ),
    }
}

#[test]
fn a_client_that_stops_in_the_middle_is_left() {
    let upstream = Upstream::start();
    let Some(server) = server(|o| {
        o.upstream = Some(upstream.url());
        o.idle = Duration::from_millis(500);
    }) else {
        return;
    };
    let address = server.address();
    let begin = |text: &str| {
        let mut stream = connect(address);
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n";
    let stopped = [begin(head), begin(&format!("{head}\r\n{{\"messages\": ["))];
    let start = Instant::now();
    for mut stream in stopped {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "it is still open"
        );
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"));
    }
    assert!(upstream.state().received.is_empty());
    assert_eq!(get(address, "/readyz").status, 200);
}
