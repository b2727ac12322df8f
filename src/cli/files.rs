//! Texts in, results out: standard streams, UTF-8, and files that are written whole or not at all.

use std::fs;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::path::Path;
use std::sync::OnceLock;

use crate::Error;

use super::failure::{Failure, Outcome};

/// Bytes of a text that are read at most, unless it is said otherwise: a text takes up to 150 times its
/// size in memory.
const LONGEST_TEXT: u64 = 64 << 20;

/// Reads a text; `-` is standard input. A byte order mark in front is not a part of it.
pub fn read_text(path: &Path) -> Outcome<String> {
    let bytes = read_bytes(path)?;
    let name = match path == Path::new("-") {
        true => Path::new(STDIN),
        false => path,
    };
    Ok(crate::files::text(name, bytes)?)
}

/// What standard input is called in messages.
const STDIN: &str = "standard input";

/// Reads a file, or standard input for `-`, that is as long as a text may be.
pub fn read_bytes(path: &Path) -> Outcome<Vec<u8>> {
    let mut bytes = Vec::new();
    let (name, mut input): (&Path, Box<dyn Read>) = if path == Path::new("-") {
        say_that_a_terminal_is_read();
        (Path::new(STDIN), Box::new(io::stdin().lock()))
    } else {
        (
            path,
            Box::new(fs::File::open(path).map_err(Error::io(path))?),
        )
    };
    let limit = longest_text();
    let mut input = input.by_ref().take(limit.saturating_add(1));
    input.read_to_end(&mut bytes).map_err(Error::io(name))?;
    match bytes.len() as u64 > limit {
        true => Err(Failure::Failed(Error::Format {
            file: name.into(),
            reason: format!(
                "longer than {limit} bytes; --max-bytes raises the limit (a text takes up to 150 times its \
                 size in memory)"
            ),
        })),
        false => Ok(bytes),
    }
}

static LONGEST: OnceLock<u64> = OnceLock::new();

/// Raises or lowers how long a text may be, once, before any is read.
pub fn set_longest_text(bytes: u64) {
    let _ = LONGEST.set(bytes);
}

/// How long a text or a row may be.
pub fn longest_text() -> u64 {
    *LONGEST.get().unwrap_or(&LONGEST_TEXT)
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
        // The line break at the end of a file is not meant as part of a question.
        Some(file) => match read_text(Path::new(file)) {
            Err(Failure::Failed(Error::Io { source, .. }))
                if source.kind() == ErrorKind::NotFound =>
            {
                Err(Failure::Usage(format!(
                    "@{file}: no such file; a text that begins with @ is written @@{file}"
                )))
            }
            text => Ok(text?.trim_end().into()),
        },
    }
}

/// Writes to standard output.
pub fn write_stdout(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(stdout_failure)
}

/// A failed write to standard output; a closed pipe is not an error of ours.
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
    Ok(crate::files::write_whole(path, text.as_bytes())?)
}
