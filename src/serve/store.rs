//! What texts became when they were first seen, and originals that can be had again.
//!
//! A result never changes once it was given: providers cache prompts by their bytes. It is kept in
//! this process and, for replicas to agree, in Redis, where the first writer wins.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hmac_sha256::Hash as Sha256;
use moka::sync::Cache as Memory;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use tokio::runtime::Handle;

use super::metrics::Metrics;
use super::options::{Cache, ServeOptions, Size};
use crate::error::{Error, Result};

/// SHA-256 of a text and of all that its result depends on.
pub(super) type Key = [u8; 32];

/// What became of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frozen {
    /// Nothing: it was sent as it is.
    AsIs,
    /// A shorter text.
    Text(Arc<str>),
}

impl Frozen {
    fn to_bytes(&self) -> Vec<u8> {
        match self {
            Frozen::AsIs => vec![b'='],
            Frozen::Text(text) => [b"t", text.as_bytes()].concat(),
        }
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (b'=', []) => Some(Frozen::AsIs),
            (b't', text) => Some(Frozen::Text(std::str::from_utf8(text).ok()?.into())),
            _ => None,
        }
    }

    fn weight(&self) -> u32 {
        let text = match self {
            Frozen::AsIs => 0,
            Frozen::Text(text) => text.len(),
        };
        // The entry itself takes about so much.
        u32::try_from(text + 160).unwrap_or(u32::MAX)
    }
}

/// The key of a text's result: each part with its length, so that no two lists of parts are the
/// same.
pub(super) fn key(parts: &[&[u8]]) -> Key {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()
}

/// In hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Results and originals.
pub(super) struct Store {
    results: Memory<Key, Frozen>,
    originals: Memory<String, Arc<str>>,
    counts: Memory<Key, u32>,
    redis: Option<Redis>,
    metrics: Arc<Metrics>,
}

struct Redis {
    connection: ConnectionManager,
    runtime: Handle,
    ttl: u64,
    original_ttl: u64,
    /// Milliseconds since `start` until which it is left alone after a failure.
    pause: AtomicU64,
    start: Instant,
}

/// Time that Redis has to answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// After a failure Redis is left alone for so long, so that requests do not all wait for it.
const PAUSE: Duration = Duration::from_secs(1);
/// Results kept in this process beside Redis.
const BESIDE_REDIS: Size = Size(64 << 20);
/// Texts whose tokens are known; an entry takes about 100 bytes.
const COUNTS: u64 = 100_000;

impl Store {
    /// # Errors
    /// [`Error::Input`] for an address of Redis that cannot be read. Redis itself may come later.
    pub fn new(options: &ServeOptions, runtime: &Handle, metrics: Arc<Metrics>) -> Result<Self> {
        let size = match &options.cache {
            Cache::Memory(size) => *size,
            Cache::Redis(_) => BESIDE_REDIS,
        };
        let redis = match &options.cache {
            Cache::Memory(_) => None,
            Cache::Redis(url) => Some(Redis::new(url, options, runtime)?),
        };
        let originals = if options.retrieve {
            size.0 / 2
        } else {
            size.0 / 8
        };
        Ok(Store {
            results: Memory::builder()
                .max_capacity(size.0 - originals)
                .weigher(|_, frozen: &Frozen| frozen.weight())
                .time_to_idle(options.cache_ttl)
                .build(),
            originals: Memory::builder()
                .max_capacity(originals)
                .weigher(|_, text: &Arc<str>| u32::try_from(text.len() + 160).unwrap_or(u32::MAX))
                .time_to_live(options.retrieve_ttl)
                .build(),
            counts: Memory::new(COUNTS),
            redis,
            metrics,
        })
    }

