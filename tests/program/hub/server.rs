//! A hub of one thread per connection: what the tests need of the real one, and its failures.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use hmac_sha256::Hash as Sha256;

/// The commit of every repository.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub holds and how it behaves.
#[derive(Default)]
pub struct State {
    /// By `org/repo`, then by file.
    pub repos: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// The connection of each answer with content ends after so many bytes of it; each entry is used once.
    pub cuts: Vec<usize>,
    /// Every connection that would bring content ends before it.
    pub dead: bool,
    /// Answers a range with the whole file.
    pub ignores_ranges: bool,
    /// Answers with this status.
    pub status: Option<u16>,
    /// Sends content from another address.
    pub content_from: Option<String>,
    /// Announced in place of the right ones.
    pub etag: Option<String>,
    pub commit: Option<String>,
    /// Requests so far: the first line, and the headers in lower case.
    pub requests: Vec<Request>,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

pub struct Server {
    pub address: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || answer(stream, &state));
            }
        });
        Server { address, state }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn add(&self, repo: &str, file: &str, bytes: &[u8]) {
        let mut state = self.state();
        let files = state.repos.entry(repo.into()).or_default();
        files.insert(file.into(), bytes.into());
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().requests)
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::hash(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.into(), words.next()?.into());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.into()),
            None => break,
        };
    }
    Some(Request {
        method,
        path,
        headers,
    })
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) {
    let Some(request) = read(&stream) else { return };
    let mut state = state.lock().unwrap();
    state.requests.push(request.clone());
    let mut send = |status: u16, headers: &[(&str, String)], body: &[u8], length: usize| {
        let mut head =
            format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let _ = stream.write_all((head + "\r\n").as_bytes());
        let _ = stream.write_all(body);
    };
    if let Some(status) = state.status {
        return send(status, &[], b"", 0);
    }
    if let Some(repo) = request.path.strip_prefix("/api/models/") {
        let Some(files) = state.repos.get(repo) else {
            return send(404, &[], b"", 0);
        };
        let siblings: Vec<_> = files
            .keys()
            .map(|file| serde_json::json!({"rfilename": file}))
            .collect();
        let commit = state.commit.as_deref().unwrap_or(COMMIT);
        let body = serde_json::json!({"sha": commit, "siblings": siblings}).to_string();
        return send(200, &[], body.as_bytes(), body.len());
    }
    let mut parts = request.path.trim_start_matches('/').splitn(5, '/');
    let mut part = || parts.next().unwrap_or_default();
    let (repo, _resolve, _revision, file) =
        (format!("{}/{}", part(), part()), part(), part(), part());
    let Some(bytes) = state
        .repos
        .get(&repo)
        .and_then(|files| files.get(file))
        .cloned()
    else {
        return send(404, &[], b"", 0);
    };
    let etag = state.etag.clone().unwrap_or_else(|| sha256(&bytes));
    let commit = state.commit.clone().unwrap_or_else(|| COMMIT.into());
    let mut headers = vec![
        ("x-linked-etag", format!("\"{etag}\"")),
        ("x-linked-size", bytes.len().to_string()),
        ("x-repo-commit", commit),
    ];
    if let Some(elsewhere) = &state.content_from {
        headers.push(("location", format!("{elsewhere}{}", request.path)));
        return send(302, &headers, b"", 0);
    }
    if request.method == "HEAD" {
        return send(200, &headers, b"", bytes.len());
    }
    if state.dead {
        return;
    }
    let range = request
        .headers
        .get("range")
        .filter(|_| !state.ignores_ranges);
    let begin = range.map_or(0, |range| {
        let range = range.strip_prefix("bytes=").unwrap();
        range.trim_end_matches('-').parse().unwrap()
    });
    if begin >= bytes.len() {
        return send(416, &[], b"", 0);
    }
    let status = match range {
        Some(_) => {
            let last = bytes.len() - 1;
            headers.push((
                "content-range",
                format!("bytes {begin}-{last}/{}", bytes.len()),
            ));
            206
        }
        None => 200,
    };
    let body = &bytes[begin..];
    let sent = match state.cuts.is_empty() {
        true => body.len(),
        false => state.cuts.remove(0).min(body.len()),
    };
    send(status, &headers, &body[..sent], body.len());
}
