//! From samples to a loss and its gradients.
//!
//! All sequences of a batch go through the model together. By 500xCompressor's method the encoder (the
//! model with the adapter on) reads each text and its memory tokens; the frozen decoder, the adapter
//! off, reads the rest after the K and V of these, at positions from the number of memory tokens on.
//! Its backward gives the gradients of those K and V in every layer, which the encoder's backward begins
//! with. By ICAE's method the decoder reads the memory tokens' last hidden states as embeddings, and the
//! gradient goes back by them alone. Pooled states are read the same way; their means, a few rows, are
//! taken in the host's memory.
//!
//! Where memory tokens are nested, each sample has a number of its own of them, and the samples of one
//! number go through the model together. The encoder is causal, so that the first `k` of its memory
//! tokens are what they are whether or not others follow: leaving these out is the same and costs less.

mod step;

use std::collections::BTreeMap;

use super::objective::{Gradient, LoraShape, Objective, Sample, Tensor};
use super::parameters;
use super::start::{self, MEMORY, MemoryStart};
use crate::error::{Error, Result};
use crate::kv_prefix::Method;
use crate::model::Model;
use crate::model::backward::Backward;
use crate::model::lora::parse;
use crate::model::trained::{Factor, Trained};
use crate::ops::Backend;
use crate::random::Random;
use step::{Done, Step, shape};

/// A frozen model under training, with an adapter whose values are given step by step.
pub struct TrainableModel<'m, B: Backend> {
    backward: Backward<'m, B>,
    lora: LoraShape,
    activations: usize,
}

/// What one sample asks.
struct TrainingExample<'a> {
    /// What the encoder reads, if there is one.
    text: &'a [u32],
    /// What the decoder reads.
    reads: Vec<u32>,
    /// What its last rows predict.
    targets: Vec<u32>,
}

/// Which parameter it is, and its values.
type Named<'a> = (usize, &'a [f32]);

/// Parameters, sorted out.
struct Parameters<'a> {
    /// Of each layer K and V of a prefix, if that is what is trained.
    prefix: Vec<[Named<'a>; 2]>,
    factors: Vec<Factor<'a>>,
    /// Which they are, and their values.
    memory: Option<Named<'a>>,
}

impl<'m, B: Backend> TrainableModel<'m, B> {
    /// A model with an adapter of `lora`'s shape. Its weights are laid out once more, transposed.
    /// Activations of as many layers as fit into `activations` bytes are kept from the forward to the
    /// backward; those of the others are computed again, except for each layer's input. Both ways give the
    /// same values.
    ///
    /// # Errors
    /// [`Error::Input`] for a shape that the model does not have; [`Error::Unsupported`] for GPT-2;
    /// [`Error::Device`] if the device fails.
    pub fn new(model: &'m Model<B>, lora: LoraShape, activations: usize) -> Result<Self> {
        parameters::check(model.config(), &lora, 0)?;
        Ok(TrainableModel {
            backward: Backward::new(model)?,
            lora,
            activations,
        })
    }

    /// A model before which stand rows of K and V that are trained, without an adapter; `activations` as in
    /// [`TrainableModel::new`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] for GPT-2; [`Error::Device`] if the device fails.
    pub fn for_prefix(model: &'m Model<B>, activations: usize) -> Result<Self> {
        parameters::check_prefix_model(model.config())?;
        Ok(TrainableModel {
            backward: Backward::new(model)?,
            lora: parameters::no_lora(),
            activations,
        })
    }

    /// The adapter's shape.
    pub fn lora(&self) -> &LoraShape {
        &self.lora
    }