    /// What texts became, where they were seen before. Blocks; not for the async threads.
    pub fn get(&self, keys: &[Key]) -> Vec<Option<Frozen>> {
        let mut found: Vec<Option<Frozen>> = keys.iter().map(|key| self.results.get(key)).collect();
        let missing: Vec<usize> = (0..keys.len()).filter(|&i| found[i].is_none()).collect();
        if let Some(redis) = self.redis.as_ref().filter(|_| !missing.is_empty()) {
            let mut pipe = redis::pipe();
            for &i in &missing {
                pipe.cmd("GETEX")
                    .arg(result_name(&keys[i]))
                    .arg("EX")
                    .arg(redis.ttl);
            }
            let values: Option<Vec<Option<Vec<u8>>>> = self.ask(redis, pipe);
            for (&i, value) in missing.iter().zip(values.unwrap_or_default()) {
                found[i] = value.and_then(|bytes| Frozen::from_bytes(&bytes));
                if let Some(frozen) = &found[i] {
                    self.results.insert(keys[i], frozen.clone());
                }
            }
        }
        let hits = found.iter().flatten().count() as u64;
        self.metrics.cache_hits.inc_by(hits);
        self.metrics.cache_misses.inc_by(keys.len() as u64 - hits);
        found
    }

    /// Keeps what a text became, unless that was decided meanwhile; gives what holds. Blocks.
    pub fn put(&self, key: Key, frozen: Frozen) -> Frozen {
        let mut holds = frozen;
        if let Some(redis) = &self.redis {
            let name = result_name(&key);
            let mut pipe = redis::pipe();
            pipe.atomic()
                .cmd("SET")
                .arg(&name)
                .arg(holds.to_bytes())
                .arg("NX")
                .arg("EX")
                .arg(redis.ttl)
                .ignore()
                .cmd("GET")
                .arg(&name);
            let value: Option<(Option<Vec<u8>>,)> = self.ask(redis, pipe);
            if let Some(frozen) = value.and_then(|(bytes,)| Frozen::from_bytes(&bytes?)) {
                holds = frozen;
            }
        }
        self.results.entry(key).or_insert(holds).into_value()
    }

    /// Keeps an original under a name. Blocks.
    pub fn put_original(&self, name: &str, text: &str) {
        if let Some(redis) = &self.redis {
            let mut pipe = redis::pipe();
            pipe.cmd("SET")
                .arg(original_name(name))
                .arg(text.as_bytes())
                .arg("EX")
                .arg(redis.original_ttl)
                .ignore();
            let _: Option<()> = self.ask(redis, pipe);
        }
        self.originals.insert(name.into(), text.into());
    }

    /// An original, while it is kept. Blocks.
    pub fn original(&self, name: &str) -> Option<Arc<str>> {
        if let Some(text) = self.originals.get(name) {
            return Some(text);
        }
        let redis = self.redis.as_ref()?;
        let mut pipe = redis::pipe();
        pipe.cmd("GET").arg(original_name(name));
        let (bytes,): (Option<Vec<u8>>,) = self.ask(redis, pipe)?;
        Some(String::from_utf8(bytes?).ok()?.into())
    }

    /// Tokens of a text, counted once.
    pub fn count(&self, text: &str, count: impl FnOnce(&str) -> Result<usize>) -> Result<usize> {
        // Counting is faster than hashing only for short texts.
        if text.len() < 256 {
            return count(text);
        }
        let key = Sha256::hash(text.as_bytes());
        if let Some(known) = self.counts.get(&key) {
            return Ok(known as usize);
        }
        let tokens = count(text)?;
        if let Ok(known) = u32::try_from(tokens) {
            self.counts.insert(key, known);
        }
        Ok(tokens)
    }

    /// Bytes that are kept in this process.
    pub fn bytes(&self) -> u64 {
        self.results.weighted_size() + self.originals.weighted_size()
    }

