//! What is minimised: the nll of a decoder's targets, and its gradients.

use crate::error::{Error, Result};
use crate::kv_prefix::Method;
use crate::model::lora::Target;

/// Which projections an adapter changes, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraShape {
    /// Width between the two factors.
    pub rank: usize,
    /// What they add is multiplied by alpha through rank.
    pub alpha: f32,
    /// The projections, in every layer.
    pub targets: Vec<Target>,
}

/// One trained tensor, or its gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// PEFT's name (`base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`), or
    /// `memory_embeddings`.
    pub name: String,
    /// Row-major: `[rank, inputs]` for A, `[outputs, rank]` for B, `[num_mem, hidden]`.
    pub shape: [usize; 2],
    /// The values.
    pub values: Vec<f32>,
}

/// What a step trains on, in token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sample {
    /// Give the text back from its memory tokens: the decoder reads BOS + text, its targets are
    /// text + EOS.
    Regenerate {
        /// The text.
        text: Vec<u32>,
    },
    /// Answer from the memory tokens of a context: the decoder reads question + answer, its targets
    /// are answer + EOS.
    Answer {
        /// The context.
        context: Vec<u32>,
        /// The question.
        question: Vec<u32>,
        /// The answer.
        answer: Vec<u32>,
    },
    /// Answer without memory tokens, the adapter on: targets are answer + EOS.
    Align {
        /// The question.
        question: Vec<u32>,
        /// The answer.
        answer: Vec<u32>,
    },
}

/// How samples are read.
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    /// 500xCompressor, ICAE, or pooled states.
    pub method: Method,
    /// Begins what the decoder reconstructs.
    pub bos: u32,
    /// Ends every target.
    pub eos: u32,
    /// Share of LoRA's inputs that are dropped.
    pub dropout: f32,
    /// Each sample is read by the first memory tokens, of which a number from 1 to all is drawn for it,
    /// each as likely. A loss without gradients is by all of them.
    pub nested: bool,
    /// Vectors that a text becomes at most where states are pooled, at least 1; of no use for the others,
    /// whose parameters have memory embeddings.
    pub vectors: usize,
}

/// What a batch gives, summed over its targets: divide by `targets` for the mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradient {
    /// Sum of the targets' nll.
    pub nll: f64,
    /// Number of targets.
    pub targets: usize,
    /// Number of tokens that went through the model.
    pub tokens: usize,
    /// Of the sum, in the order of the parameters; empty where only the loss was asked for. What the
    /// loss does not depend on, as q of the encoder's last layer, has no values.
    pub gradients: Vec<Tensor>,
}

impl Gradient {
    /// The loss: the mean nll of a target.
    pub fn mean(&self) -> f64 {
        self.nll / self.targets.max(1) as f64
    }

    /// The gradients of the loss, as the optimiser takes them.
    ///
    /// # Errors
    /// [`Error::Shape`] where names or sizes differ from `parameters`.
    pub fn means(self, parameters: &[Tensor]) -> Result<Vec<Vec<f32>>> {
        let names = |tensors: &[Tensor]| tensors.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
        if names(parameters) != names(&self.gradients) {
            return Err(Error::Shape {
                op: "gradients",
                want: format!("those of {} parameters, in their order", parameters.len()),
                got: format!("{} others", self.gradients.len()),
            });
        }
        let share = 1.0 / self.targets.max(1) as f32;
        let mean = |sum: Tensor| sum.values.into_iter().map(|g| g * share).collect();
        Ok(self.gradients.into_iter().map(mean).collect())
    }
}
