//! A provider: answers by what a test sets, and keeps what it was sent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

#[derive(Debug, Clone, Default)]
pub struct Received {
    pub line: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(own, _)| own == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Answer {
    /// A JSON object.
    #[default]
    Json,
    /// Events in chunks, and a trailer.
    Events,
    /// Half of what its length announces.
    Half,
    /// Nothing; the connection ends.
    Gone,
    /// A JSON object after a while.
    Slow(Duration),
}

#[derive(Default)]
pub struct State {
    pub answer: Answer,
    pub received: Vec<Received>,
}

pub struct Upstream {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

pub const JSON: &str =
    r#"{"id": "chatcmpl-1", "choices": [{"message": {"content": "ok"}}], "n": 1.50}"#;
pub const EVENTS: [&str; 4] = [
    "data: {\"delta\": \"Gr\u{fc}\"}\n\n",
    ": a comment\n\nevent: x\ndata: 1\r\n\r\n",
    "data: [DO",
    "NE]\n\n",
];

impl Upstream {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                thread::spawn(move || serve(stream, &state));
            }
        });
        Upstream { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn answer(&self, answer: Answer) {
        self.state().answer = answer;
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The newest request.
    pub fn last(&self) -> Received {
        self.state().received.last().cloned().unwrap()
    }
}

fn receive(reader: &mut impl BufRead) -> Option<Received> {
    let mut received = Received::default();
    if reader.read_line(&mut received.line).ok()? == 0 {
        return None;
    }
    let mut line = String::new();
    while reader.read_line(&mut line).ok()? > 0 {
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        received
            .headers
            .push((name.to_ascii_lowercase(), value.trim().into()));
        line.clear();
    }
    if let Some(length) = received.header("content-length") {
        let length: u64 = length.parse().ok()?;
        reader.take(length).read_to_end(&mut received.body).ok()?;
    } else if received.header("transfer-encoding").is_some() {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).ok()?;
            let size = u64::from_str_radix(size.trim(), 16).ok()?;
            let mut chunk = Vec::new();
            reader.take(size + 2).read_to_end(&mut chunk).ok()?;
            received.body.extend_from_slice(&chunk[..size as usize]);
            if size == 0 {
                break;
            }
        }
    }
    Some(received)
}

fn serve(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some(received) = receive(&mut reader) {
        let answer = {
            let mut state = state.lock().unwrap();
            state.received.push(received);
            state.answer
        };
        let json = |length: usize| {
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-own: kept\r\n\
                 content-length: {length}\r\n\r\n"
            )
        };
        let mut write = |bytes: &[u8]| stream.write_all(bytes).is_ok();
        let done = match answer {
            Answer::Gone => false,
            Answer::Half => {
                write(json(JSON.len()).as_bytes());
                write(&JSON.as_bytes()[..JSON.len() / 2]);
                false
            }
            Answer::Slow(time) => {
                thread::sleep(time);
                write((json(JSON.len()) + JSON).as_bytes())
            }
            Answer::Json => write((json(JSON.len()) + JSON).as_bytes()),
            Answer::Events => {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntrailer: x-sum\r\n\
                            transfer-encoding: chunked\r\n\r\n";
                write(head.as_bytes());
                for event in EVENTS {
                    let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                    write(chunk.as_bytes());
                    thread::sleep(Duration::from_millis(5));
                }
                write(b"0\r\nx-sum: 42\r\n\r\n")
            }
        };
        if !done {
            break;
        }
    }
}
