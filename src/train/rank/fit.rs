//! One network of the ranker from its samples: AdamW on a listwise loss, as PyTorch has it.

use super::super::adamw::{AdamW, Moments};
use super::super::objective::Tensor;
use super::{Options, Sample};
use crate::error::{Error, Result};
use crate::hard::rank::{Input, Net, activation, slope};
use crate::random::Random;

/// Trains the networks of one stage, which are averaged; gives their mean loss too.
pub(super) fn fit_all(
    samples: &[Sample],
    names: &[String],
    options: &Options,
    draws: impl Fn(u64) -> Random,
) -> Result<(Net, f64)> {
    let nets: Vec<(Net, f64)> = (0..options.seeds)
        .map(|seed| fit(samples, names, options, draws(seed)))
        .collect();
    let loss = nets.iter().map(|(_, loss)| loss).sum::<f64>() / nets.len() as f64;
    let nets: Vec<Net> = nets.into_iter().map(|(net, _)| net).collect();
    let net = Net::mean_of(&nets);
    net.map(|net| (net, loss))
        .ok_or_else(|| Error::input("seeds 0", "expected 1 or more"))
}

/// The network's parameters as tensors: linear, hidden, bias, output.
struct Parameters {
    tensors: Vec<Tensor>,
    hidden: usize,
}

impl Parameters {
    /// Uniform within one by the root of the inputs, as PyTorch's linear layers begin.
    fn new(inputs: usize, hidden: usize, random: &mut Random) -> Self {
        let mut tensor = |name: &str, shape: [usize; 2], fan: usize| {
            let bound = 1.0 / (fan as f64).sqrt();
            let values = (0..shape[0] * shape[1])
                .map(|_| ((2.0 * random.unit() - 1.0) * bound) as f32)
                .collect();
            Tensor {
                name: name.into(),
                shape,
                values,
            }
        };
        Parameters {
            tensors: vec![
                tensor("linear", [inputs, 1], inputs),
                tensor("hidden", [inputs, hidden], inputs),
                tensor("bias", [1, hidden], inputs),
                tensor("output", [1, hidden], hidden),
            ],
            hidden,
        }
    }

    /// The score of a row and the hidden units before their activation.
    fn forward(&self, row: &[f32], units: &mut Vec<f64>) -> f64 {
        let [linear, hidden, bias, output] = [0, 1, 2, 3].map(|i| &self.tensors[i].values);
        units.clear();
        units.extend(bias.iter().map(|&b| f64::from(b)));
        let mut score = 0.0;
        for ((&x, &w), weights) in row.iter().zip(linear).zip(hidden.chunks(self.hidden)) {
            if x == 0.0 {
                continue;
            }
            score += f64::from(x) * f64::from(w);
            for (unit, &weight) in units.iter_mut().zip(weights) {
                *unit += f64::from(x) * f64::from(weight);
            }
        }
        for (&unit, &weight) in units.iter().zip(output) {
            score += f64::from(weight) * activation(unit);
        }
        score
    }

    /// Adds the gradients of a row whose score has the gradient `by`.
    fn backward(&self, row: &[f32], units: &[f64], by: f64, gradients: &mut [Vec<f64>]) {
        let output = &self.tensors[3].values;
        let [g_linear, g_hidden, g_bias, g_output] = gradients else {
            return;
        };
        let by_unit: Vec<f64> = units
            .iter()
            .zip(output)
            .map(|(&unit, &weight)| by * f64::from(weight) * slope(unit))
            .collect();
        for (i, &x) in row.iter().enumerate() {
            if x == 0.0 {
                continue;
            }
            let x = f64::from(x);
            g_linear[i] += by * x;
            let own = &mut g_hidden[i * self.hidden..(i + 1) * self.hidden];
            own.iter_mut()
                .zip(&by_unit)
                .for_each(|(g, unit)| *g += unit * x);
        }
        for (h, &unit) in units.iter().enumerate() {
            g_bias[h] += by_unit[h];
            g_output[h] += by * activation(unit);
        }
    }
}

