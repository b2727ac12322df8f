//! ICAE's published weights: a checkpoint of their layout against the values of a script of its own
//! (`tests/data/make_icae_public.py`).

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::TempDir;
use crate::common::compare::assert_close;
use prefold::model::decoder::Input;
use prefold::prefix::{EncodeOptions, Method, Query, Sampling, Source};
use prefold::train::parameters::Parameters;
use prefold::{Device, Engine};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/icae_public")
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(folder().join("golden.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().unwrap();
    list.iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Exit code and standard error of `prefold import`.
fn import(checkpoint: &Path, out: &Path, more: &[&str]) -> (Option<i32>, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_prefold"))
        .arg("import")
        .arg(checkpoint)
        .arg("-o")
        .arg(out)
        .args(more)
        .output()
        .unwrap();
    assert!(done.stdout.is_empty());
    (done.status.code(), String::from_utf8(done.stderr).unwrap())
}

fn engine() -> Engine {
    let builder = Engine::builder(folder()).device(Device::Cpu);
    builder.build().unwrap()
}

/// An adapter's folder for each of the three purposes.
fn imported(task: &str, golden: &Value) -> (TempDir, PathBuf) {
    let dir = TempDir::new();
    let out = dir.path().join("adapter");
    let (alpha, rate) = (
        golden["alpha"].to_string(),
        golden["compression"].to_string(),
    );
    let head = golden["head"].to_string();
    let mut more = vec!["--task", task, "--alpha", &alpha, "--compression", &rate];
    if task == "qa" {
        more.extend(["--decoder-begin", &head]);
    }
    let (code, said) = import(&folder().join("icae.safetensors"), &out, &more);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("4 memory tokens for pieces of 16 tokens"),
        "{said}"
    );
    (dir, out)
}

#[test]
fn prefixes_and_continuations_are_those_of_the_published_code() {
    let (golden, engine) = (golden(), engine());
    let mut worst = 0.0f64;
    for task in ["regen", "continue", "qa"] {
        let want = &golden[task];
        let (_dir, out) = imported(task, &golden);
        let adapter = engine.prefixes().adapter(&out).unwrap();
        assert_eq!(adapter.num_mem(), 4);
        let encode = |text: Vec<u32>| {
            let prefixes = engine.prefixes();
            let made = prefixes.encode(&adapter, &Source::ids(text), &EncodeOptions::default());
            made.unwrap()
        };
        let prefix = encode(ids(&golden["text"]));
        assert_eq!(prefix.origin().method, Method::Icae);
        assert_eq!(prefix.origin().pieces, 3);
        let rows = want["rows"].as_u64().unwrap() as usize;
        assert_eq!((prefix.shape().tokens, prefix.next_pos()), (rows, rows));
        let layers = want["layers"].as_array().unwrap();
        assert_eq!(layers.len(), prefix.shape().layers);
        for (i, sides) in layers.iter().enumerate() {
            for (side, got) in prefix.layer(i).unwrap().iter().enumerate() {
                let list = sides[side].as_array().unwrap();
                let want: Vec<f64> = list.iter().map(|x| x.as_f64().unwrap()).collect();
                let what = format!("{task}: {} of layer {i}", ["k", "v"][side]);
                worst = worst.max(assert_close(&what, got, &want, 2e-5, 1e-5));
            }
        }
        let prompt = ids(&golden["prompts"][task]);
        let query = Query {
            prefix: Some(&prefix),
            prompt: match task {
                "regen" => Input::Embeddings(adapter.begin().unwrap()),
                _ => Input::Ids(&prompt),
            },
            gold: &[],
        };
        assert_eq!(adapter.begin().is_some(), task == "regen");
        let sampling = Sampling {
            max_new_tokens: 12,
            ignore_eos: true,
            ..Sampling::default()
        };
        let mut each = |_, _| ControlFlow::Continue(());
        let made = engine
            .prefixes()
            .answer(&[query], &sampling, &mut each)
            .unwrap();
        assert_eq!(made[0].generated.ids, ids(&want["greedy"]), "{task}");

        // A text that has its BOS already gets no second one, and the id of a prefix is known beforehand.
        let with_bos = [vec![1], ids(&golden["text"])].concat();
        let again = encode(with_bos.clone());
        assert_eq!(again.layer(0), prefix.layer(0));
        let foretold = engine.prefixes().encoded_id(
            &adapter,
            &Source::ids(with_bos),
            &EncodeOptions::default(),
        );
        assert_eq!(foretold.unwrap(), again.content_id());
        // The other methods have no place for what stands around the memory tokens.
        let options = EncodeOptions {
            method: Some(Method::FiveHundredX),
            ..EncodeOptions::default()
        };
        let other = engine.prefixes();
        let other = other.encode(&adapter, &Source::ids(ids(&golden["text"])), &options);
        assert_eq!(other.is_err(), task != "regen", "{task}");
        // What stands around the memory tokens is not trained.
        let error = Parameters::open(&out, engine_config(), true).unwrap_err();
        assert!(error.to_string().contains("_"), "{error}");
    }
    eprintln!("values differ by at most {worst:.1e}");
}

#[test]
fn pooled_states_are_the_means_of_windows() {
    let (golden, engine) = (golden(), engine());
    let (_dir, out) = imported("regen", &golden);
    let settings = |text: &str| std::fs::write(out.join("prefold.json"), text).unwrap();
    for name in ["ae_embedding", "memory_embeddings"] {
        std::fs::remove_file(out.join(format!("{name}.safetensors"))).unwrap();
    }
    settings("{\"method\": \"pooled\", \"memory_tokens\": 5, \"nested\": true}");
    let adapter = engine.prefixes().adapter(&out).unwrap();
    let prefixes = engine.prefixes();
    let encode = |adapter: &prefold::Adapter, text: Vec<u32>| {
        let made = prefixes.encode(adapter, &Source::ids(text), &EncodeOptions::default());
        made.unwrap()
    };
    let text = ids(&golden["text"]);
    let prefix = encode(&adapter, text.clone());
    assert_eq!(prefix.origin().method, Method::Pooled);
    assert_eq!((prefix.shape().tokens, prefix.next_pos()), (5, 5));
    for (i, sides) in golden["pooled"]["layers"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
    {
        for (side, got) in prefix.layer(i).unwrap().iter().enumerate() {
            let list = sides[side].as_array().unwrap();
            let want: Vec<f64> = list.iter().map(|x| x.as_f64().unwrap()).collect();
            let what = format!("{} of layer {i}", ["k", "v"][side]);
            assert_close(&what, got, &want, 2e-5, 1e-5);
        }
    }

    // A vector a token where there are fewer of these; several texts and pieces in one pass are the same.
    assert_eq!(encode(&adapter, vec![3, 4]).shape().tokens, 2);
    let options = EncodeOptions {
        piece_tokens: Some(7),
        ..EncodeOptions::default()
    };
    let sources = [Source::ids(text), Source::ids(vec![9, 8, 7, 6])];
    let batched = prefixes.encode_many(&adapter, &sources, &options).unwrap();
    assert_eq!(batched[0].shape().tokens, 5 * 5);
    assert_eq!(batched[1].shape().tokens, 4);
    for (source, made) in sources.iter().zip(&batched) {
        let alone = prefixes.encode(&adapter, source, &options).unwrap();
        for i in 0..alone.shape().layers {
            let sides = alone.layer(i).unwrap().iter().zip(made.layer(i).unwrap());
            for (alone, made) in sides {
                let want: Vec<f64> = alone.iter().map(|&x| f64::from(x)).collect();
                assert_close("batched", made, &want, 1e-5, 1e-5);
            }
        }
        let foretold = prefixes.encoded_id(&adapter, source, &options).unwrap();
        assert_eq!(foretold, made.content_id());
    }
    let few = adapter.clone().first(2).unwrap();
    let id = adapter.id().to_owned();
    assert_eq!((few.num_mem(), few.id()), (2, id.as_str()));
    assert_eq!(encode(&few, vec![3, 4, 5]).shape().tokens, 2);

    // It is not another method's, and says how many vectors there are.
    for method in [Method::Icae, Method::Prefill] {
        let options = EncodeOptions {
            method: Some(method),
            ..EncodeOptions::default()
        };
        let error = prefixes
            .encode(&adapter, &sources[0], &options)
            .unwrap_err();
        assert!(error.to_string().starts_with("method"), "{error}");
    }
    for count in ["", ", \"memory_tokens\": 0", ", \"memory_tokens\": 9999"] {
        settings(&format!("{{\"method\": \"pooled\"{count}}}"));
        let error = engine.prefixes().adapter(&out).unwrap_err().to_string();
        assert!(
            error.contains("prefold.json") && error.contains("memory"),
            "{error}"
        );
    }
    settings("{\"method\": \"prefill\"}");
    let error = engine.prefixes().adapter(&out).unwrap_err().to_string();
    assert!(error.contains("not one of 500xcompressor"), "{error}");
}

fn engine_config() -> &'static prefold::model::config::Config {
    use std::sync::OnceLock;
    static CONFIG: OnceLock<prefold::model::config::Config> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let weights = prefold::model::weights::Weights::open(&folder()).unwrap();
        weights.config().clone()
    })
}

