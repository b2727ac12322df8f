//! Files that are written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::line::steers;

/// Writes `bytes` to `path` whole or not at all: under another name first, synced, then renamed.
///
/// A symlink stays one (its target is replaced), permissions stay as they are, and what is not a
/// regular file, as `/dev/null`, is written directly.
///
/// # Errors
/// [`Error::Io`] that names `path`.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return fs::write(path, bytes).map_err(Error::io(path));
    }
    fill_whole(path, |file, _| {
        file.write_all(bytes).map_err(Error::io(path))
    })
}

/// Makes a file whole or not at all, unless there is one: false then.
///
/// # Errors
/// [`Error::Io`] that names `path`.
pub(crate) fn place_new(path: &Path, bytes: &[u8]) -> Result<bool> {
    let (mut file, scratch) = scratch(path, false).map_err(Error::io(path))?;
    let placed = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| match fs::hard_link(&scratch, path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            // A file system without links. Two that write the same at once then both say that theirs is new.
            Err(_) if fs::exists(path)? => Ok(false),
            Err(_) => fs::rename(&scratch, path).map(|()| true),
        });
    let _ = fs::remove_file(&scratch);
    placed.map_err(Error::io(path))
}

/// Makes the file `path` whole or not at all: `fill` gets a scratch file and its name, and may refuse what it has
/// written.
///
/// # Errors
/// The error of `fill`; [`Error::Io`] that names `path`.
pub(crate) fn fill_whole(
    path: &Path,
    fill: impl FnOnce(&mut File, &Path) -> Result<()>,
) -> Result<()> {
    let (target, permissions) = match fs::metadata(path) {
        Ok(found) => {
            let target = fs::canonicalize(path).map_err(Error::io(path))?;
            (target, Some(found.permissions()))
        }
        Err(_) => (link_target(path).map_err(Error::io(path))?, None),
    };
    let private = permissions.is_some();
    let (mut file, scratch) = scratch(&target, private).map_err(Error::io(path))?;
    let written = fill(&mut file, &scratch).and_then(|()| {
        if let Some(permissions) = permissions {
            file.set_permissions(permissions).map_err(Error::io(path))?;
        }
        file.sync_all().map_err(Error::io(path))?;
        fs::rename(&scratch, &target).map_err(Error::io(path))
    });
    written.inspect_err(|_| {
        let _ = fs::remove_file(&scratch);
    })
}

/// Reads bytes as the text of `path`, without the byte order mark that may stand in front.
///
/// # Errors
/// [`Error::Format`] that names `path` for what is not UTF-8; UTF-16 is called by its name.
pub fn text(path: &Path, mut bytes: Vec<u8>) -> Result<String> {
    bytes.drain(..mark(path, &bytes)?);
    if is_utf16(&bytes) {
        return Err(Error::format(
            path,
            format!("{UTF16}, without a byte order mark; {TO_UTF8}"),
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::format(path, format!("not UTF-8 at byte {at}; save it as UTF-8"))
    })
}

const UTF16: &str = "is UTF-16";
const TO_UTF8: &str = "convert it, as by `iconv -f UTF-16 -t UTF-8`";

/// Bytes of the UTF-8 byte order mark that `bytes`, the beginning of `path`, begin with: 3 or 0.
///
/// # Errors
/// [`Error::Format`] for the mark of UTF-16.
pub fn mark(path: &Path, bytes: &[u8]) -> Result<usize> {
    match bytes {
        [0xef, 0xbb, 0xbf, ..] => Ok(3),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            Err(Error::format(path, format!("{UTF16}; {TO_UTF8}")))
        }
        _ => Ok(0),
    }
}

/// Whether a text looks like UTF-16 without a mark: most of every other byte are zeros.
fn is_utf16(bytes: &[u8]) -> bool {
    let sample = &bytes[..bytes.len().min(4096)];
    let zeros = |from: usize| {
        sample
            .iter()
            .skip(from)
            .step_by(2)
            .filter(|&&b| b == 0)
            .count()
    };
    let pairs = sample.len() / 2;
    pairs >= 2
        && (zeros(0) * 10 > pairs * 7 || zeros(1) * 10 > pairs * 7)
        && zeros(0).min(zeros(1)) * 10 < pairs
}

/// The length of a regular file, and no other.
fn regular_length(path: &Path) -> Result<u64> {
    let found = fs::metadata(path).map_err(Error::io(path))?;
    match found.is_file() {
        true => Ok(found.len()),
        false => Err(Error::format(path, "not a regular file")),
    }
}

