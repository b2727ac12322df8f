//! A prefix store: prefix files that many machines share.
//!
//! A file's key is `FINGERPRINT/CONTENT_ID.safetensors`, by the model that made it and by what it was made of
//! ([`KvPrefix::content_id`]); it is never written again, so any cache may keep it. A store is a folder or,
//! with the feature `store`, a Redis server, a bucket of S3, Google or Azure, or a web server that is read
//! only. `prefold.store` of the Python package reads the same keys.

mod folder;
#[cfg(feature = "store")]
mod object;
#[cfg(feature = "store")]
mod redis;

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::{KRope, KvPrefix};
use crate::error::{Error, Result};
use crate::files::{fill_whole, regular_file};
use crate::mapped::{Access, Mapped};

/// The name of a prefix in any store: `FINGERPRINT/CONTENT_ID`, 32 and 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PrefixName {
    fingerprint: String,
    content_id: String,
}

/// Hexadecimal digits of a model's fingerprint.
const FINGERPRINT: usize = 32;
/// Hexadecimal digits of a content id.
const CONTENT_ID: usize = 64;
/// What a file's key ends with.
const SUFFIX: &str = ".safetensors";
/// Digits that a shortened content id must have.
const SHORTEST: usize = 4;

impl PrefixName {
    /// The name of a prefix.
    pub fn of(prefix: &KvPrefix) -> Result<Self> {
        let name = format!(
            "{}/{}",
            prefix.origin().model.fingerprint,
            prefix.content_id()
        );
        Self::parse(&name).ok_or_else(|| {
            let reason = "its model's fingerprint is not 32 hexadecimal digits";
            Error::format("prefix", reason)
        })
    }

    /// Reads a whole name; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (fingerprint, content_id) = text.split_once('/')?;
        let content = content_id.len() == CONTENT_ID && is_hex(content_id);
        (is_fingerprint(fingerprint) && content).then(|| PrefixName {
            fingerprint: fingerprint.into(),
            content_id: content_id.into(),
        })
    }

    /// Reads a key under the root of a store; `None` for a file of another kind.
    fn of_key(key: &str) -> Option<Self> {
        Self::parse(key.strip_suffix(SUFFIX)?)
    }

    fn key(&self) -> String {
        format!("{self}{SUFFIX}")
    }

    /// The fingerprint of the model ([`crate::ModelInfo::fingerprint`]).
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// See [`KvPrefix::content_id`].
    pub fn content_id(&self) -> &str {
        &self.content_id
    }
}

impl fmt::Display for PrefixName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.fingerprint, self.content_id)
    }
}

fn is_fingerprint(text: &str) -> bool {
    text.len() == FINGERPRINT && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A prefix file in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// Its name.
    pub name: PrefixName,
    /// Its length.
    pub bytes: u64,
    /// When it was written, or in a cache last used; `None` where the store does not say.
    pub modified: Option<SystemTime>,
}

/// What [`Store::stale`] leaves out. What either limit refuses goes; without a limit, what is of the model goes;
/// without any part nothing does.
#[derive(Debug, Clone, Default)]
pub struct Keep {
    /// Files at most this old.
    pub younger_than: Option<Duration>,
    /// The newest files up to so many bytes.
    pub bytes: Option<u64>,
    /// Only files of models are looked at whose fingerprint begins with these four or more digits.
    pub fingerprint: Option<String>,
}

/// What a store knows of a file.
struct Meta {
    bytes: u64,
    modified: Option<SystemTime>,
}

/// Where the bytes lie. Keys are those of [`PrefixName`]; other keys are left alone.
trait Bucket: Send + Sync {
    /// `None` for a file that is not there.
    fn stat(&self, key: &str) -> Result<Option<Meta>>;
    /// All keys under the root, in any order, also those that are not a prefix's.
    fn list(&self) -> Result<Vec<(String, Meta)>>;
    /// Writes a file's bytes to `to`, which refuses more than it wants.
    fn read(&self, key: &str, to: &mut dyn Write) -> Result<()>;
    /// Puts a file there whole or not at all; false where there is one, which stays.
    fn write(&self, key: &str, bytes: &[u8]) -> Result<bool>;
    /// What is not there is deleted already.
    fn delete(&self, key: &str) -> Result<()>;
    /// See [`Store::sweep`].
    fn sweep(&self) -> Result<()> {
        Ok(())
    }
    /// The file itself, where it lies on this machine.
    fn path(&self, _key: &str) -> Option<PathBuf> {
        None
    }
}

/// A store, opened: see the [module](self).
pub struct Store {
    /// As it was named, without a password.
    shown: String,
    bucket: Box<dyn Bucket>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.shown).finish()
    }
}