/// The checkpoint without the tensors that `keep` turns down, and with others.
fn changed(
    keep: impl Fn(&str) -> bool,
    others: &[(&str, Vec<usize>, safetensors::Dtype)],
) -> Vec<u8> {
    let bytes = std::fs::read(folder().join("icae.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let kept = file
        .tensors()
        .into_iter()
        .filter(|(name, _)| keep(name))
        .map(|(name, view)| {
            (
                name,
                view.dtype(),
                view.shape().to_vec(),
                view.data().to_vec(),
            )
        });
    let added = others.iter().map(|(name, shape, dtype)| {
        let count: usize = shape.iter().product();
        let data = vec![0u8; count * dtype.bitsize() / 8];
        ((*name).to_owned(), *dtype, shape.clone(), data)
    });
    let all: Vec<_> = kept.chain(added).collect();
    let views = all.iter().map(|(name, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape.clone(), data).unwrap();
        (name.as_str(), view)
    });
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn what_is_not_of_the_layout_is_refused_in_one_line() {
    use safetensors::Dtype::{F32, I32};
    let dir = TempDir::new();
    let table = "memory_token_embed.weight";
    let q = "icae.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight";
    let (q_b, far) = (
        q.replace("lora_A", "lora_B"),
        q.replace("layers.0", "layers.18446744073709551615"),
    );
    let cases: [(&str, Vec<u8>); 10] = [
        ("without", changed(|n| n != q_b, &[])),
        (
            "but the rows of memory_token_embed.weight have 16 values",
            changed(|n| n != q, &[(q, vec![3, 100], F32)]),
        ),
        (
            "fewer than 4096 layers",
            changed(|_| true, &[(far.as_str(), vec![3, 16], F32)]),
        ),
        ("no tensor memory_token_embed", changed(|n| n != table, &[])),
        (
            "expected a row for each memory token",
            changed(|n| n != table, &[(table, vec![3, 16], F32)]),
        ),
        ("no LoRA", changed(|n| !n.contains("lora"), &[])),
        (
            "another rank",
            changed(|n| n != q, &[(q, vec![2, 16], F32)]),
        ),
        (
            "not a matrix",
            changed(|n| n != q, &[(q, vec![3, 16, 1], F32)]),
        ),
        (
            "a tensor of I32",
            changed(|n| n != q, &[(q, vec![3, 16], I32)]),
        ),
        (
            "lora_A and lora_B of q",
            changed(
                |_| true,
                &[(
                    "icae.base_model.model.lm_head.lora_A.default.weight",
                    vec![3, 16],
                    F32,
                )],
            ),
        ),
    ];
    for (i, (says, bytes)) in cases.iter().enumerate() {
        let file = dir.write(&format!("{i}.safetensors"), bytes);
        let out = dir.path().join(format!("out{i}"));
        let (code, said) = import(&file, &out, &["--task", "regen"]);
        assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains(says), "{said:?} does not say {says:?}");
        assert!(!out.exists());
    }
    let good = folder().join("icae.safetensors");
    for (more, code, says) in [
        (&["--task", "regen", "--alpha", "0"][..], 1, "--alpha 0"),
        (
            &["--task", "regen", "--compression", "0"],
            1,
            "--compression 0",
        ),
        (
            &["--task", "regen", "--compression", "99999999999999"],
            1,
            "--compression 99999999999999: expected 1 to 1024",
        ),
        (
            &["--task", "qa", "--decoder-begin", "x"],
            2,
            "--decoder-begin",
        ),
    ] {
        let (got, said) = import(&good, &dir.path().join("none"), more);
        assert_eq!((got, said.lines().count()), (Some(code), 1), "{said}");
        assert!(said.contains(says), "{said}");
    }
    let pickled = dir.write("a.pt", "x");
    let (code, said) = import(&pickled, &dir.path().join("none"), &["--task", "qa"]);
    assert_eq!(code, Some(2), "{said}");
    let (code, said) = import(&good, dir.path(), &["--task", "qa"]);
    assert!(
        code == Some(1) && said.contains("is there already"),
        "{said}"
    );

    // The default of --task qa is Mistral's, whose ids this vocabulary does not have.
    let out = dir.path().join("mistral");
    assert_eq!(import(&good, &out, &["--task", "qa"]).0, Some(0));
    let error = engine().prefixes().adapter(&out).unwrap_err().to_string();
    assert!(error.contains("decoder_begin"), "{error}");
    std::fs::write(out.join("prefold.json"), "{\"method\": \"500xcompressor\"}").unwrap();
    let error = engine().prefixes().adapter(&out).unwrap_err().to_string();
    assert!(error.contains("for the method icae"), "{error}");
}
