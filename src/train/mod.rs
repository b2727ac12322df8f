//! Training of adapters: 500xCompressor's pretraining and fine-tuning (arXiv 2408.03094, section 3),
//! ICAE's as its baseline, and LLMLingua's distribution alignment (arXiv 2310.05736, section 4.3).
//!
//! The model stays frozen: what is trained is LoRA's matrices and the memory embeddings. [`objective`]
//! turns samples into a loss and its gradients; all else is the loop around it.

mod gradient;
pub mod objective;
mod start;

pub use gradient::Trainee;
pub use start::MemoryStart;