impl Store {
    /// Opens a store: a folder's path or `file://` address, and with the feature `store` `redis://HOST/DATABASE`,
    /// `s3://BUCKET/ROOT`, `gs://BUCKET/ROOT`, `az://CONTAINER/ROOT` or `https://HOST/ROOT`. Access keys, regions and
    /// endpoints come from the variables of the environment that each service's own programs read.
    ///
    /// # Errors
    /// [`Error::Input`] for an address that is not understood; [`Error::Io`] where the service refuses it;
    /// [`Error::Unsupported`] for one that this build cannot reach.
    pub fn open(address: &str) -> Result<Self> {
        let bucket: Box<dyn Bucket> = match address.split_once("://") {
            None => Box::new(folder::Folder::new(Path::new(address))),
            Some(("file", path)) if path.starts_with('/') && !path.contains('%') => {
                Box::new(folder::Folder::new(Path::new(path)))
            }
            Some(("file", _)) => {
                let reason = "expected file:///FOLDER, or the path of a folder itself";
                return Err(Error::input(address, reason));
            }
            #[cfg(feature = "store")]
            Some(("redis" | "redis+unix", _)) => Box::new(redis::Redis::open(address)?),
            #[cfg(feature = "store")]
            Some((scheme @ ("s3" | "gs" | "az" | "http" | "https"), rest)) => {
                Box::new(object::Object::open(scheme, rest, &shown(address))?)
            }
            Some((scheme, _)) => {
                let have = match cfg!(feature = "store") {
                    true => "a folder, redis://, s3://, gs://, az://, http:// and https://",
                    false => "a folder; the feature `store` adds Redis, S3, Google, Azure and HTTP",
                };
                return Err(Error::Unsupported {
                    what: format!("a prefix store at {scheme}://"),
                    have: have.into(),
                });
            }
        };
        Ok(Store {
            shown: shown(address),
            bucket,
        })
    }

    /// Puts the prefix file `path` there, as it is but for keys that are not rotated: these are, as serving engines
    /// read them. False where the store has it already.
    ///
    /// # Errors
    /// [`Error::Format`] for a file that is not a sound prefix; [`Error::Io`] where it cannot be read, the
    /// store fails, or it has another file of this content, as in another element type.
    pub fn push(&self, path: &Path) -> Result<(Entry, bool)> {
        let (prefix, dtype) = KvPrefix::read(path)?;
        let name = PrefixName::of(&prefix)?;
        let (map, rotated);
        let bytes = match prefix.k_rope() {
            KRope::Applied => {
                drop(prefix);
                map = Mapped::open(path, Access::Map)?;
                map.bytes()
            }
            KRope::None => {
                rotated = prefix.with_k_rope(KRope::Applied)?.to_bytes(dtype)?;
                &rotated
            }
        };
        let key = name.key();
        let new = match self.bucket.stat(&key)? {
            Some(_) => false,
            None => self.bucket.write(&key, bytes)?,
        };
        // Another process may have been first.
        let meta = self.bucket.stat(&key)?.ok_or_else(|| self.missing(&name))?;
        if !new && !self.holds(&key, &meta, bytes)? {
            return Err(Error::failed(
                path,
                ErrorKind::AlreadyExists,
                format!(
                    "{} has another file of {name}: of another element type or rotation, or damaged; files of a store \
                     do not change, remove that one first",
                    self.shown
                ),
            ));
        }
        let entry = Entry {
            name,
            bytes: meta.bytes,
            modified: meta.modified,
        };
        Ok((entry, new))
    }

    /// Whether the file of a key is these bytes. From afar its beginning will do, in which sizes, types and rotation
    /// stand.
    fn holds(&self, key: &str, meta: &Meta, bytes: &[u8]) -> Result<bool> {
        if meta.bytes != bytes.len() as u64 {
            return Ok(false);
        }
        let count = match self.bucket.path(key) {
            Some(_) => bytes.len(),
            None => bytes.len().min(COMPARED),
        };
        let mut compared = Compared {
            left: &bytes[..count],
            differs: false,
        };
        let read = self.bucket.read(key, &mut compared);
        match (compared.differs, compared.left) {
            (true, _) => Ok(false),
            // The rest is not wanted: the reader was told so by an error.
            (false, []) => Ok(true),
            (false, _) => read.map(|()| false),
        }
    }

