//! LoRA adapters (arXiv 2106.09685) in PEFT's layout: `y = W x + s · B (A x)`.
//!
//! An adapter is applied, not merged: the frozen weights stay one copy for encoder and decoder, and
//! an adapter can be changed from call to call. Where the decoder has several projections in one
//! (q, k and v; gate and up) their factors become one pair too: the A's stand one above the other, the
//! B's, scaled, on the diagonal, and zeros fill the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::config::{Config, Family};
use super::raw::RawTensor;
use super::{quant, safetensors};
use crate::error::{Error, Result};
use crate::mapped::{Access, one_line, read_json};
use crate::ops::{Backend, LoraPart, LoraUpdate};

/// A projection that an adapter may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention's output.
    O,
    /// The gate of SwiGLU.
    Gate,
    /// What it lets through.
    Up,
    /// Back to the hidden width.
    Down,
}

/// Where the decoder has several projections in one.
pub(crate) const GROUPS: [&[Target]; 4] = [
    &[Target::Q, Target::K, Target::V],
    &[Target::O],
    &[Target::Gate, Target::Up],
    &[Target::Down],
];

impl Target {
    /// All of them, with the names of their modules.
    pub const ALL: [(Target, &'static str); 7] = [
        (Target::Q, "self_attn.q_proj"),
        (Target::K, "self_attn.k_proj"),
        (Target::V, "self_attn.v_proj"),
        (Target::O, "self_attn.o_proj"),
        (Target::Gate, "mlp.gate_proj"),
        (Target::Up, "mlp.up_proj"),
        (Target::Down, "mlp.down_proj"),
    ];

    /// PEFT's name of one of its two factors in a layer (0: A, 1: B).
    pub(crate) fn tensor(self, layer: usize, side: usize) -> String {
        let (module, side) = (name_of(self), ["A", "B"][side.min(1)]);
        format!("base_model.model.model.layers.{layer}.{module}.lora_{side}.weight")
    }

    /// Outputs and inputs of the projection.
    pub(crate) fn shape(self, c: &Config) -> (usize, usize) {
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        match self {
            Target::Q => (q, c.hidden),
            Target::K | Target::V => (kv, c.hidden),
            Target::O => (c.hidden, q),
            Target::Gate | Target::Up => (c.ffn, c.hidden),
            Target::Down => (c.hidden, c.ffn),
        }
    }
}

/// The two factors for one projection.
#[derive(Debug, Clone, PartialEq)]
struct Factors {
    rank: usize,
    /// `[rank, inputs]`.
    a: Vec<f32>,
    /// `[outputs, rank]`, scaled already.
    b: Vec<f32>,
}

/// The factors of an adapter, in memory: checked against the model that it is for.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraWeights {
    layers: Vec<BTreeMap<Target, Factors>>,
}

/// What is read of PEFT's `adapter_config.json`.
#[derive(Deserialize)]
struct PeftConfig {
    peft_type: Option<String>,
    r: usize,
    lora_alpha: f32,
    target_modules: Option<Value>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f32>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// Switches of PEFT that change what is computed and are not built.
const UNBUILT: [&str; 7] = [
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "trainable_token_indices",
];
/// A configuration has a kilobyte or two.
const LONGEST_CONFIG: u64 = 1 << 20;

impl PeftConfig {
    fn read(path: &Path) -> Result<Self> {
        let config: PeftConfig = read_json(path, LONGEST_CONFIG)?;
        let unsupported = |what: String| Error::Unsupported {
            what: format!("{}: {what}", path.display()),
            have: "plain LoRA on q, k, v, o, gate, up and down".into(),
        };
        if let Some(kind) = config.peft_type.as_ref().filter(|kind| *kind != "LORA") {
            return Err(unsupported(format!("peft_type {}", one_line(kind))));
        }
        let on = |value: &Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Array(items) => !items.is_empty(),
            _ => true,
        };
        if let Some(name) = UNBUILT
            .iter()
            .find(|&&name| config.others.get(name).is_some_and(on))
        {
            return Err(unsupported((*name).to_owned()));
        }
        if let Some(Value::String(bias)) = config.others.get("bias")
            && bias != "none"
        {
            return Err(unsupported(format!("bias {}", one_line(bias))));
        }
        if config.r == 0 || !config.lora_alpha.is_finite() {
            let reason = format!("r {} with lora_alpha {}", config.r, config.lora_alpha);
            return Err(Error::format(path, reason));
        }
        Ok(config)
    }

    /// The modules named one by one; `None` where a pattern or nothing names them.
    fn targets(&self) -> Option<BTreeSet<&str>> {
        let list = self.target_modules.as_ref()?.as_array()?;
        list.iter().map(Value::as_str).collect()
    }