/// Refuses what is not a regular file: opening a pipe could block, and a device has no end.
///
/// # Errors
/// [`Error::Io`], and [`Error::Format`] for a folder, a pipe or a device.
pub fn regular_file(path: &Path) -> Result<()> {
    regular_length(path).map(drop)
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] for a folder, a pipe, a device, or a longer file.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut length = regular_length(path)?;
    let mut bytes = Vec::new();
    if length <= limit {
        fs::File::open(path)
            .and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes))
            .map_err(Error::io(path))?;
        // It may have become longer meanwhile.
        length = bytes.len() as u64;
    }
    match length <= limit {
        true => Ok(bytes),
        false => Err(Error::format(path, format!("longer than {limit} bytes"))),
    }
}

/// Refuses the note that Git leaves in place of a large file.
pub(crate) fn refuse_pointer(path: &Path, bytes: &[u8]) -> Result<()> {
    match bytes.starts_with(b"version https://git-lfs.github.com/") {
        true => Err(Error::format(
            path,
            "a pointer of Git LFS, not the file itself; `git lfs pull` fetches that",
        )),
        false => Ok(()),
    }
}

/// Text out of a file made fit for a message: short, and without control characters.
pub(crate) fn one_line(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut line: String = text
        .chars()
        .take(LONGEST)
        .map(|c| if steers(c) { ' ' } else { c })
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        line.push('…');
    }
    line
}

/// Bytes of whole lines of a file that grows by lines, the last of which a kill may have cut short.
pub(crate) fn whole_lines(bytes: &[u8]) -> usize {
    let end = bytes.iter().rposition(|&b| b == b'\n');
    end.map_or(0, |at| at + 1)
}

/// A new file beside `target`, for its owner alone where `private`, locked for as long as it is open. A
/// name may be taken: by another writer of the same file, or by one that was killed, whose file is
/// replaced.
fn scratch(target: &Path, private: bool) -> io::Result<(File, PathBuf)> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if private {
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    }
    #[cfg(not(unix))]
    let _ = private;
    free_name(target, |path| options.open(path), |file| Some(file))
}

/// A new folder beside `target` for what will become it, and its lock, which must live until the folder
/// is renamed. What a killed process left there is replaced.
#[cfg(feature = "train")]
pub(crate) fn scratch_folder(target: &Path) -> io::Result<(Option<File>, PathBuf)> {
    // Only Unix opens folders.
    let make = |path: &Path| fs::create_dir(path).map(|()| File::open(path).ok());
    free_name(target, make, |lock| lock.as_ref())
}

/// Makes something under the first hidden name beside `target` that no other writer uses, and locks it.
fn free_name<T>(
    target: &Path,
    make: impl Fn(&Path) -> io::Result<T>,
    file: impl Fn(&T) -> Option<&File>,
) -> io::Result<(T, PathBuf)> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    // A name of the longest length has no room for more.
    let short: String = name.chars().take(LONGEST_NAME).collect();
    let mut attempt = 0u32;
    loop {
        let path = target.with_file_name(format!(".{short}.{attempt}.tmp"));
        match make(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && attempt < MAX_SCRATCHES => {
                attempt += u32::from(!clear(&path));
            }
            Err(error) => return Err(error),
            Ok(made) => {
                // Without locks (some network file systems) nothing is cleared either. Another writer may
                // have taken it for a leftover before it was locked.
                let lost = file(&made).is_some_and(|f| f.lock().is_ok() && !is_at(f, &path));
                if !lost {
                    return Ok((made, path));
                }
                attempt += 1;
            }
        }
    }
}

/// Removes what a killed process left at `path`; false where a writer is at work, or cannot be told from a
/// leftover.
fn clear(path: &Path) -> bool {
    // Not one that waits: what has this name need not be ours.
    if regular_file(path).is_err() && !path.is_dir() {
        return false;
    }
    let Ok(file) = File::open(path) else {
        return false;
    };
    // The lock ends with its process.
    if !cfg!(unix) || file.try_lock().is_err() || !is_at(&file, path) {
        return false;
    }
    match path.is_dir() {
        true => fs::remove_dir_all(path).is_ok(),
        false => fs::remove_file(path).is_ok(),
    }
}

/// Whether `path` names this very file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(open), Ok(named)) = (file.metadata(), fs::symlink_metadata(path)) else {
        return false;
    };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

/// Elsewhere files have no number that could be compared: leftovers stay.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