    /// All prefixes, the newest first, then by name.
    ///
    /// # Errors
    /// [`Error::Io`] where the store fails or cannot be listed.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = self
            .bucket
            .list()?
            .into_iter()
            .filter_map(|(key, meta)| {
                Some(Entry {
                    name: PrefixName::of_key(&key)?,
                    bytes: meta.bytes,
                    modified: meta.modified,
                })
            })
            .collect();
        entries.sort_by(|a, b| b.modified.cmp(&a.modified).then(a.name.cmp(&b.name)));
        Ok(entries)
    }

    /// The whole name of a prefix that is given by it, by its content id, or by at least four first digits
    /// of that.
    ///
    /// # Errors
    /// [`Error::Input`] for what no prefix or more than one begins with; [`Error::Io`] where the store cannot
    /// be listed, which anything but a whole name needs.
    pub fn find(&self, text: &str) -> Result<PrefixName> {
        let refuse = |reason: String| Err(Error::input(format!("prefix {text}"), reason));
        if let Some(name) = PrefixName::parse(text) {
            return Ok(name);
        }
        if text.len() < SHORTEST || text.len() > CONTENT_ID || !is_hex(text) {
            return refuse(format!(
                "expected FINGERPRINT/CONTENT_ID, a content id, or {SHORTEST} and more of its first digits"
            ));
        }
        let all = self.list()?.into_iter().map(|entry| entry.name);
        let mut found: Vec<PrefixName> = all
            .filter(|name| name.content_id.starts_with(text))
            .collect();
        match (found.pop(), found.len()) {
            (Some(name), 0) => Ok(name),
            (Some(_), others) => refuse(format!(
                "{} prefixes of {} begin with it; give more digits",
                others + 1,
                self.shown
            )),
            (None, _) => refuse(format!("{} has none that begins with it", self.shown)),
        }
    }

    /// The path of a prefix on this machine: in the store itself if that is a folder, otherwise in `cache`, a folder
    /// store, into which it is downloaded the first time. It is checked to be a sound and undamaged prefix of that name;
    /// access rights of the store are its owner's concern.
    ///
    /// # Errors
    /// [`Error::Io`] where the store fails or does not have it, or `cache` cannot be written;
    /// [`Error::Format`] where what came is not this prefix.
    pub fn pull(&self, name: &PrefixName, cache: &Path) -> Result<PathBuf> {
        let key = name.key();
        let odd = |reason: String| Error::format(format!("{}/{key}", self.shown), reason);
        let check = |path: &Path| -> Result<()> {
            let (prefix, _) = KvPrefix::read(path).map_err(|error| match error {
                Error::Format { reason, .. } => odd(reason),
                error => error,
            })?;
            match PrefixName::of(&prefix) {
                Ok(found) if found == *name => Ok(()),
                _ => Err(odd("it holds another prefix than its name says".into())),
            }
        };
        if let Some(path) = self.bucket.path(&key) {
            self.entry(name)?;
            regular_file(&path)?;
            check(&path)?;
            if path.starts_with(cache) {
                touch(&path);
            }
            return Ok(path);
        }
        let path = cache.join(&key);
        // What was damaged meanwhile is fetched anew.
        if regular_file(&path).is_ok() && check(&path).is_ok() {
            touch(&path);
            return Ok(path);
        }
        let meta = self.bucket.stat(&key)?.ok_or_else(|| self.missing(name))?;
        let folder = cache.join(&name.fingerprint);
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        fill_whole(&path, |file, scratch| {
            let mut bounded = Bounded {
                file,
                left: meta.bytes,
            };
            self.bucket.read(&key, &mut bounded)?;
            if bounded.left > 0 {
                return Err(odd(format!("it ends {} bytes too early", bounded.left)));
            }
            check(scratch)
        })?;
        Ok(path)
    }

    fn missing(&self, name: &PrefixName) -> Error {
        Error::failed(
            format!("prefix {name}"),
            ErrorKind::NotFound,
            format!("{} does not have it", self.shown),
        )
    }

    /// What the store knows of a prefix.
    ///
    /// # Errors
    /// [`Error::Io`] where the store fails or does not have it.
    pub fn entry(&self, name: &PrefixName) -> Result<Entry> {
        let meta = self.bucket.stat(&name.key())?;
        let Meta { bytes, modified } = meta.ok_or_else(|| self.missing(name))?;
        Ok(Entry {
            name: name.clone(),
            bytes,
            modified,
        })
    }

    /// Removes a prefix, if it is there; caches keep what they have of it.
    ///
    /// # Errors
    /// [`Error::Io`] where the store fails.
    pub fn remove(&self, name: &PrefixName) -> Result<()> {
        self.bucket.delete(&name.key())
    }

    /// Lists what `keep` does not keep, the oldest first.
    ///
    /// # Errors
    /// [`Error::Input`] for a malformed fingerprint, or for ages where the store keeps none; [`Error::Io`]
    /// where it cannot be listed.
    pub fn stale(&self, keep: &Keep) -> Result<Vec<Entry>> {
        let now = SystemTime::now();
        let model = keep.fingerprint.as_deref();
        if let Some(model) = model
            && !(SHORTEST..=FINGERPRINT).contains(&model.len()) | !is_hex(model)
        {
            let reason = format!("expected {SHORTEST} to {FINGERPRINT} hexadecimal digits");
            return Err(Error::input(format!("fingerprint {model}"), reason));
        }
        let mut entries = self.list()?;
        entries.retain(|entry| model.is_none_or(|model| entry.name.fingerprint.starts_with(model)));
        let timed = keep.younger_than.is_some() || keep.bytes.is_some();
        if timed && entries.iter().any(|entry| entry.modified.is_none()) {
            let reason = "it does not say when a file was written; let the server itself end them";
            return Err(Error::input(&self.shown, reason));
        }
        let mut room = keep.bytes.unwrap_or(u64::MAX);
        let all = !timed && model.is_some();
        entries.retain(|entry| {
            let age = entry.modified.and_then(|at| now.duration_since(at).ok());
            let old = keep
                .younger_than
                .is_some_and(|limit| age.unwrap_or_default() > limit);
            let fits = entry.bytes <= room;
            // What is older than the first that does not fit goes too.
            room = if fits { room - entry.bytes } else { 0 };
            all || old || !fits
        });
        entries.reverse();
        Ok(entries)
    }

    /// Removes what writers that were killed have left for a day and longer.
    ///
    /// # Errors
    /// [`Error::Io`] for a folder; other stores keep no unfinished files under a name.
    pub fn sweep(&self) -> Result<()> {
        self.bucket.sweep()
    }

    /// Its address, without a password.
    pub fn address(&self) -> &str {
        &self.shown
    }
}

