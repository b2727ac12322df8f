//! Files that are written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes `bytes` to `path` whole or not at all: under another name first, synced, then renamed.
///
/// A symlink stays one (its target is replaced), permissions stay as they are, and what is no
/// regular file, as `/dev/null`, is written directly.
///
/// # Errors
/// [`Error::Io`] that names `path`.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let (target, permissions) = match fs::metadata(path) {
        Ok(found) if found.is_file() => {
            let target = fs::canonicalize(path).map_err(Error::io(path))?;
            (target, Some(found.permissions()))
        }
        Ok(_) => return fs::write(path, bytes).map_err(Error::io(path)),
        Err(_) => (path.to_path_buf(), None),
    };
    let (mut file, scratch) = scratch(&target).map_err(Error::io(path))?;
    let written = (|| {
        file.write_all(bytes)?;
        if let Some(permissions) = permissions {
            file.set_permissions(permissions)?;
        }
        file.sync_all()?;
        fs::rename(&scratch, &target)
    })();
    written.map_err(|error| {
        let _ = fs::remove_file(&scratch);
        Error::io(path)(error)
    })
}

/// Bytes of whole lines of a file that grows by lines, the last of which a kill may have cut short.
pub(crate) fn whole_lines(bytes: &[u8]) -> usize {
    let end = bytes.iter().rposition(|&b| b == b'\n');
    end.map_or(0, |at| at + 1)
}

/// A new file beside `target`. A name may be taken: by another thread that writes the same file, or by
/// a process of the same number that was killed.
fn scratch(target: &Path) -> io::Result<(File, PathBuf)> {
    let mut attempt = 0u32;
    loop {
        let mut name = std::ffi::OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        name.push(format!(".{}-{attempt}.tmp", std::process::id()));
        let path = target.with_file_name(name);
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && attempt < MOST_SCRATCHES => {
                attempt += 1;
            }
            made => return Ok((made?, path)),
        }
    }
}

/// Names beside a file that may be taken.
const MOST_SCRATCHES: u32 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_names_are_passed_over_and_writers_do_not_meet() {
        let folder = std::env::temp_dir().join(format!("prefold-files-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("file");
        // What a killed process left.
        let (_, left) = scratch(&path).unwrap();
        std::thread::scope(|scope| {
            for value in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..20 {
                        write_whole(path, &[value; 9999]).unwrap();
                    }
                });
            }
        });
        let read = fs::read(&path).unwrap();
        assert!(read.len() == 9999 && read.iter().all(|&byte| byte == read[0]));
        let mut names: Vec<PathBuf> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        assert_eq!(names, [left, path]);
        fs::remove_dir_all(folder).unwrap();
    }
}
