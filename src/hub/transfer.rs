//! Downloads from the Hugging Face hub: two endpoints over `ureq`.
//!
//! `hf-hub` is not used: 1.0 starts a broken download anew and brings about 280 packages, and 0.5
//! appends a whole answer to half a file where a server ignores `Range`. Here a file is checked before
//! it gets its name. The layout on disk is `huggingface_hub`'s, down to `.incomplete`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hmac_sha256::Hash as Sha256;
use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use super::choose::{Choice, choose};
use super::store::{folder, incomplete};
use super::{Known, Settings, Transfer, is_inside};
use crate::error::{Error, Result};

/// How often a broken connection is taken up again without a new byte.
const ATTEMPTS: u32 = 5;
/// How long a connection may stay silent.
const PATIENCE: Duration = Duration::from_secs(30);
/// Redirects within the hub, as for a repository that was renamed.
const REDIRECTS: usize = 5;

/// Called with the state of a download.
type Progress<'a> = &'a mut dyn FnMut(Transfer<'_>);

/// The hub, by HTTP.
pub(super) struct Hub<'a> {
    settings: &'a Settings,
    /// Follows redirects.
    files: Agent,
    /// Does not.
    heads: Agent,
}

/// A repository's content.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// A file of a repository.
struct Remote {
    what: String,
    url: String,
    /// Names the content: a SHA-256 for large files, git's hash for others.
    etag: String,
    bytes: u64,
    commit: String,
}

impl<'a> Hub<'a> {
    pub(super) fn new(settings: &'a Settings) -> Self {
        let agent = |redirects| -> Agent {
            Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(redirects)
                .redirect_auth_headers(RedirectAuthHeaders::SameHost)
                .timeout_connect(Some(PATIENCE))
                .timeout_per_read(Some(PATIENCE))
                .user_agent(concat!("prefold/", env!("CARGO_PKG_VERSION")))
                // A compressed answer would not have the file's length.
                .accept_encoding("identity")
                .build()
                .into()
        };
        Hub {
            settings,
            files: agent(10),
            heads: agent(0),
        }
    }

    /// Downloads a known scorer into prefold's cache folder.
    pub(super) fn known(&self, known: &Known, progress: Progress<'_>) -> Result<PathBuf> {
        let remote = self.head(known.repo, "main", known.remote_file)?;
        let target = self.settings.place(known);
        self.fetch(&remote, &target, Some(known.sha256), progress)?;
        Ok(target)
    }

    /// Downloads a model of a repository into the hub's cache.
    pub(super) fn model(
        &self,
        repo: &str,
        wanted: Option<&str>,
        progress: Progress<'_>,
    ) -> Result<PathBuf> {
        // A file that is named in full needs no listing.
        if let Some(file) = wanted.filter(|file| file.ends_with(".gguf") && is_inside(file)) {
            return self.fetch_cached(repo, "main", file, progress);
        }
        let listing = self.list(repo)?;
        let files: Vec<String> = listing
            .siblings
            .into_iter()
            .map(|sibling| sibling.rfilename)
            .filter(|file| is_inside(file))
            .collect();
        match choose(repo, &files, wanted)? {
            Choice::File(file) => self.fetch_cached(repo, &listing.sha, &file, progress),
            Choice::Folder(parts) => {
                let mut last = PathBuf::new();
                for part in &parts {
                    last = self.fetch_cached(repo, &listing.sha, part, progress)?;
                }
                last.pop();
                Ok(last)
            }
        }
    }

    /// Downloads one file into the hub's cache: a blob, and a link to it in the commit's snapshot.
    fn fetch_cached(
        &self,
        repo: &str,
        revision: &str,
        file: &str,
        progress: Progress<'_>,
    ) -> Result<PathBuf> {
        let remote = self.head(repo, revision, file)?;
        let folder = folder(&self.settings.hub_cache, repo);
        let blob = folder.join("blobs").join(&remote.etag);
        self.fetch(&remote, &blob, None, progress)?;
        let link = folder.join("snapshots").join(&remote.commit).join(file);
        make_parent(&link)?;
        place(&blob, &link)?;
        let refs = folder.join("refs/main");
        make_parent(&refs)?;
        crate::files::write_whole(&refs, remote.commit.as_bytes())?;
        Ok(link)
    }