/// An address without the password that may stand in it.
pub(crate) fn shown(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else {
        return address.into();
    };
    let public = |text: &str| {
        text.rsplit_once('@')
            .map_or(text, |(_, host)| host)
            .to_owned()
    };
    let path = |text: &str| {
        text.split_once('?')
            .map_or(text, |(path, _)| path)
            .to_owned()
    };
    // A password of Redis may hold a question mark, a signature after one of another service an @.
    let rest = match scheme {
        "redis" | "redis+unix" => path(&public(rest)),
        _ => public(&path(rest)),
    };
    format!("{scheme}://{}", rest.trim_end_matches('/'))
}

/// How old the note of a file's use may be: what is keyed by the time of a file would be made anew at each use.
const USED: Duration = Duration::from_secs(3600);

/// Notes that a file of the cache is used: what was not used for longest leaves it first.
fn touch(path: &Path) {
    let known = std::fs::metadata(path).and_then(|found| found.modified());
    if known.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < USED)) {
        return;
    }
    let touched = File::options().append(true).open(path);
    // Where that is not allowed, nothing is lost.
    let _ = touched.and_then(|file| file.set_modified(SystemTime::now()));
}

/// Bytes of a file from afar that are compared.
const COMPARED: usize = 2 << 20;

/// Takes bytes as long as they are the same.
struct Compared<'a> {
    left: &'a [u8],
    differs: bool,
}

impl Write for Compared<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = bytes.len().min(self.left.len());
        let (now, left) = self.left.split_at(count);
        self.differs |= now != &bytes[..count];
        self.left = left;
        match self.differs || count == 0 {
            true => Err(std::io::Error::other("no more is wanted")),
            false => Ok(count),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A file that takes as many bytes as were announced.
struct Bounded<'a> {
    file: &'a mut File,
    left: u64,
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(std::io::Error::other("longer than announced"));
        }
        let count = self.file.write(bytes)?;
        self.left -= count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_their_secrets() {
        for (address, want) in [
            ("/a/b", "/a/b"),
            ("redis://user:secret@host:1/0", "redis://host:1/0"),
            ("redis://user:se/cr@et@host", "redis://host"),
            ("redis://:p?w@host", "redis://host"),
            ("https://u:p/w@host", "https://host"),
            ("https://host/r?sig=a@b", "https://host/r"),
            ("s3://bucket/root/?secret_access_key=x", "s3://bucket/root"),
            ("https://a:b@host", "https://host"),
        ] {
            assert_eq!(shown(address), want);
        }
    }

    #[test]
    fn names_are_two_hashes() {
        let (a, b) = ("a".repeat(32), "0".repeat(64));
        let name = PrefixName::parse(&format!("{a}/{b}")).unwrap();
        assert_eq!(PrefixName::of_key(&name.key()), Some(name));
        for text in [
            format!("{a}{b}"),
            format!("{a}/{b}/"),
            format!("../{b}"),
            format!("{}/{b}", "A".repeat(32)),
            format!("{b}/{a}"),
            format!("{a}/{}", "é".repeat(32)),
            String::new(),
        ] {
            assert_eq!(PrefixName::parse(&text), None, "{text}");
        }
    }
}
