//! Losses, gradients and AdamW trajectories of the three objectives against PyTorch's.

use crate::common;

use std::path::{Path, PathBuf};

use prefold::cpu::Cpu;
use prefold::model::Model;
use prefold::model::lora::Target;
use prefold::model::weights::Weights;
use prefold::prefix::Method;
use prefold::train::TrainableModel;
use prefold::train::objective::{Gradient, LoraShape, Objective, Sample, Tensor};
use safetensors::SafeTensors;
use serde_json::Value;

const OBJECTIVES: [&str; 3] = ["regen", "qa", "align"];

/// What one adapter's golden files say.
struct Golden {
    facts: Value,
    bytes: Vec<u8>,
    parameters: Vec<Tensor>,
    shape: LoraShape,
}

fn folder() -> Option<PathBuf> {
    common::shared().map(|shared| shared.join("golden/500x"))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let values = bytes.as_chunks::<4>().0.iter();
    values.map(|&b| f32::from_le_bytes(b)).collect()
}

/// The tensors of a file, of two dimensions each.
fn tensors(path: &Path) -> Vec<Tensor> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(name, view)| Tensor {
        name,
        shape: view.shape().try_into().unwrap(),
        values: floats(view.data()),
    });
    tensors.collect()
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().unwrap();
    list.iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

impl Golden {
    fn read(folder: &Path, name: &str, adapter: &str) -> Self {
        let adapter = folder.join(adapter);
        let mut parameters = tensors(&adapter.join("adapter_model.safetensors"));
        parameters.extend(tensors(&adapter.join("memory_embeddings.safetensors")));
        let config = json(adapter.join("adapter_config.json"));
        let modules = config["target_modules"].as_array().unwrap();
        let is_target = |module: &str| {
            modules
                .iter()
                .any(|m| module.ends_with(m.as_str().unwrap()))
        };
        let targets = Target::ALL.iter().filter(|(_, module)| is_target(module));
        Golden {
            facts: json(folder.join(format!("{name}.golden.json"))),
            bytes: std::fs::read(folder.join(format!("{name}.golden.safetensors"))).unwrap(),
            parameters,
            shape: LoraShape {
                rank: config["r"].as_u64().unwrap() as usize,
                alpha: config["lora_alpha"].as_f64().unwrap() as f32,
                targets: targets.map(|(target, _)| *target).collect(),
            },
        }
    }

    fn batch(&self, objective: &str) -> Vec<Sample> {
        let of = |name: &str, i: usize| ids(&self.facts[name][i]);
        let sample = |i| match objective {
            "regen" => Sample::Regenerate { text: of("ids", i) },
            "qa" => Sample::Answer {
                context: of("ids", i),
                question: of("question", i),
                answer: of("answer", i),
            },
            _ => Sample::Align {
                question: of("question", i),
                answer: of("answer", i),
            },
        };
        (0..2).map(sample).collect()
    }

    fn objective(&self) -> Objective {
        Objective {
            method: Method::FiveHundredX,
            bos: self.facts["bos"].as_u64().unwrap() as u32,
            eos: self.facts["eos"].as_u64().unwrap() as u32,
            dropout: 0.0,
            nested: false,
            vectors: 0,
        }
    }
}

fn mean(gradient: &Gradient) -> f64 {
    gradient.nll / gradient.targets as f64
}

#[track_caller]
fn assert_relative(what: &str, got: f64, want: f64, bound: f64) {
    let difference = (got - want).abs() / want.abs();
    assert!(difference <= bound, "{what}: expected {want}, got {got}");
}

#[test]
fn gradients_are_the_references() {
    let Some(folder) = folder() else { return };
    let weights = Weights::open(&folder.join("tiny")).unwrap();
    for cpu in Cpu::each_instruction_set() {
        let model = Model::load(cpu, &weights).unwrap();
        for name in ["qv", "all"] {
            let golden = Golden::read(
                &folder,
                &format!("tiny-{name}"),
                &format!("tiny-adapter-{name}"),
            );
            let file = SafeTensors::deserialize(&golden.bytes).unwrap();
            // Everything computed again, one layer kept, everything kept.
            for activations in [0, 300_000, 1 << 30] {
                let trainable =
                    TrainableModel::new(&model, golden.shape.clone(), activations).unwrap();
                for objective in OBJECTIVES {
                    let batch = golden.batch(objective);
                    let (parameters, how) = (&golden.parameters, golden.objective());
                    let got = trainable.gradient(parameters, &batch, &how, 0).unwrap();
                    let want = golden.facts[format!("{objective}_loss")].as_f64().unwrap();
                    assert_relative(objective, mean(&got), want, 1e-5);
                    let loss = trainable.loss(parameters, &batch, &how).unwrap();
                    assert_relative(objective, mean(&loss), want, 1e-5);
                    assert!(loss.gradients.is_empty());
                    check_gradients(&format!("{name}, {objective}"), &got, &file, objective);
                }
            }
        }
    }
}