    /// Asks Redis; `None`, counted, where it does not answer.
    fn ask<T: redis::FromRedisValue>(&self, redis: &Redis, pipe: redis::Pipeline) -> Option<T> {
        let now = redis.start.elapsed().as_millis() as u64;
        if now < redis.pause.load(Ordering::Relaxed) {
            self.metrics.store_errors.inc();
            return None;
        }
        let mut connection = redis.connection.clone();
        let answer = redis.runtime.block_on(async {
            tokio::time::timeout(PATIENCE, pipe.query_async::<T>(&mut connection)).await
        });
        match answer {
            Ok(Ok(value)) => Some(value),
            failed => {
                if let Ok(Err(error)) = failed {
                    log::warn!(
                        "redis: {}; results are kept in this process",
                        error.category()
                    );
                }
                let until = now + PAUSE.as_millis() as u64;
                redis.pause.store(until, Ordering::Relaxed);
                self.metrics.store_errors.inc();
                None
            }
        }
    }
}

impl Redis {
    fn new(url: &str, options: &ServeOptions, runtime: &Handle) -> Result<Self> {
        let bad = |error: redis::RedisError| {
            // The address itself may hold a password.
            Error::input(
                "cache redis://…",
                format!("{}; expected redis://HOST:PORT", error.category()),
            )
        };
        let client = redis::Client::open(url).map_err(bad)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE))
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_millis(50));
        let _inside = runtime.enter();
        let connection = ConnectionManager::new_lazy_with_config(client, config).map_err(bad)?;
        Ok(Redis {
            connection,
            runtime: runtime.clone(),
            ttl: options.cache_ttl.as_secs().max(1),
            original_ttl: options.retrieve_ttl.as_secs().max(1),
            pause: AtomicU64::new(0),
            start: Instant::now(),
        })
    }
}

fn result_name(key: &Key) -> String {
    format!("prefold:1:result:{}", hex(key))
}

fn original_name(name: &str) -> String {
    format!("prefold:1:original:{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(cache: &str) -> (tokio::runtime::Runtime, Store) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let options = ServeOptions {
            cache: cache.parse().unwrap(),
            ..ServeOptions::default()
        };
        let store = Store::new(&options, runtime.handle(), Arc::default()).unwrap();
        (runtime, store)
    }

    #[test]
    fn the_first_result_holds() {
        let (_runtime, store) = store("1MB");
        let key = key(&[b"a", b"b"]);
        assert_eq!(store.get(&[key]), [None]);
        let first = Frozen::Text("short".into());
        assert_eq!(store.put(key, first.clone()), first);
        assert_eq!(store.put(key, Frozen::AsIs), first);
        assert_eq!(store.get(&[key]), [Some(first)]);
    }

    #[test]
    fn without_redis_the_process_remembers_and_the_failure_is_counted() {
        // Nothing listens there.
        let (_runtime, store) = store("redis://127.0.0.1:1");
        let key = key(&[b"x"]);
        let first = Frozen::Text("y".into());
        assert_eq!(store.put(key, first.clone()), first);
        assert_eq!(store.get(&[key]), [Some(first)]);
        store.put_original("name", "text");
        assert_eq!(store.original("name").as_deref(), Some("text"));
        assert!(store.metrics.store_errors.get() >= 2);
    }

    #[test]
    fn memory_is_bounded() {
        let (_runtime, store) = store("1MB");
        for i in 0..200_u32 {
            let text = "x".repeat(32 << 10);
            store.put(key(&[&i.to_le_bytes()]), Frozen::Text(text.into()));
        }
        store.results.run_pending_tasks();
        assert!(store.bytes() <= 1 << 20, "{}", store.bytes());
    }

    #[test]
    fn keys_tell_lists_of_parts_apart() {
        assert_ne!(key(&[b"ab", b"c"]), key(&[b"a", b"bc"]));
        assert_ne!(key(&[b"ab"]), key(&[b"ab", b""]));
    }

    #[test]
    fn values_come_back() {
        for frozen in [
            Frozen::AsIs,
            Frozen::Text("".into()),
            Frozen::Text("=é".into()),
        ] {
            assert_eq!(Frozen::from_bytes(&frozen.to_bytes()), Some(frozen));
        }
        for bad in [&b""[..], b"=x", b"x", b"t\xff"] {
            assert_eq!(Frozen::from_bytes(bad), None);
        }
    }
}
