//! `POST /v1/compress`: a conversation in, the shorter one out, in the form that gateways expect;
//! and the originals that markers stand for.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use http::header::ACCEPT;
use http::{HeaderMap, StatusCode};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::app::{App, Done, Failure, Status};
use super::body::body_of;
use super::options::{Mode, OnFailure};
use super::respond::{self, Summary, error, json};
use super::wish::Wish;
use crate::hard::messages::{Decision, Policy};
use crate::hard::{Budget, check_rate};

/// A conversation, and how it is to be shortened. Members that are not named here are not read.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct CompressRequest {
    /// The messages, in OpenAI's or Anthropic's form.
    #[serde(rename = "messages")]
    #[schema(value_type = Vec<Object>)]
    _messages: IgnoredAny,
    /// Tokens of all messages together.
    token_budget: Option<usize>,
    /// Options under headroom's names.
    config: Option<Config>,
    /// prefold's own options.
    prefold: Option<Own>,
}

/// Options under headroom's names; others are not read.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Config {
    /// Share of its tokens that a shortened text keeps.
    target_ratio: Option<f64>,
    /// Messages at the end that do not change.
    protect_recent: Option<usize>,
    /// Whether the user's turns before the newest one are shortened.
    compress_user_messages: Option<bool>,
    /// Texts of fewer tokens do not change.
    min_tokens_to_compress: Option<usize>,
}

/// prefold's own options.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Own {
    /// Share of its tokens that a shortened text keeps.
    rate: Option<f64>,
    /// Tokens of all messages together.
    target_token: Option<usize>,
    /// What texts are ranked by, in place of the newest turn of the user.
    question: Option<String>,
    /// `compress`, `audit` or `off`.
    #[schema(value_type = Option<String>)]
    mode: Option<Mode>,
    /// Texts of fewer tokens do not change.
    min_tokens: Option<usize>,
    /// Whether a marker stands where text was dropped.
    retrieve: Option<bool>,
}

/// A shortened conversation.
#[derive(Serialize, ToSchema)]
pub(super) struct CompressResponse<'a> {
    /// The messages.
    #[schema(value_type = Vec<Object>)]
    messages: &'a RawValue,
    tokens_before: usize,
    tokens_after: usize,
    tokens_saved: usize,
    /// Tokens after over tokens before.
    compression_ratio: f64,
    /// What was done, by kind.
    transforms_applied: Vec<String>,
    /// Names under which `/v1/retrieve` has originals.
    ccr_hashes: &'a [String],
    /// `compressed`, `cached`, `skipped`, `passed-through`, `audit` or `off`.
    #[schema(value_type = String)]
    status: Status,
    /// Why the original came back.
    #[schema(value_type = Option<String>)]
    reason: Option<Failure>,
    /// What became of each part.
    #[schema(value_type = Vec<Object>)]
    decisions: &'a [Decision],
}

/// Only the messages of a body.
#[derive(Deserialize)]
struct Messages<'a> {
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
}

