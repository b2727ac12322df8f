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

use std::collections::BTreeMap;
use std::ops::Range;

use super::objective::{Gradient, LoraShape, Objective, Sample, Tensor};
use super::parameters;
use super::start::{self, MEMORY, MemoryStart};
use crate::error::{Error, Result};
use crate::kv_prefix::Method;
use crate::model::Model;
use crate::model::backward::{Acts, Backward, Gradients, Memory, Pass, Role};
use crate::model::buffers::PooledBuffer;
use crate::model::lora::parse;
use crate::model::trained::{Factor, Trained};
use crate::ops::{Backend, NllTarget};
use crate::random::Random;
use crate::soft::{means, parts};

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

/// Sequences of ids as one.
struct Packed {
    ids: Vec<u32>,
    lengths: Vec<usize>,
    positions: Vec<u32>,
}

impl Packed {
    /// Sequences whose first position is `at`.
    fn new(at: usize, sequences: impl Iterator<Item = Vec<u32>>) -> Self {
        let mut all = Packed {
            ids: Vec::new(),
            lengths: Vec::new(),
            positions: Vec::new(),
        };
        for ids in sequences {
            all.lengths.push(ids.len());
            all.positions.extend((at..at + ids.len()).map(|p| p as u32));
            all.ids.extend(ids);
        }
        all
    }

    /// The row after each sequence's last.
    fn ends(&self) -> impl Iterator<Item = usize> {
        self.lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        })
    }

    /// Targets of the last rows of each sequence.
    fn picks(&self, examples: &[TrainingExample<'_>]) -> Vec<NllTarget> {
        let mut picks = Vec::new();
        for (end, example) in self.ends().zip(examples) {
            let first = end - example.targets.len();
            picks.extend(
                (first..end)
                    .zip(&example.targets)
                    .map(|(row, &target)| NllTarget {
                        row: row as u32,
                        target,
                    }),
            );
        }
        picks
    }
}

impl<'m, B: Backend> TrainableModel<'m, B> {
    /// A model with an adapter of `lora`'s shape. Its weights are laid out once more, transposed.
    /// Activations of as many layers as fit into `activations` bytes are kept from the forward to the backward; those of the others are computed again, except for each layer's input. Both ways
    /// give the same values.
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

/// What a batch has led to.
struct Done<'p, B: Backend> {
    nll: f64,
    tokens: usize,
    lora: Vec<(usize, PooledBuffer<'p, B>)>,
    memory: Vec<f32>,
    /// Of each layer K and V.
    prefix: Vec<[Vec<f32>; 2]>,
}

impl<B: Backend> Default for Done<'_, B> {
    fn default() -> Self {
        Done {
            nll: 0.0,
            tokens: 0,
            lora: Vec::new(),
            memory: Vec::new(),
            prefix: Vec::new(),
        }
    }
}

/// One batch on its way.
struct Step<'a, 'm, B: Backend> {
    trainable: &'a TrainableModel<'m, B>,
    trained: &'a Trained<B>,
    examples: &'a [TrainingExample<'a>],
    dropout: Option<(f32, u64)>,
    /// Whether gradients are wanted.
    wanted: bool,
}

impl<'a, 'm, B: Backend> Step<'a, 'm, B> {
    fn backward(&self) -> &'a Backward<'m, B> {
        &self.trainable.backward
    }

    fn hidden(&self) -> usize {
        self.backward().model.config().hidden
    }

