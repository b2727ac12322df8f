//! The decoder against the reference implementation, and against itself where it must not matter how
//! a text is cut.

use crate::common;

use std::path::{Path, PathBuf};

use crate::common::compare::{assert_close, wide};
use crate::common::{Random, tiny};
use prefold::Error;
use prefold::cpu::{Cpu, Isa};
use prefold::model::decoder::Batch;
use prefold::model::weights::Weights;
use prefold::model::{Model, Scorer};
use prefold::ops::{GemmOp, NllOp, NllTarget};
use safetensors::SafeTensors;

const FAMILIES: [&str; 5] = ["llama3", "mistral", "qwen2", "qwen3", "gpt2"];

/// Golden values, or a line that says what is skipped.
fn shared() -> Option<PathBuf> {
    let found = common::shared();
    if found.is_none() {
        eprintln!("skipped: no golden values beside the crate");
    }
    found
}

fn smollm2() -> Option<PathBuf> {
    let found = common::smollm2();
    if found.is_none() {
        eprintln!("skipped: no SmolLM2; set PREFOLD_MODEL");
    }
    found
}

fn open(path: &Path) -> Model<Cpu> {
    Model::load(Cpu::new(), &Weights::open(path).unwrap()).unwrap()
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let view = file.tensor(name).unwrap();
    let bytes = view.data().as_chunks::<4>().0;
    bytes
        .iter()
        .map(|&b| f32::from_le_bytes(b).into())
        .collect()
}

fn ids(file: &SafeTensors<'_>) -> Vec<u32> {
    let view = file.tensor("ids").unwrap();
    let bytes = view.data().as_chunks::<4>().0;
    bytes.iter().map(|&b| u32::from_le_bytes(b)).collect()
}

fn picks(ids: &[u32]) -> Vec<NllTarget> {
    (0..)
        .zip(&ids[1..])
        .map(|(row, &target)| NllTarget { row, target })
        .collect()
}

