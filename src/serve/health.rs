//! Whether the server is there and ready, what it counted, and what its interface is.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::json as value;
use utoipa::{OpenApi, ToSchema};

use super::app::App;
use super::respond::{json, with_type};
use super::{calls, compress, kong};

/// Says that the process runs.
#[utoipa::path(
    get, path = "/livez", tag = "health",
    responses((status = 200, description = "It runs"))
)]
pub(super) async fn live() -> Response {
    json(StatusCode::OK, &value!({"status": "ok"}))
}

/// Says whether requests are taken.
#[utoipa::path(
    get, path = "/readyz", tag = "health",
    responses((status = 200, description = "Ready"), (status = 503, description = "It is stopping"))
)]
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.draining.load(Ordering::Relaxed) {
        false => json(StatusCode::OK, &value!({"status": "ready"})),
        true => json(
            StatusCode::SERVICE_UNAVAILABLE,
            &value!({"status": "stopping"}),
        ),
    }
}

/// What runs.
#[derive(Serialize, ToSchema)]
struct Health {
    status: &'static str,
    version: &'static str,
    model: String,
    fingerprint: String,
    device: String,
    mode: String,
    upstream: bool,
    cache: String,
}

/// Says what runs.
#[utoipa::path(get, path = "/health", tag = "health", responses((status = 200, body = Health)))]
pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    let info = app.engine.info();
    let stopping = app.draining.load(Ordering::Relaxed);
    let health = Health {
        status: if stopping { "stopping" } else { "ok" },
        version: env!("CARGO_PKG_VERSION"),
        model: info.name.clone(),
        fingerprint: info.fingerprint.clone(),
        device: info.device.clone(),
        mode: format!("{:?}", app.options.mode).to_lowercase(),
        upstream: app.upstream.is_some(),
        cache: app.options.cache.to_string(),
    };
    json(StatusCode::OK, &health)
}

/// Gives all counters as Prometheus reads them.
#[utoipa::path(
    get, path = "/metrics", tag = "health",
    responses((status = 200, content_type = "text/plain"))
)]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    with_type(StatusCode::OK, kind, app.metrics_text().into())
}

/// The interface.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "prefold",
        description = "Compresses prompts and conversations before a language model reads them"
    ),
    paths(
        compress::compress,
        compress::retrieve,
        compress::retrieve_by_body,
        calls::compress_prompt,
        calls::rank,
        calls::score,
        kong::compress,
        kong::json_rpc,
        kong::status,
        live,
        ready,
        health,
        metrics,
    )
)]
pub(super) struct Interface;

/// Gives the interface as OpenAPI.
pub(super) async fn openapi() -> Response {
    json(StatusCode::OK, &Interface::openapi())
}

/// Gives the page.
pub(super) async fn page() -> Response {
    let page = Bytes::from_static(include_bytes!("page.html"));
    let mut response = with_type(StatusCode::OK, "text/html; charset=utf-8", page);
    let headers = response.headers_mut();
    // The page loads nothing from elsewhere, and other pages cannot frame it.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                  connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    headers.insert("content-security-policy", HeaderValue::from_static(policy));
    headers.insert("cache-control", HeaderValue::from_static("no-cache"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_names_every_path() {
        let interface = serde_json::to_value(Interface::openapi()).unwrap();
        let paths = interface["paths"].as_object().unwrap();
        for path in [
            "/v1/compress",
            "/v1/compress_prompt",
            "/v1/retrieve/{hash}",
            "/v1/retrieve",
            "/v1/rank",
            "/v1/score",
            "/llm/v1/compressPrompt",
            "/",
            "/status",
            "/livez",
            "/readyz",
            "/health",
            "/metrics",
        ] {
            assert!(paths.contains_key(path), "{path}");
        }
        let schemas = &interface["components"]["schemas"];
        assert!(schemas["CompressRequest"]["properties"]["messages"].is_object());
    }
}
