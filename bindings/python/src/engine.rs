//! An open model.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prefold::hub::{self, DEFAULT, ModelName, Settings};
use prefold::prefix::{EncodeOptions, PrefillOptions, Sampling, Source};
use prefold::{Error, Precision, Request, Result};
use pyo3::prelude::*;

use crate::call::{CancelToken, Watch, run};
use crate::ending::released;
use crate::prefix::Prefix;
use crate::requests::{self, Row, row};
use crate::{described, named, native};

/// See `prefold.Compressor`.
#[pyclass(frozen)]
pub struct Engine(Arc<prefold::Engine>);

/// The model of a name, which may be downloaded; without one the default, which is not.
fn located(model: Option<PathBuf>) -> Result<PathBuf> {
    let Some(model) = model else {
        let settings = Settings::from_env()?;
        let default = ModelName::Known(DEFAULT);
        return hub::find(&default, &settings).ok_or_else(|| Error::Input {
            what: "model".into(),
            reason: format!(
                "none was given and none is in {}; `prefold models pull` downloads the default ({} MB), \
                 or give a GGUF file, a Hugging Face folder or org/repo",
                settings.cache.display(),
                DEFAULT.bytes / 1_000_000,
            ),
        });
    };
    match ModelName::parse(&model) {
        ModelName::Path(path) => Ok(path),
        name => hub::resolve(&name, &Settings::from_env()?, &mut |_| {}),
    }
}

#[pymethods]
impl Engine {
    #[new]
    fn new(
        py: Python<'_>,
        model: Option<PathBuf>,
        device: &str,
        threads: usize,
        adapter: Option<PathBuf>,
        precision: &str,
        encoder: Option<PathBuf>,
    ) -> PyResult<Self> {
        let device: prefold::Device = device.parse().map_err(native)?;
        let precision: Precision = named("precision", precision, "bf16, f32").map_err(native)?;
        let engine = run(py, Watch::default(), move |_| {
            let mut builder = prefold::Engine::builder(located(model)?)
                .device(device)
                .precision(precision)
                .threads(threads);
            if let Some(folder) = adapter {
                builder = builder.adapter(folder);
            }
            if let Some(model) = encoder {
                builder = builder.encoder(located(Some(model))?);
            }
            builder.build()
        })?;
        Ok(Engine(Arc::new(engine)))
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
        let watch = Watch::new(deadline, progress, token);
        run(py, watch, move |control| {
            let request = requests::request(&name, &json)?;
            let compressed = engine.compress_with(&request, control)?;
            Ok(row(compressed, &request.contexts))
        })
    }

