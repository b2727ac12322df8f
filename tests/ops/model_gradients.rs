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
fn parameters(trainee: &TrainableModel<'_, Cpu>, num_mem: usize) -> Vec<Tensor> {
    let mut random = Random(9);
    let mut parameters = trainee.initial(num_mem, MemoryStart::Normal, 3).unwrap();
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
    }
}

/// Moves all values along a random direction and compares the change of the loss with what the
/// gradients say; the loss is that of f32, so that the direction is long and the bound is wide.
#[track_caller]
fn check_directions(
    trainee: &TrainableModel<'_, Cpu>,
    batch: &[Sample],
    objective: &Objective,
    what: &str,
) {
    let parameters = parameters(trainee, 2);
    let got = trainee.gradient(&parameters, batch, objective, 5).unwrap();
    let mut random = Random(10);
    for (i, tensor) in parameters.iter().enumerate() {
        let direction = floats(&mut random, tensor.values.len(), 1.0);
        let step = 4e-3;
        let moved = |sign: f32| {
            let mut moved = parameters.clone();
            for (value, d) in moved[i].values.iter_mut().zip(&direction) {
                *value += sign * step * d;
            }
            trainee.gradient(&moved, batch, objective, 5).unwrap().nll
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
            let trainee = TrainableModel::new(&model, adapter(), activations).unwrap();
            let [memory, align] = batches();
            for (method, dropout) in [
                (Method::FiveHundredX, 0.0),
                (Method::FiveHundredX, 0.3),
                (Method::Icae, 0.0),
                (Method::Icae, 0.3),
            ] {
                let what = format!("{family:?}, {method:?}, {dropout}");
                check_directions(&trainee, &memory, &objective(method, dropout), &what);
            }
            let how = objective(Method::FiveHundredX, 0.3);
            check_directions(&trainee, &align, &how, &format!("{family:?}, align"));
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
    let trainee = TrainableModel::new(&model, adapter(), 0).unwrap();
    let parameters = parameters(&trainee, 2);
    for (batch, method) in [
        (&batches()[0], Method::FiveHundredX),
        (&batches()[0], Method::Icae),
        (&batches()[1], Method::FiveHundredX),
    ] {
        let how = objective(method, 0.0);
        let of = |batch: &[Sample]| trainee.gradient(&parameters, batch, &how, 0).unwrap();
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
fn steps_are_reproducible() {
    let model = model(Family::Qwen3);
    let [memory, _] = batches();
    let how = objective(Method::FiveHundredX, 0.2);
    let of = |activations, seed| {
        let trainee = TrainableModel::new(&model, adapter(), activations).unwrap();
        let parameters = parameters(&trainee, 2);
        trainee.gradient(&parameters, &memory, &how, seed).unwrap()
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
    let trainee = TrainableModel::new(&model, shape, 0).unwrap();
    let parameters = trainee.initial(4, MemoryStart::Normal, 1).unwrap();
    assert_eq!(
        parameters,
        trainee.initial(4, MemoryStart::Normal, 1).unwrap()
    );
    assert_ne!(
        parameters,
        trainee.initial(4, MemoryStart::Normal, 2).unwrap()
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
    let mean = trainee.initial(2, MemoryStart::Mean, 1).unwrap();
    let mean = &mean.last().unwrap().values;
    assert_eq!(mean[..tiny::HIDDEN], mean[tiny::HIDDEN..]);
    let table = &tiny::tensors(Family::Llama)["model.embed_tokens.weight"].1;
    let first: f32 = table.iter().step_by(tiny::HIDDEN).sum::<f32>() * 0.3 / tiny::VOCAB as f32;
    assert!((mean[0] - first).abs() < 1e-5);
    // Without memory tokens, as alignment wants them.
    assert_eq!(
        trainee.initial(0, MemoryStart::Mean, 1).unwrap().len(),
        tiny::LAYERS * 4
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = model(Family::Llama);
    let trainee = TrainableModel::new(&model, adapter(), 0).unwrap();
    let parameters = parameters(&trainee, 2);
    let how = objective(Method::FiveHundredX, 0.0);
    let refused = |parameters: &[Tensor], batch: &[Sample], how: &Objective| {
        let error = trainee.gradient(parameters, batch, how, 0).unwrap_err();
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
    trainee.gradient(without, &align, &how, 0).unwrap();
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
    let other = objective(Method::Prefill, 0.0);
    assert!(refused(&parameters, &memory, &other).contains("method"));
    assert!(refused(&parameters, &memory, &objective(Method::Icae, 1.0)).contains("dropout"));
    let none = trainee.gradient(&parameters, &[], &how, 0).unwrap();
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
