//! Who may use the server, and a log line for each request.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::State;
use axum::middleware::Next;
use axum::response::Response;
use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::{HeaderMap, Request, StatusCode, Uri};
use serde_json::{Map, Value, json};

use super::app::App;
use super::metrics::{Request as Labels, observe};
use super::options::Log;
use super::respond::{Summary, error};

/// Paths of the server's own, by their names in metrics and logs.
const ROUTES: [(&str, &str); 14] = [
    ("/v1/compress", "compress"),
    ("/v1/compress_prompt", "compress_prompt"),
    ("/v1/rank", "rank"),
    ("/v1/score", "score"),
    ("/v1/preview", "preview"),
    ("/llm/v1/compressPrompt", "kong"),
    ("/", "root"),
    ("/status", "status"),
    ("/livez", "livez"),
    ("/readyz", "readyz"),
    ("/health", "health"),
    ("/metrics", "metrics"),
    ("/openapi.json", "openapi"),
    ("/v1/retrieve", "retrieve"),
];
/// Paths that need no token.
const OPEN: [&str; 4] = ["/livez", "/readyz", "/health", "/status"];
/// The header that the token comes in, beside `authorization` for the server's own paths.
const TOKEN: &str = "x-prefold-token";

/// The name of a request's route.
fn route(path: &str) -> &'static str {
    if path.starts_with("/v1/retrieve/") {
        return "retrieve";
    }
    let found = ROUTES.iter().find(|(own, _)| *own == path);
    found.map_or("proxy", |(_, name)| name)
}

/// Lets a request in or not, and logs it.
pub(super) async fn guard(
    State(app): State<Arc<App>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let start = Instant::now();
    let route = route(request.uri().path());
    let method = request.method().clone();
    let id = request_id(request.headers());
    let response = match refusal(&app, &request, route) {
        Some(response) => response,
        None => next.run(request).await,
    };
    let time = start.elapsed();
    let status = response.status().as_u16();
    app.metrics
        .requests
        .get_or_create(&Labels { route, status })
        .inc();
    observe(&app.metrics.request_seconds, time);
    if app.options.log != Log::Off {
        let mut line = Map::new();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let ms = |seconds: f64| json!((seconds * 1e4).round() / 10.0);
        line.insert(
            "time".into(),
            json!((now.as_secs_f64() * 1e3).round() / 1e3),
        );
        line.insert("id".into(), json!(id));
        line.insert("method".into(), json!(method.as_str()));
        line.insert("route".into(), json!(route));
        line.insert("status".into(), json!(status));
        line.insert("ms".into(), ms(time.as_secs_f64()));
        if let Some(summary) = response.extensions().get::<Summary>() {
            line.insert("result".into(), json!(summary.status));
            if let Some(failure) = summary.failure {
                line.insert("reason".into(), json!(failure));
            }
            if let Some((before, after)) = summary.tokens {
                line.insert("tokens_before".into(), json!(before));
                line.insert("tokens_after".into(), json!(after));
            }
            line.insert("compress_ms".into(), ms(summary.ms / 1e3));
        }
        write(app.options.log, &line);
    }
    response
}

/// Writes a line; a log that cannot be written stops no request.
fn write(log: Log, line: &Map<String, Value>) {
    let text = match log {
        Log::Json => serde_json::to_string(line).unwrap_or_default(),
        _ => {
            let word = |(name, value): (&String, &Value)| match value {
                Value::String(text) => format!("{name}={text}"),
                value => format!("{name}={value}"),
            };
            line.iter().map(word).collect::<Vec<_>>().join(" ")
        }
    };
    let _ = std::io::stderr()
        .lock()
        .write_all(format!("{text}\n").as_bytes());
}

/// The client's id of a request if it is short and plain, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let plain = |id: &&str| {
        (1..=64).contains(&id.len())
            && id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let given = headers
        .get("x-request-id")
        .and_then(|id| id.to_str().ok())
        .filter(plain);
    match given {
        Some(id) => id.into(),
        None => format!(
            "{:x}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ),
    }
}

/// Why a request is not let in.
fn refusal(app: &App, request: &Request<Body>, route: &str) -> Option<Response> {
    let headers = request.headers();
    if OPEN.contains(&request.uri().path()) {
        return None;
    }
    match &app.token {
        Some(token) => {
            let own = headers.get(TOKEN).map(|value| value.as_bytes());
            // To the upstream `authorization` is the client's key there.
            let bearer = headers
                .get(AUTHORIZATION)
                .filter(|_| route != "proxy")
                .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
            // Hashes are compared, so that time tells nothing about the token.
            let known = |given: &[u8]| hmac_sha256::Hash::hash(given) == *token;
            let known = own.is_some_and(known) || bearer.is_some_and(known);
            (!known).then(|| {
                error(
                    StatusCode::UNAUTHORIZED,
                    "unauthorized",
                    "the token is missing or wrong; send it as x-prefold-token",
                )
            })
        }
        None => {
            // A page of another site, open in a browser on this machine, must not get in.
            let host = headers.get(HOST).map(|host| host.as_bytes());
            let origin = headers.get(ORIGIN).map(|origin| origin.as_bytes());
            let local = host.is_none_or(|host| is_local(host, ""))
                && origin.is_none_or(|origin| is_local(origin, "http://"));
            (!local).then(|| {
                error(
                    StatusCode::FORBIDDEN,
                    "forbidden",
                    "the request is for another host or from another site; use 127.0.0.1, or give \
                     the server a token",
                )
            })
        }
    }
}

/// Whether an authority after a prefix is this machine's.
fn is_local(value: &[u8], prefix: &str) -> bool {
    let authority = std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.strip_prefix(prefix));
    let uri: Option<Uri> = authority.and_then(|authority| authority.parse().ok());
    let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_sites_are_not_local() {
        for host in [
            "localhost",
            "127.0.0.1:8780",
            "LOCALHOST:1",
            "[::1]:8780",
            "127.9.9.9",
        ] {
            assert!(is_local(host.as_bytes(), ""), "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example:8780",
            "10.0.0.1",
            "",
            "\u{fffd}",
        ] {
            assert!(!is_local(host.as_bytes(), ""), "{host}");
        }
        assert!(is_local(b"http://127.0.0.1:8780", "http://"));
        for origin in ["https://evil.example", "http://evil.example", "null"] {
            assert!(!is_local(origin.as_bytes(), "http://"), "{origin}");
        }
    }

    #[test]
    fn ids_of_clients_are_taken_where_they_are_plain() {
        let id = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-request-id", http::HeaderValue::from_static(value));
            request_id(&headers)
        };
        assert_eq!(id("a-1_B.2"), "a-1_B.2");
        assert_ne!(id("secret text"), "secret text");
        assert_ne!(id(""), "");
    }

    #[test]
    fn paths_outside_of_the_servers_own_have_one_name() {
        assert_eq!(route("/v1/compress"), "compress");
        assert_eq!(route("/v1/retrieve/abc"), "retrieve");
        assert_eq!(route("/v1/chat/completions"), "proxy");
        assert_eq!(route("/secret/text"), "proxy");
    }
}
