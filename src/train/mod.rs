//! Training of adapters: 500xCompressor's pretraining and fine-tuning (arXiv 2408.03094, section 3),
//! ICAE's as its baseline, and LLMLingua's distribution alignment (arXiv 2310.05736, section 4.3).
//!
//! The model stays frozen: what is trained is LoRA's matrices and the memory embeddings. [`objective`]
//! turns samples into a loss and its gradients; all else is the loop around it.

#[doc(hidden)]
pub mod adamw;
#[doc(hidden)]
pub mod checkpoint;
#[doc(hidden)]
pub mod data;
#[cfg(feature = "train")]
mod folder;
mod gradient;
#[cfg(feature = "train")]
#[doc(hidden)]
pub mod import;
#[doc(hidden)]
pub mod log;
#[cfg(feature = "train")]
#[doc(hidden)]
pub mod merge;
#[doc(hidden)]
pub mod objective;
#[cfg(feature = "train")]
mod packed;
#[doc(hidden)]
pub mod parameters;
pub(crate) mod plan;
#[cfg(feature = "train")]
#[doc(hidden)]
pub mod plot;
#[doc(hidden)]
pub mod rank;
#[doc(hidden)]
pub mod rows;
#[doc(hidden)]
pub mod run;
#[doc(hidden)]
pub mod schedule;
mod start;
mod study;
#[cfg(feature = "train")]
#[doc(hidden)]
pub mod tokens;

pub use crate::model::lora::Target;
pub use data::{BadRows, Task};
#[doc(hidden)]
pub use gradient::TrainableModel;
pub use log::Line;
pub use objective::LoraShape;
pub use plan::{Begin, Plan, targets};
pub use run::{Event, Summary};
pub use schedule::Schedule;
pub use start::MemoryStart;
pub(crate) use start::initial;
#[cfg(feature = "cli")]
pub(crate) use study::QUESTION;
pub use study::Study;