    /// Asks for a repository's files.
    fn list(&self, repo: &str) -> Result<Listing> {
        let url = format!("{}/api/models/{repo}", self.settings.endpoint);
        let mut answer = self.get(&self.files, repo, &url, None)?;
        self.expect_success(repo, answer.status().as_u16())?;
        let body = answer.body_mut().read_to_string();
        let body = body.map_err(|error| self.unreachable(repo, error))?;
        let listing: Listing =
            serde_json::from_str(&body).map_err(|error| self.odd(repo, error))?;
        match is_name(&listing.sha) {
            true => Ok(listing),
            false => Err(self.odd(repo, "the commit's name is malformed")),
        }
    }

    /// Asks what a file is, without its content.
    fn head(&self, repo: &str, revision: &str, file: &str) -> Result<Remote> {
        let what = format!("{repo}:{file}");
        let path: Vec<String> = file.split('/').map(escaped).collect();
        let endpoint = &self.settings.endpoint;
        let mut url = format!("{endpoint}/{repo}/resolve/{revision}/{}", path.join("/"));
        for _ in 0..=REDIRECTS {
            let answer = self.ask(self.heads.head(&url)).call();
            let answer = answer.map_err(|error| self.unreachable(&what, error))?;
            let location = text(answer.headers(), "location");
            if answer.status().is_redirection()
                && let Some(path) = location.as_deref().filter(|path| path.starts_with('/'))
            {
                url = format!("{endpoint}{path}");
                continue;
            }
            // A redirect elsewhere leads to the content; what describes it stands in this answer.
            if !answer.status().is_redirection() {
                self.expect_success(&what, answer.status().as_u16())?;
            }
            let first =
                |names: [&str; 2]| names.iter().find_map(|name| text(answer.headers(), name));
            let etag = first(["x-linked-etag", "etag"]).unwrap_or_default();
            let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
            let bytes =
                first(["x-linked-size", "content-length"]).and_then(|size| size.parse().ok());
            let commit = text(answer.headers(), "x-repo-commit").unwrap_or_default();
            return match bytes {
                Some(bytes) if is_name(&etag) && is_name(&commit) => Ok(Remote {
                    what,
                    url,
                    etag,
                    bytes,
                    commit,
                }),
                _ => Err(self.odd(
                    &what,
                    "its size, checksum or commit is missing or malformed",
                )),
            };
        }
        Err(self.odd(&what, "too many redirects"))
    }

