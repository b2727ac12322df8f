//! Hard compression: a shorter text. LLMLingua (arXiv 2310.05736) and LongLLMLingua (2310.06839).

pub mod options;
pub mod rank_text;
pub mod result;

pub use options::{Budget, Condition, Count, Granularity, Options, Prompt, RankMethod, Reorder};
pub use result::{Compressed, Piece};