#[test]
fn families_agree_with_the_reference() {
    let Some(shared) = shared() else { return };
    for family in FAMILIES {
        let folder = shared.join("golden/models").join(family);
        let golden = std::fs::read(folder.join("golden.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&golden).unwrap();
        let ids = ids(&golden);
        let weights = Weights::open(&folder).unwrap();
        for cpu in Cpu::each_instruction_set() {
            let device = cpu.describe();
            let model = Model::load(cpu, &weights).unwrap();
            let mut kv = model.kv().unwrap();
            let batch = Batch {
                ids: &ids,
                lengths: &[ids.len()],
            };
            let mut hidden = model.forward(&batch, &mut kv).unwrap();
            let logits = hidden.logits().unwrap();
            let worst = assert_close("logits", &logits, &floats(&golden, "logits"), 2e-5, 0.0);
            eprintln!("{family}, {device}: logits differ by at most {worst:.1e}");

            let nll = hidden.nll(&picks(&ids)).unwrap();
            let want: Vec<f64> = floats(&golden, "logprobs").iter().map(|l| -l).collect();
            assert_close("nll", &nll, &want, 2e-5, 0.0);
            let scores = model.score_each(&[&ids]).unwrap();
            assert_close("scores", &scores[0], &want, 2e-5, 0.0);

            drop(hidden);
            check_cache(&model, &golden, &ids);
        }
    }
}

/// K and V of every layer, read back position by position.
fn check_cache(model: &Model<Cpu>, golden: &SafeTensors<'_>, ids: &[u32]) {
    let c = model.config();
    let mut kv = model.kv().unwrap();
    let mut session_like = |ids: &[u32]| {
        let batch = Batch {
            ids,
            lengths: &[ids.len()],
        };
        drop(model.forward(&batch, &mut kv).unwrap());
        kv.commit(ids.len()).unwrap();
    };
    session_like(&ids[..7]);
    session_like(&ids[7..]);
    let positions: Vec<usize> = (0..ids.len()).rev().collect();
    for layer in 0..c.layers {
        let (k, v) = kv.gather(model.backend(), layer, &positions).unwrap();
        for (name, got) in [("k", k), ("v", v)] {
            let want = floats(golden, &format!("{name}.{layer}"));
            // Golden: [kv_heads, positions, head_dim].
            let (n, d) = (ids.len(), c.head_dim);
            let mut reordered = Vec::new();
            for &position in &positions {
                for head in 0..c.kv_heads {
                    reordered.extend_from_slice(&want[(head * n + position) * d..][..d]);
                }
            }
            assert_close(name, &got, &reordered, 2e-5, 0.0);
        }
    }
    assert!(kv.gather(model.backend(), c.layers, &[0]).is_err());
    assert!(kv.gather(model.backend(), 0, &[ids.len()]).is_err());
}

#[test]
fn smollm2_agrees_with_the_reference() {
    let (Some(shared), Some(path)) = (shared(), smollm2()) else {
        return;
    };
    let model = open(&path);
    let rows = std::fs::read_to_string(shared.join("golden/llmlingua.jsonl")).unwrap();
    let mut seen = 0;
    for row in rows.lines() {
        let row: serde_json::Value = serde_json::from_str(row).unwrap();
        if row["call"] != "token_logprobs" {
            continue;
        }
        seen += 1;
        let list = |name: &str| row["result"][name].as_array().unwrap().clone();
        let ids: Vec<u32> = list("ids")
            .iter()
            .map(|v| v.as_u64().unwrap() as u32)
            .collect();
        let want: Vec<f64> = list("logprobs")
            .iter()
            .map(|v| -v.as_f64().unwrap())
            .collect();
        let one = model.score_each(&[&ids]).unwrap().remove(0);
        let worst = assert_close("nll", &one, &want, 3e-4, 0.0);
        eprintln!(
            "{}: {} ids, differ by at most {worst:.1e}",
            row["name"],
            ids.len()
        );
        check_cuts(&model, &ids, &one);
    }
    assert!(seen >= 3);
}

/// Scoring in chunks, packed, or after a shared prefix gives what one pass gives.
fn check_cuts(model: &dyn Scorer, ids: &[u32], one: &[f32]) {
    const ATOL: f64 = 1e-4;
    let n = ids.len();
    for chunk in [1, 5, 64, 300] {
        // Not hundreds of passes of a real model.
        if chunk * 40 < n {
            continue;
        }
        let mut session = model.session().unwrap();
        for start in (0..n).step_by(chunk) {
            let part = &ids[start..n.min(start + chunk)];
            let scores = session.score(part).unwrap();
            let want = wide(&one[start..start + part.len() - 1]);
            assert_close("chunk", &scores, &want, ATOL, 0.0);
        }
        assert_eq!(session.len(), n);
        // Cut back, and again.
        let cut = n / 3;
        session.truncate(cut).unwrap();
        let scores = session.score(&ids[cut..]).unwrap();
        assert_close("after a cut", &scores, &wide(&one[cut..]), ATOL, 0.0);
    }

    let parts: Vec<&[u32]> = vec![&ids[..n / 2], &[], ids, &ids[..1], &ids[n / 3..]];
    let packed = model.score_each(&parts).unwrap();
    for (part, packed) in parts.iter().zip(&packed) {
        let alone = model.score_each(&[part]).unwrap().remove(0);
        assert_eq!(packed.len(), part.len().saturating_sub(1));
        assert_close("packed", packed, &wide(&alone), ATOL, 0.0);
    }

    let held = n / 4;
    let mut session = model.session().unwrap();
    session.score(&ids[..held]).unwrap();
    let parts: Vec<&[u32]> = vec![&ids[held..], &ids[..held], &ids[held..n / 2], &[]];
    let after = session.score_after(&parts).unwrap();
    assert_eq!(session.len(), held);
    for (part, after) in parts.iter().zip(&after) {
        let mut alone = model.session().unwrap();
        alone.score(&ids[..held]).unwrap();
        assert_close(
            "after",
            after,
            &wide(&alone.score(part).unwrap()),
            ATOL,
            0.0,
        );
    }
    assert_close("continued", &after[0], &wide(&one[held..]), ATOL, 0.0);
}

#[test]
fn every_family_may_be_cut_anywhere() {
    let Some(shared) = shared() else { return };
    for family in FAMILIES {
        let model = open(&shared.join("golden/models").join(family));
        let vocab = model.config().vocab;
        let ids: Vec<u32> = (0..200)
            .map(|i| (i * i + 7 * i) as u32 % vocab as u32)
            .collect();
        let one = model.score_each(&[&ids]).unwrap().remove(0);
        check_cuts(&model, &ids, &one);
        check_cuts(&model, &ids[..33], &one[..32]);
    }
}

#[test]
fn removed_positions_are_gone_and_the_rest_keeps_its_rotation() {
    let Some(shared) = shared() else { return };
    let model = open(&shared.join("golden/models/llama3"));
    let ids: Vec<u32> = (0..60).map(|i| (i * 37 + 11) % 384).collect();
    let mut session = model.session().unwrap();
    session.score(&ids).unwrap();
    session.remove(10..25).unwrap();
    assert_eq!(session.len(), 45);
    let scores = session.score(&ids[..9]).unwrap();

    // The same by hand: K and V of the kept positions as they were, the new ids at 45...
    let mut kv = model.kv().unwrap();
    let batch = Batch {
        ids: &ids,
        lengths: &[60],
    };
    drop(model.forward(&batch, &mut kv).unwrap());
    kv.commit(60).unwrap();
    let kept: Vec<usize> = (0..10).chain(25..60).collect();
    let before = kv.gather(model.backend(), 1, &kept).unwrap();
    kv.remove(model.backend(), 10..25).unwrap();
    let all: Vec<usize> = (0..45).collect();
    assert_eq!(kv.gather(model.backend(), 1, &all).unwrap(), before);
    let batch = Batch {
        ids: &ids[..9],
        lengths: &[9],
    };
    let again = model
        .forward(&batch, &mut kv)
        .unwrap()
        .nll(&picks(&ids[..9]))
        .unwrap();
    assert_eq!(scores, again);

    // The last positions removed is the same as a cut.
    let mut cut = model.session().unwrap();
    cut.score(&ids).unwrap();
    cut.remove(40..60).unwrap();
    let mut fresh = model.session().unwrap();
    fresh.score(&ids[..40]).unwrap();
    let (a, b) = (
        cut.score(&ids[40..]).unwrap(),
        fresh.score(&ids[40..]).unwrap(),
    );
    assert_close("after the end was removed", &a, &wide(&b), 1e-5, 0.0);
}

#[test]
fn what_cannot_be_asked_is_an_error_and_changes_nothing() {
    let Some(shared) = shared() else { return };
    let model = open(&shared.join("golden/models/gpt2"));
    let max = model.max_positions();
    let ids = vec![5; max + 1];
    let input = |result: prefold::Result<()>| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Input { .. }), "{error}");
        assert_eq!(error.to_string().lines().count(), 1);
    };
    let mut session = model.session().unwrap();
    input(session.score(&ids).map(drop));
    assert!(session.is_empty());
    session.score(&ids[..max]).unwrap();
    input(session.score(&[1]).map(drop));
    input(session.score_after(&[&[1]]).map(drop));
    assert_eq!(session.len(), max);
    session.truncate(3).unwrap();
    input(session.score(&[1, 384]).map(drop));
    input(session.score(&[1, u32::MAX]).map(drop));
    assert_eq!(session.len(), 3);
    input(session.truncate(4));
    input(session.remove(2..4));
    #[allow(clippy::reversed_empty_ranges)]
    input(session.remove(2..1));
    session.remove(1..1).unwrap();
    assert_eq!(session.len(), 3);
    input(model.score_each(&[&ids]).map(drop));
    assert!(session.score(&[]).unwrap().is_empty());
    assert_eq!(model.score_each(&[]).unwrap(), Vec::<Vec<f32>>::new());
}