    /// Untrained parameters: A as PEFT draws it, B zero, and `num_mem` memory embeddings, if any, after
    /// them.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn initial(&self, num_mem: usize, start: MemoryStart, seed: u64) -> Result<Vec<Tensor>> {
        start::initial(self.backward.model, &self.lora, num_mem, start, seed)
    }

    /// The loss of a batch and its gradients; `seed` chooses what is dropped, and how many memory tokens
    /// a sample has where they are nested.
    ///
    /// # Errors
    /// [`Error::Shape`] for parameters that do not fit the model, the adapter's shape or the batch;
    /// [`Error::Input`] for an empty question, ids outside the vocabulary, or sequences longer than the
    /// model's positions; [`Error::Device`] if the device fails.
    pub fn gradient(
        &self,
        parameters: &[Tensor],
        batch: &[Sample],
        objective: &Objective,
        seed: u64,
    ) -> Result<Gradient> {
        self.run(parameters, batch, objective, Some(seed))
    }

    /// The loss alone, without dropout.
    ///
    /// # Errors
    /// [`Error::Shape`] for parameters that do not fit the model, the adapter's shape or the batch;
    /// [`Error::Input`] for an empty question, ids outside the vocabulary, or sequences longer than the
    /// model's positions; [`Error::Device`] if the device fails.
    pub fn loss(
        &self,
        parameters: &[Tensor],
        batch: &[Sample],
        objective: &Objective,
    ) -> Result<Gradient> {
        self.run(parameters, batch, objective, None)
    }

    fn run(
        &self,
        parameters: &[Tensor],
        batch: &[Sample],
        objective: &Objective,
        seed: Option<u64>,
    ) -> Result<Gradient> {
        let model = self.backward.model;
        let sorted = self.sort(parameters)?;
        let scale = self.lora.alpha / self.lora.rank as f32;
        let trained = Trained::load(model.backend(), model.config(), scale, &sorted.factors)?;
        let aligned = batch
            .iter()
            .filter(|sample| matches!(sample, Sample::Align { .. }))
            .count();
        let hidden = model.config().hidden;
        let all = match (objective.method, sorted.memory) {
            (Method::Pooled, _) => objective.vectors,
            (_, memory) => memory.map_or(0, |(_, memory)| memory.len() / hidden),
        };
        let nested = seed.filter(|_| objective.nested);
        let mut groups: BTreeMap<usize, Vec<TrainingExample>> = BTreeMap::new();
        for (number, sample) in batch.iter().enumerate() {
            let count = nested.map_or(all, |seed| first(seed, number, all));
            let group = groups.entry(count).or_default();
            group.push(example(sample, objective)?);
        }
        if groups.is_empty() {
            groups.insert(all, Vec::new());
        }
        let mut total = Gradient {
            nll: 0.0,
            targets: 0,
            tokens: 0,
            gradients: Vec::new(),
        };
        for (count, examples) in &groups {
            // Groups do not drop the same.
            let apart = nested.map_or(0, |_| (*count as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let dropout = seed
                .filter(|_| objective.dropout > 0.0)
                .map(|seed| (objective.dropout, seed ^ apart));
            let step = Step {
                trainable: self,
                trained: &trained,
                examples,
                dropout,
                wanted: seed.is_some(),
            };
            let memory = sorted
                .memory
                .map(|(_, memory)| memory.get(..count * hidden).unwrap_or(memory));
            let done = match (aligned, memory, objective.method) {
                _ if batch.is_empty() => Done::default(),
                _ if !sorted.prefix.is_empty() => step.by_prefix(&sorted.prefix)?,
                (n, _, _) if n == batch.len() => step.align()?,
                (0, None, Method::Pooled) => step.by_means(*count)?,
                (0, Some(memory), Method::FiveHundredX) => step.by_keys(memory)?,
                (0, Some(memory), Method::Icae) => step.by_states(memory)?,
                (0, None, _) => {
                    return Err(shape("parameters with memory_embeddings", "none"));
                }
                (0, _, method) => {
                    let got = format!("others for the method {method:?}");
                    return Err(shape("parameters that the method trains", got));
                }
                _ => {
                    let want = "a batch of samples all with or all without memory tokens";
                    return Err(shape(want, "both"));
                }
            };
            total.nll += done.nll;
            total.tokens += done.tokens;
            total.targets += examples.iter().map(|e| e.targets.len()).sum::<usize>();
            if seed.is_some() {
                let more = self.collect(parameters, &sorted, scale, done)?;
                add(&mut total.gradients, more);
            }
        }
        Ok(total)
    }

    /// Finds out what each parameter is.
    fn sort<'a>(&self, parameters: &'a [Tensor]) -> Result<Parameters<'a>> {
        let c = self.backward.model.config();
        let rank = self.lora.rank;
        let mut memory = None;
        let mut rows: Vec<[Option<Named>; 2]> = vec![[None; 2]; c.layers];
        let mut halves = std::collections::BTreeMap::new();
        for (i, tensor) in parameters.iter().enumerate() {
            let wrong = |want: String| Error::Shape {
                op: "parameters",
                want: format!("{}: {want}", tensor.name),
                got: format!("{:?}, {} values", tensor.shape, tensor.values.len()),
            };
            let want = if tensor.name == MEMORY {
                memory = Some((i, &tensor.values[..]));
                [tensor.shape[0].max(1), c.hidden]
            } else if let Some((layer, side)) = parameters::prefix_part(&tensor.name) {
                let pair = rows
                    .get_mut(layer)
                    .ok_or_else(|| wrong(format!("one of {} layers", c.layers)))?;
                pair[side] = Some((i, &tensor.values[..]));
                [parameters[0].shape[0].max(1), c.kv_heads * c.head_dim]
            } else {
                let found = parse(&tensor.name)
                    .filter(|(layer, target, _)| {
                        *layer < c.layers && self.lora.targets.contains(target)
                    })
                    .ok_or_else(|| wrong("a factor of the adapter, or memory_embeddings".into()))?;
                let (layer, target, side) = found;
                let (outputs, inputs) = target.shape(c);
                let pair: &mut [Option<Named>; 2] = halves.entry((layer, target)).or_default();
                pair[side] = Some((i, &tensor.values[..]));
                [[rank, inputs], [outputs, rank]][side]
            };
            if tensor.shape != want || tensor.values.len() != want[0] * want[1] {
                return Err(wrong(format!("{want:?}")));
            }
        }
        let mut factors = Vec::with_capacity(halves.len());
        for ((layer, target), pair) in halves {
            let [Some((a_name, a)), Some((b_name, b))] = pair else {
                return Err(Error::Shape {
                    op: "parameters",
                    want: format!(
                        "both {} and {}",
                        target.tensor(layer, 0),
                        target.tensor(layer, 1)
                    ),
                    got: "one".into(),
                });
            };
            factors.push(Factor {
                layer,
                target,
                rank,
                a,
                b,
                names: [a_name, b_name],
            });
        }
        let prefix: Vec<[Named; 2]> = rows.iter().filter_map(|&[k, v]| Some([k?, v?])).collect();
        let parts = rows.iter().flatten().flatten().count();
        if parts > 0 && (parts != parameters.len() || prefix.len() != c.layers) {
            return Err(Error::Shape {
                op: "parameters",
                want: format!("K and V of {} layers, and nothing else", c.layers),
                got: format!("{parts} of them among {} tensors", parameters.len()),
            });
        }
        Ok(Parameters {
            prefix,
            factors,
            memory,
        })
    }

    /// Brings gradients back, in the order of the parameters.
    fn collect(
        &self,
        parameters: &[Tensor],
        sorted: &Parameters<'_>,
        scale: f32,
        done: Done<'_, B>,
    ) -> Result<Vec<Tensor>> {
        let Done {
            lora,
            memory,
            prefix,
            ..
        } = done;
        let mut gradients: Vec<Tensor> = parameters
            .iter()
            .map(|tensor| Tensor {
                name: tensor.name.clone(),
                shape: tensor.shape,
                values: Vec::new(),
            })
            .collect();
        for (name, buf) in lora {
            let len = parameters[name].values.len();
            gradients[name].values = self.backward.model.backend().download(&buf, 0..len)?;
        }
        for factor in &sorted.factors {
            // B was scaled on its way to the device.
            for value in &mut gradients[factor.names[1]].values {
                *value *= scale;
            }
        }
        for (names, pair) in sorted.prefix.iter().zip(prefix) {
            for ((name, _), values) in names.iter().zip(pair) {
                gradients[*name].values = values;
            }
        }
        if let Some((name, values)) = sorted.memory {
            // Those that were left out have none.
            let mut memory = memory;
            if !memory.is_empty() {
                memory.resize(values.len(), 0.0);
            }
            gradients[name].values = memory;
        }
        Ok(gradients)
    }
}

