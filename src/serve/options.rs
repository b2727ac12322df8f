//! What a server is told: addresses, limits, and how it compresses.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::error::{Error, Result};
use crate::hard::messages::{MessagesOptions, Policy};
use crate::hard::{Budget, check_rate};

/// What happens to requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// They are compressed.
    #[default]
    Compress,
    /// They stay as they are; headers and metrics say what compression would have done.
    Audit,
    /// They stay as they are.
    Off,
}

/// What happens where compression fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The original goes to the upstream.
    #[default]
    Pass,
    /// The client gets status 503.
    Error,
}

/// What is written for each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Log {
    /// A line of JSON on standard error.
    #[default]
    Json,
    /// A line of `name=value` on standard error.
    Text,
    /// Nothing.
    Off,
}

impl FromStr for Mode {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        by_name(name, "compress, audit, off")
    }
}

impl FromStr for OnFailure {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        by_name(name, "pass, error")
    }
}

impl FromStr for Log {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        by_name(name, "json, text, off")
    }
}

/// A variant by its name in JSON.
fn by_name<T: serde::de::DeserializeOwned>(name: &str, have: &str) -> Result<T, String> {
    let parsed = serde_json::from_value(serde_json::Value::String(name.into()));
    parsed.map_err(|_| format!("expected one of {have}, got `{name}`"))
}

/// A number of bytes, as `32MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let factor: u64 = match unit.trim().to_ascii_uppercase().as_str() {
            "" | "B" => 1,
            "K" | "KB" | "KIB" => 1 << 10,
            "M" | "MB" | "MIB" => 1 << 20,
            "G" | "GB" | "GIB" => 1 << 30,
            _ => return Err(format!("expected bytes as 64KB, 32MB or 1GB, got `{text}`")),
        };
        let number: Option<u64> = number.parse().ok();
        let bytes = number.and_then(|number| number.checked_mul(factor));
        bytes
            .map(Size)
            .ok_or_else(|| format!("expected bytes as 64KB, 32MB or 1GB, got `{text}`"))
    }
}

/// A length of time, as `800ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Duration);

impl FromStr for Time {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("expected a time as 800ms, 30s, 5m or 24h, got `{text}`");
        let digits = text.len()
            - text
                .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
                .len();
        let (number, unit) = text.split_at(digits);
        let seconds = match unit.trim() {
            "ms" => 1e-3,
            "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        let number: f64 = number.parse().map_err(|_| bad())?;
        Duration::try_from_secs_f64(number * seconds)
            .map(Time)
            .map_err(|_| bad())
    }
}

/// Where results are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cache {
    /// In this process, so many bytes.
    Memory(Size),
    /// In a Redis server, by its URL, which replicas share.
    Redis(String),
}

impl FromStr for Cache {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once("://") {
            Some(("redis" | "rediss" | "redis+unix" | "unix", _)) => Ok(Cache::Redis(text.into())),
            Some(_) => Err(format!(
                "expected a size or redis://HOST:PORT, got `{text}`"
            )),
            None => text.parse().map(Cache::Memory),
        }
    }
}

impl fmt::Display for Cache {
    /// Without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cache::Memory(size) => write!(f, "memory, {} bytes", size.0),
            Cache::Redis(_) => f.write_str("redis"),
        }
    }
}

/// Reads a value from its text, as it stands on a command line.
macro_rules! from_text {
    ($($type:ty),*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    )*};
}
from_text!(Size, Time, Cache);

/// How a server listens, what it forwards to, and how it compresses.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ServeOptions {
    /// Where it listens. Another address than the machine's own needs a token.
    pub listen: SocketAddr,
    /// The address that other requests go to, as `https://api.openai.com`.
    pub upstream: Option<String>,
    /// What happens to requests.
    pub mode: Mode,
    /// Share of its tokens that a shortened text keeps.
    pub rate: f64,
    /// Texts of fewer tokens do not change.
    pub min_tokens: usize,
    /// Texts do not change that would lose less than this share of their tokens.
    pub min_saving: f64,
    /// Whether turns of the user before the newest one are shortened too, which changes what was
    /// sent.
    pub compress_user: bool,
    /// Whether turns of the model before the newest one are shortened too, which changes what was
    /// sent.
    pub compress_assistant: bool,
    /// Whether source code is shortened too, by whole lines.
    pub compress_code: bool,
    /// Names of tags that mark contexts in the user's texts: what stands in them is shortened.
    pub context_tags: Vec<String>,
    /// Time for a conversation's compression.
    pub deadline: Duration,
    /// Time for a call of the other compression endpoints.
    pub call_deadline: Duration,
    /// What happens where compression fails.
    pub on_failure: OnFailure,
    /// Where results are kept.
    pub cache: Cache,
    /// Results are forgotten that were not asked for in so long.
    pub cache_ttl: Duration,
    /// Puts a marker where text was dropped, by which the original can be had again.
    pub retrieve: bool,
    /// Originals are forgotten after so long.
    pub retrieve_ttl: Duration,
    /// Bytes of a request's body that are read; longer ones pass through.
    pub max_body: u64,
    /// Bytes of a request's head.
    pub max_head: usize,
    /// Requests that are compressed or wait for it; further ones pass through.
    pub queue: usize,
    /// Connections at a time.
    pub connections: usize,
    /// A connection is closed that sends nothing for so long.
    pub idle: Duration,
    /// An answer of the upstream is ended that sends nothing for so long.
    pub upstream_idle: Duration,
    /// A file with a token that clients must send.
    pub token_file: Option<PathBuf>,
    /// Requests in progress get so long to finish when the server stops.
    pub drain: Duration,
    /// What is written for each request.
    pub log: Log,
}

