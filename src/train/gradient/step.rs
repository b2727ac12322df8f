//! A batch's way through the frozen model and back, by each method.

use std::ops::Range;

use super::{Named, TrainableModel, TrainingExample};
use crate::error::{Error, Result};
use crate::model::backward::{Acts, Backward, Gradients, Memory, Pass, Role};
use crate::model::buffers::PooledBuffer;
use crate::model::trained::Trained;
use crate::ops::{Backend, NllTarget};
use crate::soft::{means, parts};

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

/// What a batch has led to.
pub(super) struct Done<'p, B: Backend> {
    pub nll: f64,
    pub tokens: usize,
    pub lora: Vec<(usize, PooledBuffer<'p, B>)>,
    pub memory: Vec<f32>,
    /// Of each layer K and V.
    pub prefix: Vec<[Vec<f32>; 2]>,
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
pub(super) struct Step<'a, 'm, B: Backend> {
    pub trainable: &'a TrainableModel<'m, B>,
    pub trained: &'a Trained<B>,
    pub examples: &'a [TrainingExample<'a>],
    pub dropout: Option<(f32, u64)>,
    /// Whether gradients are wanted.
    pub wanted: bool,
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
    pub fn align(&self) -> Result<Done<'a, B>> {
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
    pub fn by_keys(&self, memory: &[f32]) -> Result<Done<'a, B>> {
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
    pub fn by_states(&self, memory: &[f32]) -> Result<Done<'a, B>> {
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
    pub fn by_prefix(&self, prefix: &[[Named; 2]]) -> Result<Done<'a, B>> {
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
    pub fn by_means(&self, count: usize) -> Result<Done<'a, B>> {
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

pub(super) fn shape(want: &str, got: impl Into<String>) -> Error {
    Error::Shape {
        op: "gradient",
        want: want.into(),
        got: got.into(),
    }
}
