//! Calls of the library over HTTP: llmlingua's keyword arguments, ranking, scores, and the page's
//! preview.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::app::{App, Refused, Status};
use super::body::{arguments, invalid};
use super::options::OnFailure;
use super::respond::{Summary, error, json};
use super::wish::Wish;
use crate::error::Error;
use crate::hard::{Compressed, Exact, KeptContext, LlmLinguaResult, Piece, Request};

/// Time for a call: what its header asks for, or the server's.
// A handler's error is the response itself.
#[allow(clippy::result_large_err)]
fn time_for(app: &App, headers: &HeaderMap) -> Result<Duration, Response> {
    let wish = Wish::read(headers).map_err(|message| invalid(&message))?;
    Ok(wish.deadline.unwrap_or(app.options.call_deadline))
}

/// The answer to a call that gave no result.
fn refusal(app: &App, refused: Refused) -> Response {
    match refused {
        Refused::Input(message) => invalid(&message),
        Refused::Failed(failure) => {
            app.failed(failure);
            let message = format!("the call was not done: {}", failure.name());
            error(StatusCode::SERVICE_UNAVAILABLE, failure.name(), &message)
        }
    }
}

/// llmlingua's dictionary, and beside it what is left of each context.
#[derive(Serialize, ToSchema)]
struct PromptResponse {
    #[serde(flatten)]
    #[schema(value_type = Object)]
    dictionary: LlmLinguaResult,
    /// What is left of each context, in the order of the result.
    #[schema(value_type = Vec<Object>)]
    contexts: Vec<KeptContext>,
    /// What the caller should know about the result.
    warnings: Vec<String>,
}

impl From<Compressed> for PromptResponse {
    fn from(compressed: Compressed) -> Self {
        PromptResponse {
            dictionary: compressed.llmlingua(),
            contexts: compressed.contexts,
            warnings: compressed.warnings,
        }
    }
}

/// Shortens a prompt: llmlingua's keyword arguments in, its dictionary out.
#[utoipa::path(
    post, path = "/v1/compress_prompt", tag = "compression",
    request_body(
        content = Object,
        description = "Keyword arguments of PromptCompressor.compress_prompt",
    ),
    responses(
        (status = 200, body = PromptResponse),
        (status = 400, description = "A wrong argument"),
    )
)]
pub(super) async fn compress_prompt(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut arguments: Map<String, Value> = match arguments(&app, &headers, body).await {
        Ok(arguments) => arguments,
        Err(response) => return response,
    };
    let structured = matches!(arguments.remove("structured"), Some(Value::Bool(true)));
    let request = match Request::from_python(arguments, structured) {
        Ok(request) => request,
        Err(problem) => return invalid(&problem.to_string()),
    };
    let time = match time_for(&app, &headers) {
        Ok(time) => time,
        Err(response) => return response,
    };
    let original = request.clone();
    let done = app.queued(time, move |app, control| {
        app.engine.compress_with(&request, control)
    });
    let (compressed, failure) = match done.await {
        Ok(compressed) => (compressed, None),
        Err(Refused::Failed(failure)) if app.options.on_failure == OnFailure::Pass => {
            app.failed(failure);
            (unchanged(&original), Some(failure))
        }
        Err(refused) => return refusal(&app, refused),
    };
    let tokens = (compressed.tokens_before, compressed.tokens_after);
    app.metrics.count_tokens(tokens.0, tokens.1);
    let mut response = json(StatusCode::OK, &PromptResponse::from(compressed));
    let status = match failure {
        None => Status::Compressed,
        Some(_) => Status::PassedThrough,
    };
    Summary {
        status,
        failure,
        tokens: Some(tokens),
        ms: 0.0,
    }
    .attach(&mut response);
    response
}

/// A result that kept everything.
fn unchanged(request: &Request) -> Compressed {
    let parts = std::iter::once(request.instruction.as_str())
        .chain(request.contexts.iter().map(String::as_str))
        .chain([request.question.as_str()]);
    let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    let text = parts.join("\n\n");
    Compressed::new(&text, text.clone())
}

/// Documents to rank.
#[derive(Deserialize, ToSchema)]
pub(super) struct RankRequest {
    /// What they are ranked by.
    query: String,
    /// The documents: texts, or objects with a `text`.
    #[schema(value_type = Vec<Object>)]
    documents: Vec<Document>,
    /// How many results are given; all by default.
    #[serde(alias = "top_k")]
    top_n: Option<usize>,
    /// Whether the results have the documents' texts.
    #[serde(default)]
    return_documents: bool,
    /// Taken and not read: the server has one model.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    #[allow(dead_code)]
    model: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    Text(String),
    Object { text: String },
}

/// Documents by rank.
#[derive(Serialize, ToSchema)]
struct RankResponse {
    model: String,
    /// The best first.
    results: Vec<Ranked>,
    usage: Usage,
}

#[derive(Serialize, ToSchema)]
struct Ranked {
    /// Its place in the request.
    index: usize,
    /// Between 0 and 1, comparable within a request only.
    relevance_score: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<RankedText>,
}

#[derive(Serialize, ToSchema)]
struct RankedText {
    text: String,
}

#[derive(Serialize, ToSchema)]
struct Usage {
    total_tokens: usize,
}

/// Documents of one request.
const MAX_DOCUMENTS: usize = 10_000;

