//! Pruned prefixes: which keys and values are kept, and what is read after them.

use crate::common;

use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::common::compare::{assert_close, wide};
use prefold::cpu::Cpu;
use prefold::model::Model;
use prefold::model::decoder::Input;
use prefold::model::weights::Weights;
use prefold::prefix::{Dtype, KRope, KvPrefix, Method};
use prefold::soft::{KeepBy, PrefillOptions, Sampling, Source};
use prefold::{Control, Device, Engine, Error};
use serde_json::Value;

const ALL: [KeepBy; 4] = [
    KeepBy::Llmlingua,
    KeepBy::Snapkv,
    KeepBy::ExpectedAttention,
    KeepBy::Keydiff,
];

fn models() -> Option<PathBuf> {
    let found = common::shared().map(|shared| shared.join("golden/models"));
    if found.is_none() {
        eprintln!("skipped: no golden values beside the crate");
    }
    found
}

fn prune(engine: &Engine, ids: &[u32], rate: f64, by: KeepBy) -> prefold::Result<KvPrefix> {
    let options = PrefillOptions {
        keep: Some((rate, by)),
    };
    engine
        .prefixes()
        .prefill(&Source::ids(ids.to_vec()), &options)
}

fn numbers(value: &Value) -> Vec<u32> {
    let list = value.as_array().unwrap();
    list.iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn attention_keeps_what_kvpress_keeps() {
    let Some(models) = models() else { return };
    let facts: Value = serde_json::from_str(include_str!("../data/pruned.json")).unwrap();
    let ids = numbers(&facts["ids"]);
    for row in facts["rows"].as_array().unwrap() {
        let by: KeepBy = serde_json::from_value(row["by"].clone()).unwrap();
        let family = row["family"].as_str().unwrap();
        let engine = Engine::builder(models.join(family))
            .device(Device::Cpu)
            .build()
            .unwrap();
        let prefix = prune(&engine, &ids, row["keep"].as_f64().unwrap(), by).unwrap();
        let (s, mut differ) = (prefix.shape(), 0);
        for (layer, heads) in row["kept"].as_array().unwrap().iter().enumerate() {
            for (head, want) in heads.as_array().unwrap().iter().enumerate() {
                let want = numbers(want);
                assert_eq!(want.len(), s.tokens);
                let got = &prefix.positions()[(layer * s.kv_heads + head) * s.tokens..][..s.tokens];
                differ += got.iter().filter(|at| !want.contains(at)).count();
            }
        }
        assert_eq!(differ, 0, "{row:.80}");
    }
}

#[test]
fn surprisal_keeps_what_is_least_likely() {
    let Some(models) = models() else { return };
    let path = models.join("llama3");
    let engine = Engine::builder(&path).device(Device::Cpu).build().unwrap();
    let ids: Vec<u32> = (0..60).map(|i| (i * 37 + 11) % 384).collect();
    let nll = engine.score(&ids, &Control::default()).unwrap();
    let prefix = prune(&engine, &ids, 0.5, KeepBy::Llmlingua).unwrap();
    let kept = prefix.positions();
    assert_eq!((kept.len(), kept[0]), (30, 0));
    let is_kept = |at: &usize| kept.contains(&(*at as u32));
    let lowest = (1..60).filter(is_kept).map(|at| nll[at - 1]);
    let highest = (1..60).filter(|at| !is_kept(at)).map(|at| nll[at - 1]);
    assert!(lowest.fold(f32::MAX, f32::min) >= highest.fold(f32::MIN, f32::max));
}

#[test]
fn kept_rows_are_those_of_the_whole_and_what_follows_comes_after_it() {
    let Some(models) = models() else { return };
    let path = models.join("qwen3");
    let engine = Engine::builder(&path).device(Device::Cpu).build().unwrap();
    let model = Model::load(Cpu::new(), &Weights::open(&path).unwrap()).unwrap();
    let ids: Vec<u32> = (0..200).map(|i| (i * i + 3 * i + 1) % 380).collect();
    let whole = engine
        .prefixes()
        .prefill(&Source::ids(ids.clone()), &PrefillOptions::default())
        .unwrap();
    for by in ALL {
        let prefix = prune(&engine, &ids, 0.4, by).unwrap();
        let s = prefix.shape();
        assert_eq!((s.tokens, prefix.next_pos()), (80, 200));
        assert_eq!(prefix.origin().method, Method::Pruned);
        assert_eq!(
            prefix.origin().kept_by.as_deref().unwrap(),
            format!("{} 0.4", by.name())
        );
        let position = |layer: usize, head: usize, row: usize| -> usize {
            let at = match prefix.positions().len() == s.tokens {
                true => row,
                false => (layer * s.kv_heads + head) * s.tokens + row,
            };
            prefix.positions()[at] as usize
        };
        for layer in 0..s.layers {
            let (some, all) = (prefix.layer(layer).unwrap(), whole.layer(layer).unwrap());
            for (some, all) in some.iter().zip(all) {
                for head in 0..s.kv_heads {
                    for row in 0..s.tokens {
                        let at = (head * 200 + position(layer, head, row)) * s.head_dim;
                        let got = &some[(head * s.tokens + row) * s.head_dim..][..s.head_dim];
                        assert_eq!(got, &all[at..][..s.head_dim]);
                    }
                }
            }
        }
        // In the first layer K depends on token and position alone.
        let mut kv = model.begin(&prefix).unwrap();
        drop(
            model
                .forward_adapted(Input::Ids(&[7, 8]), None, &mut kv)
                .unwrap(),
        );
        kv.commit(2).unwrap();
        assert_eq!((kv.len(), kv.position()), (82, 202));
        let got = kv.gather(model.backend(), 0, &[80, 81]).unwrap().0;
        let mut longer = ids.clone();
        longer.extend([7, 8]);
        let mut kv = model.kv().unwrap();
        drop(
            model
                .forward_adapted(Input::Ids(&longer), None, &mut kv)
                .unwrap(),
        );
        kv.commit(202).unwrap();
        let want = kv.gather(model.backend(), 0, &[200, 201]).unwrap().0;
        assert_close("k", &got, &wide(&want), 1e-6, 0.0);
        // Through a file, K unrotated by each head's own positions.
        let folder = common::TempDir::new();
        let path = folder.path().join("p.safetensors");
        let plain = prefix.clone().with_k_rope(KRope::None).unwrap();
        plain.write(&path, Dtype::F32).unwrap();
        let read = KvPrefix::read(&path).unwrap().0;
        let read = read.with_k_rope(KRope::Applied).unwrap();
        for layer in 0..s.layers {
            let want = wide(&prefix.layer(layer).unwrap()[0]);
            assert_close("k", &read.layer(layer).unwrap()[0], &want, 2e-6, 0.0);
        }
    }
}

#[test]
fn everything_kept_is_the_whole() {
    let Some(models) = models() else { return };
    let sampling = Sampling {
        max_new_tokens: 10,
        ignore_eos: true,
        ..Sampling::default()
    };
    let ids: Vec<u32> = (0..70).map(|i| (i * 31 + 7) % 250).collect();
    for family in ["llama3", "gpt2"] {
        let engine = Engine::builder(models.join(family))
            .device(Device::Cpu)
            .build()
            .unwrap();
        let mut each = |_| ControlFlow::Continue(());
        let text = [&ids[..], &[9]].concat();
        let want = engine
            .prefixes()
            .generate(None, &text, &sampling, &mut each)
            .unwrap();
        for by in ALL {
            let prefix = match prune(&engine, &ids, 1.0, by) {
                Ok(prefix) => prefix,
                Err(error) => {
                    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
                    assert_eq!((family, by), ("gpt2", KeepBy::ExpectedAttention));
                    continue;
                }
            };
            let made = engine
                .prefixes()
                .generate(Some(&prefix), &[9], &sampling, &mut each)
                .unwrap();
            assert_eq!(made.ids, want.ids, "{family} {by:?}");
        }
    }
}

#[test]
fn short_texts_and_bad_rates() {
    let Some(models) = models() else { return };
    let engine = Engine::builder(models.join("llama3"))
        .device(Device::Cpu)
        .build()
        .unwrap();
    for by in ALL {
        for n in [1, 2, 3, 4, 5, 6, 63, 64, 65] {
            let ids: Vec<u32> = (0..n).collect();
            match prune(&engine, &ids, 0.5, by) {
                Ok(prefix) => assert_eq!(prefix.shape().tokens, (n as usize / 2).max(1)),
                Err(error) => {
                    assert!(by == KeepBy::ExpectedAttention && n <= 4, "{error}");
                }
            }
        }
        for rate in [0.0, -1.0, 1.1, f64::NAN] {
            let made = prune(&engine, &[1, 2, 3, 4, 5, 6], rate, by);
            assert!(matches!(made, Err(Error::Input { .. })));
        }
        assert!(prune(&engine, &[], 0.5, by).is_err());
    }
    // A window and gaps do not go together.
    let mistral = Engine::builder(models.join("mistral"))
        .device(Device::Cpu)
        .build()
        .unwrap();
    let ids: Vec<u32> = (0..40).collect();
    let prefix = prune(&mistral, &ids, 0.5, KeepBy::Llmlingua).unwrap();
    let made = mistral
        .prefixes()
        .generate(Some(&prefix), &[1], &Sampling::default(), &mut |_| {
            ControlFlow::Continue(())
        });
    let weights = Weights::open(&models.join("mistral")).unwrap();
    assert_eq!(made.is_err(), weights.config().sliding_window.is_some());
}

/// A text longer than one forward pass takes.
#[test]
fn long_texts_are_taken_in_pass_by_pass() {
    let Some(path) = common::smollm2() else {
        eprintln!("skipped: no SmolLM2; `make model` fetches it");
        return;
    };
    let engine = Engine::builder(&path).device(Device::Cpu).build().unwrap();
    let ids: Vec<u32> = (0..1100).map(|i| (i * 131 + 7) % 40_000).collect();
    for by in [KeepBy::Snapkv, KeepBy::ExpectedAttention, KeepBy::Keydiff] {
        let prefix = prune(&engine, &ids, 0.1, by).unwrap();
        assert_eq!((prefix.shape().tokens, prefix.next_pos()), (110, 1100));
        let last = prefix.positions().iter().max().copied();
        assert!(last.is_some_and(|last| last > 1024), "{last:?}");
    }
}

#[test]
fn one_pass_makes_what_several_make() {
    let Some(models) = models() else { return };
    let path = models.join("qwen3");
    let engine = Engine::builder(&path).device(Device::Cpu).build().unwrap();
    let ids: Vec<u32> = (0..200).map(|i| (i * i + 5 * i + 2) % 380).collect();
    let source = Source::ids(ids);
    let prefixes = engine.prefixes();
    let mut options = vec![PrefillOptions::default()];
    for rate in [0.5, 0.1] {
        options.extend(ALL.map(|by| PrefillOptions {
            keep: Some((rate, by)),
        }));
    }
    options.push(PrefillOptions::default());
    let each = prefixes.prefill_each(&source, &options).unwrap();
    assert_eq!(each.len(), options.len());
    for (got, options) in each.iter().zip(&options) {
        let want = prefixes.prefill(&source, options).unwrap();
        assert_eq!(got.origin(), want.origin());
        assert_eq!(got.positions(), want.positions(), "{options:?}");
        for layer in 0..want.shape().layers {
            assert_eq!(got.layer(layer), want.layer(layer), "{options:?}");
        }
    }
    assert!(prefixes.prefill_each(&source, &[]).unwrap().is_empty());
    options[3].keep = Some((1.5, KeepBy::Snapkv));
    let refused = prefixes.prefill_each(&source, &options).unwrap_err();
    assert!(refused.to_string().contains("keep 1.5"), "{refused}");
}
