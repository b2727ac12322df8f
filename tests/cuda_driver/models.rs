//! What models compute on the stand-in: by our kernels bit for bit as when the CPU executes them directly, by the
//! library's products nearly so.

use std::path::Path;
use std::process::Command;

use prefold::Engine;
use prefold::cpu::Cpu;
use prefold::gpu::{Gpu, Launcher, Precision};
use prefold::hard::{self, LlmLingua, Request};
use prefold::model::config::Family;
use prefold::model::decoder::Batch;
use prefold::model::lora::Target;
use prefold::model::weights::Weights;
use prefold::model::{Model, Scorer};
use prefold::prefix::Method;
use prefold::soft::{EncodeOptions, PrefillOptions, Sampling, Source};
use prefold::train::objective::{LoraShape, Objective, Sample};
use prefold::train::{MemoryStart, TrainableModel};

use crate::common::TempDir;
use crate::common::compare::assert_close;
use crate::common::device::Device;
use crate::common::emu::{SCHEDULES, launcher};
use crate::common::tiny::{self, HIDDEN, byte_tokenizer};
use crate::common::{Random, shared};
use crate::place::{Place, libraries};

/// Token ids of these models: a byte each, and some more.
const VOCAB: usize = 272;
const POSITIONS: usize = 1024;

/// A tiny model with a vocabulary for text.
pub fn folder(family: Family) -> TempDir {
    let (mut config, mut tensors) = (tiny::config(family), tiny::tensors(family));
    config["vocab_size"] = VOCAB.into();
    let mut random = Random(77);
    let mut enlarge = |name: &str, rows: usize| {
        let values = (0..rows * HIDDEN).map(|_| random.float()).collect();
        tensors.insert(name.into(), (vec![rows, HIDDEN], values));
    };
    if family == Family::Gpt2 {
        config["n_positions"] = POSITIONS.into();
        enlarge("transformer.wte.weight", VOCAB);
        enlarge("transformer.wpe.weight", POSITIONS);
    } else {
        config["max_position_embeddings"] = POSITIONS.into();
        enlarge("model.embed_tokens.weight", VOCAB);
        enlarge("lm_head.weight", VOCAB);
    }
    tiny::folder(&config, &tensors)
}

fn weights(family: Family) -> Weights {
    // What is mapped stays when the folder goes.
    let folder = folder(family);
    Weights::open(folder.path()).unwrap()
}

