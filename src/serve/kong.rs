//! Kong's AI Prompt Compressor: its REST call, the same by JSON-RPC, and its status.

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json as value};
use utoipa::ToSchema;

use super::app::{App, Failure, Refused, Status};
use super::body::{arguments, body_of};
use super::respond::{Summary, error, json};
use crate::control::Control;
use crate::error::Result;
use crate::hard::{Exact, Request, check_rate};

/// Texts to shorten.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub(super) struct KongRequest {
    /// A text, or a list of them with ids.
    #[schema(value_type = Object)]
    text: Texts,
    /// What the ranges' values are.
    #[serde(default)]
    compressor_type: Kind,
    /// By how much texts are shortened, by their tokens.
    #[serde(default)]
    compression_ranges: Vec<KongRange>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<KongText>),
}

#[derive(Debug, Clone, Deserialize)]
struct KongText {
    #[serde(default)]
    msg_id: Value,
    text: String,
}

/// What a range's value is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// The share of tokens to keep.
    #[default]
    Rate,
    /// The number of tokens to keep.
    TargetToken,
}

/// By how much texts of so many tokens are shortened.
#[derive(Debug, Clone, Deserialize, ToSchema)]
struct KongRange {
    min_tokens: usize,
    max_tokens: usize,
    value: f64,
}

/// The shortened texts.
#[derive(Debug, Serialize, ToSchema)]
struct KongResponse {
    text: Vec<KongResult>,
    /// Seconds.
    duration: f64,
}

#[derive(Debug, Serialize, ToSchema)]
struct KongResult {
    compress_prompt: String,
    compressor_results: KongFigures,
    #[schema(value_type = Object)]
    msg_id: Value,
}

#[derive(Debug, Serialize, ToSchema)]
struct KongFigures {
    #[schema(value_type = Object)]
    msg_id: Value,
    original_token_count: usize,
    compress_token_count: usize,
    save_token_count: usize,
    compress_value: f64,
    compress_type: Kind,
    compressor_model: String,
    information: String,
}

/// Shortens texts as Kong's compressor service does.
#[utoipa::path(
    post, path = "/llm/v1/compressPrompt", tag = "kong", request_body = KongRequest,
    responses((status = 200, body = KongResponse), (status = 400, description = "A wrong argument"))
)]
pub(super) async fn compress(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let request: KongRequest = match arguments(&app, &headers, body).await {
        Ok(request) => request,
        Err(response) => return response,
    };
    match run(&app, request).await {
        Ok((result, summary)) => {
            let mut response = json(StatusCode::OK, &result);
            summary.attach(&mut response);
            response
        }
        Err(message) => error(StatusCode::BAD_REQUEST, "invalid_request", &message),
    }
}

/// Shortens all texts. A failure leaves texts as they are.
async fn run(app: &Arc<App>, request: KongRequest) -> Result<(KongResponse, Summary), String> {
    for range in &request.compression_ranges {
        if request.compressor_type == Kind::Rate {
            check_rate("rate", range.value)
                .map_err(|error| format!("compression_ranges: {error}"))?;
        } else if range.value < 0.0 || range.value.fract() != 0.0 {
            return Err(format!(
                "compression_ranges: {} is not a number of tokens",
                range.value
            ));
        }
    }
    let start = Instant::now();
    let texts = match request.text.clone() {
        Texts::One(text) => vec![KongText {
            msg_id: value!(1),
            text,
        }],
        Texts::Many(texts) => texts,
    };
    let originals = texts.clone();
    let ranges = Arc::new(request);
    let by = ranges.clone();
    let done = app.queued(app.options.call_deadline, move |app, control| {
        texts
            .into_iter()
            .map(|text| one(app, control, &by, text))
            .collect::<Result<Vec<_>>>()
    });
    let (text, failure) = match done.await {
        Ok(text) => (text, None),
        Err(Refused::Input(message)) => return Err(message),
        Err(Refused::Failed(failure)) => {
            app.failed(failure);
            let same = |text: KongText| unchanged(app, &ranges, text, failure);
            (originals.into_iter().map(same).collect(), Some(failure))
        }
    };
    let sum = |of: fn(&KongFigures) -> usize| text.iter().map(|t| of(&t.compressor_results)).sum();
    let tokens: (usize, usize) = (
        sum(|t| t.original_token_count),
        sum(|t| t.compress_token_count),
    );
    app.metrics.count_tokens(tokens.0, tokens.1);
    let status = match failure {
        Some(_) => Status::PassedThrough,
        None if tokens.1 < tokens.0 => Status::Compressed,
        None => Status::Skipped,
    };
    let duration = start.elapsed().as_secs_f64();
    let summary = Summary {
        status,
        failure,
        tokens: Some(tokens),
        ms: duration * 1e3,
    };
    Ok((KongResponse { text, duration }, summary))
}

