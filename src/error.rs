//! The one error type: a variant per cause that a caller could act on.

use std::fmt::{self, Display, Write as _};
use std::path::PathBuf;

use crate::files::steers;

/// Whatever can go wrong, in one line that says what, where and what to do.
///
/// Names and values that a file or a caller gave stand in it with their control characters and marks of direction
/// escaped, and are cut after 800 bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand does not have the shape that an operation needs: a bug of the caller.
    #[error("{op}: expected {}, got {}", Line(want), Line(got))]
    Shape {
        /// The operation.
        op: &'static str,
        /// What it needs.
        want: String,
        /// What it was given.
        got: String,
    },
    /// A file was read, but its content is not what its format demands.
    #[error("{}: {}", Line(file.display()), Line(reason))]
    Format {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file system said no.
    #[error("{}: {}", Line(path.display()), Line(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: std::io::Error,
    },
    /// A legitimate request for something that is not built; `have` names what there is.
    #[error("{} is not supported; there is {}", Line(what), Line(have))]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What there is instead.
        have: String,
    },
    /// An option or argument is outside its range or contradicts another.
    #[error("{}: {}", Line(what), Line(reason))]
    Input {
        /// The option or argument, with its value.
        what: String,
        /// Why it is refused, and what would do.
        reason: String,
    },
    /// The budget cannot be met: what must be kept is already longer.
    #[error("budget of {target} tokens: {}", Line(reason))]
    Budget {
        /// The tokens asked for.
        target: usize,
        /// Why they do not suffice.
        reason: String,
    },
    /// The device asked for is missing or failed.
    #[error("device {}: {}", Line(device), Line(reason))]
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
    #[error("kernel {kernel}: {}", Line(reason))]
    Launch {
        /// Its name in `kernels/`.
        kernel: &'static str,
        /// What it did.
        reason: String,
    },
}

/// A part of a message, fit for one line.
struct Line<T>(T);

impl<T: Display> Display for Line<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 800;
        let mut out = OneLine {
            out: f,
            room: Some(LONGEST),
        };
        write!(out, "{}", self.0)
    }
}

struct OneLine<'a, 'b> {
    out: &'a mut fmt::Formatter<'b>,
    /// Bytes that may still be written; `None` after the mark of what is left out.
    room: Option<usize>,
}

impl fmt::Write for OneLine<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let Some(room) = self.room else {
                return Ok(());
            };
            let taken = match steers(c) {
                true => c.escape_default().len(),
                false => c.len_utf8(),
            };
            self.room = room.checked_sub(taken);
            match (self.room, steers(c)) {
                (None, _) => self.out.write_char('…')?,
                (_, true) => write!(self.out, "{}", c.escape_default())?,
                (_, false) => self.out.write_char(c)?,
            }
        }
        Ok(())
    }
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

    /// A failed file system call on `path`; made for `map_err(Error::io(path))`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { path, source }
    }

    /// What is wrong with something that a file holds, as an error of that file.
    pub(crate) fn in_file(self, file: impl Into<PathBuf>) -> Self {
        match self {
            Error::Input { what, reason } => Error::format(file, format!("{what}: {reason}")),
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