/// Every gradient of the file within 1e-3 of each value and, where values are small, of a hundredth of
/// the tensor's greatest; the file holds no others.
#[track_caller]
fn check_gradients(what: &str, got: &Gradient, file: &SafeTensors<'_>, objective: &str) {
    let (mut seen, mut worst) = (0, 0.0f64);
    for tensor in &got.gradients {
        let name = format!("grad.{objective}.{}", tensor.name);
        let Ok(view) = file.tensor(&name) else {
            assert!(tensor.values.is_empty(), "{what}: {name}");
            continue;
        };
        seen += 1;
        assert_eq!(view.shape(), tensor.shape, "{name}");
        let want = floats(view.data());
        assert_eq!(tensor.values.len(), want.len(), "{name}");
        let max = want
            .iter()
            .fold(0.0f64, |max, &v| max.max(f64::from(v).abs()));
        for (&got_sum, &want) in tensor.values.iter().zip(&want) {
            let (mean, want) = (f64::from(got_sum) / got.targets as f64, f64::from(want));
            let bound = 1e-3 * want.abs().max(max / 100.0);
            let difference = (mean - want).abs();
            assert!(
                difference <= bound,
                "{what}: {name}: expected {want}, got {mean}"
            );
            worst = worst.max(difference / want.abs().max(max / 100.0));
        }
    }
    let prefix = format!("grad.{objective}.");
    let count = file
        .names()
        .iter()
        .filter(|name| name.starts_with(&prefix))
        .count();
    assert_eq!(seen, count, "{what}");
    eprintln!("{what}: {seen} gradients differ by at most {worst:.1e}");
}

/// AdamW as PyTorch's, in f64.
struct AdamW {
    step: i32,
    moments: Vec<[Vec<f64>; 2]>,
}

impl AdamW {
    fn step(&mut self, parameters: &mut [Tensor], gradients: &[Vec<f64>], lr: f64, decay: f64) {
        self.step += 1;
        let of_first = 1.0 - 0.9f64.powi(self.step);
        let of_second = (1.0 - 0.999f64.powi(self.step)).sqrt();
        for ((tensor, gradient), [first, second]) in
            parameters.iter_mut().zip(gradients).zip(&mut self.moments)
        {
            for (i, (value, g)) in tensor.values.iter_mut().zip(gradient).enumerate() {
                first[i] = 0.9 * first[i] + 0.1 * g;
                second[i] = 0.999 * second[i] + 0.001 * g * g;
                let kept = f64::from(*value) * (1.0 - lr * decay);
                let change = lr / of_first * first[i] / (second[i].sqrt() / of_second + 1e-8);
                *value = (kept - change) as f32;
            }
        }
    }
}

#[test]
fn trajectories_are_the_references() {
    let Some(folder) = folder() else { return };
    let model = Model::load(Cpu::new(), &Weights::open(&folder.join("tiny")).unwrap()).unwrap();
    for name in ["qv", "all"] {
        let golden = Golden::read(
            &folder,
            &format!("tiny-{name}"),
            &format!("tiny-adapter-{name}"),
        );
        let trainable = TrainableModel::new(&model, golden.shape.clone(), 1 << 30).unwrap();
        for objective in OBJECTIVES {
            let facts = &golden.facts[format!("{objective}_adamw")];
            let number = |name: &str| facts[name].as_f64().unwrap();
            let mut parameters = golden.parameters.clone();
            let zeros = |tensor: &Tensor| [(); 2].map(|()| vec![0.0; tensor.values.len()]);
            let mut adamw = AdamW {
                step: 0,
                moments: parameters.iter().map(zeros).collect(),
            };
            let batch = golden.batch(objective);
            let mut worst = 0.0f64;
            for want in facts["loss_and_grad_norm"].as_array().unwrap() {
                let got = trainable
                    .gradient(&parameters, &batch, &golden.objective(), 0)
                    .unwrap();
                let mut gradients: Vec<Vec<f64>> = Vec::new();
                for tensor in &got.gradients {
                    let mean = |&v: &f32| f64::from(v) / got.targets as f64;
                    gradients.push(tensor.values.iter().map(mean).collect());
                }
                let squares = gradients.iter().flatten().map(|g| g * g);
                let norm = squares.sum::<f64>().sqrt();
                for (got, want) in [(mean(&got), &want[0]), (norm, &want[1])] {
                    let want = want.as_f64().unwrap();
                    assert_relative(&format!("{name}, {objective}"), got, want, 2e-3);
                    worst = worst.max((got - want).abs() / want);
                }
                let clip = (number("clip_grad_norm") / (norm + 1e-6)).min(1.0);
                gradients.iter_mut().flatten().for_each(|g| *g *= clip);
                adamw.step(
                    &mut parameters,
                    &gradients,
                    number("lr"),
                    number("weight_decay"),
                );
            }
            eprintln!("{name}, {objective}: 20 steps differ by at most {worst:.1e}");
        }
    }
}

#[test]
fn the_loss_of_smollm2_is_the_references() {
    let (Some(folder), Some(path)) = (folder(), common::smollm2()) else {
        return;
    };
    let golden = Golden::read(&folder, "smollm2", "smollm2-adapter");
    let model = Model::load(Cpu::new(), &Weights::open(&path).unwrap()).unwrap();
    let trainable = TrainableModel::new(&model, golden.shape.clone(), 0).unwrap();
    let batch = [Sample::Regenerate {
        text: ids(&golden.facts["ids"]),
    }];
    let got = trainable
        .loss(&golden.parameters, &batch, &golden.objective())
        .unwrap();
    let want = golden.facts["regen_loss"].as_f64().unwrap();
    assert_relative("regen", mean(&got), want, 1e-4);
}