/// Shortens a conversation.
#[utoipa::path(
    post, path = "/v1/compress", tag = "compression",
    request_body = CompressRequest,
    responses(
        (status = 200, body = CompressResponse),
        (status = 400, description = "The body is not a conversation"),
        (status = 413, description = "The body is too large"),
    )
)]
pub(super) async fn compress(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let body = match body_of(&app, &headers, body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let invalid = |message: String| error(StatusCode::BAD_REQUEST, "invalid_request", &message);
    let given: Messages = match serde_json::from_slice(&body) {
        Ok(given) => given,
        Err(problem) => return invalid(format!("the body is not a JSON object: {problem}")),
    };
    let Some(messages) = given.messages.filter(|list| list.get().starts_with('[')) else {
        return invalid("`messages` is missing; expected a list of messages".into());
    };
    let how: CompressRequest = match serde_json::from_slice(&body) {
        Ok(how) => how,
        Err(problem) => return invalid(format!("the options cannot be read: {problem}")),
    };
    let wish = match Wish::read(&headers) {
        Ok(wish) => wish,
        Err(message) => return invalid(message),
    };
    let bypass = wish.mode == Some(Mode::Off);
    let mut job = wish.job(&app);
    if let Err(message) = how.apply(&mut job) {
        return invalid(message);
    }
    let done = match bypass || job.mode == Mode::Off {
        true => Done::untouched(Status::Off, None),
        false => app.conversation(body.clone(), job).await,
    };
    if let Some(failure) = done
        .failure
        .filter(|_| app.options.on_failure == OnFailure::Error)
    {
        let message = format!("the messages were not compressed: {}", failure.name());
        let mut response = error(
            StatusCode::SERVICE_UNAVAILABLE,
            "compression_failed",
            &message,
        );
        Summary::of(&done).attach(&mut response);
        return response;
    }
    let short: Option<Messages> = done
        .body
        .as_ref()
        .and_then(|body| serde_json::from_slice(body).ok());
    let (before, after) = done.tokens().unwrap_or_default();
    let audit = done.status == Status::Audit;
    let decisions = done
        .result
        .as_ref()
        .map_or(&[][..], |result| &result.decisions);
    let mut response = json(
        StatusCode::OK,
        &CompressResponse {
            messages: short.and_then(|short| short.messages).unwrap_or(messages),
            tokens_before: before,
            tokens_after: after,
            tokens_saved: before.saturating_sub(after),
            compression_ratio: if before == 0 {
                1.0
            } else {
                after as f64 / before as f64
            },
            transforms_applied: if audit {
                Vec::new()
            } else {
                transforms(decisions)
            },
            ccr_hashes: &done.hashes,
            status: done.status,
            reason: done.failure,
            decisions,
        },
    );
    Summary::of(&done).attach(&mut response);
    response
}

impl CompressRequest {
    /// Sets what the request says.
    fn apply(&self, job: &mut super::app::Job) -> Result<(), String> {
        let messages = &mut job.messages;
        let mut target = self.token_budget;
        if let Some(config) = &self.config {
            if let Some(rate) = config.target_ratio {
                check_rate("rate", rate)
                    .map_err(|error| format!("config.target_ratio: {error}"))?;
                messages.budget = Budget::Rate(rate);
            }
            if let Some(recent) = config.protect_recent {
                messages.recent = recent;
            }
            if let Some(user) = config.compress_user_messages {
                messages.user = if user { Policy::Shorten } else { Policy::Keep };
            }
            if let Some(tokens) = config.min_tokens_to_compress {
                messages.min_tokens = tokens;
            }
        }
        if let Some(own) = &self.prefold {
            if let Some(rate) = own.rate {
                check_rate("rate", rate).map_err(|error| format!("prefold.rate: {error}"))?;
                messages.budget = Budget::Rate(rate);
            }
            target = own.target_token.or(target);
            if own.question.is_some() {
                messages.question.clone_from(&own.question);
            }
            messages.min_tokens = own.min_tokens.unwrap_or(messages.min_tokens);
            job.mode = own.mode.unwrap_or(job.mode);
            job.retrieve = own.retrieve.unwrap_or(job.retrieve);
        }
        if let Some(tokens) = target {
            messages.budget = Budget::Tokens(tokens);
        }
        Ok(())
    }
}

/// The kinds of parts that were shortened, each once.
fn transforms(decisions: &[Decision]) -> Vec<String> {
    let mut names = Vec::new();
    for decision in decisions.iter().filter(|d| d.after < d.before) {
        let why = serde_json::to_value(decision.why);
        let why = why.ok().and_then(|why| why.as_str().map(String::from));
        let name = format!("prefold:{}", why.unwrap_or_default());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// An original, under headroom's names.
#[derive(Serialize, ToSchema)]
pub(super) struct Original<'a> {
    hash: &'a str,
    original_tokens: usize,
    /// Byte for byte what it was.
    original_content: &'a str,
}

/// Gives the original that a marker stands for.
#[utoipa::path(
    get, path = "/v1/retrieve/{hash}", tag = "compression",
    params(("hash" = String, Path, description = "The hash in the marker")),
    responses(
        (status = 200, description = "The original; as text where `accept` asks for text/plain",
            body = Original),
        (status = 404, description = "It was never there, or its time has passed"),
    )
)]
pub(super) async fn retrieve(
    State(app): State<Arc<App>>,
    Path(hash): Path<String>,
    headers: HeaderMap,
) -> Response {
    let as_text = headers
        .get(ACCEPT)
        .is_some_and(|accept| accept.as_bytes().starts_with(b"text/plain"));
    original(app, hash, as_text).await
}

/// The hash of an original.
#[derive(Deserialize, ToSchema)]
pub(super) struct RetrieveRequest {
    hash: String,
}

/// Gives the original of a hash in the body, as headroom's SDK asks for it.
#[utoipa::path(
    post, path = "/v1/retrieve", tag = "compression", request_body = RetrieveRequest,
    responses((status = 200, body = Original), (status = 404, description = "It is not there"))
)]
pub(super) async fn retrieve_by_body(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match super::body::arguments::<RetrieveRequest>(&app, &headers, body).await {
        Ok(request) => original(app, request.hash, false).await,
        Err(response) => response,
    }
}

async fn original(app: Arc<App>, hash: String, as_text: bool) -> Response {
    let known = hash.len() == 24 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    let (from, name) = (app.clone(), hash.clone());
    let found = match known {
        false => None,
        true => tokio::task::spawn_blocking(move || from.store.original(&name))
            .await
            .ok()
            .flatten(),
    };
    match found {
        Some(text) if as_text => respond::with_type(
            StatusCode::OK,
            "text/plain; charset=utf-8",
            Bytes::copy_from_slice(text.as_bytes()),
        ),
        Some(text) => json(
            StatusCode::OK,
            &Original {
                hash: &hash,
                original_tokens: app.count(&text).unwrap_or_default(),
                original_content: &text,
            },
        ),
        None => error(
            StatusCode::NOT_FOUND,
            "not_found",
            "found no original of that hash; its time may have passed",
        ),
    }
}