    fn rank(&self, module: &str) -> usize {
        find(&self.rank_pattern, module).unwrap_or(self.r)
    }

    fn scale(&self, module: &str) -> f32 {
        let alpha = find(&self.alpha_pattern, module).unwrap_or(self.lora_alpha);
        let rank = self.rank(module) as f32;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }
}

/// The value whose key is the end of a module's name, as PEFT reads plain keys.
fn find<T: Copy>(pattern: &BTreeMap<String, T>, module: &str) -> Option<T> {
    let mut found = pattern.iter().filter(|(key, _)| ends(module, key));
    found.next().map(|(_, &value)| value)
}

/// Whether `module` is `end`, or ends with it after a dot.
fn ends(module: &str, end: &str) -> bool {
    module
        .strip_suffix(end)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl LoraWeights {
    /// Reads `adapter_config.json` and `adapter_model.safetensors` of a folder, for a model of
    /// `config`.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] for files that cannot be read or do not fit the model;
    /// [`Error::Unsupported`] for a kind of adapter, a module or a model family that is not built.
    pub fn open(folder: &Path, config: &Config) -> Result<Self> {
        let peft_path = folder.join("adapter_config.json");
        let peft = PeftConfig::read(&peft_path)?;
        let path = folder.join("adapter_model.safetensors");
        if config.family == Family::Gpt2 {
            return Err(Error::Unsupported {
                what: format!("{}: an adapter for GPT-2", path.display()),
                have: "Llama, Mistral, Qwen2, Qwen3".into(),
            });
        }
        let mut pairs: BTreeMap<(usize, Target), [Option<RawTensor>; 2]> = BTreeMap::new();
        for (name, tensor) in safetensors::read(&path, Access::Map)? {
            let (layer, target, side) = parse(&name).ok_or_else(|| Error::Unsupported {
                what: format!("{}: tensor {}", path.display(), one_line(&name)),
                have: "lora_A and lora_B of q, k, v, o, gate, up and down".into(),
            })?;
            if layer >= config.layers {
                let reason = format!("layer {layer}, but the model has {}", config.layers);
                return Err(Error::format(&path, reason));
            }
            if pairs.entry((layer, target)).or_default()[side]
                .replace(tensor)
                .is_some()
            {
                let reason = format!("tensor {} stands twice", one_line(&name));
                return Err(Error::format(&path, reason));
            }
        }
        if pairs.is_empty() {
            return Err(Error::format(&path, "no tensor of an adapter found"));
        }
        let mut layers = vec![BTreeMap::new(); config.layers];
        for ((layer, target), pair) in pairs {
            let module = format!("model.layers.{layer}.{}", name_of(target));
            let bad = |reason: String| Error::format(&path, format!("{module}: {reason}"));
            let [Some(a), Some(b)] = pair else {
                return Err(bad("only one of lora_A and lora_B".into()));
            };
            let (outputs, inputs) = target.shape(config);
            let rank = peft.rank(&module);
            for (name, tensor, want) in [
                ("lora_A", &a, [rank, inputs]),
                ("lora_B", &b, [outputs, rank]),
            ] {
                if tensor.shape != want {
                    let got = one_line(&format!("{:?}", tensor.shape));
                    return Err(bad(format!("{name} is {got}, expected {want:?}")));
                }
            }
            let scale = peft.scale(&module);
            let mut b = floats(&b)?;
            b.iter_mut().for_each(|value| *value *= scale);
            let factors = Factors {
                rank,
                a: floats(&a)?,
                b,
            };
            layers[layer].insert(target, factors);
        }
        if let Some(targets) = peft.targets() {
            let held: BTreeSet<Target> = layers.iter().flat_map(|l| l.keys().copied()).collect();
            for wanted in targets {
                if !held.iter().any(|&target| ends(name_of(target), wanted)) {
                    let reason = format!(
                        "target module {} has no tensors in adapter_model.safetensors",
                        one_line(wanted)
                    );
                    return Err(Error::format(&peft_path, reason));
                }
            }
        }
        Ok(LoraWeights { layers })
    }

    /// Reads an adapter that scores or is merged: [`LoraWeights::open`] for one without memory embeddings.
    ///
    /// # Errors
    /// [`Error::Io`] for files that cannot be read; [`Error::Format`] for ones that do not fit the model or
    /// an encoder's adapter, which needs its memory embeddings; [`Error::Unsupported`] for a kind of adapter,
    /// a module or a model family that is not built.
    pub fn open_without_memory(folder: &Path, config: &Config) -> Result<Self> {
        refuse_memory(folder)?;
        Self::open(folder, config)
    }

    /// The adapter whose factors are given one by one, PEFT's way and unscaled: layer, projection, rank,
    /// A of `[rank, inputs]` and B of `[outputs, rank]`; `scale` is alpha through rank.
    ///
    /// # Errors
    /// [`Error::Shape`] for factors that do not fit the model.
    pub(crate) fn of_factors<'a>(
        config: &Config,
        scale: f32,
        factors: impl Iterator<Item = (usize, Target, usize, &'a [f32], &'a [f32])>,
    ) -> Result<Self> {
        let mut layers = vec![BTreeMap::new(); config.layers];
        for (layer, target, rank, a, b) in factors {
            let (outputs, inputs) = target.shape(config);
            let fits = rank > 0 && a.len() == rank * inputs && b.len() == outputs * rank;
            let Some(of_layer) = layers.get_mut(layer).filter(|_| fits) else {
                return Err(Error::Shape {
                    op: "adapter",
                    want: format!(
                        "factors of [{rank}, {inputs}] and [{outputs}, {rank}] in {} layers",
                        config.layers
                    ),
                    got: format!("{} and {} elements in layer {layer}", a.len(), b.len()),
                });
            };
            let factors = Factors {
                rank,
                a: a.to_vec(),
                b: b.iter().map(|value| value * scale).collect(),
            };
            of_layer.insert(target, factors);
        }
        Ok(LoraWeights { layers })
    }

    /// The factors for `targets` of a layer as one pair, if there are any.
    pub(crate) fn join<B: Backend>(
        &self,
        backend: &B,
        config: &Config,
        layer: usize,
        targets: &[Target],
    ) -> Result<Option<LowRank<B>>> {
        let factors = &self.layers[layer];
        let rank: usize = targets
            .iter()
            .filter_map(|target| factors.get(target))
            .map(|factors| factors.rank)
            .sum();
        if rank == 0 {
            return Ok(None);
        }
        let inputs = targets[0].shape(config).1;
        let outputs = targets.iter().map(|target| target.shape(config).0).sum();
        let mut a = Vec::with_capacity(rank * inputs);
        let mut b = vec![0.0; outputs * rank];
        let (mut row, mut column) = (0, 0);
        let mut parts = Vec::new();
        for target in targets {
            if let Some(part) = factors.get(target) {
                parts.push(LoraPart {
                    rank: column,
                    ranks: part.rank,
                    output: row,
                    outputs: target.shape(config).0,
                });
                a.extend_from_slice(&part.a);
                let rows = b[row * rank..].chunks_exact_mut(rank);
                for (to, from) in rows.zip(part.b.chunks_exact(part.rank)) {
                    to[column..column + part.rank].copy_from_slice(from);
                }
                column += part.rank;
            }
            row += target.shape(config).0;
        }
        Ok(Some(LowRank {
            inputs,
            outputs,
            rank,
            a: backend.matrix(rank, inputs, &a)?,
            b: backend.matrix(outputs, rank, &b)?,
            parts,
        }))
    }
}

