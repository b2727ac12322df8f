//! The one error type: a variant per cause that a caller could act on.

use std::path::PathBuf;

/// Whatever can go wrong, in one line that says what, where and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand does not have the shape that an operation needs: a bug of the caller.
    #[error("{op}: expected {want}, got {got}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// What it needs.
        want: String,
        /// What it was given.
        got: String,
    },
    /// A file was read, but its content is not what its format demands.
    #[error("{}: {reason}", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: std::io::Error,
    },
    /// A legitimate request for something that is not built; `have` names what there is.
    #[error("{what} is not supported; there is {have}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What there is instead.
        have: String,
    },
    /// An option or argument is outside its range or contradicts another.
    #[error("{what}: {reason}")]
    Input {
        /// The option or argument, with its value.
        what: String,
        /// Why it is refused, and what would do.
        reason: String,
    },
    /// The budget cannot be met: what must be kept is already longer.
    #[error("budget of {target} tokens: {reason}")]
    Budget {
        /// The tokens asked for.
        target: usize,
        /// Why they do not suffice.
        reason: String,
    },
    /// The device asked for is missing or failed.
    #[error("device {device}: {reason}")]
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
    #[error("kernel {kernel}: {reason}")]
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
