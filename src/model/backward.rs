//! The forward that keeps what the backward needs, and the backward.
//!
//! Without a graph: the backward of a layer is its forward read from the end, op by op. The model's
//! weights are frozen, so that a product costs one product more, with the same matrix transposed. Every
//! layer's input is kept; what else a layer's backward needs is kept for as many layers as memory is given for, and made again for the others.

use super::buffers::{Buffers, PooledBuffer};
use super::config::Mlp;
use super::decoder::Model;
use super::decoder::layers::{Layer, NormWeights, activate, norm_shape};
use super::trained::{Pair, Trained};
use crate::control;
use crate::error::{Error, Result};
use crate::ops::{
    Attended, Attention, Backend, Linear, LoraFactors, LoraPart, LoraUpdate, NllTarget, Pairing,
    Rotate,
};
use crate::rope;

/// A model that gradients go through.
pub(crate) struct Backward<'m, B: Backend> {
    pub model: &'m Model<B>,
    /// Weights transposed, by layer: qkv, output, up, down.
    across: Vec<[B::Matrix; 4]>,
    head: B::Matrix,
    buffers: Buffers<B>,
}

/// Sequences that go through the model together and do not see each other.
pub(crate) struct Pass<'a, B: Backend> {
    /// Rows of each.
    pub lengths: &'a [usize],
    /// The position of each row.
    pub positions: &'a [u32],
    /// What the pass is for.
    pub role: Role<'a, B>,
    /// The adapter, where it is on.
    pub lora: Option<&'a Trained<B>>,
    /// Rate and seed of the dropout on the adapter's inputs.
    pub dropout: Option<(f32, u64)>,
    /// Whether the gradient of its inputs is wanted.
    pub wants_inputs: bool,
}

/// What a pass is for.
pub(crate) enum Role<'a, B: Backend> {
    /// The last hidden states.
    States,
    /// K and V of the last so many rows of each sequence, and nothing else.
    Encode(usize),
    /// The last hidden states, each sequence after its own memory.
    Decode(&'a Memory<'a, B>),
}

/// K and V, or their gradients, of each sequence's memory tokens.
pub(crate) struct Memory<'p, B: Backend> {
    /// Memory tokens of each sequence.
    pub rows: usize,
    /// K and V by layer, `[sequences, rows, kv_heads, head_dim]`.
    layers: Vec<[PooledBuffer<'p, B>; 2]>,
}

impl<'p, B: Backend> Memory<'p, B> {
    /// `rows` of each sequence: K, rotated, and V by layer, `[sequences, rows, kv_heads, head_dim]`.
    pub fn new(rows: usize, layers: Vec<[PooledBuffer<'p, B>; 2]>) -> Self {
        Memory { rows, layers }
    }

    /// See [`Memory::new`].
    pub fn layers(&self) -> &[[PooledBuffer<'p, B>; 2]] {
        &self.layers
    }
}

/// What a pass leaves for its backward.
pub(crate) struct Acts<'p, B: Backend> {
    angles: PooledBuffer<'p, B>,
    /// The input of each layer, and of the last norm unless the pass ended before.
    inputs: Vec<PooledBuffer<'p, B>>,
    /// By layer, if it was kept.
    layers: Vec<Option<LayerActs<'p, B>>>,
    /// The last hidden states, normed: what the head reads. Empty where they are not asked for.
    pub hidden: PooledBuffer<'p, B>,
    /// What [`Role::Encode`] asks for.
    pub memory: Option<Memory<'p, B>>,
}

struct LayerActs<'p, B: Backend> {
    /// Rotated.
    qkv: PooledBuffer<'p, B>,
    /// Before norms over heads, where there are such.
    raw: Option<PooledBuffer<'p, B>>,
    /// Prefixes first.
    k: PooledBuffer<'p, B>,
    v: PooledBuffer<'p, B>,
    /// Not where the pass ends with K and V.
    rest: Option<Rest<'p, B>>,
}

