//! LoRA under training: factors on the device, both ways round, and where their gradients belong.

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
    /// A and B the other way round.
    pub across: [B::Matrix; 2],
    pub parts: Vec<Part>,
}

/// Where one projection lies in a pair.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    /// What the caller calls A and B.
    pub names: [usize; 2],
    /// Its columns between the factors: the first and how many.
    pub column: usize,
    pub rank: usize,
    /// Its columns of the pair's output: the first and how many.
    pub row: usize,
    pub outputs: usize,
}

impl<B: Backend> Trained<B> {
    /// Brings factors to the device; `scale` is alpha through rank.
    ///
    /// # Errors
    /// Those of [`LoraWeights::of_factors`] and of the device.
    pub fn load(backend: &B, config: &Config, scale: f32, factors: &[Factor<'_>]) -> Result<Self> {
        let each = factors
            .iter()
            .map(|f| (f.layer, f.target, f.rank, f.a, f.b));
        let weights = LoraWeights::of_factors(config, scale, each)?;
        let pair = |layer: usize, targets: &[Target]| -> Result<Option<Pair<B>>> {
            let Some(low) = weights.join(backend, config, layer, targets)? else {
                return Ok(None);
            };
            let (mut column, mut row) = (0, 0);
            let mut parts = Vec::new();
            for &target in targets {
                let outputs = target.shape(config).0;
                let found = factors
                    .iter()
                    .find(|f| (f.layer, f.target) == (layer, target));
                if let Some(factor) = found {
                    parts.push(Part {
                        names: factor.names,
                        column,
                        rank: factor.rank,
                        row,
                        outputs,
                    });
                    column += factor.rank;
                }
                row += outputs;
            }
            Ok(Some(Pair {
                across: [backend.transposed(&low.a)?, backend.transposed(&low.b)?],
                low,
                parts,
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
