//! Bodies of calls, read with their bounds.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::app::App;
use super::respond::{self, Read, error};

/// The whole body of a call, or what is wrong with it.
pub(super) async fn body_of(
    app: &Arc<App>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Bytes, Response> {
    match respond::read(headers, body, app.options.max_body).await {
        Read::Whole(body) => Ok(body),
        Read::TooLong(_) => Err(error(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            &format!("the body has more than {} bytes", app.options.max_body),
        )),
        Read::Broken => Err(error(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            "the body ended before it was whole",
        )),
    }
}

/// The body of a call as JSON.
pub(super) async fn arguments<T: serde::de::DeserializeOwned>(
    app: &Arc<App>,
    headers: &HeaderMap,
    body: Body,
) -> Result<T, Response> {
    let body = body_of(app, headers, body).await?;
    serde_json::from_slice(&body).map_err(|problem| invalid(&problem.to_string()))
}

pub(super) fn invalid(message: &str) -> Response {
    error(StatusCode::BAD_REQUEST, "invalid_request", message)
}