/// The kernels executed by the CPU without a driver in between.
fn direct(precision: Precision) -> Option<Gpu<Device>> {
    // The stand-in's devices are of compute capability 9.0 where these are compared.
    let emu = launcher("library.cu", SCHEDULES[0])?.hopper();
    Some(Gpu::new(Device::Emu(emu), precision))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

#[test]
fn a_device_of_every_architecture_passes_its_check() {
    for architecture in [80, 86, 89, 90, 100, 120] {
        for precision in [Precision::F32, Precision::Bf16] {
            for library in [true, false] {
                let Some(place) = Place::new(architecture) else {
                    return;
                };
                let gpu = place.gpu(precision, library);
                let what = format!("sm_{architecture}, {precision:?}, library: {library}");
                gpu.self_check()
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(place.count("products") > 0, library, "{what}");
                assert!(place.count("launches") > 10, "{what}");
                assert!(place.count("replays") > 0, "{what}");
                // Memory stays where it is while the host waits.
                assert_eq!(place.count("released"), 0, "{what}");
            }
        }
    }
}

#[test]
fn models_compute_what_they_do_without_a_driver() {
    for family in [Family::Llama, Family::Qwen2, Family::Qwen3, Family::Gpt2] {
        let weights = weights(family);
        let ids: Vec<u32> = (0..48).map(|i| i * 37 % VOCAB as u32).collect();
        let run = |model: &Model<Gpu<Device>>| {
            let mut kv = model.kv().unwrap();
            let batch = Batch {
                ids: &ids,
                lengths: &[32, 16],
            };
            let mut all = model.forward(&batch, &mut kv).unwrap().logits().unwrap();
            all.extend(model.score_each(&[&ids[..5], &[], &ids]).unwrap().concat());
            let mut session = model.session().unwrap();
            all.extend(session.score(&ids[..24]).unwrap());
            session.remove(7..15).unwrap();
            all.extend(session.score(&ids[24..37]).unwrap());
            all.extend(
                session
                    .score_after(&[&ids[37..], &ids[3..9]])
                    .unwrap()
                    .concat(),
            );
            session.truncate(12).unwrap();
            all.extend(session.score(&ids[30..]).unwrap());
            all
        };
        for precision in [Precision::F32, Precision::Bf16] {
            let Some(direct) = direct(precision) else {
                return;
            };
            let want = run(&Model::load(direct, &weights).unwrap());
            for library in [false, true] {
                let Some(place) = Place::new(90) else { return };
                let what = format!("{family:?}, {precision:?}, library: {library}");
                let got = run(&Model::load(place.gpu(precision, library), &weights).unwrap());
                if library {
                    assert!(place.count("products") > 20, "{what}");
                    // Sums in another order; in bf16 what is stored between layers rounds another way then.
                    let bound = match precision {
                        Precision::F32 => 1e-3,
                        Precision::Bf16 => 1.0,
                    };
                    assert_close(&what, &got, &wide(&want), bound, 0.01);
                } else {
                    assert_eq!(place.count("products"), 0, "{what}");
                    assert!(bits(&got) == bits(&want), "{what}: other bits");
                }
            }
        }
    }
}

const TEXT: &str = "The committee met on the third of May. It chose the smaller of the two bridges, because the \
                    larger one would have cost nine million more. Nobody asked the ferrymen, who had carried the \
                    town across for two hundred years and more.";

/// Prompts of several lengths, window sizes and rates.
pub fn jobs() -> Vec<Request> {
    let shapes = [
        (0..70, 0.5, 12),
        (30..110, 0.33, 20),
        (0..24, 0.5, 40),
        (10..80, 0.6, 14),
    ];
    let job = |(range, rate, iterative_size): (std::ops::Range<usize>, f64, usize)| {
        Request::new([&TEXT[range]])
            .with_rate(rate)
            .with_mode(LlmLingua::default().with_iterative_size(iterative_size))
    };
    shapes.map(job).into()
}

/// The segment loop as one graph, replayed; prompts alone, again, and several in the same launches.
#[test]
fn prompts_are_compressed_as_without_a_driver() {
    for family in [Family::Llama, Family::Gpt2] {
        let weights = weights(family);
        let tokenizer = byte_tokenizer();
        let jobs = jobs();
        let each = |model: &dyn Scorer| -> Vec<String> {
            let one = |job| hard::compress(model, &tokenizer, job);
            let results = jobs.iter().map(one);
            results.map(|result| result.unwrap().text).collect()
        };
        let want = each(&Model::load(Cpu::new(), &weights).unwrap());
        for library in [false, true] {
            let Some(place) = Place::new(90) else { return };
            let model = Model::load(place.gpu(Precision::F32, library), &weights).unwrap();
            let what = format!("{family:?}, library: {library}");
            assert_eq!(each(&model), want, "{what}");
            let (captures, replays) = (place.count("captures"), place.count("replays"));
            assert!(
                captures >= 2 && replays >= captures,
                "{what}: {captures}, {replays}"
            );
            // The same again comes from the records, as far as they are kept.
            assert_eq!(each(&model), want, "{what}, again");
            let batched = hard::compress_many(&model, &tokenizer, &jobs);
            for (got, want) in batched.into_iter().zip(&want) {
                assert_eq!(&got.unwrap().text, want, "{what}, batched");
            }
            assert_eq!(place.count("released"), 0, "{what}");
            assert_eq!(place.complaints(), "", "{what}");
        }
    }
}

/// Two engines of one device: while one records, the other is opened, works and goes.
#[test]
fn engines_of_one_device_do_not_break_each_others_recordings() {
    let Some(place) = Place::new(90) else { return };
    let weights = weights(Family::Llama);
    let (tokenizer, jobs) = (byte_tokenizer(), jobs());
    let run = || -> Vec<String> {
        let model = Model::load(place.gpu(Precision::F32, true), &weights).unwrap();
        let results = hard::compress_many(&model, &tokenizer, &jobs[..2]);
        results
            .into_iter()
            .map(|result| result.unwrap().text)
            .collect()
    };
    let want = run();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(run)).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), want);
        }
    });
    // And in the very middle.
    let cuda = place.open().unwrap();
    let recorded = cuda.record(|| {
        let open = || place.gpu(Precision::F32, true).self_check();
        std::thread::scope(|scope| scope.spawn(open).join().unwrap())
    });
    assert!(recorded.is_ok(), "{:?}", recorded.err());
}