/// Trains one network; gives it and the mean loss of the last pass.
fn fit(samples: &[Sample], names: &[String], options: &Options, mut random: Random) -> (Net, f64) {
    let inputs = names.len();
    let (mean, scale) = moments(samples, inputs);
    let standard: Vec<Vec<Vec<f32>>> = samples
        .iter()
        .map(|sample| {
            let row = |row: &Vec<f32>| {
                let all = row.iter().zip(&mean).zip(&scale);
                all.map(|((x, mean), scale)| (x - mean) * scale).collect()
            };
            sample.rows.iter().map(row).collect()
        })
        .collect();
    let mut parameters = Parameters::new(inputs, options.hidden, &mut random);
    let optimiser = AdamW {
        weight_decay: options.weight_decay,
        ..AdamW::default()
    };
    let mut moments = Moments::new(&parameters.tensors);
    let steps = options.epochs * samples.len().div_ceil(options.batch);
    let (mut step, mut last) = (0, 0.0);
    let mut order: Vec<usize> = (0..samples.len()).collect();
    for _ in 0..options.epochs {
        random.shuffle(&mut order);
        last = 0.0;
        for batch in order.chunks(options.batch) {
            let mut gradients: Vec<Vec<f64>> = parameters
                .tensors
                .iter()
                .map(|t| vec![0.0; t.values.len()])
                .collect();
            for &i in batch {
                let rows: Vec<Vec<f32>> = standard[i]
                    .iter()
                    .map(|row| dropped(row, options.dropout, &mut random))
                    .collect();
                let weight = 1.0 / batch.len() as f64;
                last += sample_gradients(&parameters, &rows, &samples[i], weight, &mut gradients);
            }
            let gradients: Vec<Vec<f32>> = gradients
                .iter()
                .map(|all| all.iter().map(|&g| g as f32).collect())
                .collect();
            let lr = options.lr * (1.0 - step as f64 / steps as f64);
            step += 1;
            // Their shapes are those of the parameters.
            let _ = optimiser.step(&mut parameters.tensors, &gradients, &mut moments, lr);
        }
    }
    let values = |tensor: usize| &parameters.tensors[tensor].values;
    let inputs = names
        .iter()
        .enumerate()
        .map(|(i, name)| Input {
            name: name.to_string(),
            mean: mean[i],
            scale: scale[i],
            linear: values(0)[i],
            hidden: values(1)[i * options.hidden..(i + 1) * options.hidden].to_vec(),
        })
        .collect();
    let net = Net {
        inputs,
        bias: values(2).clone(),
        output: values(3).clone(),
    };
    (net, last / samples.len() as f64)
}

/// Mean of each feature, and one by its standard deviation.
fn moments(samples: &[Sample], inputs: usize) -> (Vec<f32>, Vec<f32>) {
    let rows = || samples.iter().flat_map(|sample| &sample.rows);
    let n = rows().count().max(1) as f64;
    let mean: Vec<f64> = (0..inputs)
        .map(|i| rows().map(|row| f64::from(row[i])).sum::<f64>() / n)
        .collect();
    let scale = (0..inputs)
        .map(|i| {
            let squares = rows().map(|row| (f64::from(row[i]) - mean[i]).powi(2));
            let deviation = (squares.sum::<f64>() / n).sqrt();
            // A feature that never varies says nothing.
            if deviation > 1e-6 {
                (1.0 / deviation) as f32
            } else {
                0.0
            }
        })
        .collect();
    (mean.into_iter().map(|mean| mean as f32).collect(), scale)
}

/// A row of which a share is not seen; the rest is scaled up.
fn dropped(row: &[f32], share: f64, random: &mut Random) -> Vec<f32> {
    let scale = (1.0 / (1.0 - share)) as f32;
    row.iter()
        .map(|&x| {
            if random.unit() < share {
                0.0
            } else {
                x * scale
            }
        })
        .collect()
}

/// The loss of a prompt, mean over its right passages of softplus(logsumexp(others) − score), and its
/// gradients times `weight`. `rows` are the sample's, standardised and in part unseen.
fn sample_gradients(
    parameters: &Parameters,
    rows: &[Vec<f32>],
    sample: &Sample,
    weight: f64,
    gradients: &mut [Vec<f64>],
) -> f64 {
    let gold = &sample.gold;
    let mut units = vec![Vec::new(); rows.len()];
    let mut scores: Vec<f64> = rows
        .iter()
        .zip(&mut units)
        .map(|(row, units)| parameters.forward(row, units))
        .collect();
    for (score, offset) in scores.iter_mut().zip(&sample.offsets) {
        *score += offset;
    }
    let others = || {
        scores
            .iter()
            .zip(gold)
            .filter(|(_, gold)| !**gold)
            .map(|(score, _)| *score)
    };
    let max = others().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = others().map(|score| libm::exp(score - max)).sum();
    let all = max + libm::log(sum);
    let right = gold.iter().filter(|&&gold| gold).count() as f64;
    let mut loss = 0.0;
    let mut pull = 0.0;
    let mut by = vec![0.0; rows.len()];
    for (i, &score) in scores.iter().enumerate().filter(|&(i, _)| gold[i]) {
        let gap = all - score;
        loss += (f64::max(gap, 0.0) + libm::log1p(libm::exp(-gap.abs()))) / right;
        let share = 1.0 / (1.0 + libm::exp(-gap)) / right;
        by[i] = -share;
        pull += share;
    }
    for (i, &score) in scores.iter().enumerate().filter(|&(i, _)| !gold[i]) {
        by[i] = pull * libm::exp(score - max) / sum;
    }
    for ((row, units), by) in rows.iter().zip(&units).zip(by) {
        parameters.backward(row, units, by * weight, gradients);
    }
    loss
}
