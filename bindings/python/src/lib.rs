//! The extension module `prefold._native`: the library's calls with plain values in and out. What users
//! see is written in Python on top of it (`python/prefold`).

mod call;
mod engine;
mod prefix;

use std::ffi::OsString;

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(
    _native,
    NativeError,
    PyException,
    "What the library says: the name of its Python exception, and the message."
);

/// The library's error as its Python counterpart's name and the message.
fn native(error: prefold::Error) -> PyErr {
    let (kind, message) = described(&error);
    NativeError::new_err((kind, message))
}

/// The name of the Python exception for an error, and its text.
fn described(error: &prefold::Error) -> (&'static str, String) {
    use prefold::Error;
    let kind = match error {
        Error::Input { .. } | Error::Shape { .. } => "InputError",
        Error::Budget { .. } => "BudgetError",
        Error::Format { .. } => "FormatError",
        Error::Unsupported { .. } => "UnsupportedError",
        Error::Device { .. } | Error::Launch { .. } => "DeviceError",
        Error::Cancelled => "Cancelled",
        Error::Deadline => "DeadlineExceeded",
        _ => "PrefoldError",
    };
    (kind, error.to_string())
}

/// Runs the program and gives its exit code.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| prefold::internal::cli::run(arguments))
}

/// Tokens of a text in a vocabulary: `cl100k`, `o200k`, or the path of a `tokenizer.json`.
#[pyfunction]
fn count_tokens(py: Python<'_>, text: &str, count: &str) -> PyResult<usize> {
    py.detach(|| call::count(text, count)).map_err(native)
}

/// The module.
#[pymodule(gil_used = false)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("NativeError", module.py().get_type::<NativeError>())?;
    module.add_class::<call::CancelToken>()?;
    module.add_class::<engine::Engine>()?;
    module.add_class::<prefix::Prefix>()?;
    module.add_function(wrap_pyfunction!(main, module)?)?;
    module.add_function(wrap_pyfunction!(count_tokens, module)?)
}
