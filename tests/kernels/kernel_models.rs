//! Whole models by our kernels, executed by a CPU and, where there is one, by a CUDA device.

use crate::common;

use crate::common::compare::assert_close;
use crate::common::device::{self, Device, backends};
use crate::common::emu::{SCHEDULES, Schedule, launcher};
use crate::common::encoders::agrees;
use crate::common::tiny::byte_tokenizer;
use prefold::cpu::Cpu;
use prefold::gpu::{Gpu, Precision};
use prefold::hard::{self, LlmLingua, Request};
use prefold::model::decoder::{Batch, Input};
use prefold::model::lora::{Lora, LoraWeights, Target};
use prefold::model::weights::Weights;
use prefold::model::{Model, Scorer};
use prefold::ops::{Backend, NllTarget};
use prefold::prefix::Method;
use prefold::train::objective::{LoraShape, Objective, Sample};
use prefold::train::{MemoryStart, TrainableModel};
use safetensors::SafeTensors;

const FAMILIES: [&str; 5] = ["llama3", "mistral", "qwen2", "qwen3", "gpt2"];

fn weights(family: &str) -> Option<(Weights, Vec<u8>)> {
    let Some(shared) = common::shared() else {
        eprintln!("skipped: no golden values beside the crate");
        return None;
    };
    let folder = shared.join("golden/models").join(family);
    let golden = std::fs::read(folder.join("golden.safetensors")).unwrap();
    Some((Weights::open(&folder).unwrap(), golden))
}

/// Calls `test` with the model on every backend.
fn models(
    weights: &Weights,
    precision: Precision,
    schedules: &[Schedule],
    test: impl Fn(&Model<Gpu<Device>>, &str),
) {
    backends(precision, schedules, |gpu, at| {
        test(&Model::load(gpu, weights).unwrap(), at)
    });
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let view = file.tensor(name).unwrap();
    let bytes = view.data().as_chunks::<4>().0;
    bytes
        .iter()
        .map(|&b| f32::from_le_bytes(b).into())
        .collect()
}

#[test]
fn encoders_agree_with_the_reference() {
    for name in [
        "bert",
        "xlmr-tokens",
        "xlmr-reranker",
        "modernbert-reranker",
    ] {
        for (precision, bound) in [(Precision::F32, 1e-3), (Precision::Bf16, 0.25)] {
            backends(precision, &SCHEDULES[..1], |gpu, _| {
                agrees(name, gpu, bound)
            });
        }
    }
}

#[test]
fn families_agree_with_the_reference() {
    for family in FAMILIES {
        let Some((weights, golden)) = weights(family) else {
            return;
        };
        let golden = SafeTensors::deserialize(&golden).unwrap();
        let ids = golden.tensor("ids").unwrap();
        let ids: Vec<u32> = ids
            .data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&b| u32::from_le_bytes(b))
            .collect();
        let want: Vec<f64> = floats(&golden, "logprobs").iter().map(|l| -l).collect();
        for precision in [Precision::F32, Precision::Bf16] {
            // The bounds of f32's sums in another order, and of 8 bits through all layers.
            let (logit, nll) = match precision {
                Precision::F32 => (3e-5, 3e-5),
                Precision::Bf16 => (0.05, 0.05),
            };
            models(&weights, precision, &SCHEDULES[1..3], |model, at| {
                let mut kv = model.kv().unwrap();
                let batch = Batch {
                    ids: &ids,
                    lengths: &[ids.len()],
                };
                let mut hidden = model.forward(&batch, &mut kv).unwrap();
                let logits = hidden.logits().unwrap();
                let what = format!("{family}, {at}");
                let worst = assert_close(&what, &logits, &floats(&golden, "logits"), logit, 0.0);
                let picks: Vec<NllTarget> = (0..)
                    .zip(&ids[1..])
                    .map(|(row, &target)| NllTarget { row, target })
                    .collect();
                let got = hidden.nll(&picks).unwrap();
                let off = assert_close(&what, &got, &want, nll, 0.0);
                eprintln!("{what}: logits differ by at most {worst:.1e}, nll by {off:.1e}");
            });
        }
    }
}

/// In chunks after a cache, and several texts at once after one prefix: as the CPU's backend.
#[test]
fn sessions_agree_with_the_cpu() {
    for family in ["qwen3", "gpt2"] {
        let Some((weights, _)) = weights(family) else {
            return;
        };
        let cpu = Model::load(Cpu::new(), &weights).unwrap();
        let ids: Vec<u32> = (0..90).map(|i| i * 37 % 384).collect();
        let run = |model: &dyn Scorer| {
            let mut all = model.score_each(&[&ids[..5], &[], &ids]).unwrap();
            let mut session = model.session().unwrap();
            all.push(session.score(&ids[..40]).unwrap());
            session.remove(7..19).unwrap();
            all.push(session.score(&ids[40..71]).unwrap());
            all.extend(session.score_after(&[&ids[71..], &ids[3..9]]).unwrap());
            session.truncate(20).unwrap();
            all.push(session.score(&ids[50..]).unwrap());
            all.concat()
        };
        let want: Vec<f64> = run(&cpu).iter().map(|&v| v.into()).collect();
        models(&weights, Precision::F32, &SCHEDULES[2..3], |gpu, at| {
            assert_close(&format!("{family}, {at}"), &run(gpu), &want, 3e-5, 0.0);
        });
    }
}

