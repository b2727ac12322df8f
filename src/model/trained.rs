//! LoRA under training: factors on the device, also transposed, and where their gradients belong.

use super::config::Config;
use super::lora::{GROUPS, LoraWeights, LowRank, Target};
use crate::error::Result;
use crate::ops::Backend;

/// The two factors of one projection, unscaled, as PEFT stores them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Factor<'a> {
    pub layer: usize,
    pub target: Target,
    pub rank: usize,
    /// `[rank, inputs]`.
    pub a: &'a [f32],
    /// `[outputs, rank]`.
    pub b: &'a [f32],
    /// What the caller calls the two.
    pub names: [usize; 2],
}

/// An adapter on a device, ready for gradients.
pub(crate) struct Trained<B: Backend> {
    /// By layer, for q, k and v; o; gate and up; down.
    layers: Vec<[Option<Pair<B>>; 4]>,
}

/// The factors of the projections that the decoder has in one.
pub(crate) struct Pair<B: Backend> {
    /// As the forward needs them; B is scaled.
    pub low: LowRank<B>,
    /// A and B transposed.
    pub across: [B::Matrix; 2],
    /// What the caller calls A and B of each part.
    pub names: Vec<[usize; 2]>,
}

impl<B: Backend> Trained<B> {
    /// Brings factors to the device; `scale` is alpha through rank.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for factors that do not fit the model;
    /// [`Error::Device`](crate::Error::Device) if the device fails.
    pub fn load(backend: &B, config: &Config, scale: f32, factors: &[Factor<'_>]) -> Result<Self> {
        let each = factors
            .iter()
            .map(|f| (f.layer, f.target, f.rank, f.a, f.b));
        let weights = LoraWeights::of_factors(config, scale, each)?;
        let pair = |layer: usize, targets: &[Target]| -> Result<Option<Pair<B>>> {
            let Some(low) = weights.join(backend, config, layer, targets)? else {
                return Ok(None);
            };
            let of = |target: &Target| {
                let mut factors = factors.iter();
                factors.find(|f| (f.layer, f.target) == (layer, *target))
            };
            Ok(Some(Pair {
                across: [backend.transposed(&low.a)?, backend.transposed(&low.b)?],
                low,
                names: targets.iter().filter_map(of).map(|f| f.names).collect(),
            }))
        };
        let layer = |layer| -> Result<[Option<Pair<B>>; 4]> {
            let [qkv, output, up, down] = GROUPS.map(|targets| pair(layer, targets));
            Ok([qkv?, output?, up?, down?])
        };
        Ok(Trained {
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
        })
    }

    /// The pair of a group of [`GROUPS`].
    pub fn pair(&self, layer: usize, group: usize) -> Option<&Pair<B>> {
        self.layers.get(layer)?.get(group)?.as_ref()
    }
}