/// Ranks documents by what they tell about a query.
#[utoipa::path(
    post, path = "/v1/rank", tag = "ranking", request_body = RankRequest,
    responses((status = 200, body = RankResponse), (status = 400, description = "A wrong argument"))
)]
pub(super) async fn rank(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Response {
    let request: RankRequest = match arguments(&app, &headers, body).await {
        Ok(request) => request,
        Err(response) => return response,
    };
    if request.query.trim().is_empty() || request.documents.is_empty() {
        return invalid("`query` and `documents` must not be empty");
    }
    if request.documents.len() > MAX_DOCUMENTS {
        return invalid(&format!(
            "more than {MAX_DOCUMENTS} documents; send them in parts"
        ));
    }
    let time = match time_for(&app, &headers) {
        Ok(time) => time,
        Err(response) => return response,
    };
    let texts: Vec<String> = request
        .documents
        .into_iter()
        .map(|document| match document {
            Document::Text(text) | Document::Object { text } => text,
        })
        .collect();
    let query = request.query;
    let done = app.queued(time, move |app, control| {
        let scores = app.engine.rank(&query, &texts, control)?;
        let tokens = texts
            .iter()
            .map(|text| app.count(text))
            .sum::<Result<usize, Error>>()?;
        Ok((scores, texts, tokens))
    });
    let (scores, mut texts, total_tokens) = match done.await {
        Ok(done) => done,
        Err(refused) => return refusal(&app, refused),
    };
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(request.top_n.unwrap_or(usize::MAX));
    let results = order.into_iter().map(|index| Ranked {
        index,
        relevance_score: 1.0 / (1.0 + (-scores[index]).exp()),
        document: request.return_documents.then(|| RankedText {
            text: std::mem::take(&mut texts[index]),
        }),
    });
    let response = RankResponse {
        results: results.collect(),
        model: app.engine.info().name.clone(),
        usage: Usage { total_tokens },
    };
    json(StatusCode::OK, &response)
}

/// A text to score, or its token ids.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ScoreRequest {
    text: Option<String>,
    ids: Option<Vec<u32>>,
}

/// How probable a text is.
#[derive(Serialize, ToSchema)]
struct ScoreResponse {
    model: String,
    ids: Vec<u32>,
    /// Natural logarithms of the probabilities of `ids[1:]`.
    logprobs: Vec<f32>,
    tokens: usize,
    mean_nll: Option<f64>,
    perplexity: Option<f64>,
}

/// Scores a text by the model.
#[utoipa::path(
    post, path = "/v1/score", tag = "ranking", request_body = ScoreRequest,
    responses(
        (status = 200, body = ScoreResponse),
        (status = 400, description = "A wrong argument"),
    )
)]
pub(super) async fn score(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Response {
    let request: ScoreRequest = match arguments(&app, &headers, body).await {
        Ok(request) => request,
        Err(response) => return response,
    };
    let time = match time_for(&app, &headers) {
        Ok(time) => time,
        Err(response) => return response,
    };
    let done = app.queued(time, move |app, control| {
        let ids = match (request.text, request.ids) {
            (Some(text), None) => app.engine.tokenize(&text, true, false)?,
            (None, Some(ids)) => ids,
            _ => return Err(Error::input("score", "give one of `text` and `ids`")),
        };
        let nll = app.engine.score(&ids, control)?;
        Ok((ids, nll))
    });
    let (ids, nll) = match done.await {
        Ok(done) => done,
        Err(refused) => return refusal(&app, refused),
    };
    let mean = match nll.len() {
        0 => None,
        scored => Some(nll.iter().map(|&x| f64::from(x)).sum::<f64>() / scored as f64),
    };
    let response = ScoreResponse {
        model: app.engine.info().name.clone(),
        tokens: ids.len(),
        ids,
        logprobs: nll.into_iter().map(|nll| -nll).collect(),
        mean_nll: mean,
        perplexity: mean.map(f64::exp),
    };
    json(StatusCode::OK, &response)
}

/// A text to show with what would stay of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PreviewRequest {
    text: String,
    #[serde(default)]
    question: String,
    rate: f64,
}

#[derive(Serialize)]
struct PreviewResponse {
    pieces: Vec<Piece>,
    text: String,
    tokens_before: usize,
    tokens_after: usize,
}

/// Shortens a text for the page, every token scored. Not part of the interface.
pub(super) async fn preview(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let request: PreviewRequest = match arguments(&app, &headers, body).await {
        Ok(request) => request,
        Err(response) => return response,
    };
    let time = app.options.call_deadline;
    let length = request.text.len();
    let done = app.queued(time, move |app, control| {
        let exact = Exact::default().with_keep_question(false).with_trace(true);
        let request = Request::new([request.text])
            .with_question(request.question)
            .with_rate(request.rate)
            .with_mode(exact);
        app.engine.compress_with(&request, control)
    });
    match done.await {
        Ok(compressed) => json(
            StatusCode::OK,
            &PreviewResponse {
                text: compressed.text,
                tokens_before: compressed.tokens_before,
                tokens_after: compressed.tokens_after,
                pieces: without_question(compressed.pieces, length),
            },
        ),
        Err(refused) => refusal(&app, refused),
    }
}

/// The pieces of the first `length` bytes: the text's. The question comes after it.
fn without_question(mut pieces: Vec<Piece>, length: usize) -> Vec<Piece> {
    let mut left = length;
    pieces.retain_mut(|piece| {
        let end = piece.text.floor_char_boundary(left);
        piece.text.truncate(end);
        left -= end;
        end > 0
    });
    pieces
}
