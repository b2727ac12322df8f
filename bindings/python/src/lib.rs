//! The extension module `prefold._native`: the library's calls with plain values in and out. The API that
//! users see is written in Python on top of it (`python/prefold`).

mod call;
mod dlpack;
mod ending;
mod engine;
mod prefix;
mod requests;

use std::ffi::OsString;

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::Value;

use ending::released;

create_exception!(
    _native,
    NativeError,
    PyException,
    "An error of the library: the name of its Python exception, and the message."
);

/// The library's error as a Python exception.
fn native(error: prefold::Error) -> PyErr {
    NativeError::new_err(described(&error))
}

/// The name of the Python exception for an error, and its text.
fn described(error: &prefold::Error) -> (&'static str, String) {
    use prefold::Error;
    let kind = match error {
        Error::Input { .. } | Error::Shape { .. } => "InputError",
        Error::Budget { .. } => "BudgetError",
        Error::Format { .. } => "FormatError",
        Error::Io { .. } => "FileError",
        Error::Unsupported { .. } => "UnsupportedError",
        Error::Device { .. } | Error::Launch { .. } => "DeviceError",
        Error::Cancelled => "Cancelled",
        Error::Deadline => "DeadlineExceeded",
        _ => "PrefoldError",
    };
    (kind, error.to_string())
}

/// A value of an enum by its name.
fn named<T: DeserializeOwned>(what: &str, name: &str, have: &str) -> prefold::Result<T> {
    serde_json::from_value(Value::from(name)).map_err(|_| prefold::Error::Unsupported {
        what: format!("{what} `{name}`"),
        have: have.into(),
    })
}

/// Runs the program and gives its exit code.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    released(py, || prefold::cli::run(arguments))
}

/// Tokens of a text in a vocabulary: `cl100k`, `o200k`, or the path of a `tokenizer.json`.
#[pyfunction]
fn count_tokens(py: Python<'_>, text: String, count: &str) -> PyResult<usize> {
    let counted = released(py, || requests::vocabulary(count)?.tokens(&text));
    counted.map_err(native)
}

/// The order of texts by words, the best first: `bm25` or `gzip`, as llmlingua ranks them.
#[pyfunction]
fn order_by_words(
    py: Python<'_>,
    method: &str,
    texts: Vec<String>,
    question: String,
) -> PyResult<Vec<usize>> {
    use prefold::hard::rank_text;
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    match method {
        "bm25" => Ok(released(py, || rank_text::bm25(&texts, &question))),
        "gzip" => Ok(released(py, || rank_text::gzip(&texts, &question))),
        other => Err(native(prefold::Error::Unsupported {
            what: format!("rank_method `{other}`"),
            have: "llmlingua, longllmlingua, bm25, gzip".into(),
        })),
    }
}

/// The original's words in place of their shortened forms in a response.
#[pyfunction]
fn recover(py: Python<'_>, original: String, compressed: String, response: String) -> String {
    released(py, || {
        prefold::hard::recover::by_words(&original, &compressed, &response)
    })
}

/// The same by the contexts of a result: for each its index, its text and the ranges of characters kept.
#[pyfunction]
fn recover_by_spans(
    py: Python<'_>,
    contexts: Vec<String>,
    kept: Vec<requests::KeptText>,
    response: String,
) -> String {
    released(py, || {
        requests::recover_by_spans(&contexts, &kept, &response)
    })
}

/// The module.
#[pymodule(gil_used = false)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("NativeError", module.py().get_type::<NativeError>())?;
    module.add_class::<call::CancelToken>()?;
    module.add_class::<engine::Engine>()?;
    module.add_class::<prefix::Prefix>()?;
    module.add_class::<prefix::Tensor>()?;
    let end = wrap_pyfunction!(ending::end_calls, module)?;
    module
        .py()
        .import("atexit")?
        .call_method1("register", (end,))?;
    module.add_function(wrap_pyfunction!(main, module)?)?;
    module.add_function(wrap_pyfunction!(count_tokens, module)?)?;
    module.add_function(wrap_pyfunction!(order_by_words, module)?)?;
    module.add_function(wrap_pyfunction!(recover, module)?)?;
    module.add_function(wrap_pyfunction!(recover_by_spans, module)?)
}