#[test]
fn a_training_step_has_the_gradients_of_the_cpu() {
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
    let objective = Objective {
        method: Method::FiveHundredX,
        bos: 1,
        eos: 2,
        dropout: 0.3,
        nested: false,
        vectors: 0,
    };
    let weights = weights(Family::Qwen3);
    let cpu = Model::load(Cpu::new(), &weights).unwrap();
    let trainable = TrainableModel::new(&cpu, lora.clone(), 0).unwrap();
    let mut parameters = trainable.initial(2, MemoryStart::Normal, 3).unwrap();
    let mut random = Random(9);
    for tensor in &mut parameters {
        if tensor.name.contains("lora_B") {
            tensor.values.fill_with(|| random.float() * 0.3);
        }
    }
    let want = trainable
        .gradient(&parameters, &batch, &objective, 5)
        .unwrap();
    let Some(direct) = direct(Precision::F32) else {
        return;
    };
    let direct = Model::load(direct, &weights).unwrap();
    let direct = TrainableModel::new(&direct, lora.clone(), 1 << 30).unwrap();
    let direct = direct.gradient(&parameters, &batch, &objective, 5).unwrap();
    for library in [false, true] {
        let Some(place) = Place::new(90) else { return };
        let model = Model::load(place.gpu(Precision::F32, library), &weights).unwrap();
        let trainable = TrainableModel::new(&model, lora.clone(), 1 << 30).unwrap();
        let got = trainable
            .gradient(&parameters, &batch, &objective, 5)
            .unwrap();
        assert_eq!(got.targets, want.targets);
        for ((got, direct), want) in got
            .gradients
            .iter()
            .zip(&direct.gradients)
            .zip(&want.gradients)
        {
            let values = wide(&want.values);
            let max = values.iter().fold(0.0f64, |max, v| max.max(v.abs()));
            let what = format!("{}, library: {library}", want.name);
            assert_close(&what, &got.values, &values, 1e-3 * max + 1e-7, 0.0);
            assert!(
                library || bits(&got.values) == bits(&direct.values),
                "{what}: other bits"
            );
        }
    }
}

