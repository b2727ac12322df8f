//! A store in a bucket of S3, Google or Azure, or under an address of HTTP, which is read only; by OpenDAL.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use opendal::blocking::Operator;
use opendal::layers::{RetryLayer, TimeoutLayer};
use opendal::options::{ListOptions, WriteOptions};
use opendal::{ErrorKind, Metadata, OperatorUri};
use tokio::runtime::Runtime;

use super::{Bucket, Meta};
use crate::error::{Error, Result};

/// Bytes of an upload's parts.
const PART: usize = 8 << 20;
/// Parts under way at once.
const PARTS: usize = 4;
/// How long a part may take: 0.3 Mbit/s do.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often a call that failed by chance is tried again.
const RETRIES: usize = 3;

pub(super) struct Object {
    shown: String,
    operator: Operator,
    /// Where the calls run; they are waited for.
    _runtime: Runtime,
}

impl Object {
    /// Opens `scheme://rest`.
    pub(super) fn open(scheme: &str, rest: &str, shown: &str) -> Result<Self> {
        // The first provider stays: a program that links this may have one of its own.
        let _ = rustls::crypto::ring::default_provider().install_default();
        opendal::init_default_registry();
        opendal_http_transport_reqwest::install_default();
        let service = match scheme {
            "gs" => "gcs",
            "az" => "azblob",
            scheme => scheme,
        };
        let mut options = Vec::new();
        let named = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let says = |name: &str| {
            let query = rest.split_once('?').map_or("", |(_, query)| query);
            query
                .split('&')
                .any(|pair| pair.split('=').next() == Some(name))
        };
        if scheme == "s3" && !says("region") && !named("AWS_REGION") && !named("AWS_DEFAULT_REGION")
        {
            // What Amazon's own library takes, and other servers do not look at.
            options.push(("region".to_owned(), "us-east-1".to_owned()));
        }
        if let ("az", false, Ok(account)) = (
            scheme,
            says("endpoint"),
            std::env::var("AZURE_STORAGE_ACCOUNT_NAME"),
        ) {
            let endpoint = format!("https://{account}.blob.core.windows.net");
            options.push(("endpoint".to_owned(), endpoint));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(Error::io("runtime of the prefix store"))?;
        let operator = {
            let _inside = runtime.enter();
            OperatorUri::new(&format!("{service}://{rest}"), options)
                .and_then(opendal::Operator::from_uri)
                .map(|operator| {
                    operator
                        .layer(TimeoutLayer::new().with_io_timeout(PATIENCE))
                        .layer(RetryLayer::new().with_max_times(RETRIES).with_jitter())
                })
                .and_then(Operator::new)
                .map_err(failed(shown))?
        };
        Ok(Object {
            shown: shown.into(),
            operator,
            _runtime: runtime,
        })
    }

    fn failed(&self) -> impl FnOnce(opendal::Error) -> Error {
        failed(&self.shown)
    }

    /// What std's copy says: an error of the service, or of the file that it was copied to.
    fn broken(&self, key: &str, error: &io::Error) -> Error {
        let what = format!("{}/{key}", self.shown);
        // Of the service's own error its addresses, which may be signed, stay unsaid.
        let inner = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<opendal::Error>());
        let reason = match inner {
            Some(inner) => format!("{}: {}", inner.kind(), inner.message()),
            None => error.to_string(),
        };
        Error::failed(what, error.kind(), reason)
    }
}

fn failed(shown: &str) -> impl FnOnce(opendal::Error) -> Error {
    move |error| {
        // Its own text names the operation, addresses and answers over many lines.
        let (kind, reason) = match error.kind() {
            ErrorKind::PermissionDenied => (
                io::ErrorKind::PermissionDenied,
                "access is refused; check the credentials".into(),
            ),
            ErrorKind::NotFound => (io::ErrorKind::NotFound, "no such bucket or file".into()),
            ErrorKind::Unsupported => (
                io::ErrorKind::Unsupported,
                "a web server is only read from, by FINGERPRINT/CONTENT_ID".into(),
            ),
            kind => (io::ErrorKind::Other, format!("{kind}: {}", error.message())),
        };
        Error::failed(shown, kind, reason)
    }
}

fn meta(found: &Metadata) -> Meta {
    Meta {
        bytes: found.content_length(),
        modified: found.last_modified().map(SystemTime::from),
    }
}

impl Bucket for Object {
    fn stat(&self, key: &str) -> Result<Option<Meta>> {
        match self.operator.stat(key) {
            Ok(found) => Ok(Some(meta(&found))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed()(error)),
        }
    }

    fn list(&self) -> Result<Vec<(String, Meta)>> {
        let options = ListOptions {
            recursive: true,
            ..ListOptions::default()
        };
        let entries = self
            .operator
            .list_options("", options)
            .map_err(self.failed())?;
        Ok(entries
            .iter()
            .filter(|entry| entry.metadata().is_file())
            .map(|entry| (entry.path().to_owned(), meta(entry.metadata())))
            .collect())
    }

    fn read(&self, key: &str, to: &mut dyn Write) -> Result<()> {
        let mut from = self
            .operator
            .reader(key)
            .and_then(|reader| reader.into_std_read(..))
            .map_err(self.failed())?;
        io::copy(&mut from, to)
            .map(drop)
            .map_err(|error| self.broken(key, &error))
    }

    fn write(&self, key: &str, bytes: &[u8]) -> Result<bool> {
        let options = WriteOptions {
            concurrent: PARTS,
            chunk: Some(PART),
            if_not_exists: self.operator.info().capability().write_with_if_not_exists,
            ..WriteOptions::default()
        };
        let mut writer = self
            .operator
            .writer_options(key, options)
            .map_err(self.failed())?;
        for part in bytes.chunks(PART) {
            writer.write(part.to_vec()).map_err(self.failed())?;
        }
        match writer.close() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::ConditionNotMatch => Ok(false),
            Err(error) => Err(self.failed()(error)),
        }
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.operator.delete(key).map_err(self.failed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses become services without a network.
    #[test]
    fn every_kind_opens() {
        for (scheme, rest) in [
            ("s3", "bucket/root"),
            ("gs", "bucket/root"),
            (
                "az",
                "container/root?endpoint=https://account.blob.core.windows.net",
            ),
            ("https", "host/root"),
        ] {
            Object::open(scheme, rest, "shown").unwrap();
        }
    }
}