    /// Downloads a file to `target`, unless it is there: resumed where an earlier download was cut short,
    /// and named when its size and checksum are right.
    fn fetch(
        &self,
        remote: &Remote,
        target: &Path,
        pinned: Option<&str>,
        progress: Progress<'_>,
    ) -> Result<()> {
        let named = (remote.etag.len() == 64).then_some(remote.etag.as_str());
        if let (Some(pinned), Some(named)) = (pinned, named)
            && pinned != named
        {
            return Err(wrong_checksum(&remote.what, named, pinned));
        }
        let want = pinned.or(named);
        if is_whole(target, remote.bytes, want)? {
            return Ok(());
        }
        make_parent(target)?;
        let part = incomplete(target);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&part)
            .map_err(Error::io(&part))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let reason = "another process is downloading it; wait until it is done";
                return Err(Error::failed(
                    &remote.what,
                    io::ErrorKind::ResourceBusy,
                    reason,
                ));
            }
            Err(TryLockError::Error(error)) => return Err(Error::io(&part)(error)),
        }
        let mut resumed = file.metadata().map_err(Error::io(&part))?.len() > 0;
        loop {
            self.fill(remote, &mut file, &part, progress)?;
            let found = hash_of(&mut file).map_err(Error::io(&part))?;
            match want {
                Some(want) if want != found => {
                    file.set_len(0).map_err(Error::io(&part))?;
                    // What was there before may have been the wrong half.
                    if !std::mem::take(&mut resumed) {
                        let _ = fs::remove_file(&part);
                        return Err(wrong_checksum(&remote.what, &found, want));
                    }
                }
                _ => break,
            }
        }
        file.sync_all().map_err(Error::io(&part))?;
        fs::rename(&part, target).map_err(Error::io(target))
    }

    /// Brings a file to its full length.
    fn fill(
        &self,
        remote: &Remote,
        file: &mut File,
        part: &Path,
        progress: Progress<'_>,
    ) -> Result<()> {
        let mut attempt = 0;
        loop {
            let mut done = file.metadata().map_err(Error::io(part))?.len();
            if done > remote.bytes {
                file.set_len(0).map_err(Error::io(part))?;
                done = 0;
            }
            let mut report = |done| {
                progress(Transfer {
                    file: &remote.what,
                    done,
                    total: remote.bytes,
                });
            };
            report(done);
            if done == remote.bytes {
                return Ok(());
            }
            match self.append(remote, file, done, &mut report) {
                Ok(()) => {}
                Err(Broken::File(error)) => return Err(Error::io(part)(error)),
                Err(Broken::Refused(error)) => return Err(error),
                Err(Broken::Connection(error)) => {
                    let now = file.metadata().map_err(Error::io(part))?.len();
                    attempt = if now > done { 1 } else { attempt + 1 };
                    if attempt == ATTEMPTS {
                        return Err(error);
                    }
                    std::thread::sleep(Duration::from_millis(250) * attempt);
                }
            }
        }
    }

    /// Appends what an answer brings to the `done` bytes of a file.
    fn append(
        &self,
        remote: &Remote,
        file: &mut File,
        done: u64,
        report: &mut dyn FnMut(u64),
    ) -> Result<(), Broken> {
        let range = (done > 0).then_some(done);
        let answer = self
            .get(&self.files, &remote.what, &remote.url, range)
            .map_err(Broken::Connection)?;
        let status = answer.status().as_u16();
        let begin = match status {
            206 => match text(answer.headers(), "content-range") {
                Some(range) if range.starts_with(&format!("bytes {done}-")) => done,
                _ => {
                    return Err(Broken::Refused(
                        self.odd(&remote.what, "not the range asked for"),
                    ));
                }
            },
            // The whole file although a part was asked for.
            200 => 0,
            // A part of another file.
            416 => {
                file.set_len(0).map_err(Broken::File)?;
                return Ok(());
            }
            500.. => {
                let error = self.expect_success(&remote.what, status).err();
                return Err(error.map_or_else(
                    || Broken::Refused(self.odd(&remote.what, status)),
                    Broken::Connection,
                ));
            }
            _ => {
                self.expect_success(&remote.what, status)
                    .map_err(Broken::Refused)?;
                return Err(Broken::Refused(
                    self.odd(&remote.what, format!("status {status}")),
                ));
            }
        };
        file.set_len(begin).map_err(Broken::File)?;
        file.seek(SeekFrom::Start(begin)).map_err(Broken::File)?;
        // One byte more than there should be shows that it is another file.
        let mut body = answer
            .into_body()
            .into_reader()
            .take(remote.bytes - begin + 1);
        let mut buffer = vec![0; 1 << 16];
        let mut at = begin;
        loop {
            let count = match body.read(&mut buffer) {
                Ok(0) if at < remote.bytes => {
                    let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Err(Broken::Connection(self.unreachable(&remote.what, error)));
                }
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) => {
                    return Err(Broken::Connection(self.unreachable(&remote.what, error)));
                }
            };
            file.write_all(&buffer[..count]).map_err(Broken::File)?;
            at += count as u64;
            if at > remote.bytes {
                file.set_len(0).map_err(Broken::File)?;
                return Err(Broken::Refused(
                    self.odd(&remote.what, "longer than announced"),
                ));
            }
            report(at);
        }
    }

    fn get(
        &self,
        agent: &Agent,
        what: &str,
        url: &str,
        from: Option<u64>,
    ) -> Result<Response<Body>> {
        let mut request = self.ask(agent.get(url));
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        request
            .call()
            .map_err(|error| self.unreachable(what, error))
    }

    fn ask<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.settings.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn expect_success(&self, what: &str, status: u16) -> Result<()> {
        let endpoint = &self.settings.endpoint;
        let token = match self.settings.token {
            Some(_) => "the token in HF_TOKEN may not read it",
            None => "where it is private or gated, set HF_TOKEN",
        };
        let kind = match status {
            200..=299 => return Ok(()),
            401 | 403 => io::ErrorKind::PermissionDenied,
            404 => io::ErrorKind::NotFound,
            _ => io::ErrorKind::Other,
        };
        let reason = match status {
            401 | 403 => format!("{endpoint} refuses access ({status}); check the name; {token}"),
            404 => format!("{endpoint} does not have it (404); check the name; {token}"),
            429 => format!("{endpoint} limits the rate (429); wait, or set HF_TOKEN"),
            _ => format!("{endpoint} answered with status {status}; try again later"),
        };
        Err(Error::failed(what, kind, reason))
    }

    fn unreachable(&self, what: &str, error: impl std::fmt::Display) -> Error {
        let endpoint = &self.settings.endpoint;
        let reason = format!(
            "the connection to {endpoint} failed ({error}); check the network or HF_ENDPOINT and try \
             again, which resumes, or give a file by --model"
        );
        Error::failed(what, io::ErrorKind::NotConnected, reason)
    }

    fn odd(&self, what: &str, why: impl std::fmt::Display) -> Error {
        let reason = format!(
            "unexpected answer of {} ({why}); check HF_ENDPOINT",
            self.settings.endpoint
        );
        Error::format(what, reason)
    }
}