/// Shortens a text: what stands in its tags, or all of it.
fn one(app: &App, control: &Control, by: &KongRequest, text: KongText) -> Result<KongResult> {
    static TAG: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?is)<LLMLINGUA>(.*?)</LLMLINGUA>").expect("a constant pattern")
    });
    let before = app.count(&text.text)?;
    let range = by
        .compression_ranges
        .iter()
        .find(|range| (range.min_tokens..=range.max_tokens).contains(&before));
    let Some(range) = range else {
        let reason = "no range for its number of tokens";
        return Ok(result(app, by, text, None, 0.0, [before, before], reason));
    };
    let shorten = |part: &str, share: f64| -> Result<String> {
        let request = Request::new([part]).with_mode(Exact::default().with_keep_question(false));
        let request = match by.compressor_type {
            Kind::Rate => request.with_rate(range.value),
            Kind::TargetToken => request.with_tokens((range.value * share) as usize),
        };
        Ok(app.engine.compress_with(&request, control)?.text)
    };
    let short = match TAG.is_match(&text.text) {
        false => shorten(&text.text, 1.0)?,
        true => {
            let parts: Vec<&str> = TAG
                .captures_iter(&text.text)
                .filter_map(|found| Some(found.get(1)?.as_str()))
                .collect();
            let tagged: usize = parts.iter().map(|part| part.len()).sum();
            let mut out = String::with_capacity(text.text.len());
            let mut at = 0;
            for found in TAG.captures_iter(&text.text) {
                let (Some(whole), Some(part)) = (found.get(0), found.get(1)) else {
                    continue;
                };
                out.push_str(&text.text[at..whole.start()]);
                let share = part.len() as f64 / tagged.max(1) as f64;
                if !part.as_str().trim().is_empty() {
                    out.push_str(&shorten(part.as_str(), share)?);
                }
                at = whole.end();
            }
            out.push_str(&text.text[at..]);
            out
        }
    };
    let after = app.count(&short)?;
    let kept = [before, after];
    Ok(result(
        app,
        by,
        text,
        Some(short),
        range.value,
        kept,
        "shortened",
    ))
}

fn unchanged(app: &App, by: &KongRequest, text: KongText, failure: Failure) -> KongResult {
    // Counting bytes of valid text does not fail.
    let tokens = app.count(&text.text).unwrap_or_default();
    result(app, by, text, None, 0.0, [tokens, tokens], failure.name())
}

fn result(
    app: &App,
    by: &KongRequest,
    text: KongText,
    short: Option<String>,
    compress_value: f64,
    [before, after]: [usize; 2],
    information: &str,
) -> KongResult {
    KongResult {
        compressor_results: KongFigures {
            msg_id: text.msg_id.clone(),
            original_token_count: before,
            compress_token_count: after,
            save_token_count: before.saturating_sub(after),
            compress_value,
            compress_type: by.compressor_type,
            compressor_model: app.engine.info().name.clone(),
            information: information.into(),
        },
        compress_prompt: short.unwrap_or(text.text),
        msg_id: text.msg_id,
    }
}

/// A call by JSON-RPC 2.0.
#[derive(Deserialize)]
struct Call {
    jsonrpc: String,
    method: String,
    #[serde(default)]
    params: Value,
    id: Option<Value>,
}

/// The method that Kong's plugin calls.
const METHOD: &str = "llm.v1.compressPrompt";
/// Calls of one batch.
const MAX_CALLS: usize = 100;

/// Does calls by JSON-RPC 2.0, one or a batch.
#[utoipa::path(
    post, path = "/", tag = "kong",
    request_body(content = Object, description = "JSON-RPC 2.0, method `llm.v1.compressPrompt`"),
    responses((status = 200, description = "The result by JSON-RPC 2.0", body = Object))
)]
pub(super) async fn json_rpc(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let body: Bytes = match body_of(&app, &headers, body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let calls: Vec<Box<RawValue>> = match body.trim_ascii_start().first() {
        Some(b'[') => match serde_json::from_slice(&body) {
            Ok(calls) => calls,
            Err(_) => return json(StatusCode::OK, &problem(Value::Null, -32700, "not JSON")),
        },
        _ => match serde_json::from_slice(&body) {
            Ok(call) => {
                return match answer(&app, call).await {
                    Some(answer) => json(StatusCode::OK, &answer),
                    None => json(StatusCode::ACCEPTED, &value!({})),
                };
            }
            Err(_) => return json(StatusCode::OK, &problem(Value::Null, -32700, "not JSON")),
        },
    };
    if calls.is_empty() || calls.len() > MAX_CALLS {
        let message = format!("a batch has 1 to {MAX_CALLS} calls");
        return json(StatusCode::OK, &problem(Value::Null, -32600, &message));
    }
    let mut answers = Vec::new();
    for call in calls {
        answers.extend(answer(&app, call).await);
    }
    json(StatusCode::OK, &answers)
}

/// The answer to a call; none to a notification.
async fn answer(app: &Arc<App>, call: Box<RawValue>) -> Option<Value> {
    let call: Call = match serde_json::from_str(call.get()) {
        Ok(call) => call,
        Err(_) => return Some(problem(Value::Null, -32600, "not a call of JSON-RPC 2.0")),
    };
    if call.jsonrpc != "2.0" {
        return Some(problem(
            Value::Null,
            -32600,
            "expected \"jsonrpc\": \"2.0\"",
        ));
    }
    let id = call.id?;
    if call.method != METHOD {
        let message = format!("found no method `{}`; there is {METHOD}", call.method);
        return Some(problem(id, -32601, &message));
    }
    let params = match call.params {
        Value::Array(list) => list.into_iter().next().unwrap_or_default(),
        params => params,
    };
    let done = match serde_json::from_value(params) {
        Ok(request) => run(app, request).await,
        Err(error) => Err(error.to_string()),
    };
    Some(match done {
        Ok((result, _)) => value!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err(message) => problem(id, -32602, &message),
    })
}

fn problem(id: Value, code: i32, message: &str) -> Value {
    value!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
}

/// Says that the compressor is there, as Kong asks for it.
#[utoipa::path(get, path = "/status", tag = "kong", responses((status = 200, body = Object)))]
pub(super) async fn status(State(app): State<Arc<App>>) -> Response {
    let info = app.engine.info();
    let status = value!({"status": "ok", "model": info.name, "device": info.device});
    json(StatusCode::OK, &status)
}
