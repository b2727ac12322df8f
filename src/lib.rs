//! Folds a long prompt before a language model reads it.
//!
//! ```no_run
//! use prefold::{Device, hard::Request};
//!
//! let engine = prefold::open("SmolLM2-135M-Instruct-Q4_1.gguf".as_ref(), Device::Auto)?;
//! let request = Request::new(["A long document …", "Another one …"])
//!     .with_question("What does it say?")
//!     .with_rate(0.25);
//! let short = engine.compress(&request)?;
//! println!("{} of {} tokens: {}", short.tokens_after, short.tokens_before, short.text);
//! # Ok::<(), prefold::Error>(())
//! ```
//!
//! The floors, top down: [`eval`] measures; [`engine`] chooses a backend; [`hard`] selects text, [`soft`] makes KV
//! prefixes and [`train`] their adapters; [`model`] runs; [`ops`] computes; [`text`], [`prefix`] and [`error`] stand on the ground.
//! No arrow runs back up.
#![deny(unsafe_code)]
#![warn(missing_docs)]
// A list of ranges may well hold one.
#![allow(clippy::single_range_in_vec_init)]

pub mod engine;
pub mod error;
pub mod eval;
mod ffi;
pub mod files;
pub mod gpu;
pub mod hard;
#[cfg(any(feature = "cli", feature = "hub"))]
#[doc(hidden)]
pub mod hub;
pub mod model;
pub mod ops;
pub mod prefix;
mod random;
mod rope;
pub mod soft;
pub mod text;
pub mod train;

pub use engine::{Device, Engine, ModelInfo, open, open_on, open_with};
pub use error::{Error, Result};