/// The elements of a tensor of an adapter.
pub(crate) fn floats(tensor: &RawTensor) -> Result<Vec<f32>> {
    let dtype = tensor.dtype.clone().map_err(|name| Error::Unsupported {
        what: format!("{}: a tensor of {name}", tensor.file.path().display()),
        have: "F32, F16, BF16".into(),
    })?;
    let mut out = vec![0.0; tensor.shape.iter().product()];
    quant::dequantize(dtype, tensor.bytes(), &mut out)?;
    if out.iter().any(|value| !value.is_finite()) {
        return Err(tensor.file.error("a value is not a finite number"));
    }
    Ok(out)
}

/// An adapter as its files have it, unscaled; all modules have one rank and one scale.
pub(crate) struct Raw {
    pub rank: usize,
    /// The scale times the rank.
    pub alpha: f32,
    /// Layer by layer, A before B.
    pub factors: Vec<RawFactor>,
}

/// Layer, projection and side, PEFT's name, shape and values of a matrix.
pub(crate) type RawFactor = ((usize, Target, usize), String, [usize; 2], Vec<f32>);

/// Refuses an encoder's adapter, which is of use only with its memory embeddings.
pub(crate) fn refuse_memory(folder: &Path) -> Result<()> {
    // One that pools has no memory embeddings, but says how it reads.
    let files = ["memory_embeddings.safetensors", "prefold.json"];
    match files.iter().any(|name| folder.join(name).exists()) {
        true => Err(Error::format(
            folder,
            "is an encoder's adapter; take one that was trained to align, or make \
             prefixes with this one",
        )),
        false => Ok(()),
    }
}