struct Rest<'p, B: Backend> {
    attention: PooledBuffer<'p, B>,
    lse: PooledBuffer<'p, B>,
    /// The residual stream after attention.
    middle: PooledBuffer<'p, B>,
    up: PooledBuffer<'p, B>,
}

/// What a backward gives.
pub(crate) struct Gradients<'p, B: Backend> {
    /// Of the adapter's factors, by the name in [`super::trained::Factor`]; those of B are of the
    /// scaled B. What has none is not there.
    pub lora: Vec<(usize, PooledBuffer<'p, B>)>,
    /// Of the embeddings that went in.
    pub inputs: Option<PooledBuffer<'p, B>>,
    /// Of [`Role::Decode`]'s memory.
    pub memory: Option<Memory<'p, B>>,
}

impl<'m, B: Backend> Backward<'m, B> {
    /// Lays out a model's weights transposed: once more their memory.
    ///
    /// # Errors
    /// [`Error::Device`] without memory for the matrices.
    pub fn new(model: &'m Model<B>) -> Result<Self> {
        let b = &model.backend;
        let layer = |layer: &Layer<B>| -> Result<[B::Matrix; 4]> {
            Ok([
                b.transposed(&layer.qkv.weight)?,
                b.transposed(&layer.output.weight)?,
                b.transposed(&layer.up.weight)?,
                b.transposed(&layer.down.weight)?,
            ])
        };
        Ok(Backward {
            across: model.layers.iter().map(layer).collect::<Result<_>>()?,
            head: b.transposed(model.head())?,
            buffers: Buffers::new(),
            model,
        })
    }

