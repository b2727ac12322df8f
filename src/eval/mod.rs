//! What a compressor keeps: the same questions, or the same texts, to the same model in several ways,
//! and what comes of each.
//!
//! [`Qa`] asks questions about documents that were shortened, replaced by a KV prefix or left out;
//! [`Regenerate`] has texts regenerated from prefixes. Both are a [`Task`], and [`run`] makes of a task a
//! [`Report`]: a row per way and rate, with means and bootstrap intervals.

pub mod bootstrap;
pub mod data;
pub mod metrics;
mod qa;
pub mod rank;
mod regenerate;
mod run;

pub use bootstrap::{Interval, interval};
pub use data::{Question, Text};
pub use qa::{Qa, Way};
pub use regenerate::{Regenerate, Representation};
pub use run::{Answer, Difference, Pair, Report, Row, Task, run};
