//! Arguments out of JSON, taken by name.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Named JSON values that are taken out one by one; what is left over is an error.
#[derive(Debug)]
pub struct Arguments(pub(super) Map<String, Value>);

impl Arguments {
    /// All of a call's arguments.
    pub fn new(arguments: Map<String, Value>) -> Self {
        Arguments(arguments)
    }

    /// The argument `name`; absent and `null` are both `None`.
    ///
    /// # Errors
    /// [`Error::Input`] where it has another type than `T`.
    pub fn optional<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => typed(name, value).map(Some),
        }
    }

    /// The argument `name`.
    ///
    /// # Errors
    /// [`Error::Input`] where it is missing or has another type than `T`.
    pub fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T> {
        match self.0.remove(name) {
            None => Err(bad(name, "is missing")),
            Some(value) => typed(name, value),
        }
    }

    /// Checks that nothing is left over.
    ///
    /// # Errors
    /// [`Error::Input`] naming an argument that is left over.
    pub fn finish(self) -> Result<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(bad(name, "no such argument")),
        }
    }

    /// The argument `name`, or `default` where it is absent or `null`.
    pub(crate) fn or<T: DeserializeOwned>(&mut self, name: &str, default: T) -> Result<T> {
        Ok(self.optional(name)?.unwrap_or(default))
    }

    /// The contexts: a string counts as a list of one, and an empty one as none.
    pub(super) fn texts(&mut self, name: &str) -> Result<Vec<String>> {
        match self.0.remove(name) {
            None => Err(bad(name, "is missing")),
            Some(Value::String(text)) if text.is_empty() => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text]),
            Some(value @ Value::Array(_)) => typed(name, value),
            Some(other) => Err(bad(
                name,
                format!("expected a string or a list of strings, got {other}"),
            )),
        }
    }

    /// Refuses the first of `names` that is there, and drops those that are `null`.
    pub(super) fn refuse(&mut self, names: &[&str], reason: &str) -> Result<()> {
        for &name in names {
            if self.0.remove(name).is_some_and(|value| !value.is_null()) {
                return Err(bad(name, reason));
            }
        }
        Ok(())
    }
}

/// `value` as a `T`.
fn typed<T: DeserializeOwned>(name: &str, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| bad(name, error.to_string()))
}

/// Something is wrong with the argument `name`.
pub(super) fn bad(name: &str, reason: impl Into<String>) -> Error {
    Error::input(format!("argument `{name}`"), reason)
}