/// Where a symlink that leads to no file yet will have one; `path` itself otherwise.
pub(crate) fn link_target(path: &Path) -> io::Result<PathBuf> {
    let mut target = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&target) {
            Ok(next) => target = target.parent().unwrap_or(Path::new("")).join(next),
            Err(_) => return Ok(target),
        }
    }
    Err(io::Error::other("too many symlinks"))
}

/// Symlinks that are followed, as Linux does.
const MAX_LINKS: usize = 40;
/// Characters of a file's name that its scratch file bears; each may take four bytes of 255.
const LONGEST_NAME: usize = 50;
/// Names beside a file that may be taken.
const MAX_SCRATCHES: u32 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_do_not_meet_and_leftovers_are_replaced() {
        let folder = std::env::temp_dir().join(format!("prefold-files-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("file");
        // What a killed process left: its lock is gone.
        let (_, left) = scratch(&path, false).unwrap();
        fs::write(&left, "cut sho").unwrap();
        // What another process is writing.
        let (_lock, busy) = scratch(&folder.join("busy"), false).unwrap();
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
        write_whole(&folder.join("busy"), b"other").unwrap();
        let mut names: Vec<PathBuf> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        let mut want = vec![busy, folder.join("busy"), path];
        // Elsewhere leftovers cannot be told from files that are being written.
        if cfg!(not(unix)) {
            want.push(left);
        }
        want.sort();
        assert_eq!(names, want);
        fs::remove_dir_all(folder).unwrap();
    }

    #[cfg(all(unix, feature = "train"))]
    #[test]
    fn a_folder_that_was_left_is_replaced_and_one_in_use_is_not() {
        let folder = std::env::temp_dir().join(format!("prefold-folder-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let target = folder.join("model");
        let (_, left) = scratch_folder(&target).unwrap();
        fs::write(left.join("weights"), "cut sho").unwrap();
        let (_lock, again) = scratch_folder(&target).unwrap();
        assert_eq!(again, left);
        assert_eq!(fs::read_dir(&again).unwrap().count(), 0);
        let (_other, beside) = scratch_folder(&target).unwrap();
        assert_ne!(again, beside);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn long_names_fit_and_links_stay_links() {
        let folder = std::env::temp_dir().join(format!("prefold-names-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for name in ["n".repeat(255), "\u{e9}".repeat(127)] {
            write_whole(&folder.join(&name), b"x").unwrap();
            assert_eq!(fs::read(folder.join(&name)).unwrap(), b"x");
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::{PermissionsExt, symlink};
            // One that leads to a link that leads to no file yet.
            symlink("two", folder.join("one")).unwrap();
            symlink("three", folder.join("two")).unwrap();
            for text in [b"first", b"again"] {
                write_whole(&folder.join("one"), text).unwrap();
                assert!(
                    fs::symlink_metadata(folder.join("one"))
                        .unwrap()
                        .is_symlink()
                );
                assert!(
                    fs::symlink_metadata(folder.join("two"))
                        .unwrap()
                        .is_symlink()
                );
                assert_eq!(fs::read(folder.join("three")).unwrap(), text);
            }
            symlink("round", folder.join("round")).unwrap();
            assert!(write_whole(&folder.join("round"), b"x").is_err());
            let secret = folder.join("secret");
            fs::write(&secret, "old").unwrap();
            fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
            write_whole(&secret, b"new").unwrap();
            assert_eq!(
                fs::metadata(&secret).unwrap().permissions().mode() & 0o777,
                0o600
            );
            let (file, _) = scratch(&secret, true).unwrap();
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0);
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn texts_lose_their_mark_and_utf16_is_called_so() {
        let read = |bytes: &[u8]| text(Path::new("t.txt"), bytes.to_vec());
        assert_eq!(read(b"\xef\xbb\xbfa\xef\xbb\xbfb").unwrap(), "a\u{feff}b");
        assert_eq!(read(b"").unwrap(), "");
        let utf16 = |mark: &[u16], little: bool| -> Vec<u8> {
            let units = mark.iter().copied().chain("A text. \u{e9}".encode_utf16());
            let bytes = |unit: u16| {
                if little {
                    unit.to_le_bytes()
                } else {
                    unit.to_be_bytes()
                }
            };
            units.flat_map(bytes).collect()
        };
        for little in [true, false] {
            for mark in [&[0xfeff][..], &[]] {
                let error = read(&utf16(mark, little)).unwrap_err().to_string();
                assert!(
                    error.contains("t.txt: is UTF-16") && error.contains("iconv"),
                    "{error}"
                );
            }
        }
        let error = read(b"ab\xff").unwrap_err().to_string();
        assert!(error.contains("not UTF-8 at byte 2"), "{error}");
    }
}
