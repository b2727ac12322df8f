//! Texts in, results out: standard streams, UTF-8, and files that are written whole or not at all.

use std::fs;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use prefold::Error;

use super::failure::{Failure, Outcome};

/// Reads a text; `-` is standard input.
pub fn read_text(path: &Path) -> Outcome<String> {
    let (name, bytes) = if path == Path::new("-") {
        let mut bytes = Vec::new();
        let name = PathBuf::from("standard input");
        say_that_a_terminal_is_read();
        io::stdin()
            .lock()
            .read_to_end(&mut bytes)
            .map_err(Error::io(&name))?;
        (name, bytes)
    } else {
        (path.into(), fs::read(path).map_err(Error::io(path))?)
    };
    String::from_utf8(bytes).map_err(|error| {
        Failure::Failed(Error::Format {
            file: name,
            reason: format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()),
        })
    })
}

/// Says that a terminal is standard input: a program that only waits looks as if it hung.
pub fn say_that_a_terminal_is_read() {
    if io::stdin().is_terminal() {
        let end = if cfg!(windows) {
            "Ctrl-Z and Enter"
        } else {
            "Ctrl-D"
        };
        let _ = writeln!(
            io::stderr(),
            "prefold: reading from the terminal; end with {end}"
        );
    }
}

/// An argument that is a text itself or, as `@FILE`, the name of one; `@@` begins a text with `@`.
pub fn text_or_file(argument: &str) -> Outcome<String> {
    match argument.strip_prefix('@') {
        None => Ok(argument.into()),
        Some(text) if text.starts_with('@') => Ok(text.into()),
        // A file ends with a line break that nobody means as part of a question.
        Some(file) => Ok(read_text(Path::new(file))?.trim_end().into()),
    }
}

/// Writes to standard output.
pub fn write_stdout(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(stdout_failure)
}

/// A failed write to standard output; a closed pipe is no error of ours.
pub fn stdout_failure(error: io::Error) -> Failure {
    match error.kind() {
        ErrorKind::BrokenPipe => Failure::ClosedPipe,
        _ => Failure::Failed(Error::io("standard output")(error)),
    }
}

/// Says early what [`write_whole`] would say in the end: that `path` is a folder, or lies in none.
pub fn check_target(path: &Path) -> Outcome {
    if path.is_dir() {
        return Err(Error::io(path)(ErrorKind::IsADirectory.into()).into());
    }
    // The parent of a bare name is empty: the working directory.
    match path.parent() {
        Some(folder) if folder != Path::new("") => {
            fs::metadata(folder).map_err(Error::io(folder))?;
        }
        _ => {}
    }
    Ok(())
}

/// Writes `text` to `path` whole or not at all.
pub fn write_whole(path: &Path, text: &str) -> Outcome {
    Ok(prefold::files::write_whole(path, text.as_bytes())?)
}
