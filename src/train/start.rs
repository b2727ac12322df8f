//! What training begins with.

use super::objective::{LoraShape, Tensor};
use crate::error::Result;
use crate::model::Model;
use crate::model::lora::Target;
use crate::ops::Backend;
use crate::random::Random;

/// What memory embeddings begin as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum MemoryStart {
    /// Drawn from a normal distribution as wide as the values of the embedding table, around 0.
    #[default]
    Normal,
    /// All at the mean embedding.
    Mean,
}

/// The name of the memory embeddings among the parameters.
pub(crate) const MEMORY: &str = "memory_embeddings";
/// Rows of the embedding table that are looked at in one go.
const ROWS: usize = 4096;

/// Untrained parameters: A as PEFT draws it (uniform within `1 / √inputs`), B zero, and `num_mem`
/// memory embeddings, if any, after them.
pub(crate) fn initial<B: Backend>(
    model: &Model<B>,
    lora: &LoraShape,
    num_mem: usize,
    start: MemoryStart,
    seed: u64,
) -> Result<Vec<Tensor>> {
    let c = model.config();
    let mut random = Random(seed);
    let mut parameters = Vec::new();
    for layer in 0..c.layers {
        for (target, _) in Target::ALL {
            if !lora.targets.contains(&target) {
                continue;
            }
            let (outputs, inputs) = target.shape(c);
            let bound = 1.0 / (inputs as f64).sqrt();
            let len = lora.rank * inputs;
            parameters.push(Tensor {
                name: target.tensor(layer, 0),
                shape: [lora.rank, inputs],
                values: (0..len)
                    .map(|_| ((2.0 * random.unit() - 1.0) * bound) as f32)
                    .collect(),
            });
            parameters.push(Tensor {
                name: target.tensor(layer, 1),
                shape: [outputs, lora.rank],
                values: vec![0.0; outputs * lora.rank],
            });
        }
    }
    if num_mem > 0 {
        let (mean, deviation) = table(model)?;
        let values = match start {
            MemoryStart::Mean => mean.repeat(num_mem),
            MemoryStart::Normal => (0..num_mem * c.hidden)
                .map(|_| (random.normal() * deviation) as f32)
                .collect(),
        };
        parameters.push(Tensor {
            name: MEMORY.into(),
            shape: [num_mem, c.hidden],
            values,
        });
    }
    Ok(parameters)
}

/// The mean embedding, and the standard deviation of all values of the table.
fn table<B: Backend>(model: &Model<B>) -> Result<(Vec<f32>, f64)> {
    let (vocab, width) = (model.config().vocab, model.config().hidden);
    let (mut sums, mut squares) = (vec![0.0f64; width], 0.0f64);
    for first in (0..vocab).step_by(ROWS) {
        let ids: Vec<u32> = (first..vocab.min(first + ROWS))
            .map(|id| id as u32)
            .collect();
        for row in model.embeddings(&ids)?.chunks_exact(width) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += f64::from(value);
                squares += f64::from(value) * f64::from(value);
            }
        }
    }
    let count = (vocab * width) as f64;
    let mean = sums.iter().sum::<f64>() / count;
    let deviation = (squares / count - mean * mean).max(0.0).sqrt();
    Ok((
        sums.iter().map(|sum| (sum / vocab as f64) as f32).collect(),
        deviation,
    ))
}
