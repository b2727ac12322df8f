//! Folds a long prompt before a language model reads it.
//!
//! ```no_run
//! use prefold::{Engine, Request};
//!
//! let engine = Engine::open("SmolLM2-135M-Instruct-Q4_1.gguf")?;
//! let request = Request::new(["A long document …", "Another one …"])
//!     .with_question("What does it say?")
//!     .with_rate(0.25);
//! let short = engine.compress(&request)?;
//! println!("{} of {} tokens: {}", short.tokens_after, short.tokens_before, short.text);
//! # Ok::<(), prefold::Error>(())
//! ```
//!
//! An [`Engine`] is an open model. It compresses a [`Request`] to a [`Compressed`] text, makes KV
//! prefixes ([`Engine::prefixes`]), and trains the adapters that such prefixes need
//! ([`Engine::training`]). A [`Control`] ends long calls and reports their progress.
#![deny(unsafe_code)]
#![warn(missing_docs)]
// A list of ranges may well hold one.
#![allow(clippy::single_range_in_vec_init)]

mod control;
mod engine;
mod error;
pub mod eval;
mod ffi;
mod kv_prefix;
mod line;
mod mapped;
pub mod prefix;
mod random;
mod rope;
pub mod train;

pub use control::{CancelToken, Control, Progress};
pub use engine::{Device, Engine, EngineBuilder, ModelInfo, Prefixes, Training};
pub use error::{Error, Result};
pub use gpu::Precision;
pub use hard::{
    Budget, Compressed, Condition, Count, Effort, Exact, Granularity, KeptContext, LlmLingua,
    LlmLingua2, LlmLinguaResult, Mode, Piece, RankMethod, Ranker, Reorder, Request, TokenToWord,
};
pub use kv_prefix::KvPrefix;
pub use model::weights::Access;
pub use soft::Adapter;

// For the program, its tests and benches. Unstable: anything here may change in any version.
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod cpu;
#[doc(hidden)]
pub mod files;
#[doc(hidden)]
pub mod gpu;
#[doc(hidden)]
pub mod hard;
#[cfg(any(feature = "cli", feature = "hub"))]
#[doc(hidden)]
pub mod hub;
#[doc(hidden)]
pub mod model;
#[doc(hidden)]
pub mod ops;
#[cfg(feature = "serve")]
#[doc(hidden)]
pub mod serve;
#[doc(hidden)]
pub mod soft;
#[doc(hidden)]
pub mod text;

// The programs of the guide compile.
#[cfg(doctest)]
#[doc = include_str!("../docs/howto/rust.md")]
mod guide {}