#[test]
fn many_threads_may_score_at_once() {
    let Some(shared) = shared() else { return };
    let model = open(&shared.join("golden/models/qwen3"));
    let sequences: Vec<Vec<u32>> = (0..8u32)
        .map(|t| (0..100).map(|i| (i * (t + 3) + t) % 384).collect())
        .collect();
    let want: Vec<Vec<f32>> = sequences
        .iter()
        .map(|ids| model.score_each(&[ids]).unwrap().remove(0))
        .collect();
    std::thread::scope(|scope| {
        for (ids, want) in sequences.iter().zip(&want) {
            let model = &model;
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(&model.score_each(&[ids]).unwrap()[0], want);
                }
            });
        }
    });
}

/// Scores of a model in a pool of so many threads, in f32 and estimated: whole, in parts and packed.
fn scores(threads: usize, path: &Path, ids: &[u32]) -> Vec<u32> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build().unwrap().install(|| {
        let model = open(path);
        let half = ids.len() / 2;
        let tails = [(&ids[..half], 1), (&ids[half..], 3), (ids, 2)];
        let mut session = model.session().unwrap();
        let mut all = vec![session.score(&ids[..half]).unwrap()];
        all.push(session.score(&ids[half..]).unwrap());
        all.extend(model.score_tails(&tails).unwrap());
        all.extend(model.estimate_tails(&tails).unwrap());
        all.concat().iter().map(|nll| nll.to_bits()).collect()
    })
}