fn prefilled(engine: &Engine) -> (Vec<f32>, Vec<u32>) {
    let ids: Vec<u32> = (0..30).map(|i| i * 31 % VOCAB as u32).collect();
    let prefix = engine
        .prefixes()
        .prefill(&Source::ids(ids), &PrefillOptions::default())
        .unwrap();
    let options = Sampling {
        max_new_tokens: 12,
        ignore_eos: true,
        ..Sampling::default()
    };
    let generated = engine
        .prefixes()
        .generate(Some(&prefix), &[3, 4, 5], &options, &mut |_| {
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    let layers = (0..prefix.shape().layers).map(|layer| prefix.layer(layer).unwrap().concat());
    (layers.flatten().collect(), generated.ids)
}

/// By the engine, as the program does it.
#[test]
fn prefixes_and_what_is_read_after_them_are_those_of_the_kernels() {
    let folder = folder(Family::Llama);
    let Some(direct) = direct(Precision::F32) else {
        return;
    };
    let want = prefilled(&Engine::builder(folder.path()).build_on(direct).unwrap());
    for library in [false, true] {
        let Some(place) = Place::new(90) else { return };
        let engine = Engine::builder(folder.path())
            .build_on(place.gpu(Precision::F32, library))
            .unwrap();
        let got = prefilled(&engine);
        assert_eq!(got.1, want.1, "library: {library}");
        assert_close("keys and values", &got.0, &wide(&want.0), 1e-3, 0.0);
        assert!(library || bits(&got.0) == bits(&want.0));
    }
}

#[test]
fn encoded_prefixes_are_those_of_the_kernels() {
    let Some(golden) = shared().map(|shared| shared.join("golden/500x")) else {
        return;
    };
    let encoded = |engine: &Engine| -> Vec<f32> {
        let adapter = engine
            .prefixes()
            .adapter(&golden.join("tiny-adapter-qv"))
            .unwrap();
        let source = Source::ids((3..40).collect());
        let prefix = engine
            .prefixes()
            .encode(&adapter, &source, &EncodeOptions::default())
            .unwrap();
        let layers = (0..prefix.shape().layers).map(|layer| prefix.layer(layer).unwrap().concat());
        layers.flatten().collect()
    };
    let Some(direct) = direct(Precision::F32) else {
        return;
    };
    let want = encoded(
        &Engine::builder(golden.join("tiny"))
            .build_on(direct)
            .unwrap(),
    );
    for library in [false, true] {
        let Some(place) = Place::new(90) else { return };
        let engine = Engine::builder(golden.join("tiny"))
            .build_on(place.gpu(Precision::F32, library))
            .unwrap();
        let got = encoded(&engine);
        assert_close("keys and values", &got, &wide(&want), 1e-3, 0.0);
        assert!(library || bits(&got) == bits(&want));
    }
}

/// Whether this program embeds kernels: the program can open no device otherwise.
fn embedded(place: &Place) -> bool {
    match prefold::gpu::Cuda::open(place.index) {
        Ok(_) => true,
        Err(error) if error.to_string().contains("no kernels in it") => {
            crate::common::say(
                "skipped: the program on the stand-in driver, as nvcc was not found",
            );
            false
        }
        Err(error) => panic!("{error}"),
    }
}

/// The program on its stand-in, by LD_LIBRARY_PATH: exit code, output, errors.
fn program(arguments: &[&str], fault: &str) -> (Option<i32>, String, String) {
    let (driver, kernels) = libraries().unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_prefold"))
        .args(arguments)
        .env("LD_LIBRARY_PATH", driver)
        .env("STAND_IN_KERNELS", kernels)
        .env("STAND_IN_FAIL", fault)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (done.status.code(), text(done.stdout), text(done.stderr))
}

#[test]
fn the_program_runs_on_a_device() {
    let Some(place) = Place::new(90) else { return };
    if !embedded(&place) {
        return;
    }
    let folder = folder(Family::Llama);
    let model = folder.path().display().to_string();
    let out = |name: &str| folder.path().join(name).display().to_string();
    let ids = format!("{:?}", (0..40).map(|i| i * 31 % VOCAB).collect::<Vec<_>>());
    let read = |prefix: &str, device: &str| {
        let (code, _, err) = program(
            &[
                "prefill",
                "--ids",
                &ids,
                "-m",
                &model,
                "-o",
                prefix,
                "--precision",
                "f32",
                "--device",
                device,
            ],
            "",
        );
        assert_eq!(code, Some(0), "{device}: {err}");
        let arguments = [
            "generate",
            "--json",
            "--ignore-eos",
            "-n",
            "8",
            "-m",
            &model,
            "-p",
            prefix,
        ];
        let more = [
            "--prompt-ids",
            "[7, 8]",
            "--precision",
            "f32",
            "--device",
            device,
        ];
        let (code, told, err) = program(&[&arguments[..], &more].concat(), "");
        assert_eq!(code, Some(0), "{device}: {err}");
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        told["ids"].clone()
    };
    assert_eq!(read(&out("cuda"), "cuda"), read(&out("cpu"), "cpu"));
    // What fails is one line, and nothing is left of the output.
    for fault in [
        "cuInit:1:999",
        "cuModuleLoadData:3:200",
        "cuMemAllocFromPoolAsync:20:2",
        "cuLaunchKernel:9:719",
    ] {
        let out = out("failed");
        let (code, told, err) = program(
            &[
                "prefill", "--ids", &ids, "-m", &model, "-o", &out, "--device", "cuda",
            ],
            fault,
        );
        assert_eq!(
            (code, told.as_str(), err.lines().count()),
            (Some(1), "", 1),
            "{fault}: {err}"
        );
        assert!(
            err.starts_with("prefold: ") && err.contains("cuda:0"),
            "{fault}: {err}"
        );
        assert!(!Path::new(&out).exists(), "{fault}");
    }
    assert!(place.open().unwrap().processors() > 0);
}
