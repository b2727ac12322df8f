//! The proxy: requests go to the upstream, chat requests with their long texts shortened. All other
//! bytes pass as they are, in both directions.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tower_http::timeout::TimeoutBody;

use super::app::{App, Done, Failure, Status};
use super::metrics::{Why, observe};
use super::options::{Mode, OnFailure};
use super::respond::{self, Read, Summary, error};
use super::wish::Wish;

/// Paths whose bodies are conversations.
const CHATS: [&str; 3] = ["/completions", "/responses", "/messages"];

/// Whether a request's body may be shortened.
fn is_chat(request: &Request<Body>) -> bool {
    let path = request.uri().path().trim_end_matches('/');
    request.method() == Method::POST && CHATS.iter().any(|end| path.ends_with(end))
}

/// Forwards a request.
pub(super) async fn forward(State(app): State<Arc<App>>, request: Request<Body>) -> Response {
    if app.upstream.is_none() {
        return error(
            StatusCode::NOT_FOUND,
            "not_found",
            "found no such path; give the server an upstream to forward it to",
        );
    }
    match is_chat(&request) {
        true => chat(&app, request).await,
        false => send(&app, request).await,
    }
}

/// Forwards a conversation.
async fn chat(app: &Arc<App>, request: Request<Body>) -> Response {
    let (mut parts, body) = request.into_parts();
    let encoded = parts
        .headers
        .get(CONTENT_ENCODING)
        .is_some_and(|encoding| encoding != "identity");
    let wish = Wish::read(&parts.headers);
    let untouched = match &wish {
        Err(_) => Some(Done::untouched(
            Status::PassedThrough,
            Some(Failure::Options),
        )),
        Ok(wish) if wish.mode.unwrap_or(app.options.mode) == Mode::Off => {
            Some(Done::untouched(Status::Off, None))
        }
        Ok(_) if encoded => Some(Done::untouched(
            Status::PassedThrough,
            Some(Failure::Encoding),
        )),
        Ok(_) => None,
    };
    let (done, body) = match (untouched, wish) {
        (Some(done), _) => (done, body),
        (None, Err(_)) => (Done::untouched(Status::Off, None), body),
        (None, Ok(wish)) => match respond::read(&parts.headers, body, app.options.max_body).await {
            Read::Broken => {
                return error(
                    StatusCode::BAD_REQUEST,
                    "invalid_request",
                    "the body ended before it was whole",
                );
            }
            Read::TooLong(body) => (
                Done::untouched(Status::PassedThrough, Some(Failure::BodyTooLarge)),
                body,
            ),
            Read::Whole(body) => {
                let done = app.conversation(body.clone(), wish.job(app)).await;
                let body = done.body.clone().unwrap_or(body);
                // A body of known length needs no other framing.
                parts.headers.remove(TRANSFER_ENCODING);
                parts
                    .headers
                    .insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
                (done, Body::from(body))
            }
        },
    };
    // Failures of a conversation that was read are counted where they happen.
    if let Some(failure) = done.failure.filter(|_| done.time.is_zero()) {
        app.failed(failure);
    }
    let summary = Summary::of(&done);
    let mut response = match done.failure {
        Some(failure) if app.options.on_failure == OnFailure::Error => error(
            StatusCode::SERVICE_UNAVAILABLE,
            "compression_failed",
            &format!("the request was not compressed: {}", failure.name()),
        ),
        _ => send(app, Request::from_parts(parts, body)).await,
    };
    summary.attach(&mut response);
    response
}

/// Sends a request to the upstream and gives its response as it is.
async fn send(app: &Arc<App>, mut request: Request<Body>) -> Response {
    let Some(upstream) = &app.upstream else {
        return error(StatusCode::NOT_FOUND, "not_found", "found no upstream");
    };
    let Some(uri) = upstream.uri(request.uri()) else {
        return error(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            "the path cannot be forwarded",
        );
    };
    let upgrade = request.headers().get(UPGRADE).cloned();
    let client = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    parts.uri = uri;
    parts.version = http::Version::HTTP_11;
    parts.extensions = http::Extensions::new();
    strip(&mut parts.headers);
    for name in [HOST, EXPECT] {
        parts.headers.remove(name);
    }
    let own = |name: &HeaderName| {
        name.as_str().starts_with("x-prefold") || name.as_str() == "x-headroom-bypass"
    };
    let names: Vec<HeaderName> = parts
        .headers
        .keys()
        .filter(|name| own(name))
        .cloned()
        .collect();
    for name in names {
        parts.headers.remove(name);
    }
    if let Some(protocol) = upgrade {
        parts
            .headers
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, protocol);
    }
    let start = Instant::now();
    let sent = upstream.send(Request::from_parts(parts, body));
    let answer = tokio::time::timeout(app.options.upstream_idle, sent).await;
    observe(&app.metrics.upstream_seconds, start.elapsed());
    let failed = |reason: &'static str| {
        app.metrics
            .upstream_errors
            .get_or_create(&Why { reason })
            .inc();
    };
    let mut answer = match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(problem)) => {
            let (reason, message) = match problem.is_connect() {
                true => ("connect", "the upstream cannot be reached"),
                false => (
                    "broken",
                    "the upstream ended the connection before its answer",
                ),
            };
            failed(reason);
            return error(StatusCode::BAD_GATEWAY, "upstream_error", message);
        }
        Err(_) => {
            failed("timeout");
            return error(
                StatusCode::GATEWAY_TIMEOUT,
                "upstream_error",
                "the upstream did not answer in time",
            );
        }
    };
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        if let Some(client) = client {
            let server = hyper::upgrade::on(&mut answer);
            tokio::spawn(async move {
                if let (Ok(client), Ok(server)) = (client.await, server.await) {
                    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
                    // Ends when either side does.
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
        return answer.map(|_| Body::empty());
    }
    let (mut parts, body) = answer.into_parts();
    strip(&mut parts.headers);
    let body = TimeoutBody::new(app.options.upstream_idle, body);
    Response::from_parts(parts, Body::new(body))
}

/// Removes what concerns one connection only. Trailers are passed, so that what announces them
/// stays.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let trailers = headers
        .get(TE)
        .is_some_and(|te| te.to_str().is_ok_and(|te| te.contains("trailers")));
    for name in named {
        headers.remove(name);
    }
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
    ] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_interfaces_are_conversations() {
        let chat = |method: &str, path: &str| {
            let request = Request::builder().method(method).uri(path);
            is_chat(&request.body(Body::empty()).unwrap())
        };
        for path in [
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/responses",
            "/v1/messages?beta=true",
            "/openai/deployments/x/chat/completions?api-version=1",
        ] {
            assert!(chat("POST", path), "{path}");
            assert!(!chat("GET", path), "{path}");
        }
        for path in [
            "/v1/models",
            "/v1/messages/count_tokens",
            "/v1/embeddings",
            "/v1/batches",
        ] {
            assert!(!chat("POST", path), "{path}");
        }
    }

    #[test]
    fn headers_of_a_connection_are_removed() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, x-own"),
            ("x-own", "1"),
            ("keep-alive", "5"),
            ("te", "trailers, deflate"),
            ("transfer-encoding", "chunked"),
            ("authorization", "Bearer k"),
            ("trailer", "x-sum"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        strip(&mut headers);
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "te", "trailer"]);
        assert_eq!(headers["te"], "trailers");
    }
}
