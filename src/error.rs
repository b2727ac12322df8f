//! The one error type: a variant per cause that a caller could act on.

use std::path::PathBuf;

use crate::line::Line;

/// Whatever can go wrong, in one line that says what, where and what to do.
///
/// Names and values that a file or a caller gave stand in it with their control characters and marks of direction
/// escaped, and are cut after 800 bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand does not have the shape that an operation needs: a bug of the caller.
    #[error("{op}: expected {}, got {}", Line::short(want), Line::short(got))]
    Shape {
        /// The operation.
        op: &'static str,
        /// What it needs.
        want: String,
        /// What it was given.
        got: String,
    },
    /// A file was read, but its content is not what its format demands.
    #[error("{}: {}", Line::short(file.display()), Line::short(reason))]
    Format {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file, a folder or a service that holds files failed.
    #[error("{}: {}", Line::short(path.display()), Line::short(source))]
    Io {
        /// The file, folder or address.
        path: PathBuf,
        /// What the file system or the service said.
        #[source]
        source: std::io::Error,
    },
    /// A legitimate request for something that is not built; `have` names what there is.
    #[error(
        "{} is not supported; there is {}",
        Line::short(what),
        Line::short(have)
    )]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What there is instead.
        have: String,
    },
    /// An option or argument is outside its range or contradicts another.
    #[error("{}: {}", Line::short(what), Line::short(reason))]
    Input {
        /// The option or argument, with its value.
        what: String,
        /// Why it is refused, and what would do.
        reason: String,
    },
    /// The budget cannot be met: what must be kept is already longer.
    #[error("budget of {target} tokens: {}", Line::short(reason))]
    Budget {
        /// The tokens asked for.
        target: usize,
        /// Why they do not suffice.
        reason: String,
    },
    /// The device asked for is missing or failed.
    #[error("device {}: {}", Line::short(device), Line::short(reason))]
    Device {
        /// The device.
        device: String,
        /// What it said.
        reason: String,
    },
    /// The call's [`CancelToken`](crate::CancelToken) was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The call's deadline has passed.
    #[error("deadline: it passed before the call was done; give it more time or less text")]
    Deadline,
    /// A kernel could not be started or, executed by the CPU, did what it must not.
    #[error("kernel {kernel}: {}", Line::short(reason))]
    Launch {
        /// Its name in `kernels/`.
        kernel: &'static str,
        /// What it did.
        reason: String,
    },
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A malformed file.
    pub(crate) fn format(file: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Error::Format {
            file: file.into(),
            reason: reason.into(),
        }
    }

    /// A file, folder or service at `path` that failed, in words.
    pub(crate) fn failed(
        path: impl Into<PathBuf>,
        kind: std::io::ErrorKind,
        reason: impl Into<String>,
    ) -> Self {
        Error::Io {
            path: path.into(),
            source: std::io::Error::new(kind, reason.into()),
        }
    }

    /// A failed file system call on `path`; made for `map_err(Error::io(path))`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { path, source }
    }

    /// An error of a part of a file, as an error of that file.
    pub(crate) fn in_file(self, file: impl Into<PathBuf>) -> Self {
        match self {
            Error::Format { file: part, reason } => {
                Error::format(file, format!("{}: {reason}", part.display()))
            }
            Error::Unsupported { what, have } => Error::Unsupported {
                what: format!("{}: {what}", file.into().display()),
                have,
            },
            error => error,
        }
    }

    /// An argument out of its range.
    pub(crate) fn input(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Input {
            what: what.into(),
            reason: reason.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_message_is_one_short_line() {
        let bad = "a\nb\u{202e}\u{1b}c";
        for error in [
            Error::input(bad, bad),
            Error::format(bad, bad),
            Error::io(bad)(std::io::Error::other(bad)),
            Error::Unsupported {
                what: bad.into(),
                have: bad.into(),
            },
            Error::Device {
                device: bad.into(),
                reason: bad.into(),
            },
        ] {
            let line = error.to_string();
            assert_eq!(line.matches("a\\nb\\u{202e}\\u{1b}c").count(), 2, "{line}");
        }
        let long = Error::input("é".repeat(5000), "no").to_string();
        assert_eq!(long, format!("{}…: no", "é".repeat(400)));
        let exact = Error::input("é".repeat(400), "no").to_string();
        assert_eq!(exact, format!("{}: no", "é".repeat(400)));
    }
}