    /// Embeddings of all ids, `[rows, hidden]`.
    fn embed(&self, packed: &Packed) -> Result<PooledBuffer<'a, B>> {
        let model = self.backward().model;
        let longest = packed.positions.iter().max().map_or(0, |&p| p as usize + 1);
        model.check_positions(0, longest)?;
        let mut x = self.backward().take(packed.ids.len() * self.hidden())?;
        model.embed(&packed.ids, &mut x)?;
        Ok(x)
    }

    /// Layers whose activations fit into a share of the memory that is given for them.
    fn keep(&self, rows: usize, share: usize) -> usize {
        if !self.wanted {
            return 0;
        }
        self.trainable.activations / share / self.backward().layer_bytes(rows).max(1)
    }

    fn pass<'b>(&self, packed: &'b Packed, role: Role<'b, B>) -> Pass<'b, B> {
        Pass {
            lengths: &packed.lengths,
            positions: &packed.positions,
            role,
            lora: None,
            dropout: None,
            wants_inputs: false,
        }
    }

    /// The sum of the nll, and where gradients are wanted that of the last hidden states.
    fn nll(
        &self,
        packed: &Packed,
        acts: &Acts<'_, B>,
    ) -> Result<(f64, Option<PooledBuffer<'a, B>>)> {
        let picks = packed.picks(self.examples);
        let backward = self.backward();
        let (nll, dh) = match self.wanted {
            true => {
                let (nll, dh) = backward.nll(acts, packed.ids.len(), &picks)?;
                (nll, Some(dh))
            }
            false => (backward.nll_only(acts, &picks)?, None),
        };
        Ok((nll.iter().map(|&nll| f64::from(nll)).sum(), dh))
    }

    /// The adapter on, no memory tokens.
    fn align(&self) -> Result<Done<'a, B>> {
        let packed = Packed::new(0, self.examples.iter().map(|e| e.reads.clone()));
        let pass = Pass {
            lora: Some(self.trained),
            dropout: self.dropout,
            ..self.pass(&packed, Role::States)
        };
        let keep = self.keep(packed.ids.len(), 1);
        let acts = self.backward().forward(self.embed(&packed)?, &pass, keep)?;
        let (nll, dh) = self.nll(&packed, &acts)?;
        let lora = match dh {
            Some(dh) => self.backward().backward(&pass, acts, Some(dh), None)?.lora,
            None => Vec::new(),
        };
        Ok(Done {
            nll,
            tokens: packed.ids.len(),
            lora,
            ..Done::default()
        })
    }

    /// What the encoder reads, and its embeddings with those of the memory tokens after each text.
    fn encoder(&self, memory: &[f32]) -> Result<(Packed, PooledBuffer<'a, B>)> {
        let (hidden, b) = (self.hidden(), self.backward().model.backend());
        let count = memory.len() / hidden;
        let texts = self.examples.iter().map(|e| {
            let mut ids = e.text.to_vec();
            // Any id: these rows are overwritten.
            ids.resize(ids.len() + count, 0);
            ids
        });
        let packed = Packed::new(0, texts);
        let mut x = self.embed(&packed)?;
        let memory_rows = b.upload(memory)?;
        for end in packed.ends() {
            b.copy(
                &memory_rows,
                0..memory.len(),
                &mut x,
                (end - count) * hidden,
            )?;
        }
        Ok((packed, x))
    }

    /// The sum over all sequences of the last `count` rows' gradients.
    fn of_memory(
        &self,
        packed: &Packed,
        gradients: &Gradients<'_, B>,
        count: usize,
    ) -> Result<Vec<f32>> {
        let hidden = self.hidden();
        let mut sum = vec![0.0; count * hidden];
        let Some(inputs) = &gradients.inputs else {
            return Ok(sum);
        };
        for end in packed.ends() {
            let rows = (end - count) * hidden..end * hidden;
            let part = self.backward().model.backend().download(inputs, rows)?;
            for (sum, part) in sum.iter_mut().zip(part) {
                *sum += part;
            }
        }
        Ok(sum)
    }

    /// 500xCompressor: the decoder reads after the memory tokens' K and V.
    fn by_keys(&self, memory: &[f32]) -> Result<Done<'a, B>> {
        let backward = self.backward();
        let count = memory.len() / self.hidden();
        let (texts, x) = self.encoder(memory)?;
        let encoder = Pass {
            lora: Some(self.trained),
            dropout: self.dropout,
            wants_inputs: true,
            ..self.pass(&texts, Role::Encode(count))
        };
        let mut encoded = backward.forward(x, &encoder, self.keep(texts.ids.len(), 2))?;
        let keys = encoded.memory.take().ok_or_else(nothing_encoded)?;
        let reads = Packed::new(count, self.examples.iter().map(|e| e.reads.clone()));
        let decoder = self.pass(&reads, Role::Decode(&keys));
        let keep = self.keep(reads.ids.len(), 2);
        let acts = backward.forward(self.embed(&reads)?, &decoder, keep)?;
        let (nll, dh) = self.nll(&reads, &acts)?;
        let mut done = Done {
            nll,
            tokens: texts.ids.len() + reads.ids.len(),
            ..Done::default()
        };
        if let Some(dh) = dh {
            let decoded = backward.backward(&decoder, acts, Some(dh), None)?;
            let dkeys = decoded.memory.as_ref();
            let gradients = backward.backward(&encoder, encoded, None, dkeys)?;
            done.memory = self.of_memory(&texts, &gradients, count)?;
            done.lora = gradients.lora;
        }
        Ok(done)
    }

    /// ICAE: the decoder reads the memory tokens' last hidden states as embeddings.
    fn by_states(&self, memory: &[f32]) -> Result<Done<'a, B>> {
        let (backward, hidden) = (self.backward(), self.hidden());
        let b = backward.model.backend();
        let count = memory.len() / hidden;
        let (texts, x) = self.encoder(memory)?;
        let encoder = Pass {
            lora: Some(self.trained),
            dropout: self.dropout,
            wants_inputs: true,
            ..self.pass(&texts, Role::States)
        };
        let encoded = backward.forward(x, &encoder, self.keep(texts.ids.len(), 2))?;
        // Any id: the first rows of each sequence are overwritten.
        let after_memory = |e: &TrainingExample<'_>| [&vec![0; count][..], &e.reads].concat();
        let reads = Packed::new(0, self.examples.iter().map(after_memory));
        let mut x = self.embed(&reads)?;
        // Where the memory tokens stand in the encoder, and in the decoder.
        let places: Vec<(usize, usize)> = texts
            .ends()
            .zip(reads.ends().zip(&reads.lengths))
            .map(|(end, (read, length))| ((end - count) * hidden, (read - length) * hidden))
            .collect();
        let len = count * hidden;
        for &(from, to) in &places {
            b.copy(&encoded.hidden, from..from + len, &mut x, to)?;
        }
        let (mut done, decoded) = self.over_states(x, &texts, &reads)?;
        if let Some(decoded) = decoded {
            let rows = texts.ids.len() * hidden;
            let mut dstates = backward.take(rows)?;
            b.clear(&mut dstates, 0..rows)?;
            if let Some(dinputs) = &decoded.inputs {
                for &(to, from) in &places {
                    b.copy(dinputs, from..from + len, &mut dstates, to)?;
                }
            }
            let gradients = backward.backward(&encoder, encoded, Some(dstates), None)?;
            done.memory = self.of_memory(&texts, &gradients, count)?;
            done.lora = gradients.lora;
        }
        Ok(done)
    }

    /// The decoder over embeddings of which some rows stand for `texts`: the loss, and, where they are asked for,
    /// its gradients, those of the embeddings among them.
    fn over_states(
        &self,
        x: PooledBuffer<'a, B>,
        texts: &Packed,
        reads: &Packed,
    ) -> Result<(Done<'a, B>, Option<Gradients<'a, B>>)> {
        let backward = self.backward();
        let decoder = Pass {
            wants_inputs: true,
            ..self.pass(reads, Role::States)
        };
        let acts = backward.forward(x, &decoder, self.keep(reads.ids.len(), 2))?;
        let (nll, dh) = self.nll(reads, &acts)?;
        let done = Done {
            nll,
            tokens: texts.ids.len() + reads.ids.len(),
            ..Done::default()
        };
        let decoded = dh.map(|dh| backward.backward(&decoder, acts, Some(dh), None));
        Ok((done, decoded.transpose()?))
    }

    /// A prefix by itself: the decoder reads after rows of K and V that are the parameters.
    ///
    /// Its first row stays as it is: it is what attention rests on that looks for nothing, and training
    /// is steadier without its gradient (arXiv 2506.06266, section 3).
    fn by_prefix(&self, prefix: &[[Named; 2]]) -> Result<Done<'a, B>> {
        let backward = self.backward();
        let (b, c) = (backward.model.backend(), backward.model.config());
        let (kv, count) = (c.kv_heads * c.head_dim, self.examples.len());
        let len = prefix.first().map_or(0, |[(_, k), _]| k.len());
        let rows = len / kv;
        // Each sequence has the rows for itself, as those of memory tokens are.
        let load = |values: &[f32]| -> Result<PooledBuffer<'a, B>> {
            let mut buf = backward.take(count * len)?;
            b.write(&values.repeat(count), &mut buf)?;
            Ok(buf)
        };
        let layers = prefix
            .iter()
            .map(|[(_, k), (_, v)]| Ok([load(k)?, load(v)?]))
            .collect::<Result<_>>()?;
        let memory = Memory::new(rows, layers);
        let reads = Packed::new(rows, self.examples.iter().map(|e| e.reads.clone()));
        let decoder = self.pass(&reads, Role::Decode(&memory));
        let keep = self.keep(reads.ids.len(), 1);
        let acts = backward.forward(self.embed(&reads)?, &decoder, keep)?;
        let (nll, dh) = self.nll(&reads, &acts)?;
        let mut done = Done {
            nll,
            tokens: reads.ids.len(),
            ..Done::default()
        };
        let Some(dh) = dh else { return Ok(done) };
        let decoded = backward.backward(&decoder, acts, Some(dh), None)?;
        let sum = |buf: &B::Buf<f32>| -> Result<Vec<f32>> {
            let mut sum = vec![0.0f32; len];
            for part in b.download(buf, 0..count * len)?.chunks_exact(len) {
                sum.iter_mut().zip(part).for_each(|(to, from)| *to += from);
            }
            sum[..kv.min(len)].fill(0.0);
            Ok(sum)
        };
        for [dk, dv] in decoded.memory.iter().flat_map(Memory::layers) {
            done.prefix.push([sum(dk)?, sum(dv)?]);
        }
        Ok(done)
    }

    /// Pooled: the decoder reads means of the text's own last hidden states as embeddings.
    fn by_means(&self, count: usize) -> Result<Done<'a, B>> {
        let (backward, hidden) = (self.backward(), self.hidden());
        let b = backward.model.backend();
        if self.examples.iter().any(|e| e.text.is_empty()) || count == 0 {
            return Err(Error::input("text", "there is nothing to pool"));
        }
        let texts = Packed::new(0, self.examples.iter().map(|e| e.text.to_vec()));
        let encoder = Pass {
            lora: Some(self.trained),
            dropout: self.dropout,
            ..self.pass(&texts, Role::States)
        };
        let keep = self.keep(texts.ids.len(), 2);
        let encoded = backward.forward(self.embed(&texts)?, &encoder, keep)?;
        let len = texts.ids.len() * hidden;
        let states = b.download(&encoded.hidden, 0..len)?;
        // Of each text its first row and its windows.
        let windows: Vec<(usize, Vec<Range<usize>>)> = texts
            .ends()
            .zip(&texts.lengths)
            .map(|(end, &length)| (end - length, parts(length, count)))
            .collect();
        // Any id: the first rows of each sequence are overwritten.
        let read = self.examples.iter().zip(&windows);
        let reads = Packed::new(
            0,
            read.map(|(e, (_, windows))| [&vec![0; windows.len()][..], &e.reads].concat()),
        );
        let mut x = self.embed(&reads)?;
        let starts: Vec<usize> = reads
            .ends()
            .zip(&reads.lengths)
            .map(|(end, length)| end - length)
            .collect();
        for ((first, windows), start) in windows.iter().zip(&starts) {
            let pooled = means(&states[first * hidden..], hidden, windows);
            let rows = b.upload(&pooled)?;
            b.copy(&rows, 0..pooled.len(), &mut x, start * hidden)?;
        }
        let (mut done, decoded) = self.over_states(x, &texts, &reads)?;
        if let Some(decoded) = decoded {
            let mut dstates = vec![0.0f32; len];
            if let Some(dinputs) = &decoded.inputs {
                for ((first, windows), start) in windows.iter().zip(&starts) {
                    let rows = start * hidden..(start + windows.len()) * hidden;
                    let dmeans = b.download(dinputs, rows)?;
                    for (window, dmean) in windows.iter().zip(dmeans.chunks_exact(hidden)) {
                        let share = 1.0 / window.len() as f32;
                        let rows = (first + window.start) * hidden..(first + window.end) * hidden;
                        for row in dstates[rows].chunks_exact_mut(hidden) {
                            let pairs = row.iter_mut().zip(dmean);
                            pairs.for_each(|(to, from)| *to = from * share);
                        }
                    }
                }
            }
            let mut given = backward.take(len)?;
            b.write(&dstates, &mut given)?;
            done.lora = backward
                .backward(&encoder, encoded, Some(given), None)?
                .lora;
        }
        Ok(done)
    }
}

fn nothing_encoded() -> Error {
    shape("an encoder of 1 layer or more", "none")
}

fn shape(want: &str, got: impl Into<String>) -> Error {
    Error::Shape {
        op: "gradient",
        want: want.into(),
        got: got.into(),
    }
}
