//! The minimal transformer runtime: configuration, weights, decoder, KV cache.

pub(crate) mod backward;
pub(crate) mod buffers;
mod coalesce;
pub mod config;
pub mod decoder;
pub mod encoder;
pub mod gguf;
pub mod kv;
pub(crate) mod layout;
pub mod lora;
pub(crate) mod prefix;
mod prune;
pub mod quant;
pub(crate) mod raw;
mod rows;
pub(crate) mod safetensors;
mod score;
mod split;
pub(crate) mod trained;
pub mod weights;

pub(crate) use coalesce::{MAX_WORKERS, coalesce};
pub use decoder::Model;
pub use encoder::{Encoder, EncoderInput, Pooling};
pub use score::Adapted;

pub use crate::ops::{PrunedTokens, TokenPruning};

use crate::error::{Error, Result};

/// A language model as a scorer: all that hard compression needs of it.
///
/// It is object-safe, so that selection knows no backend.
pub trait Scorer: Send + Sync {
    /// Longest sequence the model was made for (`max_position_embeddings`).
    fn max_positions(&self) -> usize;

    /// Starts an empty KV cache.
    fn session(&self) -> Result<Box<dyn Session + '_>>;

    /// Nll (natural log) of `ids[from..]` of each sequence `(ids, from)` on its own, from an empty
    /// cache; the sequences share forward passes, and the LM head works for the tail alone. The first
    /// id of a sequence has no nll: `from` 0 is taken as 1.
    fn score_tails(&self, sequences: &[(&[u32], usize)]) -> Result<Vec<Vec<f32>>>;

    /// [`Scorer::score_tails`] to within a few hundredths a token, where that is much faster: for
    /// comparing texts.
    fn estimate_tails(&self, sequences: &[(&[u32], usize)]) -> Result<Vec<Vec<f32>>> {
        self.score_tails(sequences)
    }

    /// Whether [`Scorer::prune`] is the way to go: the model's device has a queue of its own, and a host
    /// that looks at every window's scores would hold it up.
    fn prunes(&self) -> bool {
        false
    }

    /// Reads texts window by window, and after each reading drops tokens of the window (LLMLingua,
    /// algorithm 2; what is dropped: [`crate::ops::PruneOp::prune`]). All of it happens on the model's
    /// device, and texts that are given together share forward passes; only what is left in the end comes
    /// back. Each text comes out as it would alone.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for windows outside their text; [`Error::Input`] for an id outside the vocabulary or
    /// a text of more tokens than the model has positions; [`Error::Unsupported`] for a scorer that cannot;
    /// [`Error::Device`] if the device fails.
    fn prune(&self, texts: &[TokenPruning<'_>]) -> Result<Vec<PrunedTokens>> {
        let _ = texts;
        Err(Error::Unsupported {
            what: "pruning texts without a look at their scores".into(),
            have: "scores".into(),
        })
    }

    /// How alike a question and each text are in meaning, by the encoder that stands beside the model.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] without such a model; [`Error::Device`] if the device fails.
    fn similarity(&self, question: &str, texts: &[&str]) -> Result<Vec<f64>> {
        let _ = (question, texts);
        Err(Error::Unsupported {
            what: "ranking by meaning without an encoder".into(),
            have: "open one beside the model, as all-MiniLM-L6-v2".into(),
        })
    }

    /// What a unit of [`Scorer::similarity`] is worth in log-odds beside the learned ranker's; `None`: there
    /// is not an encoder.
    fn similarity_unit(&self) -> Option<f64> {
        None
    }

    /// Nll of `ids[1..]` of each sequence on its own.
    fn score_each(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let tails: Vec<(&[u32], usize)> = sequences.iter().map(|ids| (*ids, 1)).collect();
        self.score_tails(&tails)
    }
}

/// A KV cache that grows by what is scored and can be cut.
pub trait Session {
    /// Number of positions held.
    fn len(&self) -> usize;

    /// True when nothing is held.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends `ids` at positions `len()..` and returns the nll of `ids[1..]`, each given all that
    /// came before it in this call and in the cache. (The nll of `ids[0]` would need the hidden
    /// state of the last call; the published method does not ask for it.)
    fn score(&mut self, ids: &[u32]) -> Result<Vec<f32>>;

    /// Nll of `ids[1..]` of each continuation, as [`Session::score`] would give it for that one alone;
    /// they share forward passes and do not see each other, and the cache stays as it is.
    ///
    /// To get the nll of a text's first token too, hold the context without its last token and begin
    /// every continuation with that one.
    fn score_after(&mut self, continuations: &[&[u32]]) -> Result<Vec<Vec<f32>>>;

    /// [`Session::score`] and a judgement in one, on the model's device: the nll of `ids[1..]` go to
    /// `losses[at..]`, and of all losses those are marked that are larger than the one of rank `rank`, 0
    /// being the largest. Nothing comes back from the device before it has judged.
    ///
    /// # Errors
    ///
    /// [`Error::Input`](crate::Error::Input) for an id outside the vocabulary or more tokens than positions;
    /// [`Error::Shape`](crate::Error::Shape) if the nll do not fit into `losses`;
    /// [`Error::Device`](crate::Error::Device) if the device fails. The cache and `losses` are then what they
    /// were.
    fn judge(
        &mut self,
        ids: &[u32],
        losses: &mut [f32],
        at: usize,
        rank: usize,
    ) -> Result<Vec<bool>>;

    /// Keeps the first `len` positions.
    fn truncate(&mut self, len: usize) -> Result<()>;

    /// Drops the positions `range`; what follows moves down and keeps its rotation.
    fn remove(&mut self, range: std::ops::Range<usize>) -> Result<()>;
}
