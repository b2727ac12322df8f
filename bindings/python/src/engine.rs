//! An open model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prefold::prefix::{EncodeOptions, KeepBy, PrefillOptions, Sampling, Source};
use prefold::{Compressed, Control, Error, Precision, Request, Result};
use pyo3::prelude::*;
use serde_json::{Map, Value};

use crate::call::{CancelToken, run};
use crate::prefix::Prefix;
use crate::{described, native};

/// See `prefold.Compressor`.
#[pyclass(frozen)]
pub struct Engine(Arc<prefold::Engine>);

/// Index, text, tokens and character ranges of what is left of a context.
type Context = (usize, String, usize, Vec<(usize, usize)>);
/// Text, whether it was kept, nll.
type Piece = (String, bool, Option<f32>);
/// A result as plain values, in the order of the fields of `prefold.Result`.
type Row = (
    String,
    usize,
    usize,
    Option<usize>,
    Vec<Context>,
    Vec<String>,
    Vec<Piece>,
    String,
);

/// A result and the contexts that it is of, whose characters its spans are counted in.
fn row(compressed: Compressed, contexts: &[String]) -> Row {
    let llmlingua = serde_json::to_string(&compressed.llmlingua()).unwrap_or_default();
    let kept = compressed.contexts.into_iter().map(|context| {
        let source = contexts.get(context.index).map_or("", String::as_str);
        let spans = characters(source, &context.spans);
        (context.index, context.text, context.tokens, spans)
    });
    (
        compressed.text,
        compressed.tokens_before,
        compressed.tokens_after,
        compressed.target,
        kept.collect(),
        compressed.warnings,
        compressed
            .pieces
            .into_iter()
            .map(|piece| (piece.text, piece.kept, piece.nll))
            .collect(),
        llmlingua,
    )
}

/// Ascending byte ranges as ranges of characters, which Python counts in; a range that splits a character
/// takes all of it.
fn characters(text: &str, spans: &[std::ops::Range<usize>]) -> Vec<(usize, usize)> {
    let mut starts = text.char_indices().map(|(at, _)| at).chain([text.len()]).enumerate();
    let mut place = |wanted: usize, after: &mut (usize, usize)| {
        while after.1 < wanted {
            match starts.next() {
                Some(next) => *after = next,
                None => break,
            }
        }
        after.0
    };
    let mut at = (0, 0);
    let mut last = 0;
    spans
        .iter()
        .map(|span| {
            let mut start = place(span.start, &mut at);
            if at.1 > span.start && start > last {
                start -= 1;
            }
            let end = place(span.end, &mut at);
            last = end;
            (start, end)
        })
        .collect()
}

/// The arguments of a call.
fn arguments(json: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(json).map_err(|error| Error::Input {
        what: "arguments".into(),
        reason: error.to_string(),
    })
}

/// A compression by the name of its call.
fn request(name: &str, json: &str) -> Result<Request> {
    let arguments = arguments(json)?;
    match name {
        "compress" => Request::from_json(arguments),
        "compress_prompt" => Request::from_python(arguments, false),
        _ => Request::from_python(arguments, true),
    }
}

#[pymethods]
impl Engine {
    #[new]
    fn new(
        py: Python<'_>,
        model: Option<String>,
        device: &str,
        threads: usize,
        adapter: Option<PathBuf>,
        precision: &str,
    ) -> PyResult<Self> {
        let device = device.parse().map_err(native)?;
        let precision: Precision = precision.parse().map_err(native)?;
        let open = move |_: &Control| {
            let path = prefold::internal::hub::resolve(model.as_deref())?;
            let mut builder = prefold::Engine::builder(path)
                .device(device)
                .precision(precision)
                .threads(threads);
            if let Some(folder) = adapter {
                builder = builder.adapter(folder);
            }
            builder.build()
        };
        Ok(Engine(Arc::new(run(py, None, None, None, open)?)))
    }

    /// Shape and origin, as JSON.
    fn info(&self) -> String {
        serde_json::to_string(self.0.info()).unwrap_or_default()
    }

    #[pyo3(signature = (name, json, deadline=None, progress=None, token=None))]
    fn compress(
        &self,
        py: Python<'_>,
        name: String,
        json: String,
        deadline: Option<f64>,
        progress: Option<Py<PyAny>>,
        token: Option<CancelToken>,
    ) -> PyResult<Row> {
        let engine = self.0.clone();
        run(py, deadline, progress, token, move |control| {
            let request = request(&name, &json)?;
            let compressed = engine.compress_with(&request, control)?;
            Ok(row(compressed, &request.contexts))
        })
    }