impl Default for ServeOptions {
    fn default() -> Self {
        ServeOptions {
            listen: SocketAddr::from(([127, 0, 0, 1], 8780)),
            upstream: None,
            mode: Mode::default(),
            rate: 0.5,
            min_tokens: 300,
            min_saving: 0.15,
            compress_user: false,
            compress_assistant: false,
            compress_code: false,
            context_tags: vec!["context".into()],
            deadline: Duration::from_millis(800),
            call_deadline: Duration::from_secs(60),
            on_failure: OnFailure::default(),
            cache: Cache::Memory(Size(256 << 20)),
            cache_ttl: Duration::from_secs(24 * 3600),
            retrieve: false,
            retrieve_ttl: Duration::from_secs(3600),
            max_body: 32 << 20,
            max_head: 64 << 10,
            queue: 64,
            connections: 1024,
            idle: Duration::from_secs(60),
            upstream_idle: Duration::from_secs(600),
            token_file: None,
            drain: Duration::from_secs(30),
            log: Log::default(),
        }
    }
}

/// Requests and connections at a time, and tokens of a text.
const MAX_COUNT: usize = 1 << 20;

impl ServeOptions {
    /// Refuses values outside their range.
    ///
    /// # Errors
    /// [`Error::Input`] naming the option, its value and the range.
    pub fn check(&self) -> Result<()> {
        check_rate("rate", self.rate)?;
        self.messages().check()?;
        if !self.listen.ip().is_loopback() && self.token_file.is_none() {
            return Err(Error::input(
                format!("listen {}", self.listen),
                "other machines could use the server; give a token file, or listen on 127.0.0.1",
            ));
        }
        if let Some(upstream) = &self.upstream {
            let url: Option<http::Uri> = upstream.parse().ok();
            let whole = url.is_some_and(|url| {
                matches!(url.scheme_str(), Some("http" | "https"))
                    && url.host().is_some()
                    && url.query().is_none()
            });
            if !whole {
                return Err(Error::input(
                    format!("upstream {upstream}"),
                    "expected an address as https://api.openai.com",
                ));
            }
        }
        for (name, value) in [
            ("queue", self.queue),
            ("connections", self.connections),
            ("min_tokens", self.min_tokens),
        ] {
            if value == 0 {
                return Err(Error::input(format!("{name} 0"), "expected 1 or more"));
            }
            if value > MAX_COUNT {
                let what = format!("{name} {value}");
                return Err(Error::input(what, format!("expected {MAX_COUNT} or less")));
            }
        }
        // hyper's smallest buffer.
        if self.max_head < 8192 {
            return Err(Error::input(
                format!("max_head {}", self.max_head),
                "expected 8KB or more",
            ));
        }
        Ok(())
    }

    /// How conversations are shortened where a request says nothing else.
    pub(super) fn messages(&self) -> MessagesOptions {
        let policy = |shorten: bool| match shorten {
            true => Policy::Shorten,
            false => Policy::Keep,
        };
        MessagesOptions {
            budget: Budget::Rate(self.rate),
            min_tokens: self.min_tokens,
            min_saving: self.min_saving,
            user: policy(self.compress_user),
            assistant: policy(self.compress_assistant),
            context_tags: self.context_tags.clone(),
            ..MessagesOptions::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!("32MB".parse(), Ok(Size(32 << 20)));
        assert_eq!("64 kb".parse(), Ok(Size(64 << 10)));
        assert_eq!("7".parse(), Ok(Size(7)));
        for bad in ["", "MB", "-1", "1TB", "99999999999GB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        assert_eq!("800ms".parse(), Ok(Time(Duration::from_millis(800))));
        assert_eq!("1.5s".parse(), Ok(Time(Duration::from_millis(1500))));
        assert_eq!("2h".parse(), Ok(Time(Duration::from_secs(7200))));
        for bad in ["", "3", "s", "1d", "-1s", "1e99h"] {
            assert!(bad.parse::<Time>().is_err(), "{bad}");
        }
        assert_eq!("1GB".parse(), Ok(Cache::Memory(Size(1 << 30))));
        let url = "redis://:secret@h:1/0";
        let cache: Cache = url.parse().unwrap();
        assert_eq!(cache, Cache::Redis(url.into()));
        assert!(!cache.to_string().contains("secret"));
        assert!("http://h".parse::<Cache>().is_err());
    }

    #[test]
    fn options_out_of_range_are_named() {
        assert!(ServeOptions::default().check().is_ok());
        type Change = fn(&mut ServeOptions);
        let changes: [(&str, Change); 7] = [
            ("context_tags", |o| o.context_tags = vec!["<a>".into()]),
            ("rate", |o| o.rate = 0.0),
            ("min_saving", |o| o.min_saving = 1.0),
            ("listen", |o| o.listen = SocketAddr::from(([0, 0, 0, 0], 1))),
            ("upstream", |o| o.upstream = Some("api.openai.com".into())),
            ("queue", |o| o.queue = 0),
            ("max_head", |o| o.max_head = 1),
        ];
        for (name, change) in changes {
            let mut options = ServeOptions::default();
            change(&mut options);
            let error = options.check().unwrap_err().to_string();
            assert!(error.starts_with(name), "{name}: {error}");
        }
    }
}
