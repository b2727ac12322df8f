//! Answers of the server's own, and bodies that are read up to a limit.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use serde::Serialize;
use serde_json::json;

use super::app::{Done, Failure, Status};

/// An answer of JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => with_type(status, "application/json", body.into()),
        Err(error) => with_type(
            StatusCode::INTERNAL_SERVER_ERROR,
            "text/plain",
            error.to_string().into(),
        ),
    }
}

/// An answer of a media type.
pub(super) fn with_type(status: StatusCode, kind: &'static str, body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// An error in the form that the providers' SDKs read.
pub(super) fn error(status: StatusCode, kind: &str, message: &str) -> Response {
    json(
        status,
        &json!({"error": {"type": kind, "message": message}}),
    )
}

/// What became of a request, for its headers, its log line and the metrics.
#[derive(Debug, Clone, Copy)]
pub(super) struct Summary {
    pub status: Status,
    pub failure: Option<Failure>,
    pub tokens: Option<(usize, usize)>,
    pub ms: f64,
}

impl Summary {
    pub fn of(done: &Done) -> Self {
        Summary {
            status: done.status,
            failure: done.failure,
            tokens: done.tokens(),
            ms: done.time.as_secs_f64() * 1e3,
        }
    }

    /// Writes it to a response.
    pub fn attach(self, response: &mut Response) {
        let headers = response.headers_mut();
        let mut set = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        set("x-prefold-status", self.status.name());
        if let Some(failure) = self.failure {
            set("x-prefold-reason", failure.name());
        }
        if let Some((before, after)) = self.tokens {
            set("x-prefold-tokens-before", &before.to_string());
            set("x-prefold-tokens-after", &after.to_string());
            set(
                "x-prefold-tokens-saved",
                &before.saturating_sub(after).to_string(),
            );
        }
        let timing = format!("prefold;dur={:.1}", self.ms);
        if let Ok(timing) = HeaderValue::from_str(&timing) {
            headers.append(HeaderName::from_static("server-timing"), timing);
        }
        response.extensions_mut().insert(self);
    }
}

/// A body that was read.
pub(super) enum Read {
    Whole(Bytes),
    /// Longer than the limit: what was read, and the rest.
    TooLong(Body),
    /// The client ended it, or sent nothing for too long.
    Broken,
}

/// Reads a body up to a limit.
pub(super) async fn read(headers: &HeaderMap, mut body: Body, limit: u64) -> Read {
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Read::TooLong(body);
    }
    let mut chunks: VecDeque<Bytes> = VecDeque::new();
    let mut length = 0_u64;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Read::Broken;
        };
        if let Ok(chunk) = frame.into_data() {
            length += chunk.len() as u64;
            chunks.push_back(chunk);
        }
        if length > limit {
            return Read::TooLong(Body::new(Resumed { chunks, rest: body }));
        }
    }
    if chunks.len() == 1 {
        return Read::Whole(chunks.pop_front().unwrap_or_default());
    }
    let mut whole = BytesMut::with_capacity(length as usize);
    chunks
        .iter()
        .for_each(|chunk| whole.extend_from_slice(chunk));
    Read::Whole(whole.freeze())
}

/// A body of which a part was read.
struct Resumed {
    chunks: VecDeque<Bytes>,
    rest: Body,
}

impl HttpBody for Resumed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match self.chunks.pop_front() {
            Some(chunk) => Poll::Ready(Some(Ok(Frame::data(chunk)))),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(work)
    }

    #[test]
    fn what_is_too_long_comes_whole_all_the_same() {
        for chunks in [vec!["0123456789"], vec!["012", "345", "6789"]] {
            for limit in [0, 5, 9, 10] {
                let parts = chunks
                    .iter()
                    .map(|chunk| Bytes::from_static(chunk.as_bytes()));
                let body = Body::new(Resumed {
                    chunks: parts.collect(),
                    rest: Body::empty(),
                });
                let (long, body) = match block_on(read(&HeaderMap::new(), body, limit)) {
                    Read::Whole(body) => (false, Body::from(body)),
                    Read::TooLong(body) => (true, body),
                    Read::Broken => panic!("it is whole"),
                };
                assert_eq!(long, limit < 10);
                let whole = block_on(body.collect()).unwrap().to_bytes();
                assert_eq!(whole, "0123456789");
            }
        }
    }
}
