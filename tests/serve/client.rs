//! A client that shows every byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

#[derive(Debug, Default)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// Without the framing.
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// Whether the body came to its announced end.
    pub whole: bool,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(own, _)| own.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(120)))
        .unwrap();
    stream
}

/// Sends a request with a connection of its own.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let mut stream = connect(address);
    send(&mut stream, address, method, path, headers, body);
    read(&mut BufReader::new(stream), method == "HEAD")
}

pub fn send(
    stream: &mut TcpStream,
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) {
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\ncontent-length: {}\r\n",
        body.len()
    );
    if !headers.iter().any(|(name, _)| *name == "host") {
        head += &format!("host: {address}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
}

pub fn get(address: SocketAddr, path: &str) -> Response {
    request(address, "GET", path, &[], b"")
}

pub fn post(address: SocketAddr, path: &str, body: &Value) -> Response {
    let body = serde_json::to_vec(body).unwrap();
    request(
        address,
        "POST",
        path,
        &[("content-type", "application/json")],
        &body,
    )
}

fn fields(reader: &mut impl BufRead) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|read| read > 0) {
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        fields.push((name.to_string(), value.trim().to_string()));
        line.clear();
    }
    fields
}

/// Reads a response. What ends too early is not `whole`.
pub fn read(reader: &mut impl BufRead, head_only: bool) -> Response {
    let mut line = String::new();
    let mut response = Response::default();
    if reader.read_line(&mut line).is_err() {
        return response;
    }
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    response.status = status.unwrap_or_default();
    response.headers = fields(reader);
    let chunked = response
        .header("transfer-encoding")
        .is_some_and(|te| te.contains("chunked"));
    let length = response
        .header("content-length")
        .and_then(|length| length.parse().ok());
    if head_only || response.status == 204 || response.status == 304 {
        response.whole = true;
    } else if chunked {
        loop {
            let mut size = String::new();
            if reader.read_line(&mut size).is_err() {
                return response;
            }
            let Ok(size) = usize::from_str_radix(size.trim(), 16) else {
                return response;
            };
            if size == 0 {
                response.trailers = fields(reader);
                response.whole = true;
                return response;
            }
            let mut chunk = vec![0; size + 2];
            if reader.read_exact(&mut chunk).is_err() {
                return response;
            }
            response.body.extend_from_slice(&chunk[..size]);
        }
    } else {
        let length: usize = length.unwrap_or(0);
        let read = reader.take(length as u64).read_to_end(&mut response.body);
        response.whole = read.is_ok() && response.body.len() == length;
    }
    response
}
