//! A store in a Redis server, for small prefixes: a value has at most 512 MB there.

use std::io::{ErrorKind, Write};
use std::sync::Mutex;
use std::time::Duration;

use redis::{Client, Commands, Connection, RedisResult};

use super::{Bucket, Meta, SUFFIX, shown};
use crate::error::{Error, Result};

/// Before each key, so that others may use the same database.
const ROOT: &str = "prefold/";
/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Keys that the server is asked for at once.
const PAGE: usize = 1000;

pub(super) struct Redis {
    shown: String,
    connection: Mutex<Connection>,
}

impl Redis {
    pub(super) fn open(address: &str) -> Result<Self> {
        let shown = shown(address);
        let connection = Client::open(address)
            .and_then(|client| client.get_connection_with_timeout(PATIENCE))
            .and_then(|connection| {
                connection.set_read_timeout(Some(PATIENCE))?;
                connection.set_write_timeout(Some(PATIENCE))?;
                Ok(connection)
            })
            .map_err(failed(&shown))?;
        Ok(Redis {
            shown,
            connection: Mutex::new(connection),
        })
    }

    fn ask<T>(&self, ask: impl FnOnce(&mut Connection) -> RedisResult<T>) -> Result<T> {
        let mut connection = self
            .connection
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        ask(&mut connection).map_err(failed(&self.shown))
    }
}

fn failed(shown: &str) -> impl FnOnce(redis::RedisError) -> Error {
    move |error| {
        let reason = format!("the Redis server failed: {error}");
        Error::failed(shown, ErrorKind::Other, reason)
    }
}

fn at(key: &str) -> String {
    format!("{ROOT}{key}")
}

impl Bucket for Redis {
    fn stat(&self, key: &str) -> Result<Option<Meta>> {
        // Of what is not there: zero.
        let bytes: u64 = self.ask(|c| c.strlen(at(key)))?;
        let modified = None;
        Ok((bytes > 0).then_some(Meta { bytes, modified }))
    }

    fn list(&self) -> Result<Vec<(String, Meta)>> {
        let mut keys: Vec<String> = self.ask(|c| {
            let options = redis::ScanOptions::default()
                .with_pattern(format!("{ROOT}*/*{SUFFIX}"))
                .with_count(PAGE);
            c.scan_options::<Vec<u8>>(options)?
                .filter_map(|key| match key {
                    // What is not UTF-8 is not ours.
                    Ok(key) => String::from_utf8(key).ok().map(Ok),
                    Err(error) => Some(Err(error)),
                })
                .collect()
        })?;
        // A scan may give a key twice.
        keys.sort_unstable();
        keys.dedup();
        let mut found = Vec::new();
        for page in keys.chunks(PAGE) {
            let mut pipeline = redis::pipe();
            page.iter().for_each(|key| {
                pipeline.strlen(key);
            });
            let lengths: Vec<u64> = self.ask(|c| pipeline.query(c))?;
            for (key, bytes) in page.iter().zip(lengths) {
                let key = key.strip_prefix(ROOT).unwrap_or(key).to_owned();
                let modified = None;
                found.push((key, Meta { bytes, modified }));
            }
        }
        Ok(found)
    }

    fn read(&self, key: &str, to: &mut dyn Write) -> Result<()> {
        let bytes: Vec<u8> = self.ask(|c| c.get(at(key)))?;
        to.write_all(&bytes)
            .map_err(|error| Error::failed(&self.shown, error.kind(), format!("{key}: {error}")))
    }

    fn write(&self, key: &str, bytes: &[u8]) -> Result<bool> {
        self.ask(|c| c.set_nx(at(key), bytes))
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.ask(|c| c.del(at(key)))
    }
}