/// How many memory tokens a sample of a batch has where they are nested: from 1 to `all`.
pub(crate) fn first(seed: u64, number: usize, all: usize) -> usize {
    // Not the numbers that dropout is made of.
    let uses = [0x6e65_7374_6564, number as u64];
    (1 + Random::of(seed, &uses).below(all)).min(all)
}

/// Adds one group's gradients to those of others; what a loss does not depend on has no values.
fn add(sum: &mut Vec<Tensor>, more: Vec<Tensor>) {
    if sum.is_empty() {
        *sum = more;
        return;
    }
    for (sum, more) in sum.iter_mut().zip(more) {
        if sum.values.is_empty() {
            sum.values = more.values;
            continue;
        }
        let values = sum.values.iter_mut().zip(&more.values);
        values.for_each(|(sum, more)| *sum += more);
    }
}

fn example<'a>(sample: &'a Sample, objective: &Objective) -> Result<TrainingExample<'a>> {
    let (text, begin, answer): (&[u32], &[u32], &[u32]) = match sample {
        Sample::Regenerate { text } => (text, &[objective.bos], text),
        Sample::Answer {
            context,
            question,
            answer,
        } => (context, question, answer),
        Sample::Align { question, answer } => (&[], question, answer),
    };
    if begin.is_empty() {
        return Err(Error::input("question", "it has no tokens"));
    }
    Ok(TrainingExample {
        text,
        reads: [begin, answer].concat(),
        targets: [answer, &[objective.eos]].concat(),
    })
}
