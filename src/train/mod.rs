//! Training of adapters: 500xCompressor's pretraining and fine-tuning (arXiv 2408.03094, section 3),
//! ICAE's as its baseline, and LLMLingua's distribution alignment (arXiv 2310.05736, section 4.3).
//!
//! The model stays frozen: what is trained is LoRA's matrices and the memory embeddings. [`objective`]
//! turns samples into a loss and its gradients; all else is the loop around it.

pub mod adamw;
pub mod checkpoint;
pub mod data;
mod gradient;
pub mod log;
#[cfg(feature = "train")]
pub mod merge;
pub mod objective;
#[cfg(feature = "train")]
mod packed;
pub mod parameters;
#[cfg(feature = "train")]
pub mod plot;
pub mod rank;
pub mod rows;
pub mod run;
pub mod schedule;
mod start;

pub use gradient::Trainee;
pub use start::MemoryStart;
pub(crate) use start::initial;
