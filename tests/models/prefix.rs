//! KV prefixes: the encoder and the decoder conditioned on it against the reference, and the file.

use crate::common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::common::TempDir;
use crate::common::compare::assert_close;
use prefold::cpu::Cpu;
use prefold::model::Model;
use prefold::model::config::Config;
use prefold::model::decoder::Input;
use prefold::model::lora::{Lora, LoraWeights};
use prefold::model::weights::Weights;
use prefold::prefix::llama_cpp::{Layout, Slot};
use prefold::prefix::{Dtype, KRope, KvPrefix, Method, Placeholder, transformers, vllm};
use prefold::soft::{EncodeOptions, Finish, PrefillOptions, Sampling, Source};
use prefold::{Control, Device, Engine, Error};
use safetensors::SafeTensors;
use serde_json::Value;

/// The golden values of 500xCompressor, or a line that says what is skipped.
fn golden() -> Option<PathBuf> {
    let found = common::shared().map(|shared| shared.join("golden/500x"));
    if found.is_none() {
        eprintln!("skipped: no golden values beside the crate");
    }
    found
}

fn open(path: &Path) -> Engine {
    Engine::builder(path).device(Device::Cpu).build().unwrap()
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().unwrap();
    list.iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let bytes = file.tensor(name).unwrap().data().as_chunks::<4>().0;
    bytes
        .iter()
        .map(|&b| f32::from_le_bytes(b).into())
        .collect()
}

