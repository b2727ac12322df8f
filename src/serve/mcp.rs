//! The same by the Model Context Protocol over standard input and output: an agent shortens texts,
//! and takes originals back, as tools.

use std::sync::Arc;
use std::time::Instant;

use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation,
    ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::{RequestContext, RoleServer};
use rmcp::{ErrorData, ServerHandler, ServiceExt};
use serde::Deserialize;
use serde_json::{Value, json};

use super::app::{App, Refused, original_name};
use super::options::ServeOptions;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::hard::{Budget, Exact, Request};

/// Serves on standard input and output until the client closes them.
///
/// # Errors
/// [`Error::Input`] for options outside their ranges; [`Error::Device`] for a client that does not keep to
/// the protocol.
pub fn serve_mcp(engine: Engine, options: ServeOptions) -> Result<()> {
    options.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(Error::io("threads of the server"))?;
    let app = Arc::new(App::new(engine, options, runtime.handle())?);
    let failed = |reason: String| Error::Device {
        device: "standard input".into(),
        reason,
    };
    runtime.block_on(async {
        let running = Tools { app }.serve(rmcp::transport::stdio()).await;
        let running = running.map_err(|error| failed(error.to_string()))?;
        running
            .waiting()
            .await
            .map_err(|error| failed(error.to_string()))?;
        Ok(())
    })
}

struct Tools {
    app: Arc<App>,
}

/// What `compress` takes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Compress {
    text: String,
    #[serde(default)]
    question: String,
    rate: Option<f64>,
    target_token: Option<usize>,
}

/// What `retrieve` takes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Retrieve {
    hash: String,
}

fn tools() -> Vec<Tool> {
    let object = |properties: Value, required: &[&str]| {
        let schema = json!({"type": "object", "properties": properties, "required": required,
            "additionalProperties": false});
        match schema {
            Value::Object(schema) => schema,
            _ => serde_json::Map::new(),
        }
    };
    vec![
        Tool::new(
            "compress",
            "Shortens a long text to what matters for a question, and gives a hash under which \
             `retrieve` has the original",
            object(
                json!({
                    "text": {"type": "string"},
                    "question": {"type": "string", "description": "What the text is read for"},
                    "rate": {"type": "number",
                        "description": "Share of the tokens to keep, above 0 and at most 1"},
                    "target_token": {"type": "integer",
                        "description": "Tokens to keep, in place of a rate"},
                }),
                &["text"],
            ),
        ),
        Tool::new(
            "retrieve",
            "Gives the original of a text that was shortened",
            object(json!({"hash": {"type": "string"}}), &["hash"]),
        ),
        Tool::new(
            "stats",
            "Gives the counts of tokens before and after, and the model",
            object(json!({}), &[]),
        ),
    ]
}

impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        let mut info = ServerConfig::new(ServerCapabilities::builder().enable_tools().build());
        info.server_info = Implementation::new("prefold", env!("CARGO_PKG_VERSION"));
        info
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(tools()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = Value::Object(request.arguments.unwrap_or_default());
        let invalid = |error: serde_json::Error| ErrorData::invalid_params(error.to_string(), None);
        let done = match request.name.as_ref() {
            "compress" => {
                let given = serde_json::from_value(arguments).map_err(invalid)?;
                self.compress(given).await
            }
            "retrieve" => {
                let given: Retrieve = serde_json::from_value(arguments).map_err(invalid)?;
                self.retrieve(given).await
            }
            "stats" => Ok(CallToolResult::structured(self.stats())),
            name => {
                let message =
                    format!("found no tool `{name}`; there are compress, retrieve, stats");
                return Err(ErrorData::invalid_params(message, None));
            }
        };
        let failed = |message: String| CallToolResult::error(vec![ContentBlock::text(message)]);
        Ok(done.unwrap_or_else(failed).into())
    }
}

impl Tools {
    async fn compress(&self, given: Compress) -> Result<CallToolResult, String> {
        let budget = match (given.rate, given.target_token) {
            (Some(_), Some(_)) => return Err("give one of `rate` and `target_token`".into()),
            (_, Some(tokens)) => Budget::Tokens(tokens),
            (rate, None) => Budget::Rate(rate.unwrap_or(self.app.options.rate)),
        };
        let start = Instant::now();
        let text = given.text;
        let request = Request::new([text.as_str()])
            .with_question(given.question)
            .with_budget(budget)
            .with_mode(Exact::default().with_keep_question(false));
        let time = self.app.options.call_deadline;
        let done = self.app.queued(time, move |app, control| {
            let short = app.engine.compress_with(&request, control)?;
            let hash = original_name(&text);
            app.store.put_original(&hash, &text);
            app.metrics
                .count_tokens(short.tokens_before, short.tokens_after);
            Ok((short, hash))
        });
        let (short, hash) = done.await.map_err(|refused| match refused {
            Refused::Input(message) => message,
            Refused::Failed(failure) => format!("the text was not shortened: {}", failure.name()),
        })?;
        Ok(CallToolResult::structured(json!({
            "text": short.text,
            "tokens_before": short.tokens_before,
            "tokens_after": short.tokens_after,
            "hash": hash,
            "seconds": start.elapsed().as_secs_f64(),
        })))
    }

    async fn retrieve(&self, given: Retrieve) -> Result<CallToolResult, String> {
        let app = self.app.clone();
        let found = tokio::task::spawn_blocking(move || app.store.original(&given.hash));
        match found.await.ok().flatten() {
            Some(text) => Ok(CallToolResult::success(vec![ContentBlock::text(
                text.to_string(),
            )])),
            None => Err("found no original of that hash; its time may have passed".into()),
        }
    }

    fn stats(&self) -> Value {
        let info = self.app.engine.info();
        let [before, after] = self.app.metrics.tokens_counted();
        json!({
            "model": info.name,
            "device": info.device,
            "tokens_before": before,
            "tokens_after": after,
            "tokens_saved": before.saturating_sub(after),
        })
    }
}