    /// For each call its row, or the name of an exception and its message.
    #[pyo3(signature = (calls, deadline=None, progress=None))]
    fn compress_many(
        &self,
        py: Python<'_>,
        calls: Vec<(String, String)>,
        deadline: Option<f64>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Vec<Py<PyAny>>> {
        let engine = self.0.clone();
        let watch = Watch::new(deadline, progress, None);
        let rows = run(py, watch, move |control| {
            let read: Vec<Result<Request>> = calls
                .iter()
                .map(|(name, json)| requests::request(name, json))
                .collect();
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

    /// The body of a chat request with what may be shortened shortened; tokens before and after; the
    /// decisions as JSON.
    #[pyo3(signature = (body, json, deadline=None, progress=None, token=None))]
    fn compress_messages(
        &self,
        py: Python<'_>,
        body: Vec<u8>,
        json: String,
        deadline: Option<f64>,
        progress: Option<Py<PyAny>>,
        token: Option<CancelToken>,
    ) -> PyResult<(String, usize, usize, String)> {
        let engine = self.0.clone();
        let watch = Watch::new(deadline, progress, token);
        run(py, watch, move |control| {
            let options = requests::messages(&json)?;
            let made = engine.compress_messages(&body, &options, control)?;
            Ok((
                String::from_utf8_lossy(&made.body).into_owned(),
                made.tokens_before,
                made.tokens_after,
                serde_json::to_string(&made.decisions).unwrap_or_default(),
            ))
        })
    }

    /// The object, shortened, as JSON, and the row of the result.
    #[pyo3(signature = (data, config, yaml, json, deadline=None, token=None))]
    #[expect(
        clippy::too_many_arguments,
        reason = "arguments of one Python function"
    )]
    fn compress_json(
        &self,
        py: Python<'_>,
        data: String,
        config: String,
        yaml: bool,
        json: String,
        deadline: Option<f64>,
        token: Option<CancelToken>,
    ) -> PyResult<Row> {
        let engine = self.0.clone();
        let watch = Watch::new(deadline, None, token);
        run(py, watch, move |control| {
            let (request, warnings) = requests::json(data, &config, yaml, &json)?;
            let mut made = engine.compress_json(&request, control)?;
            made.warnings.splice(0..0, warnings);
            Ok(row(made, &[request.json]))
        })
    }

    /// The score of each context: the higher the better.
    #[pyo3(signature = (contexts, question, method=None))]
    fn rank(
        &self,
        py: Python<'_>,
        contexts: Vec<String>,
        question: String,
        method: Option<String>,
    ) -> PyResult<Vec<f64>> {
        let engine = self.0.clone();
        run(py, Watch::default(), move |control| match method {
            None => engine.rank(&question, &contexts, control),
            Some(name) => {
                let method = named("method", &name, "llmlingua, longllmlingua, bm25, gzip")?;
                engine.rank_by(method, &question, &contexts, control)
            }
        })
    }

    /// Nll of the ids from a place on; without one of all but the first, however many they are.
    #[pyo3(signature = (ids, start=None, deadline=None, token=None))]
    fn score(
        &self,
        py: Python<'_>,
        ids: Vec<u32>,
        start: Option<usize>,
        deadline: Option<f64>,
        token: Option<CancelToken>,
    ) -> PyResult<Vec<f32>> {
        let engine = self.0.clone();
        let watch = Watch::new(deadline, None, token);
        run(py, watch, move |control| match start {
            None => engine.score(&ids, control),
            Some(start) => engine.score_tail(&ids, start, control),
        })
    }

    fn tokenize(
        &self,
        py: Python<'_>,
        text: String,
        add_special: bool,
        parse_special: bool,
    ) -> PyResult<Vec<u32>> {
        released(py, || self.0.tokenize(&text, add_special, parse_special)).map_err(native)
    }

    fn detokenize(&self, py: Python<'_>, ids: Vec<u32>) -> PyResult<String> {
        released(py, || self.0.detokenize(&ids)).map_err(native)
    }

    #[pyo3(signature = (text, adapter, piece_tokens=None, memory_tokens=None))]
    fn encode(
        &self,
        py: Python<'_>,
        text: String,
        adapter: PathBuf,
        piece_tokens: Option<usize>,
        memory_tokens: Option<usize>,
    ) -> PyResult<Prefix> {
        let engine = self.0.clone();
        let prefix = run(py, Watch::default(), move |control| {
            let prefixes = engine.prefixes().with(control);
            let mut adapter = prefixes.adapter(Path::new(&adapter))?;
            if let Some(count) = memory_tokens {
                adapter = adapter.first(count)?;
            }
            let options = EncodeOptions {
                piece_tokens,
                ..EncodeOptions::default()
            };
            prefixes.encode(&adapter, &source(&engine, &text, false)?, &options)
        })?;
        Ok(Prefix::new(prefix))
    }

    fn prefill(
        &self,
        py: Python<'_>,
        text: String,
        keep: Option<f64>,
        by: String,
    ) -> PyResult<Prefix> {
        let engine = self.0.clone();
        let prefix = run(py, Watch::default(), move |control| {
            let by = named("by", &by, "llmlingua, snapkv, expected-attention, keydiff")?;
            let keep = keep.map(|share| (share, by));
            let options = PrefillOptions { keep };
            let prefixes = engine.prefixes().with(control);
            prefixes.prefill(&source(&engine, &text, true)?, &options)
        })?;
        Ok(Prefix::new(prefix))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "arguments of one Python function"
    )]
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
        run(py, Watch::default(), move |control| {
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
            let mut each = |_| ControlFlow::Continue(());
            let prefixes = engine.prefixes().with(control);
            let made = prefixes.generate(prefix.as_deref(), &ids, &options, &mut each)?;
            engine.detokenize(&made.ids)
        })
    }
}

/// A text and its ids. A prompt may begin with BOS and holds special tokens by their names.
fn source(engine: &prefold::Engine, text: &str, prompt: bool) -> Result<Source> {
    Ok(Source::text(text, engine.tokenize(text, prompt, prompt)?))
}