#[test]
fn a_text_is_compressed_as_on_the_cpu() {
    let Some((weights, _)) = weights("llama3") else {
        return;
    };
    let exact = Request::new([
        "The committee met on the third of May. It chose the smaller of the two bridges, \
         because the larger one would have cost nine million more.",
        "Nobody asked the ferrymen.",
    ])
    .with_question("Which bridge?");
    let tokenizer = byte_tokenizer();
    let cpu = Model::load(Cpu::new(), &weights).unwrap();
    let want = hard::compress(&cpu, &tokenizer, &exact).unwrap();
    let whole: usize = exact.contexts.iter().map(String::len).sum();
    assert!(want.text.len() < whole, "{}", want.text);
    // Token for token as the reference does it, with an option for which the host looks at ids, and the
    // device judges each segment itself.
    let llmlingua = LlmLingua::default()
        .with_iterative_size(40)
        .with_keep_split(true);
    let reference = exact.clone().with_mode(llmlingua);
    let judged = hard::compress(&cpu, &tokenizer, &reference).unwrap();
    assert!(judged.text.len() < whole);
    models(&weights, Precision::F32, &SCHEDULES, |gpu, at| {
        let got = hard::compress(gpu, &tokenizer, &exact).unwrap();
        assert_eq!(got.text, want.text, "{at}");
        device::log();
        let got = hard::compress(gpu, &tokenizer, &reference).unwrap();
        assert_eq!(got.text, judged.text, "{at}");
        assert!(device::log().contains(&"topk"), "{at}");
    });
}

/// A segment's scores, a threshold over all, and no word from the device in between.
#[test]
fn segments_are_judged_before_anything_comes_back() {
    let Some((weights, _)) = weights("llama3") else {
        return;
    };
    let cpu = Model::load(Cpu::new(), &weights).unwrap();
    let ids: Vec<u32> = (0..240).map(|i| i * 37 % 384).collect();
    let mut losses = vec![3.0f32; 400];
    losses[370] = 40.0;
    let (at, rank) = (90, 120);
    let scores = cpu.session().unwrap().score(&ids).unwrap();
    let mut all = losses.clone();
    all[at..at + scores.len()].copy_from_slice(&scores);
    let mut sorted = all.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let want: Vec<bool> = all.iter().map(|&v| v > sorted[rank]).collect();
    assert!(want[370] && want.iter().filter(|kept| **kept).count() == rank);
    let mut got = losses.clone();
    let mask = cpu
        .session()
        .unwrap()
        .judge(&ids, &mut got, at, rank)
        .unwrap();
    assert_eq!((got, mask), (all.clone(), want.clone()));
    models(&weights, Precision::F32, &SCHEDULES[1..2], |gpu, place| {
        let mut got = losses.clone();
        let mut session = gpu.session().unwrap();
        device::log();
        let mask = session.judge(&ids, &mut got, at, rank).unwrap();
        let log = device::log();
        let first = |what| log.iter().position(|entry| *entry == what).unwrap();
        assert!(first("topk") < first("read"), "{place}: {log:?}");
        let wide: Vec<f64> = all.iter().map(|&v| v.into()).collect();
        assert_close(place, &got, &wide, 3e-5, 0.0);
        // Two scores may be closer than the sums' rounding.
        let off = mask.iter().zip(&want).filter(|(a, b)| a != b).count();
        assert!(off <= 2, "{place}: {off} of {} differ", mask.len());
        assert_eq!(session.len(), ids.len());
        assert!(session.judge(&ids[..9], &mut got, 395, 0).is_err());
    });
    // Where only the judgement fails, nothing has been read either.
    let Some(emu) = launcher("library.cu", SCHEDULES[0]) else {
        return;
    };
    let gpu = Gpu::new(Device::Failing(emu, "topk"), Precision::F32);
    let model = Model::load(gpu, &weights).unwrap();
    let mut session = model.session().unwrap();
    session.score(&ids[..20]).unwrap();
    let mut got = losses.clone();
    assert!(session.judge(&ids[..9], &mut got, at, rank).is_err());
    assert_eq!((session.len(), got), (20, losses));
}

