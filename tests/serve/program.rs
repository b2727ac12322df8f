//! The program: its configuration, its log, its signals, and its end without any.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{connect, get, post, request, send};
use super::common::{TempDir, smollm2};
use super::document;
use super::frozen::{Redis, free_port};
use super::upstream::{Answer, JSON, Upstream};

/// The program in a folder of its own, so that no configuration of this machine counts.
fn command(folder: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_prefold"));
    command
        .current_dir(folder.path())
        .env("XDG_CONFIG_HOME", folder.path())
        .env_remove("PREFOLD_LOG");
    command
}

/// A server that runs.
struct Running {
    process: Child,
    address: SocketAddr,
    /// What it wrote to standard error after its address.
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Running {
    fn start(folder: &TempDir, model: &Path, args: &[&str]) -> Self {
        let mut process = command(folder)
            .args(["serve", "--device", "cpu", "--model"])
            .arg(model)
            .args([
                "--listen",
                "127.0.0.1:0",
                "--deadline",
                "60s",
                "--min-tokens",
                "100",
            ])
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let address = line.trim_end().rsplit("http://").next().unwrap();
        let address = address.parse().unwrap_or_else(|_| panic!("{line}"));
        let log: Arc<Mutex<String>> = Arc::default();
        let to = log.clone();
        let reader = thread::spawn(move || collect(lines, &to));
        Running {
            process,
            address,
            log,
            reader: Some(reader),
        }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([name, &self.process.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Waits for the end; gives what was logged.
    fn end(&mut self) -> (ExitStatus, String) {
        let status = self.process.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        (status, self.log.lock().unwrap().clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn collect(mut lines: BufReader<ChildStderr>, to: &Mutex<String>) {
    let mut line = String::new();
    while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
        to.lock().unwrap().push_str(&line);
        line.clear();
    }
}

#[test]
fn sigterm_lets_requests_finish_and_the_log_has_no_text() {
    let Some(model) = smollm2() else { return };
    let (folder, upstream) = (TempDir::new(), Upstream::start());
    let url = upstream.url();
    let mut server = Running::start(&folder, &model, &["--upstream", &url]);
    let address = server.address;
    let check = |address: SocketAddr| {
        command(&folder)
            .args(["serve", "--check", "--listen", &address.to_string()])
            .output()
            .unwrap()
    };
    assert!(check(address).status.success());
    let secret = "The password of the harbour is swordfish. ".repeat(40);
    let body = json!({"messages": [{"role": "user", "content": "Who is swordfish?"},
        {"role": "tool", "tool_call_id": "c", "content": secret}]})
    .to_string();
    let headers = [
        ("authorization", "Bearer key-swordfish"),
        ("x-api-key", "key-swordfish"),
        ("x-request-id", "id-7"),
        ("x-prefold-question", "swordfish"),
    ];
    let path = "/v1/chat/completions?swordfish=1";
    let answer = request(address, "POST", path, &headers, body.as_bytes());
    assert_eq!(answer.header("x-prefold-status"), Some("compressed"));
    request(address, "GET", "/swordfish", &headers, b"");
    request(
        address,
        "POST",
        "/v1/compress",
        &headers,
        b"{\"swordfish\": ",
    );
    upstream.answer(Answer::Slow(Duration::from_millis(1500)));
    let received = upstream.state().received.len();
    let asked = thread::spawn(move || post(address, "/v1/messages", &json!({"messages": []})));
    while upstream.state().received.len() == received {
        thread::sleep(Duration::from_millis(5));
    }
    server.signal("-TERM");
    let answer = asked.join().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, JSON));
    let (status, log) = server.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!check(address).status.success());
    assert!(!log.contains("swordfish"), "{log}");
    let lines: Vec<Value> = log
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let with = |route: &str| lines.iter().find(|line| line["route"] == route).unwrap();
    let first = with("proxy");
    assert_eq!(
        (&first["id"], &first["status"], &first["result"]),
        (&json!("id-7"), &json!(200), &json!("compressed"))
    );
    assert!(first["tokens_after"].as_u64() < first["tokens_before"].as_u64());
    assert_eq!(with("compress")["status"], 400);
}

#[test]
fn a_wrong_configuration_is_refused_with_its_line() {
    let folder = TempDir::new();
    let run = |args: &[&str]| -> Output {
        command(&folder)
            .args(["serve", "--model", "none.gguf"])
            .args(args)
            .output()
            .unwrap()
    };
    for (text, line, word) in [
        ("[serve]\nrate = 0.4\nmin-token = 5\n", 3, "min-token"),
        ("[serve]\n\n\ndeadline = \"soon\"\n", 4, "soon"),
        ("[serve]\nmode = \"fast\"\n", 2, "fast"),
        ("[serve]\nlisten = \"here\"\n", 2, "address"),
        ("[serve]\ncache = \"http://h\"\n", 2, "redis://"),
        ("[serve]\nrate 0.5\n", 2, "expected"),
    ] {
        let file = folder.write("serve.toml", text);
        let output = run(&["--config", file.to_str().unwrap()]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}: {said}");
        assert!(said.contains(&format!("line {line}")), "{text}: {said}");
        assert!(said.contains(word), "{text}: {said}");
    }
    for args in [
        &["--deadline", "soon"][..],
        &["--rate", "0"],
        &["--listen", "0.0.0.0:1"],
        &["--upstream", "api.openai.com"],
        &["--queue", "0"],
        &["--context-tags", "<a>"],
    ] {
        let output = run(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
    }
    let missing = run(&["--config", "missing.toml"]);
    let said = String::from_utf8(missing.stderr).unwrap();
    assert!(
        !missing.status.success() && said.contains("missing.toml"),
        "{said}"
    );
}

#[test]
fn a_file_says_what_flags_say() {
    let Some(model) = smollm2() else { return };
    let (folder, own) = (TempDir::new(), TempDir::new());
    own.write("token", "0123456789abcdef");
    let file = own.write(
        "serve.toml",
        "[serve]\nmode = \"audit\"\nrate = 0.2\ntoken-file = \"token\"\ncontext-tags = [\"doc\"]\n",
    );
    let file = file.to_str().unwrap();
    let server = Running::start(&folder, &model, &["--config", file, "--mode", "compress"]);
    let token = [("x-prefold-token", "0123456789abcdef")];
    let health = request(server.address, "GET", "/health", &token, b"").json();
    assert_eq!(health["mode"], "compress", "a flag comes before the file");
    let body = json!({"messages": [{"role": "user", "content": format!("<doc>{}</doc> Who?", document(3))}]});
    let body = body.to_string();
    assert_eq!(
        request(server.address, "POST", "/v1/compress", &[], body.as_bytes()).status,
        401
    );
    let answer = request(
        server.address,
        "POST",
        "/v1/compress",
        &token,
        body.as_bytes(),
    )
    .json();
    assert!(
        answer["compression_ratio"].as_f64().unwrap() < 0.25,
        "{answer}"
    );
}

#[test]
fn after_kill_9_a_restart_gives_the_same() {
    let Some(model) = smollm2() else { return };
    let port = free_port();
    let Some(_redis) = Redis::start(port) else {
        return;
    };
    let folder = TempDir::new();
    let url = format!("redis://127.0.0.1:{port}");
    let start = || Running::start(&folder, &model, &["--cache", &url, "--log", "off"]);
    let ask = |server: &Running, question: &str| {
        let messages = json!([{"role": "user", "content": question},
            {"role": "tool", "tool_call_id": "c", "content": document(1)}]);
        let body = json!({"messages": messages, "prefold": {"retrieve": true}});
        post(server.address, "/v1/compress", &body).json()
    };
    let mut server = start();
    let first = ask(&server, "Who painted the wall?");
    assert_eq!(first["status"], "compressed");
    // It is killed in the middle of another text.
    let long = json!({"text": document(2).repeat(400)}).to_string();
    let mut stream = connect(server.address);
    send(
        &mut stream,
        server.address,
        "POST",
        "/v1/score",
        &[],
        long.as_bytes(),
    );
    let begun = Instant::now();
    while !get(server.address, "/metrics")
        .text()
        .contains("prefold_queue_depth 1")
    {
        assert!(begun.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(5));
    }
    server.signal("-KILL");
    assert!(!server.end().0.success());
    let server = start();
    let again = ask(&server, "What did the diver forget?");
    assert_eq!(again["status"], "cached");
    assert_eq!(again["messages"][1], first["messages"][1]);
    let hash = first["ccr_hashes"][0].as_str().unwrap();
    let original = get(server.address, &format!("/v1/retrieve/{hash}")).json();
    assert_eq!(original["original_content"], document(1));
}