/// Reads the folder of an adapter that [`LoraWeights::open`] found good.
pub(crate) fn read_raw(folder: &Path) -> Result<Raw> {
    let peft = PeftConfig::read(&folder.join("adapter_config.json"))?;
    if !peft.rank_pattern.is_empty() || !peft.alpha_pattern.is_empty() {
        return Err(Error::Unsupported {
            what: format!(
                "{}: training with a rank_pattern or alpha_pattern",
                folder.display()
            ),
            have: "one rank and one alpha for all modules".into(),
        });
    }
    let path = folder.join("adapter_model.safetensors");
    let mut factors = BTreeMap::new();
    for (name, tensor) in safetensors::read(&path, Access::Map)? {
        let (Some((layer, target, side)), &[rows, columns]) = (parse(&name), &tensor.shape[..])
        else {
            continue;
        };
        let place = (layer, target, side);
        let name = target.tensor(layer, side);
        factors.insert(place, (place, name, [rows, columns], floats(&tensor)?));
    }
    let rank = peft.r as f32;
    Ok(Raw {
        rank: peft.r,
        // What goes by the root of the rank (arXiv 2312.03732) is the same with another alpha.
        alpha: peft.lora_alpha * if peft.use_rslora { rank.sqrt() } else { 1.0 },
        factors: factors.into_values().collect(),
    })
}

fn name_of(target: Target) -> &'static str {
    Target::ALL[target as usize].1
}

/// Layer, projection and side (0: A, 1: B) of a tensor's name, as
/// `base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight`.
pub(crate) fn parse(name: &str) -> Option<(usize, Target, usize)> {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let rest = rest.strip_suffix(".weight")?;
    let rest = rest.strip_suffix(".default").unwrap_or(rest);
    let (module, side) = match rest.strip_suffix(".lora_A") {
        Some(module) => (module, 0),
        None => (rest.strip_suffix(".lora_B")?, 1),
    };
    let (target, _) = Target::ALL.iter().find(|(_, name)| *name == module)?;
    Some((layer.parse().ok()?, *target, side))
}

/// An adapter on a device.
pub struct Lora<B: Backend> {
    layers: Vec<[Option<LowRank<B>>; 4]>,
}

/// A pair of factors on a device.
pub(crate) struct LowRank<B: Backend> {
    pub inputs: usize,
    pub outputs: usize,
    pub rank: usize,
    /// `[rank, inputs]`.
    pub a: B::Matrix,
    /// `[outputs, rank]`.
    pub b: B::Matrix,
    /// The projections.
    pub parts: Vec<LoraPart>,
}

impl<B: Backend> LowRank<B> {
    /// The update's shape for so many rows, with a dropout if there is one.
    pub fn update(&self, rows: usize, dropout: Option<(f32, u64)>) -> LoraUpdate<'_> {
        LoraUpdate {
            rows,
            inputs: self.inputs,
            outputs: self.outputs,
            ranks: self.rank,
            parts: &self.parts,
            dropout,
        }
    }
}

/// What an adapter adds to the projections of one layer.
pub(crate) struct LayerLora<'a, B: Backend> {
    pub qkv: Option<&'a LowRank<B>>,
    pub output: Option<&'a LowRank<B>>,
    pub up: Option<&'a LowRank<B>>,
    pub down: Option<&'a LowRank<B>>,
}

impl<B: Backend> Default for LayerLora<'_, B> {
    fn default() -> Self {
        LayerLora {
            qkv: None,
            output: None,
            up: None,
            down: None,
        }
    }
}

impl<B: Backend> Lora<B> {
    /// Brings an adapter to a device.
    ///
    /// # Errors
    /// [`Error::Shape`] for the adapter of a model with another number of layers; [`Error::Device`] if the
    /// device fails.
    pub fn load(backend: &B, config: &Config, weights: &LoraWeights) -> Result<Self> {
        if weights.layers.len() != config.layers {
            return Err(Error::Shape {
                op: "adapter",
                want: format!("{} layers", config.layers),
                got: weights.layers.len().to_string(),
            });
        }
        let layer = |layer| -> Result<[Option<LowRank<B>>; 4]> {
            let [qkv, output, up, down] =
                GROUPS.map(|targets| weights.join(backend, config, layer, targets));
            Ok([qkv?, output?, up?, down?])
        };
        Ok(Lora {
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
        })
    }

    pub(crate) fn layer(&self, layer: usize) -> LayerLora<'_, B> {
        let Some([qkv, output, up, down]) = self.layers.get(layer) else {
            return LayerLora::default();
        };
        LayerLora {
            qkv: qkv.as_ref(),
            output: output.as_ref(),
            up: up.as_ref(),
            down: down.as_ref(),
        }
    }
}