/// The last bit of a score must not depend on the machine's number of cores.
#[test]
fn scores_do_not_depend_on_the_number_of_threads() {
    let mut models: Vec<(PathBuf, Vec<u32>)> = Vec::new();
    let folders =
        tiny::FAMILIES.map(|family| tiny::folder(&tiny::config(family), &tiny::tensors(family)));
    for folder in &folders {
        let ids = (0..20).map(|i| i * 7 % tiny::VOCAB as u32).collect();
        models.push((folder.path().into(), ids));
    }
    if let Some(path) = smollm2() {
        models.push((path, (0..90).map(|i| i * 541 % 49_152).collect()));
    }
    for (path, ids) in models {
        let one = scores(1, &path, &ids);
        assert!(one.len() > ids.len());
        for threads in [2, 3, 7] {
            let several = scores(threads, &path, &ids);
            assert_eq!(one, several, "{threads} threads: {}", path.display());
        }
    }
}

/// The same of the LM head alone, for vocabularies of a few panels to many.
#[test]
fn nll_does_not_depend_on_the_number_of_threads() {
    let mut random = Random(5);
    for (rows, width, vocab) in [(3, 40, 100), (19, 70, 1001), (64, 33, 5000)] {
        let mut floats = |len: usize| -> Vec<f32> { (0..len).map(|_| random.float()).collect() };
        let (x, head) = (floats(rows * width), floats(vocab * width));
        let picks: Vec<NllTarget> = (0..rows as u32)
            .map(|row| NllTarget {
                row,
                target: row * 331 % vocab as u32,
            })
            .collect();
        for isa in Isa::available() {
            let nll = |threads: usize| -> Vec<u32> {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                pool.build().unwrap().install(|| {
                    let cpu = Cpu::with_isa(isa).unwrap();
                    let head = cpu.matrix(vocab, width, &head).unwrap();
                    let mut out = vec![0.0; 2 * rows];
                    let mut estimated = vec![0.0; rows];
                    cpu.nll(width, &x, &head, &picks, &mut out).unwrap();
                    cpu.estimate_nll(width, &x, &head, &picks, &mut estimated)
                        .unwrap();
                    out[rows..].copy_from_slice(&estimated);
                    out.iter().map(|nll| nll.to_bits()).collect()
                })
            };
            let one = nll(1);
            for threads in [2, 3, 7] {
                assert_eq!(one, nll(threads), "{isa:?}, {vocab} ids, {threads} threads");
            }
        }
    }
}