/// Why a download stopped.
enum Broken {
    /// It can be taken up again.
    Connection(Error),
    /// It cannot.
    Refused(Error),
    /// The file system failed.
    File(io::Error),
}

fn wrong_checksum(what: &str, found: &str, want: &str) -> Error {
    let reason =
        format!("its SHA-256 is {found}, expected {want}; nothing was kept, try again later");
    Error::format(what, reason)
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(Into::into)
}

/// Whether a hash from outside may become the name of a file.
fn is_name(hash: &str) -> bool {
    (1..=128).contains(&hash.len())
        && hash
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// A part of a path as it stands in an address.
fn escaped(part: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    part.bytes()
        .map(|b| match plain(b) {
            true => char::from(b).to_string(),
            false => format!("%{b:02X}"),
        })
        .collect()
}

fn make_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(folder) => fs::create_dir_all(folder).map_err(Error::io(folder)),
        None => Ok(()),
    }
}

/// Whether a file is there with its length and its checksum, if that is known.
fn is_whole(path: &Path, bytes: u64, sha256: Option<&str>) -> Result<bool> {
    let Ok(mut file) = File::open(path) else {
        return Ok(false);
    };
    let length = file.metadata().map_err(Error::io(path))?.len();
    Ok(length == bytes
        && match sha256 {
            Some(want) => hash_of(&mut file).map_err(Error::io(path))? == want,
            None => true,
        })
}

/// The SHA-256 of a file.
fn hash_of(file: &mut File) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Makes a blob appear in a snapshot: by a relative link, or by a copy where links are not allowed.
fn place(blob: &Path, link: &Path) -> Result<()> {
    if fs::canonicalize(link)
        .is_ok_and(|found| fs::canonicalize(blob).is_ok_and(|blob| blob == found))
    {
        return Ok(());
    }
    let _ = fs::remove_file(link);
    #[cfg(unix)]
    {
        // blobs/ stands beside snapshots/COMMIT/, whose files may lie deeper.
        let repo = blob.ancestors().nth(2).unwrap_or(blob);
        let inside = link.strip_prefix(repo).unwrap_or(link);
        let mut target: PathBuf = inside.components().skip(1).map(|_| "..").collect();
        target.push(blob.strip_prefix(repo).unwrap_or(blob));
        std::os::unix::fs::symlink(target, link).map_err(Error::io(link))
    }
    #[cfg(not(unix))]
    {
        fs::hard_link(blob, link)
            .or_else(|_| fs::copy(blob, link).map(drop))
            .map_err(Error::io(link))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_hashes_become_names() {
        assert!(is_name("b179c9523d0e6a0f98a330c7562b682750a6f8c8"));
        for hash in ["", "../../x", "a/b", "a b", "a.b", "\u{e9}"] {
            assert!(!is_name(hash), "{hash}");
        }
        assert!(!is_name(&"a".repeat(129)));
    }

    #[test]
    fn a_path_is_escaped_part_by_part() {
        assert_eq!(escaped("a b#?%é.gguf"), "a%20b%23%3F%25%C3%A9.gguf");
    }
}