fn generate(engine: &Engine, prefix: Option<&KvPrefix>, prompt: &[u32], n: usize) -> Vec<u32> {
    let options = Sampling {
        max_new_tokens: n,
        ignore_eos: true,
        ..Sampling::default()
    };
    let mut heard = Vec::new();
    let made = engine
        .prefixes()
        .generate(prefix, prompt, &options, &mut |id| {
            heard.push(id);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(heard, made.ids);
    assert_eq!(made.logprobs.len(), made.ids.len());
    // What is taken is at least as likely as any other.
    let even = -(engine.info().vocab as f32).ln();
    assert!(made.logprobs.iter().all(|&l| l > even && l < 1e-6));
    made.ids
}

/// Holds every K and V to the golden ones.
fn check_values(prefix: &KvPrefix, file: &SafeTensors<'_>, atol: f64) {
    let mut worst = 0.0f64;
    for i in 0..prefix.shape().layers {
        for (name, got) in ["k", "v"].iter().zip(prefix.layer(i).unwrap()) {
            let want = floats(file, &format!("prefix.{i}.{name}"));
            let what = format!("{name} of layer {i}");
            worst = worst.max(assert_close(&what, got, &want, atol, 0.0));
        }
    }
    eprintln!("prefix values differ by at most {worst:.1e}");
}

#[test]
fn tiny_adapters_agree_with_the_reference() {
    let Some(golden) = golden() else { return };
    let path = golden.join("tiny");
    let engine = open(&path);
    let model = Model::load(Cpu::new(), &Weights::open(&path).unwrap()).unwrap();
    for name in ["qv", "all"] {
        let facts = json(golden.join(format!("tiny-{name}.golden.json")));
        let bytes = std::fs::read(golden.join(format!("tiny-{name}.golden.safetensors"))).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let adapter = engine
            .prefixes()
            .adapter(&golden.join(format!("tiny-adapter-{name}")))
            .unwrap();
        let text = ids(&facts["ids"][0]);
        let source = Source::ids(text.clone());
        let prefix = engine
            .prefixes()
            .encode(&adapter, &source, &EncodeOptions::default())
            .unwrap();
        assert_eq!(prefix.shape().tokens, 3);
        assert_eq!(prefix.positions(), [20, 21, 22]);
        assert_eq!(prefix.next_pos(), 3);
        assert_eq!(prefix.origin().source_tokens, 20);
        check_values(&prefix, &file, 1e-5);

        // The decoder on BOS and the text.
        let mut prompt = vec![1];
        prompt.extend(&text);
        let mut kv = model.begin(&prefix).unwrap();
        let hidden = model
            .forward_adapted(Input::Ids(&prompt), None, &mut kv)
            .unwrap();
        let want = floats(&file, "decode_logits");
        let worst = assert_close("logits", &hidden.logits().unwrap(), &want, 1e-4, 0.0);
        eprintln!("{name}: logits differ by at most {worst:.1e}");
        drop(hidden);

        let want = ids(&facts["greedy_from_bos"]);
        assert_eq!(generate(&engine, Some(&prefix), &[1], want.len()), want);
        // The same when K's rotation is undone in between.
        let plain = prefix.clone().with_k_rope(KRope::None).unwrap();
        assert_ne!(plain.layer(0), prefix.layer(0));
        assert_eq!(generate(&engine, Some(&plain), &[1], want.len()), want);
    }
}

#[test]
fn smollm2_agrees_with_the_reference() {
    let Some(golden) = golden() else { return };
    let Some(path) = common::smollm2() else {
        eprintln!("skipped: no SmolLM2; `make model` fetches it");
        return;
    };
    let engine = open(&path);
    let facts = json(golden.join("smollm2.golden.json"));
    let bytes = std::fs::read(golden.join("smollm2.golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let adapter = engine
        .prefixes()
        .adapter(&golden.join("smollm2-adapter"))
        .unwrap();
    let text = facts["text"].as_str().unwrap();
    let encoded = engine.tokenizer().unwrap().encode(text, false, false);
    let text_ids = encoded.unwrap().ids;
    assert_eq!(text_ids, ids(&facts["ids"]));
    let source = Source::text(text, text_ids.clone());
    let prefix = engine
        .prefixes()
        .encode(&adapter, &source, &EncodeOptions::default())
        .unwrap();
    // Keys of SmolLM2 reach 30.
    check_values(&prefix, &file, 2e-3);
    let want = ids(&facts["greedy_from_bos"]);
    assert_eq!(generate(&engine, Some(&prefix), &[1], want.len()), want);

    let model = Model::load(Cpu::new(), &Weights::open(&path).unwrap()).unwrap();
    let mut prompt = vec![1];
    prompt.extend(&text_ids);
    let mut kv = model.begin(&prefix).unwrap();
    let hidden = model
        .forward_adapted(Input::Ids(&prompt), None, &mut kv)
        .unwrap();
    let logits = hidden.logits().unwrap();
    let vocab = model.config().vocab;
    let logprobs: Vec<f32> = logits
        .chunks(vocab)
        .zip(&text_ids)
        .map(|(row, &target)| {
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            row[target as usize] - sum.ln() as f32
        })
        .collect();
    let want = floats(&file, "decode_logprobs");
    let worst = assert_close("logprobs", &logprobs, &want, 1e-3, 0.0);
    eprintln!("log-probabilities differ by at most {worst:.1e}");
}

/// The tiny model with its adapter, and a text's ids.
fn tiny(golden: &Path) -> (Engine, prefold::soft::Adapter, Vec<u32>) {
    let engine = open(&golden.join("tiny"));
    let adapter = engine
        .prefixes()
        .adapter(&golden.join("tiny-adapter-all"))
        .unwrap();
    let facts = json(golden.join("tiny-all.golden.json"));
    let text = ids(&facts["ids"][0]);
    (engine, adapter, text)
}

#[test]
fn long_texts_become_runs_of_memory_tokens() {
    let Some(golden) = golden() else { return };
    let (engine, adapter, text) = tiny(&golden);
    let options = EncodeOptions {
        piece_tokens: Some(7),
        ..EncodeOptions::default()
    };
    let whole = engine
        .prefixes()
        .encode(&adapter, &Source::ids(text.clone()), &options)
        .unwrap();
    assert_eq!(whole.origin().pieces, 3);
    assert_eq!(whole.shape().tokens, 9);
    assert_eq!(whole.positions(), [7, 8, 9, 7, 8, 9, 6, 7, 8]);
    assert_eq!(whole.next_pos(), 9);
    let d = whole.shape().head_dim;
    for (run, range) in [0..7, 7..14, 14..20].into_iter().enumerate() {
        let piece = Source::ids(text[range].to_vec());
        let part = engine
            .prefixes()
            .encode(&adapter, &piece, &EncodeOptions::default())
            .unwrap();
        for layer in 0..3 {
            for (whole, part) in whole
                .layer(layer)
                .unwrap()
                .iter()
                .zip(part.layer(layer).unwrap())
            {
                for head in 0..2 {
                    let got = &whole[(head * 9 + 3 * run) * d..][..3 * d];
                    assert_eq!(got, &part[head * 3 * d..][..3 * d]);
                }
            }
        }
    }
    for (piece, room) in [(0, false), (509, true), (510, false)] {
        let options = EncodeOptions {
            piece_tokens: Some(piece),
            ..EncodeOptions::default()
        };
        let made = engine
            .prefixes()
            .encode(&adapter, &Source::ids(text.clone()), &options);
        assert_eq!(made.is_ok(), room, "{piece}");
    }
    let empty = engine
        .prefixes()
        .encode(&adapter, &Source::ids(vec![]), &options);
    assert!(matches!(empty, Err(Error::Input { .. })));
    let outside = engine
        .prefixes()
        .encode(&adapter, &Source::ids(vec![512]), &options);
    assert!(matches!(outside, Err(Error::Input { .. })));
}

#[test]
fn icae_reads_output_states_as_embeddings() {
    let Some(golden) = golden() else { return };
    let (engine, adapter, text) = tiny(&golden);
    let options = EncodeOptions {
        method: Some(Method::Icae),
        ..EncodeOptions::default()
    };
    let prefix = engine
        .prefixes()
        .encode(&adapter, &Source::ids(text.clone()), &options)
        .unwrap();
    assert_eq!(prefix.origin().method, Method::Icae);
    assert_eq!(prefix.positions(), [0, 1, 2]);

    // By hand: the encoder's states, then embeddings and prompt through the decoder in one go.
    let path = golden.join("tiny");
    let weights = Weights::open(&path).unwrap();
    let model = Model::load(Cpu::new(), &weights).unwrap();
    let folder = golden.join("tiny-adapter-all");
    let lora = LoraWeights::open(&folder, weights.config()).unwrap();
    let lora = Lora::load(model.backend(), model.config(), &lora).unwrap();
    let memory = std::fs::read(folder.join("memory_embeddings.safetensors")).unwrap();
    let memory = SafeTensors::deserialize(&memory).unwrap();
    let memory: Vec<f32> = floats(&memory, "memory_embeddings")
        .iter()
        .map(|&x| x as f32)
        .collect();
    let mut kv = model.kv().unwrap();
    let text = Input::Ids(&text);
    drop(model.forward_adapted(text, Some(&lora), &mut kv).unwrap());
    kv.commit(20).unwrap();
    let states = model
        .forward_adapted(Input::Embeddings(&memory), Some(&lora), &mut kv)
        .unwrap()
        .states()
        .unwrap();
    let mut kv = model.kv().unwrap();
    let states = Input::Embeddings(&states);
    drop(model.forward_adapted(states, None, &mut kv).unwrap());
    kv.commit(3).unwrap();
    let prompt = [273, 432, 28];
    let want = model
        .forward_adapted(Input::Ids(&prompt), None, &mut kv)
        .unwrap()
        .logits()
        .unwrap();
    let mut kv = model.begin(&prefix).unwrap();
    let got = model
        .forward_adapted(Input::Ids(&prompt), None, &mut kv)
        .unwrap()
        .logits()
        .unwrap();
    assert_eq!(got, want);
}

#[test]
fn a_prefilled_text_continues_as_if_it_had_been_read() {
    let Some(golden) = golden() else { return };
    let models = golden.join("../models");
    let text: Vec<u32> = (0..40).map(|i| (i * 31 + 7) % 250).collect();
    for family in ["llama3", "qwen2", "qwen3", "gpt2", "mistral"] {
        let engine = open(&models.join(family));
        let (head, tail) = text.split_at(30);
        let prefix = engine
            .prefixes()
            .prefill(&Source::ids(head.to_vec()), &PrefillOptions::default())
            .unwrap();
        let want = generate(&engine, None, &text, 12);
        assert_eq!(generate(&engine, Some(&prefix), tail, 12), want, "{family}");
        // And through a file, with K unrotated.
        let folder = TempDir::new();
        let path = folder.path().join("p.safetensors");
        match prefix.clone().with_k_rope(KRope::None) {
            Ok(plain) => {
                plain.write(&path, Dtype::F32).unwrap();
                let (read, dtype) = KvPrefix::read(&path).unwrap();
                assert_eq!((&read, dtype), (&plain, Dtype::F32));
                assert_eq!(generate(&engine, Some(&read), tail, 12), want);
            }
            Err(error) => assert!(family == "gpt2", "{error}"),
        }
    }
}

#[test]
fn generation_stops_where_it_should() {
    let Some(golden) = golden() else { return };
    let (engine, _, text) = tiny(&golden);
    let run = |options: &Sampling, stop: usize| {
        let mut seen = 0;
        engine
            .prefixes()
            .generate(None, &text, options, &mut |_| {
                seen += 1;
                match seen == stop {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            })
            .unwrap()
    };
    let mut options = Sampling {
        max_new_tokens: 2000,
        ignore_eos: true,
        ..Sampling::default()
    };
    let full = run(&options, 0);
    // The last token needs no position of its own.
    assert_eq!(
        (full.ids.len(), full.finish),
        (512 - 20 + 1, Finish::Context)
    );
    let stopped = run(&options, 5);
    assert_eq!(
        (&stopped.ids[..], stopped.finish),
        (&full.ids[..5], Finish::Stopped)
    );
    options.max_new_tokens = 0;
    let none = run(&options, 0);
    assert_eq!((none.ids.len(), none.finish), (0, Finish::Length));
    // Sampling is a matter of the seed, and meets the end of a text sooner or later.
    options = Sampling {
        max_new_tokens: 400,
        temperature: 3.0,
        seed: 3,
        ..Sampling::default()
    };
    let one = run(&options, 0);
    assert_eq!(one.ids, run(&options, 0).ids);
    assert!(!one.ids.contains(&2));
    options.seed = 4;
    assert_ne!(one.ids, run(&options, 0).ids);
    let ended = (0..40).any(|seed| {
        options.seed = seed;
        run(&options, 0).finish == Finish::Eos
    });
    assert!(ended);
    let empty = engine
        .prefixes()
        .generate(None, &[], &options, &mut |_| ControlFlow::Continue(()));
    assert!(matches!(empty, Err(Error::Input { .. })));
}

#[test]
fn a_prefix_of_another_model_is_refused_by_both_names() {
    let Some(golden) = golden() else { return };
    let (engine, adapter, text) = tiny(&golden);
    let prefix = engine
        .prefixes()
        .encode(&adapter, &Source::ids(text), &EncodeOptions::default())
        .unwrap();
    let other = open(&golden.join("../models/llama3"));
    let error = other
        .prefixes()
        .generate(Some(&prefix), &[1], &Sampling::default(), &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap_err()
        .to_string();
    assert!(error.contains("tiny (llama,"), "{error}");
    assert!(error.contains("llama3 (llama,"), "{error}");
    // Nor does another model's adapter fit.
    assert!(
        other
            .prefixes()
            .adapter(&golden.join("tiny-adapter-all"))
            .is_err()
    );
    assert!(
        other
            .prefixes()
            .encode(&adapter, &Source::ids(vec![1]), &EncodeOptions::default())
            .is_err()
    );
}

#[test]
fn files_keep_what_their_type_can() {
    let Some(golden) = golden() else { return };
    let (engine, adapter, text) = tiny(&golden);
    let prefix = engine
        .prefixes()
        .encode(&adapter, &Source::ids(text), &EncodeOptions::default())
        .unwrap();
    let folder = TempDir::new();
    let path = folder.path().join("p.safetensors");
    for (dtype, rtol) in [(Dtype::F32, 0.0), (Dtype::F16, 5e-4), (Dtype::Bf16, 4e-3)] {
        prefix.write(&path, dtype).unwrap();
        assert_eq!(
            std::fs::read(&path).unwrap(),
            prefix.to_bytes(dtype).unwrap()
        );
        let (read, stored) = KvPrefix::read(&path).unwrap();
        assert_eq!(stored, dtype);
        assert_eq!(read.origin(), prefix.origin());
        assert_eq!(read.content_id(), prefix.content_id());
        for layer in 0..3 {
            for (got, want) in read
                .layer(layer)
                .unwrap()
                .iter()
                .zip(prefix.layer(layer).unwrap())
            {
                assert_close("value", got, &common::compare::wide(want), 1e-6, rtol);
            }
        }
    }
    // Only the file itself is left.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    // The reference implementation of the format reads it.
    let bytes = prefix.to_bytes(Dtype::Bf16).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("layers.2.v").unwrap().shape(), [2, 3, 16]);
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let strings = header.metadata().as_ref().unwrap();
    assert_eq!(strings["k_rope"], "applied");
    assert_eq!(strings["next_pos"], "3");
    assert_eq!(strings["model_fingerprint"], engine.info().fingerprint);
}

#[test]
fn prefixes_that_differ_have_other_ids_in_a_prompt() {
    let Some(golden) = golden() else { return };
    let (engine, adapter, text) = tiny(&golden);
    let prefixes = engine.prefixes();
    let encode = |ids: &[u32]| {
        let source = Source::ids(ids.to_vec());
        let made = prefixes.encode(&adapter, &source, &EncodeOptions::default());
        made.unwrap()
    };
    let prefix = encode(&text);
    let unique = prefix.prompt_ids(Placeholder::default());
    assert_eq!(unique.len(), prefix.shape().tokens);
    assert!(unique.iter().all(|&id| (id as usize) < engine.info().vocab));
    assert_eq!(encode(&text).prompt_ids(Placeholder::Unique), unique);
    assert_ne!(encode(&text[1..]).prompt_ids(Placeholder::Unique), unique);
    assert_eq!(prefix.prompt_ids(Placeholder::Repeated(7)), [7; 3]);

    // They follow from the file, in every host's form of it.
    let folder = TempDir::new();
    let path = folder.path().join("p.safetensors");
    prefix.write(&path, Dtype::F16).unwrap();
    let (read, dtype) = KvPrefix::read(&path).unwrap();
    assert_eq!(read.prompt_ids(Placeholder::Unique), unique);
    let slot = Slot::new(&read, &Layout::new(4).unwrap(), Placeholder::Unique).unwrap();
    assert_eq!(slot.tokens, unique);
    let out = folder.path().join("out.safetensors");
    let rotated = read.clone().with_k_rope(KRope::None).unwrap();
    for given in [read, rotated] {
        let unique_ids = Placeholder::Unique;
        let made = vllm::export(given.clone(), dtype, unique_ids, &out).unwrap();
        assert_eq!(made.tokens, unique);
        let made = transformers::export(given, dtype, unique_ids, &out).unwrap();
        assert_eq!(made.tokens, unique);
    }
    // An older file does not say how many ids there are.
    let bytes = prefix.to_bytes(Dtype::F32).unwrap();
    let at = bytes.windows(8).position(|part| part == b"\"vocab\":");
    let mut older = bytes.clone();
    older[at.unwrap() + 1] = b'w';
    let (older, _) = KvPrefix::read(&folder.write("older", older)).unwrap();
    assert_eq!(older.prompt_ids(Placeholder::Unique), [0; 3]);
    // A text whose every token has its row is known by its own ids.
    let read = prefixes.prefill(&Source::ids(text.clone()), &PrefillOptions::default());
    assert_eq!(read.unwrap().prompt_ids(Placeholder::Unique), text);
}

#[test]
fn damaged_prefixes_are_refused_in_one_line() {
    let Some(golden) = golden() else { return };
    let (engine, adapter, text) = tiny(&golden);
    let prefix = engine
        .prefixes()
        .encode(&adapter, &Source::ids(text), &EncodeOptions::default())
        .unwrap();
    let bytes = prefix.to_bytes(Dtype::F32).unwrap();
    let folder = TempDir::new();
    let refused = |bytes: &[u8]| {
        let path = folder.write("bad.safetensors", bytes);
        let error = KvPrefix::read(&path).expect_err("read what is damaged");
        let line = error.to_string();
        assert!(matches!(error, Error::Format { .. }), "{line}");
        assert!(line.contains("bad.safetensors") && !line.contains(char::is_control));
        line
    };
    for length in [0, 1, 7, 8, 9, 100, bytes.len() - 1] {
        refused(&bytes[..length]);
    }
    let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let text = std::str::from_utf8(&bytes[8..8 + header]).unwrap();
    let edited = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        let text = text.replace(from, to);
        let mut out = (text.len() as u64).to_le_bytes().to_vec();
        out.extend(text.as_bytes());
        out.extend(&bytes[8 + header..]);
        out
    };
    for (from, to, why) in [
        ("prefold-kv", "another\\nkv", "format is another"),
        (
            r#""format_version":"1""#,
            r#""format_version":"2""#,
            "not 1",
        ),
        (r#""next_pos":"3""#, r#""next_pos":"-3""#, "next_pos"),
        (r#""next_pos":"3""#, r#""next_pos":"2""#, "position"),
        (r#""next_pos":"3""#, r#""next_pos":"99999999""#, "position"),
        (r#""k_rope":"applied""#, r#""k_rope":"maybe""#, "k_rope"),
        (r#""rope_dim":"16""#, r#""rope_dim":"18""#, "heads of 16"),
        (r#""rope_theta":"10000""#, r#""rope_theta":"-1""#, "rotated"),
        (
            r#""rope_pairing":"half""#,
            r#""rope_pairing":"x""#,
            "pairing",
        ),
        (
            r#""model_fingerprint""#,
            r#""fingerprint""#,
            "model_fingerprint",
        ),
        (r#""I32","shape":[3]"#, r#""F32","shape":[3]"#, "not i32"),
        ("layers.1.k", "layers.7.k", "layers.1.k"),
        ("[2,3,16]", "[3,2,16]", "position"),
        ("[2,3,16]", "[3,32]", "not [kv_heads"),
    ] {
        let line = refused(&edited(from, to));
        assert!(line.contains(why), "{line}");
    }
    let last = bytes.len() - 4;
    let mut damaged = bytes.clone();
    damaged[last] ^= 1;
    assert!(refused(&damaged).contains("SHA-256"));
    // NaN, in a file that does not say what its data are.
    let mut bytes = edited("data_sha256", "data_sha255");
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(refused(&bytes).contains("finite"));
    // No byte of the header can make it panic.
    let mut random = common::Random(1);
    for _ in 0..2000 {
        let mut bytes = bytes.clone();
        bytes[last..].copy_from_slice(&1f32.to_le_bytes());
        for _ in 0..=random.below(3) {
            let at = random.below(8 + header + 12);
            bytes[at] = random.next() as u8;
        }
        let path = folder.write("bad.safetensors", &bytes);
        if let Ok((read, _)) = KvPrefix::read(&path) {
            let _ = read.with_k_rope(KRope::None);
        }
    }
}

#[test]
fn damaged_adapters_are_refused_in_one_line() {
    let Some(golden) = golden() else { return };
    let source = golden.join("tiny-adapter-all");
    let weights = Weights::open(&golden.join("tiny")).unwrap();
    let config: &Config = weights.config();
    let attempt = |file: &str, edit: &dyn Fn(&[u8]) -> Vec<u8>| {
        let folder = TempDir::new();
        for name in [
            "adapter_config.json",
            "adapter_model.safetensors",
            "memory_embeddings.safetensors",
        ] {
            folder.write(name, std::fs::read(source.join(name)).unwrap());
        }
        let before = std::fs::read(folder.path().join(file)).unwrap_or_default();
        folder.write(file, edit(&before));
        prefold::soft::Adapter::open(folder.path(), config)
    };
    let replaced = |from: &'static str, to: &'static str| {
        move |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            assert!(text.contains(from), "{from}");
            text.replace(from, to).into_bytes()
        }
    };
    const CONFIG: &str = "adapter_config.json";
    for (from, to, why) in [
        ("\"r\": 4", "\"r\": 5", "expected [5,"),
        ("\"r\": 4", "\"r\": 0", "r 0"),
        ("\"LORA\"", "\"IA3\"", "peft_type IA3"),
        ("\"use_dora\": false", "\"use_dora\": true", "use_dora"),
        ("\"bias\": \"none\"", "\"bias\": \"all\"", "bias"),
        ("\"q_proj\"", "\"fc1\"", "target module fc1"),
        ("{", "[", "not the JSON"),
    ] {
        let error = attempt(CONFIG, &replaced(from, to))
            .unwrap_err()
            .to_string();
        assert!(error.contains(why) && !error.contains('\n'), "{error}");
    }
    const MODEL: &str = "adapter_model.safetensors";
    // Of equal length, as the header's length says.
    for (from, to, why) in [
        ("layers.1.mlp.up_proj", "layers.7.mlp.up_proj", "layer 7"),
        ("layers.1.mlp.up_proj", "layers.1.mlp.uq_proj", "uq_proj"),
        (
            "layers.1.mlp.up_proj.lora_A",
            "layers.1.mlp.up_proj.lora_C",
            "lora_C",
        ),
    ] {
        let edit = |bytes: &[u8]| {
            let at = bytes.windows(from.len()).position(|w| w == from.as_bytes());
            let mut bytes = bytes.to_vec();
            bytes[at.unwrap()..][..to.len()].copy_from_slice(to.as_bytes());
            bytes
        };
        let error = attempt(MODEL, &edit).unwrap_err().to_string();
        assert!(error.contains(why) && !error.contains('\n'), "{error}");
    }
    for (settings, good) in [
        (
            r#"{"max_text_tokens": 500, "pad_to": 480, "pad_id": 2}"#,
            true,
        ),
        (r#"{"next_position": "text", "method": "icae"}"#, true),
        (r#"{"max_text_tokens": 0}"#, false),
        (r#"{"max_text_tokens": 5, "pad_to": 6}"#, false),
        (r#"{"pad_id": 512}"#, false),
        (r#"{"method": "prefill"}"#, false),
        (r#"{"methods": "icae"}"#, false),
    ] {
        let made = attempt("prefold.json", &|_| settings.into());
        assert_eq!(made.is_ok(), good, "{settings}");
    }
    let short = attempt("memory_embeddings.safetensors", &|bytes| {
        bytes[..99].to_vec()
    });
    assert!(short.is_err());
}

#[test]
fn an_adapters_settings_are_heeded() {
    let Some(golden) = golden() else { return };
    let (engine, plain, text) = tiny(&golden);
    let folder = TempDir::new();
    for name in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "memory_embeddings.safetensors",
    ] {
        let bytes = std::fs::read(golden.join("tiny-adapter-all").join(name)).unwrap();
        folder.write(name, bytes);
    }
    folder.write(
        "prefold.json",
        r#"{"max_text_tokens": 30, "pad_to": 24, "pad_id": 9, "next_position": "text"}"#,
    );
    let adapter = engine.prefixes().adapter(folder.path()).unwrap();
    let options = EncodeOptions::default();
    let padded = engine
        .prefixes()
        .encode(&adapter, &Source::ids(text.clone()), &options)
        .unwrap();
    assert_eq!(padded.positions(), [24, 25, 26]);
    assert_eq!(padded.next_pos(), 27);
    // The same as padding by hand.
    let mut longer = text.clone();
    longer.resize(24, 9);
    let by_hand = engine
        .prefixes()
        .encode(&plain, &Source::ids(longer), &options)
        .unwrap();
    assert_eq!(padded.layer(2), by_hand.layer(2));
    let twice = [text.clone(), text].concat();
    let pieces = engine
        .prefixes()
        .encode(&adapter, &Source::ids(twice), &options)
        .unwrap();
    assert_eq!(pieces.origin().pieces, 2);
}

#[test]
fn many_threads_may_use_one_engine() {
    let Some(golden) = golden() else { return };
    let (engine, all, text) = tiny(&golden);
    let qv = engine
        .prefixes()
        .adapter(&golden.join("tiny-adapter-qv"))
        .unwrap();
    let work = |n: u32| {
        let source = Source::ids(text.iter().map(|id| (id + n) % 512).collect());
        let adapter = if n.is_multiple_of(2) { &all } else { &qv };
        let prefix = engine
            .prefixes()
            .encode(adapter, &source, &EncodeOptions::default())
            .unwrap();
        let read = engine
            .prefixes()
            .prefill(&source, &PrefillOptions::default())
            .unwrap();
        let scores = engine.score(&source.ids, &Control::default()).unwrap();
        let made = generate(&engine, Some(&prefix), &[1], 6);
        let more = generate(&engine, Some(&read), &[5], 6);
        (prefix, scores, made, more)
    };
    let want: Vec<_> = (0..6).map(work).collect();
    std::thread::scope(|scope| {
        for n in 0..6 {
            let (work, want) = (&work, &want);
            scope.spawn(move || {
                for pass in 0..10 {
                    let n = (n + pass) % 6;
                    assert_eq!(work(n as u32), want[n]);
                }
            });
        }
    });
}