/// Q and v alone, and all projections, as PEFT stored them: the update is the kernel's, not two products.
#[test]
fn adapters_agree_with_the_cpu() {
    let Some(folder) = common::shared().map(|shared| shared.join("golden/500x")) else {
        eprintln!("skipped: no golden values beside the crate");
        return;
    };
    let weights = Weights::open(&folder.join("tiny")).unwrap();
    let ids: Vec<u32> = (0..50).map(|i| 3 + i * 37 % 60).collect();
    let picks: Vec<NllTarget> = (0..)
        .zip(&ids[1..])
        .map(|(row, &target)| NllTarget { row, target })
        .collect();
    fn nll<B: Backend>(
        model: &Model<B>,
        adapter: Option<&LoraWeights>,
        ids: &[u32],
        picks: &[NllTarget],
    ) -> Vec<f32> {
        let lora = adapter.map(|a| Lora::load(model.backend(), model.config(), a).unwrap());
        let mut kv = model.kv().unwrap();
        let mut hidden = model
            .forward_adapted(Input::Ids(ids), lora.as_ref(), &mut kv)
            .unwrap();
        hidden.nll(picks).unwrap()
    }
    let cpu = Model::load(Cpu::new(), &weights).unwrap();
    let plain = nll(&cpu, None, &ids, &picks);
    for name in ["tiny-adapter-all", "tiny-adapter-qv"] {
        let adapter = LoraWeights::open(&folder.join(name), weights.config()).unwrap();
        let want = nll(&cpu, Some(&adapter), &ids, &picks);
        let moved = want.iter().zip(&plain).map(|(a, b)| (a - b).abs());
        assert!(moved.fold(0.0, f32::max) > 0.1, "{name} does something");
        let want: Vec<f64> = want.iter().map(|&v| v.into()).collect();
        for (precision, bound) in [(Precision::F32, 3e-5), (Precision::Bf16, 0.05)] {
            models(&weights, precision, &SCHEDULES[1..3], |model, at| {
                device::log();
                let got = nll(model, Some(&adapter), &ids, &picks);
                assert_close(&format!("{name}, {at}"), &got, &want, bound, 0.0);
                let log = device::log();
                let kernel = match precision {
                    Precision::F32 => "lora_f32",
                    Precision::Bf16 => "lora_bf16",
                };
                assert!(log.contains(&kernel), "{at}: {log:?}");
            });
        }
    }
}

/// A step of training, of both methods: every gradient as the CPU's backend has it.
#[test]
fn gradients_agree_with_the_cpu() {
    let lora = LoraShape {
        rank: 3,
        alpha: 6.0,
        targets: Target::ALL.map(|(target, _)| target).to_vec(),
    };
    let batch = [
        Sample::Regenerate {
            text: (3..40).collect(),
        },
        Sample::Answer {
            context: (5..30).collect(),
            question: vec![9, 10],
            answer: vec![11, 12, 13],
        },
    ];
    for family in ["llama3", "qwen3"] {
        let Some((weights, _)) = weights(family) else {
            return;
        };
        let cpu = Model::load(Cpu::new(), &weights).unwrap();
        let trainable = TrainableModel::new(&cpu, lora.clone(), 0).unwrap();
        let mut parameters = trainable.initial(2, MemoryStart::Normal, 3).unwrap();
        let mut random = common::Random(9);
        for tensor in &mut parameters {
            if tensor.name.contains("lora_B") {
                tensor.values.fill_with(|| random.float() * 0.3);
            }
        }
        for method in [Method::FiveHundredX, Method::Icae] {
            let objective = Objective {
                method,
                bos: 1,
                eos: 2,
                dropout: 0.3,
                nested: false,
                vectors: 0,
            };
            let want = trainable
                .gradient(&parameters, &batch, &objective, 5)
                .unwrap();
            models(&weights, Precision::F32, &SCHEDULES[1..3], |model, at| {
                let trainable = TrainableModel::new(model, lora.clone(), 1 << 30).unwrap();
                device::log();
                let got = trainable
                    .gradient(&parameters, &batch, &objective, 5)
                    .unwrap();
                let log = device::log();
                for kernel in ["lora_f32", "lora_bwd_f32", "nll_bwd_f32"] {
                    assert!(log.contains(&kernel), "{at}: {kernel} was not launched");
                }
                let what = format!("{family}, {method:?}, {at}");
                assert_eq!(got.targets, want.targets);
                assert!((got.nll - want.nll).abs() < 1e-4 * want.nll, "{what}");
                for (got, want) in got.gradients.iter().zip(&want.gradients) {
                    let wide: Vec<f64> = want.values.iter().map(|&v| v.into()).collect();
                    let max = wide.iter().fold(0.0f64, |max, v| max.max(v.abs()));
                    let what = format!("{}, {what}", want.name);
                    // Sums in another order, of what is as large as the largest.
                    assert_close(&what, &got.values, &wide, 1e-4 * max + 1e-7, 0.0);
                }
            });
        }
    }
}