    pub fn take(&self, len: usize) -> Result<PooledBuffer<'_, B>> {
        self.buffers.take(&self.model.backend, len)
    }

    fn zeros(&self, len: usize) -> Result<PooledBuffer<'_, B>> {
        let mut buf = self.take(len)?;
        self.model.backend.clear(&mut buf, 0..len)?;
        Ok(buf)
    }

    fn copied(&self, from: &B::Buf<f32>, len: usize) -> Result<PooledBuffer<'_, B>> {
        let mut buf = self.take(len)?;
        self.model.backend.copy(from, 0..len, &mut buf, 0)?;
        Ok(buf)
    }

    /// Bytes that keeping a layer takes.
    pub fn layer_bytes(&self, rows: usize) -> usize {
        let c = &self.model.config;
        let kv = c.kv_heads * c.head_dim;
        let queries = c.heads * c.head_dim;
        let per_row = 2 * queries + 4 * kv + c.heads + c.hidden + c.mlp.parts() * c.ffn;
        rows * per_row * size_of::<f32>()
    }

    /// Runs embeddings `x`, `[rows, hidden]`, through the layers; what the backward needs is kept for
    /// the first `keep` layers.
    pub fn forward<'p>(
        &'p self,
        mut x: PooledBuffer<'p, B>,
        pass: &Pass<'_, B>,
        keep: usize,
    ) -> Result<Acts<'p, B>> {
        let (model, b, c) = (self.model, &self.model.backend, &self.model.config);
        let rows: usize = pass.lengths.iter().sum();
        if pass.positions.len() != rows {
            return Err(Error::Shape {
                op: "forward",
                want: format!("{rows} positions"),
                got: pass.positions.len().to_string(),
            });
        }
        if let Some(table) = &model.positions {
            b.embed(pass.positions, table, true, &mut x)?;
        }
        let mut angles = self.take(rows * c.head_dim)?;
        if let Some(frequencies) = &model.frequencies {
            b.write(&rope::angles(frequencies, pass.positions), &mut angles)?;
        }
        let mut memory = match pass.role {
            Role::Encode(rows) => Some(Memory {
                rows,
                layers: Vec::new(),
            }),
            _ => None,
        };
        let prefixes = pass.prefixes();
        let shape = self.attention(pass, &prefixes);
        let (mut inputs, mut layers) = (Vec::new(), Vec::new());
        for i in 0..model.layers.len() {
            control::check()?;
            let acts = self.layer(i, pass, &shape, &angles, &x)?;
            if let Some(memory) = &mut memory {
                let layer = self.tails(pass.lengths, memory.rows, [&acts.k, &acts.v])?;
                memory.layers.push(layer);
            }
            let next = match &acts.rest {
                Some(rest) => Some(self.finish(i, pass, rest)?),
                None => None,
            };
            inputs.push(x);
            layers.push((i < keep).then_some(acts));
            match next {
                Some(next) => x = next,
                None => {
                    let hidden = self.take(0)?;
                    return Ok(Acts {
                        angles,
                        inputs,
                        layers,
                        hidden,
                        memory,
                    });
                }
            }
        }
        let mut hidden = self.take(rows * c.hidden)?;
        model.norm(&model.norm, rows, &x, &mut hidden)?;
        inputs.push(x);
        Ok(Acts {
            angles,
            inputs,
            layers,
            hidden,
            memory,
        })
    }

    fn attention<'a>(&self, pass: &Pass<'a, B>, prefixes: &'a [usize]) -> Attention<'a> {
        let c = &self.model.config;
        let prefix = pass.memory_rows();
        Attention {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            prefix,
            prefixes,
            at: prefixes.len() * prefix,
            lengths: pass.lengths,
            window: c.sliding_window,
            ahead: 0,
        }
    }

    fn rotation(&self, rows: usize, at: usize) -> Rotate {
        let c = &self.model.config;
        Rotate {
            rows,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            at,
            eps: c.norm_eps,
            pairing: Pairing::Halves,
        }
    }

    /// A layer up to what its MLP's second half reads.
    fn layer<'p>(
        &'p self,
        i: usize,
        pass: &Pass<'_, B>,
        shape: &Attention<'_>,
        angles: &B::Buf<f32>,
        x: &B::Buf<f32>,
    ) -> Result<LayerActs<'p, B>> {
        let (model, b, c) = (self.model, &self.model.backend, &self.model.config);
        let layer = &model.layers[i];
        let rows: usize = pass.lengths.iter().sum();
        let queries = c.heads * c.head_dim;
        let kv = c.kv_heads * c.head_dim;
        let mut h = self.take(rows * c.hidden)?;
        model.norm(&layer.attention_norm, rows, x, &mut h)?;
        let mut qkv = self.take(rows * (queries + 2 * kv))?;
        model.project(&layer.qkv, rows, &h, false, &mut qkv)?;
        self.adapt(pass, i, 0, &h, &mut qkv)?;
        let raw = match &layer.qk_norm {
            Some(_) => Some(self.copied(&qkv, rows * (queries + 2 * kv))?),
            None => None,
        };
        let mut k = self.take((shape.at + rows) * kv)?;
        let mut v = self.take((shape.at + rows) * kv)?;
        if let Role::Decode(memory) = pass.role {
            let [from_k, from_v] = &memory.layers[i];
            b.copy(from_k, 0..shape.at * kv, &mut k, 0)?;
            b.copy(from_v, 0..shape.at * kv, &mut v, 0)?;
        }
        b.rotate(
            self.rotation(rows, shape.at),
            &mut qkv,
            layer.qk_norm.as_ref().map(|[q, k]| [q, k]),
            model.frequencies.is_some().then_some(angles),
            &mut k,
            &mut v,
        )?;
        if self.ends(pass, i) {
            return Ok(LayerActs {
                qkv,
                raw,
                k,
                v,
                rest: None,
            });
        }
        let mut attention = self.take(rows * queries)?;
        let mut lse = self.take(rows * c.heads)?;
        b.attention_lse(shape, &qkv, &k, &v, &mut attention, &mut lse)?;
        let mut middle = self.copied(x, rows * c.hidden)?;
        model.project(&layer.output, rows, &attention, true, &mut middle)?;
        self.adapt(pass, i, 1, &attention, &mut middle)?;
        model.norm(&layer.mlp_norm, rows, &middle, &mut h)?;
        let mut up = self.take(rows * c.mlp.parts() * c.ffn)?;
        model.project(&layer.up, rows, &h, false, &mut up)?;
        self.adapt(pass, i, 2, &h, &mut up)?;
        let rest = Some(Rest {
            attention,
            lse,
            middle,
            up,
        });
        Ok(LayerActs {
            qkv,
            raw,
            k,
            v,
            rest,
        })
    }

    /// Whether K and V of this layer are all that is still asked for.
    fn ends(&self, pass: &Pass<'_, B>, i: usize) -> bool {
        matches!(pass.role, Role::Encode(_)) && i + 1 == self.model.layers.len()
    }

    fn activate(&self, rows: usize, up: &B::Buf<f32>) -> Result<PooledBuffer<'_, B>> {
        let (b, c) = (&self.model.backend, &self.model.config);
        let mut inner = self.take(rows * c.ffn)?;
        activate(b, c, rows, up, &mut inner)?;
        Ok(inner)
    }

    /// The rest of a layer: its output.
    fn finish<'p>(
        &'p self,
        i: usize,
        pass: &Pass<'_, B>,
        rest: &Rest<'_, B>,
    ) -> Result<PooledBuffer<'p, B>> {
        let rows: usize = pass.lengths.iter().sum();
        let inner = self.activate(rows, &rest.up)?;
        let mut out = self.copied(&rest.middle, rows * self.model.config.hidden)?;
        let down = &self.model.layers[i].down;
        self.model.project(down, rows, &inner, true, &mut out)?;
        self.adapt(pass, i, 3, &inner, &mut out)?;
        Ok(out)
    }

    /// The last `count` rows of each sequence of K and V.
    fn tails(
        &self,
        lengths: &[usize],
        count: usize,
        from: [&B::Buf<f32>; 2],
    ) -> Result<[PooledBuffer<'_, B>; 2]> {
        let c = &self.model.config;
        let kv = c.kv_heads * c.head_dim;
        let [k, v] = from.map(|from| -> Result<PooledBuffer<'_, B>> {
            let mut out = self.take(lengths.len() * count * kv)?;
            let mut end = 0;
            for (i, &length) in lengths.iter().enumerate() {
                end += length;
                let rows = (end - count) * kv..end * kv;
                self.model
                    .backend
                    .copy(from, rows, &mut out, i * count * kv)?;
            }
            Ok(out)
        });
        Ok([k?, v?])
    }

    /// The adapter's update of a projection. Which of its inputs are dropped is the same in the forward
    /// and in the backward.
    fn update<'a>(
        &self,
        pass: &Pass<'_, B>,
        i: usize,
        group: usize,
        pair: &'a Pair<B>,
    ) -> LoraUpdate<'a> {
        let number = (4 * i + group + 1) as u64;
        let dropout = pass
            .dropout
            .map(|(rate, seed)| (rate, seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        pair.low.update(pass.lengths.iter().sum(), dropout)
    }

    /// Adds what the adapter adds to a projection of `x`.
    fn adapt(
        &self,
        pass: &Pass<'_, B>,
        i: usize,
        group: usize,
        x: &B::Buf<f32>,
        y: &mut B::Buf<f32>,
    ) -> Result<()> {
        let Some(pair) = pass.lora.and_then(|lora| lora.pair(i, group)) else {
            return Ok(());
        };
        let update = self.update(pass, i, group, pair);
        let low = &pair.low;
        self.model.backend.lora(&update, x, &low.a, &low.b, y)
    }

    /// The adapter's gradients for a projection of `x` whose output has the gradient `dy`, and what
    /// they add to that of `x`, if it is wanted.
    #[allow(clippy::too_many_arguments)]
    fn adapt_bwd<'p>(
        &'p self,
        pass: &Pass<'_, B>,
        i: usize,
        group: usize,
        x: &B::Buf<f32>,
        dy: &B::Buf<f32>,
        dx: Option<&mut B::Buf<f32>>,
        found: &mut Vec<(usize, PooledBuffer<'p, B>)>,
    ) -> Result<()> {
        let Some(pair) = pass.lora.and_then(|lora| lora.pair(i, group)) else {
            return Ok(());
        };
        let update = self.update(pass, i, group, pair);
        // Q, the first rows of the first group, is not read where the pass ends with K and V.
        let unread = group == 0 && self.ends(pass, i);
        let take = |part: &LoraPart| -> Result<Option<[PooledBuffer<'p, B>; 2]>> {
            if unread && part.output == 0 {
                return Ok(None);
            }
            let da = self.take(part.ranks * update.inputs)?;
            Ok(Some([da, self.take(part.outputs * part.ranks)?]))
        };
        let mut lent = update
            .parts
            .iter()
            .map(take)
            .collect::<Result<Vec<Option<[PooledBuffer<'p, B>; 2]>>>>()?;
        let mut gradients: Vec<Option<[&mut B::Buf<f32>; 2]>> = lent
            .iter_mut()
            .map(|pair| pair.as_mut().map(|[da, db]| [&mut **da, &mut **db]))
            .collect();
        let factors = LoraFactors {
            a: &pair.low.a,
            a_across: &pair.across[0],
            b_across: &pair.across[1],
        };
        let b = &self.model.backend;
        b.lora_bwd(&update, &factors, x, dy, dx, &mut gradients)?;
        for (lent, names) in lent.into_iter().zip(&pair.names) {
            found.extend(
                lent.into_iter()
                    .flat_map(|pair| names.iter().copied().zip(pair)),
            );
        }
        Ok(())
    }

    /// Nll of picks from the last hidden states, and the gradient of their sum with respect to these.
    pub fn nll(
        &self,
        acts: &Acts<'_, B>,
        rows: usize,
        picks: &[NllTarget],
    ) -> Result<(Vec<f32>, PooledBuffer<'_, B>)> {
        let (model, b) = (self.model, &self.model.backend);
        let width = model.config.hidden;
        let mut nll = self.take(picks.len())?;
        let mut dh = self.zeros(rows * width)?;
        b.nll_bwd(
            width,
            &acts.hidden,
            model.head(),
            &self.head,
            picks,
            &mut nll,
            &mut dh,
        )?;
        Ok((b.download(&nll, 0..picks.len())?, dh))
    }

    /// Nll of picks from the last hidden states.
    pub fn nll_only(&self, acts: &Acts<'_, B>, picks: &[NllTarget]) -> Result<Vec<f32>> {
        let (model, b) = (self.model, &self.model.backend);
        let mut nll = self.take(picks.len())?;
        b.nll(
            model.config.hidden,
            &acts.hidden,
            model.head(),
            picks,
            &mut nll,
        )?;
        b.download(&nll, 0..picks.len())
    }

    fn norm_bwd(
        &self,
        weights: &NormWeights<B>,
        rows: usize,
        x: &B::Buf<f32>,
        dy: &B::Buf<f32>,
        dx: &mut B::Buf<f32>,
    ) -> Result<()> {
        let shape = norm_shape(&self.model.config, rows);
        self.model
            .backend
            .norm_bwd(shape, x, &weights.weight, dy, dx)
    }

    /// `dx = dy · w` for projection number `group` of a layer.
    fn project_bwd(
        &self,
        i: usize,
        group: usize,
        rows: usize,
        dy: &B::Buf<f32>,
    ) -> Result<PooledBuffer<'_, B>> {
        let layer = &self.model.layers[i];
        let projection = [&layer.qkv, &layer.output, &layer.up, &layer.down][group];
        let shape = Linear {
            rows,
            inputs: projection.outputs,
            outputs: projection.inputs,
            add: false,
        };
        let mut dx = self.take(rows * projection.inputs)?;
        let across = &self.across[i][group];
        self.model
            .backend
            .linear(shape, dy, across, None, &mut dx)?;
        Ok(dx)
    }

    /// The backward of a pass. It begins with the gradient `dh` of the last hidden states, `[rows,
    /// hidden]`, or of the memory that [`Role::Encode`] asked for.
    pub fn backward<'p>(
        &'p self,
        pass: &Pass<'_, B>,
        acts: Acts<'p, B>,
        dh: Option<PooledBuffer<'p, B>>,
        dmemory: Option<&Memory<'p, B>>,
    ) -> Result<Gradients<'p, B>> {
        let (model, b, c) = (self.model, &self.model.backend, &self.model.config);
        let rows: usize = pass.lengths.iter().sum();
        let kv = c.kv_heads * c.head_dim;
        let prefixes = pass.prefixes();
        let shape = self.attention(pass, &prefixes);
        let Acts {
            angles,
            mut inputs,
            mut layers,
            hidden,
            memory,
        } = acts;
        drop((hidden, memory));
        let mut found = Vec::new();
        let mut of_memory: Vec<[PooledBuffer<'p, B>; 2]> = Vec::new();

        let mut dx = self.zeros(rows * c.hidden)?;
        if let (Some(dh), Some(x)) = (dh, inputs.get(model.layers.len())) {
            self.norm_bwd(&model.norm, rows, x, &dh, &mut dx)?;
        }
        inputs.truncate(model.layers.len());
        let mut inputs_wanted = true;
        for i in (0..model.layers.len()).rev() {
            control::check()?;
            let layer = &model.layers[i];
            let Some(x) = inputs.pop() else { break };
            let acts = match layers.pop().flatten() {
                Some(acts) => acts,
                None => self.layer(i, pass, &shape, &angles, &x)?,
            };
            let mut dk = self.zeros((shape.at + rows) * kv)?;
            let mut dv = self.zeros((shape.at + rows) * kv)?;
            if let Some(memory) = dmemory {
                self.to_tails(pass.lengths, memory, i, [&mut dk, &mut dv])?;
            }
            let width = (c.heads + 2 * c.kv_heads) * c.head_dim;
            let mut dqkv = match &acts.rest {
                Some(rest) => {
                    let dattention = self.upper_bwd(i, pass, rest, &mut dx, &mut found)?;
                    let mut dqkv = self.take(rows * width)?;
                    let attended = Attended {
                        qkv: &*acts.qkv,
                        k: &*acts.k,
                        v: &*acts.v,
                        out: &*rest.attention,
                        lse: &*rest.lse,
                    };
                    b.attention_bwd(&shape, attended, &dattention, &mut dqkv, &mut dk, &mut dv)?;
                    dqkv
                }
                None => self.zeros(rows * width)?,
            };
            if let Role::Decode(memory) = pass.role {
                let len = shape.at * kv;
                debug_assert_eq!(memory.rows, shape.prefix);
                of_memory.push([self.copied(&dk, len)?, self.copied(&dv, len)?]);
            }
            // Nothing below the first layer is trained.
            inputs_wanted = i > 0 || pass.wants_inputs;
            let adapted = pass.lora.is_some_and(|lora| lora.pair(i, 0).is_some());
            if !inputs_wanted && !adapted {
                break;
            }
            b.rotate_bwd(
                self.rotation(rows, shape.at),
                acts.raw.as_deref().unwrap_or(&acts.qkv),
                layer.qk_norm.as_ref().map(|[q, k]| [q, k]),
                model.frequencies.is_some().then_some(&*angles),
                &dk,
                &dv,
                &mut dqkv,
            )?;
            let mut dh = match inputs_wanted {
                true => Some(self.project_bwd(i, 0, rows, &dqkv)?),
                false => None,
            };
            if adapted {
                let mut h = self.take(rows * c.hidden)?;
                model.norm(&layer.attention_norm, rows, &x, &mut h)?;
                let dh = dh.as_deref_mut();
                self.adapt_bwd(pass, i, 0, &h, &dqkv, dh, &mut found)?;
            }
            if let Some(dh) = dh {
                self.norm_bwd(&layer.attention_norm, rows, &x, &dh, &mut dx)?;
            }
        }
        of_memory.reverse();
        Ok(Gradients {
            lora: found,
            inputs: inputs_wanted.then_some(dx),
            memory: match pass.role {
                Role::Decode(memory) => Some(Memory {
                    rows: memory.rows,
                    layers: of_memory,
                }),
                _ => None,
            },
        })
    }

    /// The backward of a layer down to the output of its attention, whose gradient it gives; `dx`, the
    /// gradient of the layer's output, becomes that of the residual stream after attention.
    fn upper_bwd<'p>(
        &'p self,
        i: usize,
        pass: &Pass<'_, B>,
        rest: &Rest<'_, B>,
        dx: &mut B::Buf<f32>,
        found: &mut Vec<(usize, PooledBuffer<'p, B>)>,
    ) -> Result<PooledBuffer<'p, B>> {
        let (model, b, c) = (self.model, &self.model.backend, &self.model.config);
        let rows: usize = pass.lengths.iter().sum();
        let has = |group| pass.lora.is_some_and(|lora| lora.pair(i, group).is_some());
        let mut dinner = self.project_bwd(i, 3, rows, dx)?;
        if has(3) {
            let inner = self.activate(rows, &rest.up)?;
            self.adapt_bwd(pass, i, 3, &inner, dx, Some(&mut dinner), found)?;
        }
        let mut dup = self.take(rows * c.mlp.parts() * c.ffn)?;
        match c.mlp {
            Mlp::SwiGlu => b.swiglu_bwd(rows, c.ffn, &rest.up, &dinner, &mut dup)?,
            Mlp::Gelu => b.gelu_bwd(rows * c.ffn, &rest.up, &dinner, &mut dup)?,
            // Encoders' alone, of which no gradients are made.
            Mlp::GeGlu | Mlp::GeluErf => {
                return Err(Error::Unsupported {
                    what: format!("gradients of an MLP of {:?}", c.mlp),
                    have: "SwiGLU, GELU by a hyperbolic tangent".into(),
                });
            }
        }
        drop(dinner);
        let mut dh = self.project_bwd(i, 2, rows, &dup)?;
        let norm = &model.layers[i].mlp_norm;
        if has(2) {
            let mut h = self.take(rows * c.hidden)?;
            model.norm(norm, rows, &rest.middle, &mut h)?;
            self.adapt_bwd(pass, i, 2, &h, &dup, Some(&mut dh), found)?;
        }
        self.norm_bwd(norm, rows, &rest.middle, &dh, dx)?;
        let mut dattention = self.project_bwd(i, 1, rows, dx)?;
        if has(1) {
            let out = Some(&mut *dattention);
            self.adapt_bwd(pass, i, 1, &rest.attention, dx, out, found)?;
        }
        Ok(dattention)
    }

    /// The reverse of [`Backward::tails`].
    fn to_tails(
        &self,
        lengths: &[usize],
        memory: &Memory<'_, B>,
        layer: usize,
        to: [&mut B::Buf<f32>; 2],
    ) -> Result<()> {
        let c = &self.model.config;
        let (kv, count) = (c.kv_heads * c.head_dim, memory.rows);
        for (from, to) in memory.layers[layer].iter().zip(to) {
            let mut end = 0;
            for (i, &length) in lengths.iter().enumerate() {
                end += length;
                let rows = i * count * kv..(i + 1) * count * kv;
                self.model
                    .backend
                    .copy(from, rows, to, (end - count) * kv)?;
            }
        }
        Ok(())
    }
}

impl<B: Backend> Pass<'_, B> {
    /// Memory tokens before each sequence.
    fn memory_rows(&self) -> usize {
        match self.role {
            Role::Decode(memory) => memory.rows,
            _ => 0,
        }
    }

    /// Where in the cache the memory of each sequence begins.
    fn prefixes(&self) -> Vec<usize> {
        match self.role {
            Role::Decode(memory) => (0..self.lengths.len()).map(|i| i * memory.rows).collect(),
            _ => Vec::new(),
        }
    }
}
