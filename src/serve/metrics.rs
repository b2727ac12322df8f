//! What the server counts, as Prometheus reads it. The names are part of the interface.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Request {
    pub route: &'static str,
    pub status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct When {
    pub when: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Why {
    pub reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Question {
    pub question: &'static str,
}

/// All counters.
pub(super) struct Metrics {
    pub requests: Family<Request, Counter>,
    pub tokens: Family<When, Counter>,
    pub passthrough: Family<Why, Counter>,
    pub upstream_errors: Family<Why, Counter>,
    pub compress_seconds: Histogram,
    pub request_seconds: Histogram,
    pub upstream_seconds: Histogram,
    pub queue_depth: Gauge,
    pub connections: Gauge,
    pub cache_bytes: Gauge,
    pub cache_hits: Counter,
    pub cache_misses: Counter,
    pub store_errors: Counter,
    pub cancelled: Counter,
    pub lexical_cuts: Counter,
    pub speed: Family<Question, Gauge<f64, AtomicU64>>,
}

fn seconds() -> Histogram {
    // 1 ms to 65 s.
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            requests: Family::default(),
            tokens: Family::default(),
            passthrough: Family::default(),
            upstream_errors: Family::default(),
            compress_seconds: seconds(),
            request_seconds: seconds(),
            upstream_seconds: seconds(),
            queue_depth: Gauge::default(),
            connections: Gauge::default(),
            cache_bytes: Gauge::default(),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
            store_errors: Counter::default(),
            cancelled: Counter::default(),
            lexical_cuts: Counter::default(),
            speed: Family::default(),
        }
    }
}

impl Metrics {
    /// Tokens before and after, of what was compressed.
    pub fn count_tokens(&self, before: usize, after: usize) {
        for (when, tokens) in [("before", before), ("after", after)] {
            let counter = self.tokens.get_or_create(&When { when });
            counter.inc_by(tokens as u64);
        }
    }

    /// Tokens before and after so far.
    #[cfg(feature = "mcp")]
    pub fn tokens_counted(&self) -> [u64; 2] {
        ["before", "after"].map(|when| self.tokens.get_or_create(&When { when }).get())
    }

    /// All that was counted, under its public names.
    pub fn registry(&self, model: &str, fingerprint: &str, device: &str) -> Registry {
        let mut registry = Registry::with_prefix("prefold");
        let build = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("model", model),
            ("fingerprint", fingerprint),
            ("device", device),
        ];
        let build = Info::new(
            build
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .to_vec(),
        );
        registry.register("build", "Program and model", build);
        registry.register(
            "requests",
            "Requests by route and HTTP status",
            self.requests.clone(),
        );
        registry.register(
            "tokens",
            "Tokens of compressed requests before and after",
            self.tokens.clone(),
        );
        registry.register(
            "passthrough",
            "Requests whose original was passed through, by reason",
            self.passthrough.clone(),
        );
        registry.register(
            "upstream_errors",
            "Failures of the upstream, by reason",
            self.upstream_errors.clone(),
        );
        let unit = || Unit::Seconds;
        registry.register_with_unit(
            "compress",
            "Time of a compression, waiting included",
            unit(),
            self.compress_seconds.clone(),
        );
        registry.register_with_unit(
            "request",
            "Time until the head of the response",
            unit(),
            self.request_seconds.clone(),
        );
        registry.register_with_unit(
            "upstream",
            "Time until the head of the upstream's response",
            unit(),
            self.upstream_seconds.clone(),
        );
        registry.register(
            "queue_depth",
            "Requests that are compressed or wait for it",
            self.queue_depth.clone(),
        );
        registry.register("connections", "Open connections", self.connections.clone());
        registry.register(
            "cache_bytes",
            "Bytes of results and originals in this process",
            self.cache_bytes.clone(),
        );
        registry.register(
            "cache_hits",
            "Texts whose result was known",
            self.cache_hits.clone(),
        );
        registry.register(
            "cache_misses",
            "Texts whose result was not known",
            self.cache_misses.clone(),
        );
        registry.register(
            "store_errors",
            "Calls that Redis did not answer",
            self.store_errors.clone(),
        );
        registry.register(
            "cancelled",
            "Compressions ended because the client left",
            self.cancelled.clone(),
        );
        registry.register(
            "lexical_cuts",
            "Texts too long for the deadline, cut by words first",
            self.lexical_cuts.clone(),
        );
        registry.register(
            "tokens_per_second",
            "Estimated speed of the model",
            self.speed.clone(),
        );
        registry
    }
}

/// The text of a registry.
pub(super) fn encode(registry: &Registry) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = text::encode(&mut out, registry);
    out
}

/// Observes a time.
pub(super) fn observe(histogram: &Histogram, time: Duration) {
    histogram.observe(time.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_docs() {
        let metrics = Metrics::default();
        metrics.count_tokens(10, 5);
        metrics
            .passthrough
            .get_or_create(&Why { reason: "deadline" })
            .inc();
        metrics
            .requests
            .get_or_create(&Request {
                route: "compress",
                status: 200,
            })
            .inc();
        let text = encode(&metrics.registry("m\"", "f", "cpu"));
        for line in [
            "prefold_tokens_total{when=\"before\"} 10",
            "prefold_tokens_total{when=\"after\"} 5",
            "prefold_passthrough_total{reason=\"deadline\"} 1",
            "prefold_requests_total{route=\"compress\",status=\"200\"} 1",
            "prefold_compress_seconds_count 0",
            "prefold_queue_depth 0",
            "prefold_cache_hits_total 0",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        assert!(text.contains("prefold_build_info{") && text.contains("m\\\""));
    }
}
