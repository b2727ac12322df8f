//! Gradients of whole models against finite differences of their loss.

use crate::common::compare::assert_close;
use crate::common::{Random, tiny};
use crate::gradients::{add, dot, floats};
use prefold::Error;
use prefold::cpu::Cpu;
use prefold::model::Model;
use prefold::model::config::Family;
use prefold::model::lora::Target;
use prefold::model::weights::Weights;
use prefold::prefix::Method;
use prefold::train::objective::{Gradient, LoraShape, Objective, Sample, Tensor};
use prefold::train::{MemoryStart, TrainableModel};

/// Tiny models whose weights are small enough for smooth losses.
fn model(family: Family) -> Model<Cpu> {
    let mut tensors = tiny::tensors(family);
    for (name, (_, values)) in &mut tensors {
        let scale = if name.contains("norm") { 1.0 } else { 0.3 };
        values.iter_mut().for_each(|v| *v *= scale);
    }
    let folder = tiny::folder(&tiny::config(family), &tensors);
    Model::load(Cpu::new(), &Weights::open(folder.path()).unwrap()).unwrap()
}

fn adapter() -> LoraShape {
    LoraShape {
        rank: 3,
        alpha: 6.0,
        targets: Target::ALL.map(|(target, _)| target).to_vec(),
    }
}

/// Untrained parameters, with B no longer zero.
fn parameters(trainable: &TrainableModel<'_, Cpu>, num_mem: usize) -> Vec<Tensor> {
    let mut random = Random(9);
    let mut parameters = trainable.initial(num_mem, MemoryStart::Normal, 3).unwrap();
    for tensor in &mut parameters {
        if tensor.name.contains("lora_B") {
            tensor.values = floats(&mut random, tensor.values.len(), 0.3);
        }
    }
    parameters
}

fn batches() -> [Vec<Sample>; 2] {
    let context = vec![4, 5, 6];
    let mixed = vec![
        Sample::Regenerate {
            text: vec![3, 17, 8, 30, 2],
        },
        Sample::Answer {
            context,
            question: vec![9, 10],
            answer: vec![11, 12, 13],
        },
        Sample::Regenerate { text: vec![] },
    ];
    let align = vec![
        Sample::Align {
            question: vec![3, 4],
            answer: vec![5, 6],
        },
        Sample::Align {
            question: vec![7],
            answer: vec![],
        },
    ];
    [mixed, align]
}

fn objective(method: Method, dropout: f32) -> Objective {
    Objective {
        method,
        bos: 1,
        eos: 2,
        dropout,
        nested: false,
        vectors: 0,
    }
}

/// Moves all values along a random direction and compares the change of the loss with what the
/// gradients say; the loss is that of f32, so that the direction is long and the bound is wide.
#[track_caller]
fn check_directions(
    trainable: &TrainableModel<'_, Cpu>,
    batch: &[Sample],
    objective: &Objective,
    what: &str,
) {
    let parameters = match (objective.method, objective.nested) {
        (Method::Pooled, _) => parameters(trainable, 0),
        // Of so many some samples have fewer.
        (_, true) => parameters(trainable, 4),
        (_, false) => parameters(trainable, 2),
    };
    let got = trainable
        .gradient(&parameters, batch, objective, 5)
        .unwrap();
    let mut random = Random(10);
    for (i, tensor) in parameters.iter().enumerate() {
        let direction = floats(&mut random, tensor.values.len(), 1.0);
        let step = 4e-3;
        let moved = |sign: f32| {
            let mut moved = parameters.clone();
            for (value, d) in moved[i].values.iter_mut().zip(&direction) {
                *value += sign * step * d;
            }
            trainable.gradient(&moved, batch, objective, 5).unwrap().nll
        };
        let want = (moved(1.0) - moved(-1.0)) / (2.0 * f64::from(step));
        let gradient = &got.gradients[i];
        assert_eq!(gradient.name, tensor.name);
        let mut along: Vec<f64> = gradient.values.iter().map(|&v| v.into()).collect();
        if along.is_empty() {
            // The loss does not depend on it, it says.
            along.resize(direction.len(), 0.0);
        }
        let along = dot(&along, &direction);
        let bound = 2e-3 + 1e-2 * want.abs();
        assert!(
            (along - want).abs() < bound,
            "{what}: {}: {want}, got {along}",
            tensor.name
        );
    }
}