    /// For each call its row, or the name of an exception and its message.
    #[pyo3(signature = (calls, deadline=None))]
    fn compress_many(
        &self,
        py: Python<'_>,
        calls: Vec<(String, String)>,
        deadline: Option<f64>,
    ) -> PyResult<Vec<Py<PyAny>>> {
        let engine = self.0.clone();
        let rows = run(py, deadline, None, None, move |control| {
            let read: Vec<Result<Request>> =
                calls.iter().map(|(name, json)| request(name, json)).collect();
            let sound: Vec<Request> = read.iter().flatten().cloned().collect();
            let mut made = engine.compress_many(&sound, control).into_iter();
            let rows = read.into_iter().map(|read| {
                let request = read.map_err(|error| described(&error))?;
                let made = made.next().unwrap_or(Err(Error::Cancelled));
                made.map(|compressed| row(compressed, &request.contexts))
                    .map_err(|error| described(&error))
            });
            Ok(rows.collect::<Vec<std::result::Result<Row, _>>>())
        })?;
        rows.into_iter()
            .map(|row| match row {
                Ok(row) => Ok(row.into_pyobject(py)?.into_any().unbind()),
                Err(error) => Ok(error.into_pyobject(py)?.into_any().unbind()),
            })
            .collect()
    }

    /// A call with JSON in and out: `compress_json`, `compress_messages`, `recover`.
    #[pyo3(signature = (name, json, token=None))]
    fn call(
        &self,
        py: Python<'_>,
        name: String,
        json: String,
        token: Option<CancelToken>,
    ) -> PyResult<String> {
        let engine = self.0.clone();
        run(py, None, None, token, move |control| {
            let made = engine.call_json(&name, arguments(&json)?, control)?;
            Ok(made.to_string())
        })
    }

    /// Index and score of each context, the best first.
    fn rank(
        &self,
        py: Python<'_>,
        contexts: Vec<String>,
        question: String,
        method: String,
    ) -> PyResult<Vec<(usize, f64)>> {
        let engine = self.0.clone();
        run(py, None, None, None, move |control| {
            engine.rank(&contexts, &question, method.parse()?, control)
        })
    }

    #[pyo3(signature = (ids, deadline=None, token=None))]
    fn score(
        &self,
        py: Python<'_>,
        ids: Vec<u32>,
        deadline: Option<f64>,
        token: Option<CancelToken>,
    ) -> PyResult<Vec<f32>> {
        let engine = self.0.clone();
        run(py, deadline, None, token, move |control| {
            engine.score(&ids, control)
        })
    }

    fn tokenize(
        &self,
        py: Python<'_>,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> PyResult<Vec<u32>> {
        py.detach(|| self.0.tokenize(text, add_special, parse_special))
            .map_err(native)
    }

    fn encode(
        &self,
        py: Python<'_>,
        text: String,
        adapter: PathBuf,
        options: String,
    ) -> PyResult<Prefix> {
        let engine = self.0.clone();
        let prefix = run(py, None, None, None, move |control| {
            let mut options = arguments(&options)?;
            let piece_tokens = options.remove("piece_tokens").and_then(|n| n.as_u64());
            if let Some(name) = options.keys().next() {
                return Err(Error::Input {
                    what: format!("argument `{name}`"),
                    reason: "there is no such argument".into(),
                });
            }
            let prefixes = engine.prefixes();
            let adapter = prefixes.adapter(Path::new(&adapter))?;
            let source = source(&engine, &text)?;
            let mut encode = EncodeOptions::default();
            if let Some(tokens) = piece_tokens {
                encode.piece_tokens = Some(tokens as usize);
            }
            prefixes.encode(&adapter, &source, &encode, control)
        })?;
        Ok(Prefix::new(prefix))
    }

    fn prefill(&self, py: Python<'_>, text: String, keep: f64, by: String) -> PyResult<Prefix> {
        let engine = self.0.clone();
        let prefix = run(py, None, None, None, move |control| {
            let by: KeepBy = by.parse()?;
            let options = PrefillOptions { keep, by, ..PrefillOptions::default() };
            engine
                .prefixes()
                .prefill(&source(&engine, &text)?, &options, control)
        })?;
        Ok(Prefix::new(prefix))
    }

    #[expect(clippy::too_many_arguments, reason = "keyword arguments of one Python function")]
    fn generate(
        &self,
        py: Python<'_>,
        prompt: String,
        prefix: Option<Py<Prefix>>,
        max_new_tokens: usize,
        temperature: f32,
        top_p: f32,
        seed: u64,
    ) -> PyResult<String> {
        let engine = self.0.clone();
        let prefix = prefix.map(|prefix| prefix.get().share());
        run(py, None, None, None, move |control| {
            let ids = match (prompt.is_empty(), engine.info().bos) {
                (true, Some(bos)) => vec![bos],
                _ => engine.tokenize(&prompt, prefix.is_none(), true)?,
            };
            let options = Sampling {
                max_new_tokens,
                temperature,
                top_p,
                seed,
                ..Sampling::default()
            };
            let mut each = |_| std::ops::ControlFlow::Continue(());
            let made = engine
                .prefixes()
                .generate(prefix.as_deref(), &ids, &options, control, &mut each)?;
            engine.detokenize(&made.ids)
        })
    }
}

/// A text and its ids.
fn source(engine: &prefold::Engine, text: &str) -> Result<Source> {
    Ok(Source::text(text, engine.tokenize(text, false, false)?))
}
