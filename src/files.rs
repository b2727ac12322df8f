//! Files that are written whole or not at all.

use std::fs;
use std::io::Write;
use std::path::Path;

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
    let mut scratch_name = std::ffi::OsString::from(".");
    scratch_name.push(target.file_name().unwrap_or_default());
    scratch_name.push(format!(".{}.tmp", std::process::id()));
    let scratch = target.with_file_name(scratch_name);
    let written = (|| {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&scratch)?;
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
