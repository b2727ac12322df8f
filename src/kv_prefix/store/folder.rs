//! A store in a folder, which a network file system may share.

use std::fs::{self, DirEntry, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Bucket, Meta, is_fingerprint};
use crate::error::{Error, Result};
use crate::files::place_new;

/// Older scratch files are those of writers that were killed.
const UNFINISHED: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    pub(super) fn new(root: &Path) -> Self {
        Folder { root: root.into() }
    }

    fn at(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }
}

impl Bucket for Folder {
    fn stat(&self, key: &str) -> Result<Option<Meta>> {
        let path = self.at(key);
        match fs::metadata(&path) {
            Ok(found) => Ok(Some(meta(&found))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(path)(error)),
        }
    }

    fn list(&self) -> Result<Vec<(String, Meta)>> {
        let mut found = Vec::new();
        for folder in entries(&self.root)? {
            // What else lies there, as lost+found, is not looked into.
            let named = folder.file_name();
            if !named.to_str().is_some_and(is_fingerprint) || !folder.path().is_dir() {
                continue;
            }
            for file in entries(&folder.path())? {
                let names = [&folder, &file].map(|entry| entry.file_name().into_string());
                // Another process may have removed it meanwhile.
                if let ([Ok(folder), Ok(name)], Ok(stat)) = (names, fs::metadata(file.path()))
                    && stat.is_file()
                {
                    found.push((format!("{folder}/{name}"), meta(&stat)));
                }
            }
        }
        Ok(found)
    }

    fn read(&self, key: &str, to: &mut dyn Write) -> Result<()> {
        let path = self.at(key);
        let mut file = File::open(&path).map_err(Error::io(&path))?;
        io::copy(&mut file, to).map(drop).map_err(Error::io(&path))
    }

    fn write(&self, key: &str, bytes: &[u8]) -> Result<bool> {
        let path = self.at(key);
        let folder = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        place_new(&path, bytes)
    }

    fn delete(&self, key: &str) -> Result<()> {
        let path = self.at(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(path)(error)),
            _ => Ok(()),
        }
    }

    fn sweep(&self) -> Result<()> {
        for folder in entries(&self.root)? {
            if !folder.file_name().to_str().is_some_and(is_fingerprint) {
                continue;
            }
            for file in entries(&folder.path())? {
                let name = file.file_name();
                let old = fs::symlink_metadata(file.path()).is_ok_and(|found| {
                    let age = found.modified().ok().and_then(|at| at.elapsed().ok());
                    found.is_file() && age.is_some_and(|age| age > UNFINISHED)
                });
                if old && name.as_encoded_bytes().ends_with(b".tmp") {
                    // Another process may have been first.
                    let _ = fs::remove_file(file.path());
                }
            }
        }
        Ok(())
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        Some(self.at(key))
    }
}

fn meta(found: &fs::Metadata) -> Meta {
    Meta {
        bytes: found.len(),
        modified: found.modified().ok(),
    }
}

fn entries(folder: &Path) -> Result<Vec<DirEntry>> {
    fs::read_dir(folder)
        .and_then(Iterator::collect)
        .map_err(Error::io(folder))
}