#[test]
fn models_of_every_family() {
    for family in [Family::Llama, Family::Qwen2, Family::Qwen3] {
        let model = model(family);
        for activations in [0, 1 << 30] {
            let trainable = TrainableModel::new(&model, adapter(), activations).unwrap();
            let [memory, align] = batches();
            for (method, dropout) in [
                (Method::FiveHundredX, 0.0),
                (Method::FiveHundredX, 0.3),
                (Method::Icae, 0.0),
                (Method::Icae, 0.3),
            ] {
                let what = format!("{family:?}, {method:?}, {dropout}");
                check_directions(&trainable, &memory, &objective(method, dropout), &what);
            }
            // A text without tokens cannot be pooled.
            let texts: Vec<Sample> = memory[..2].to_vec();
            for (nested, dropout) in [(false, 0.0), (false, 0.3), (true, 0.3)] {
                let how = Objective {
                    nested,
                    vectors: 3,
                    ..objective(Method::Pooled, dropout)
                };
                let what = format!("{family:?}, pooled, {nested}, {dropout}");
                check_directions(&trainable, &texts, &how, &what);
            }
            for method in [Method::FiveHundredX, Method::Icae] {
                let how = Objective {
                    nested: true,
                    ..objective(method, 0.3)
                };
                check_directions(&trainable, &memory, &how, &format!("{family:?}, nested"));
            }
            let how = objective(Method::FiveHundredX, 0.3);
            check_directions(&trainable, &align, &how, &format!("{family:?}, align"));
        }
    }
    let gpt2 = model(Family::Gpt2);
    let error = TrainableModel::new(&gpt2, adapter(), 0)
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

#[test]
fn a_batch_is_the_sum_of_its_samples() {
    let model = model(Family::Llama);
    let trainable = TrainableModel::new(&model, adapter(), 0).unwrap();
    let parameters = parameters(&trainable, 2);
    for (batch, method) in [
        (&batches()[0], Method::FiveHundredX),
        (&batches()[0], Method::Icae),
        (&batches()[1], Method::FiveHundredX),
    ] {
        let how = objective(method, 0.0);
        let of = |batch: &[Sample]| trainable.gradient(&parameters, batch, &how, 0).unwrap();
        let all = of(batch);
        let each: Vec<Gradient> = batch
            .iter()
            .map(|sample| of(std::slice::from_ref(sample)))
            .collect();
        let sum: f64 = each.iter().map(|g| g.nll).sum();
        assert!((all.nll - sum).abs() < 1e-4);
        assert_eq!(all.targets, each.iter().map(|g| g.targets).sum::<usize>());
        assert_eq!(all.tokens, each.iter().map(|g| g.tokens).sum::<usize>());
        for (i, tensor) in all.gradients.iter().enumerate() {
            let mut want = vec![0.0; tensor.values.len()];
            each.iter()
                .for_each(|g| add(&mut want, &g.gradients[i].values));
            assert_close(&tensor.name, &tensor.values, &want, 2e-5, 1e-4);
        }
    }
}

#[test]
fn nested_samples_have_the_gradients_of_fewer_memory_tokens() {
    let model = model(Family::Llama);
    let trainable = TrainableModel::new(&model, adapter(), 0).unwrap();
    let parameters = parameters(&trainable, 4);
    let truncated = |count: usize| {
        let mut few = parameters.clone();
        let memory = few.last_mut().unwrap();
        memory.shape[0] = count;
        memory.values.truncate(count * tiny::HIDDEN);
        few
    };
    let [batch, align] = batches();
    for method in [Method::FiveHundredX, Method::Icae] {
        let plain = objective(method, 0.0);
        let nested = Objective {
            nested: true,
            ..plain.clone()
        };
        // By sample and number of memory tokens.
        let each: Vec<Vec<Gradient>> = batch
            .iter()
            .map(|sample| {
                let sample = std::slice::from_ref(sample);
                let of = |count| trainable.gradient(&truncated(count), sample, &plain, 0);
                (1..=4).map(|count| of(count).unwrap()).collect()
            })
            .collect();
        let mut seen = [0; 4];
        for seed in 0..40 {
            let got = trainable
                .gradient(&parameters, &batch[..1], &nested, seed)
                .unwrap();
            let same = |one: &&Gradient| (one.nll - got.nll).abs() < 1e-9;
            let found: Vec<usize> = (0..4).filter(|&k| same(&&each[0][k])).collect();
            assert_eq!(found.len(), 1, "{method:?}, seed {seed}");
            seen[found[0]] += 1;
            let want = &each[0][found[0]];
            assert_eq!((got.tokens, got.targets), (want.tokens, want.targets));
            for (got, want) in got.gradients.iter().zip(&want.gradients) {
                let mut values = want.values.clone();
                // Those that were left out have none.
                values.resize(got.values.len(), 0.0);
                assert_eq!(got.values, values, "{}", got.name);
            }
        }
        assert!(seen.iter().all(|&n| n > 2), "{seen:?}");

        // A batch is the sum of its samples, each with a number of its own.
        for seed in 0..5 {
            let got = trainable
                .gradient(&parameters, &batch, &nested, seed)
                .unwrap();
            let near = |counts: &[usize]| {
                let sum: f64 = counts.iter().zip(&each).map(|(&k, of)| of[k].nll).sum();
                (sum - got.nll).abs() < 1e-4
            };
            let all = (0..64).map(|i| [i % 4, i / 4 % 4, i / 16]);
            let found: Vec<[usize; 3]> = all.filter(|counts| near(counts)).collect();
            let [counts] = found[..] else {
                panic!("{method:?}, seed {seed}: {found:?}")
            };
            let tokens = counts.iter().zip(&each).map(|(&k, of)| of[k].tokens);
            assert_eq!(got.tokens, tokens.sum::<usize>());
            for (i, tensor) in got.gradients.iter().enumerate() {
                let mut want = vec![0.0; tensor.values.len()];
                for (&k, of) in counts.iter().zip(&each) {
                    let mut values = of[k].gradients[i].values.clone();
                    values.resize(want.len(), 0.0);
                    add(&mut want, &values);
                }
                assert_close(&tensor.name, &tensor.values, &want, 2e-5, 1e-4);
            }
        }
        // The loss is that of all.
        let loss = |how| trainable.loss(&parameters, &batch, how).unwrap().nll;
        assert_eq!(loss(&nested), loss(&plain));
        let aligned = |how| trainable.gradient(&parameters, &align, how, 3).unwrap().nll;
        assert!((aligned(&nested) - aligned(&plain)).abs() < 1e-4);
    }
}

#[test]
fn rows_of_a_prefix_have_gradients() {
    for family in [Family::Llama, Family::Qwen2, Family::Qwen3] {
        let model = model(family);
        let mut random = Random(3);
        let width = tiny::KV_HEADS * tiny::HEAD_DIM;
        let parameters: Vec<Tensor> = (0..tiny::LAYERS)
            .flat_map(|i| ["k", "v"].map(|side| format!("layers.{i}.{side}")))
            .map(|name| Tensor {
                name,
                shape: [3, width],
                values: floats(&mut random, 3 * width, 1.0),
            })
            .collect();
        let batch = [
            Sample::Align {
                question: vec![3, 4],
                answer: vec![5, 6, 7],
            },
            Sample::Align {
                question: vec![8],
                answer: vec![],
            },
            Sample::Regenerate { text: vec![9, 10] },
        ];
        let how = objective(Method::FiveHundredX, 0.0);
        let mut first = None;
        for activations in [0, 1 << 30] {
            let trainable = TrainableModel::for_prefix(&model, activations).unwrap();
            let got = trainable.gradient(&parameters, &batch, &how, 0).unwrap();
            assert_eq!((got.targets, got.tokens), (4 + 1 + 3, 5 + 1 + 3));
            for (i, tensor) in parameters.iter().enumerate() {
                let mut direction = floats(&mut random, tensor.values.len(), 1.0);
                // The first row is not trained.
                assert!(got.gradients[i].values[..width].iter().all(|&g| g == 0.0));
                direction[..width].fill(0.0);
                let step = 4e-3;
                let moved = |sign: f32| {
                    let mut moved = parameters.clone();
                    for (value, d) in moved[i].values.iter_mut().zip(&direction) {
                        *value += sign * step * d;
                    }
                    trainable.loss(&moved, &batch, &how).unwrap().nll
                };
                let want = (moved(1.0) - moved(-1.0)) / (2.0 * f64::from(step));
                let values: Vec<f64> = got.gradients[i].values.iter().map(|&g| g.into()).collect();
                let along = dot(&values, &direction);
                let bound = 2e-3 + 1e-2 * want.abs();
                let name = &tensor.name;
                assert!(
                    (along - want).abs() < bound,
                    "{family:?}, {name}: {want}, got {along}"
                );
                assert!(values.iter().any(|g| g.abs() > 1e-4), "{family:?}, {name}");
            }
            let same = first.get_or_insert(got.clone());
            assert_eq!(
                *same, got,
                "what is kept and what is made again is the same"
            );
        }
        let trainable = TrainableModel::for_prefix(&model, 0).unwrap();
        let refused = |parameters: &[Tensor]| {
            let error = trainable.gradient(parameters, &batch, &how, 0).unwrap_err();
            assert_eq!(error.to_string().lines().count(), 1);
            error.to_string()
        };
        assert!(refused(&parameters[1..]).contains("K and V"));
        let mut wrong = parameters.clone();
        wrong[1].shape = [2, width];
        assert!(refused(&wrong).contains("layers.0.v"));
        wrong[1].shape = [3, width];
        wrong[1].name = "layers.7.v".into();
        assert!(refused(&wrong).contains("layers.7.v"));
    }
    let gpt2 = model(Family::Gpt2);
    let error = TrainableModel::for_prefix(&gpt2, 0).map(drop).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

#[test]
fn steps_are_reproducible() {
    let model = model(Family::Qwen3);
    let [memory, _] = batches();
    let how = objective(Method::FiveHundredX, 0.2);
    let of = |activations, seed| {
        let trainable = TrainableModel::new(&model, adapter(), activations).unwrap();
        let parameters = parameters(&trainable, 2);
        trainable
            .gradient(&parameters, &memory, &how, seed)
            .unwrap()
    };
    let first = of(0, 1);
    assert_eq!(first, of(0, 1));
    assert_eq!(
        first,
        of(1 << 30, 1),
        "what is kept and what is made again is the same"
    );
    assert_ne!(first.nll, of(0, 2).nll);
}

#[test]
fn untrained_parameters() {
    let model = model(Family::Llama);
    let shape = LoraShape {
        targets: vec![Target::V, Target::Down],
        ..adapter()
    };
    let trainable = TrainableModel::new(&model, shape, 0).unwrap();
    let parameters = trainable.initial(4, MemoryStart::Normal, 1).unwrap();
    assert_eq!(
        parameters,
        trainable.initial(4, MemoryStart::Normal, 1).unwrap()
    );
    assert_ne!(
        parameters,
        trainable.initial(4, MemoryStart::Normal, 2).unwrap()
    );
    assert_eq!(parameters.len(), tiny::LAYERS * 4 + 1);
    for tensor in &parameters {
        assert_eq!(tensor.values.len(), tensor.shape[0] * tensor.shape[1]);
        let max = tensor.values.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        if tensor.name.ends_with("lora_A.weight") {
            let bound = 1.0 / (tensor.shape[1] as f32).sqrt();
            assert!(max <= bound && max > 0.8 * bound, "{}: {max}", tensor.name);
        } else if tensor.name.ends_with("lora_B.weight") {
            assert_eq!(max, 0.0);
        }
    }
    assert_eq!(
        parameters[0].name,
        "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight"
    );
    let memory = parameters.last().unwrap();
    assert_eq!(
        (memory.name.as_str(), memory.shape),
        ("memory_embeddings", [4, tiny::HIDDEN])
    );
    // The table is uniform within ±0.3: as wide as 0.3 / √3.
    let squares: f32 = memory.values.iter().map(|v| v * v).sum();
    let deviation = (squares / memory.values.len() as f32).sqrt();
    assert!(
        (deviation / (0.3 / 3f32.sqrt()) - 1.0).abs() < 0.2,
        "{deviation}"
    );
    let mean = trainable.initial(2, MemoryStart::Mean, 1).unwrap();
    let mean = &mean.last().unwrap().values;
    assert_eq!(mean[..tiny::HIDDEN], mean[tiny::HIDDEN..]);
    let table = &tiny::tensors(Family::Llama)["model.embed_tokens.weight"].1;
    let first: f32 = table.iter().step_by(tiny::HIDDEN).sum::<f32>() * 0.3 / tiny::VOCAB as f32;
    assert!((mean[0] - first).abs() < 1e-5);
    // Without memory tokens, as alignment wants them.
    assert_eq!(
        trainable.initial(0, MemoryStart::Mean, 1).unwrap().len(),
        tiny::LAYERS * 4
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = model(Family::Llama);
    let trainable = TrainableModel::new(&model, adapter(), 0).unwrap();
    let parameters = parameters(&trainable, 2);
    let how = objective(Method::FiveHundredX, 0.0);
    let refused = |parameters: &[Tensor], batch: &[Sample], how: &Objective| {
        let error = trainable.gradient(parameters, batch, how, 0).unwrap_err();
        assert_eq!(error.to_string().lines().count(), 1);
        error.to_string()
    };
    let [memory, align] = batches();
    let mixed = [&memory[..], &align[..]].concat();
    assert!(refused(&parameters, &mixed, &how).contains("batch"));
    let empty = Sample::Align {
        question: vec![],
        answer: vec![5],
    };
    assert!(refused(&parameters, &[empty], &how).contains("question"));
    let unknown = Sample::Regenerate {
        text: vec![tiny::VOCAB as u32],
    };
    assert!(refused(&parameters, &[unknown], &how).contains("token id 40"));
    let long = Sample::Regenerate {
        text: vec![5; tiny::POSITIONS],
    };
    assert!(refused(&parameters, &[long], &how).contains("positions"));
    let without = &parameters[..parameters.len() - 1];
    assert!(refused(without, &memory, &how).contains("memory_embeddings"));
    trainable.gradient(without, &align, &how, 0).unwrap();
    assert!(refused(&parameters[1..], &memory, &how).contains("lora_B"));
    let mut wrong = parameters.clone();
    wrong[0].shape = [2, tiny::HIDDEN];
    assert!(refused(&wrong, &memory, &how).contains("lora_A"));
    wrong[0].shape = parameters[0].shape;
    wrong[0].values.pop();
    assert!(refused(&wrong, &memory, &how).contains("lora_A"));
    wrong[0].values.push(0.0);
    wrong[0].name = "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight".into();
    assert!(refused(&wrong, &memory, &how).contains("layers.9"));
    let pooled = Objective {
        vectors: 2,
        ..objective(Method::Pooled, 0.0)
    };
    assert!(refused(&parameters, &memory, &pooled).contains("method"));
    assert!(refused(without, &memory, &pooled).contains("nothing to pool"));
    let other = objective(Method::Prefill, 0.0);
    assert!(refused(&parameters, &memory, &other).contains("method"));
    assert!(refused(&parameters, &memory, &objective(Method::Icae, 1.0)).contains("dropout"));
    let none = trainable.gradient(&parameters, &[], &how, 0).unwrap();
    assert_eq!((none.targets, none.tokens), (0, 0));
    for (rank, targets) in [(0, vec![Target::Q]), (3, vec![])] {
        let shape = LoraShape {
            rank,
            alpha: 1.0,
            targets,
        };
        let error = TrainableModel::new(&model, shape, 0).map(drop).unwrap_err();
        assert!(matches!(error, Error::Input { .. }), "{error}");
    }
}
