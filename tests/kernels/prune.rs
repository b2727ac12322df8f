//! Token pruning that does not wait for scores, beside the loop that does.

use crate::common;

use std::sync::Mutex;

use crate::common::Random;
use crate::common::device::{self, backends, everywhere};
use crate::common::emu::SCHEDULES;
use crate::common::tiny::byte_tokenizer;
use prefold::cpu::Cpu;
use prefold::gpu::Precision;
use prefold::hard::{self, Compressed, Condition, Exact, LlmLingua, Mode, RankMethod, Request};
use prefold::model::weights::Weights;
use prefold::model::{Model, PrunedTokens, Scorer, Session, TokenPruning};
use prefold::ops::{Capacity, Limits, PruneBatch, PruneOp};
use prefold::text::Tokenizer;
use serde_json::Value;

/// A text with its plan.
struct Plan {
    ids: Vec<u32>,
    size: usize,
    end: usize,
    windows: Vec<Vec<(usize, f64)>>,
}

impl Plan {
    /// As many windows of `size` as fit a text of `length` tokens of which `start` are in front.
    fn new(length: usize, size: usize, start: usize, runs: usize, random: &mut Random) -> Self {
        let end = (size + start).min(length);
        let (mut windows, mut reach) = (Vec::new(), end);
        while reach <= length {
            // The first is one token short, as the reference's.
            let tokens = if windows.is_empty() { size - 1 } else { size };
            let mut window = Vec::new();
            let mut rest = tokens;
            for run in 0..runs {
                let own = if run + 1 == runs {
                    rest
                } else {
                    random.below(rest + 1)
                };
                let ratio = [0.0, 0.2, 0.5, 0.77, 0.999, 1.0][random.below(6)];
                window.push((own, ratio));
                rest -= own;
            }
            windows.push(window);
            reach += tokens;
        }
        Plan {
            ids: (0..length).map(|_| random.below(300) as u32).collect(),
            size,
            end,
            windows,
        }
    }

    fn text(&self) -> TokenPruning<'_> {
        TokenPruning {
            ids: &self.ids,
            size: self.size,
            end: self.end,
            windows: &self.windows,
        }
    }

    /// What is left, word for word as it is said; `passes` are the nll of each.
    fn oracle(&self, readings: &[Vec<f32>]) -> PrunedTokens {
        let mut from: Vec<usize> = (0..self.ids.len()).collect();
        let mut loss = Vec::new();
        let mut nll = vec![None; self.ids.len()];
        let (mut past, mut end) = (0, self.end);
        for (i, (window, reading)) in self.windows.iter().zip(readings).enumerate() {
            if i == 0 {
                loss = reading[..self.ids.len() - 1].to_vec();
            } else {
                let fresh = end - past - 1;
                loss[past..past + fresh].copy_from_slice(&reading[..fresh]);
            }
            for (token, &loss) in from[1..].iter().zip(&loss) {
                nll[*token] = Some(loss);
            }
            let mut next = end;
            for &(tokens, ratio) in window {
                let mut sorted = loss.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let rank = ((sorted.len() as f64 * ratio) as usize).max(1) - 1;
                let limit = match sorted.get(rank.min(sorted.len().saturating_sub(1))) {
                    Some(&limit) if ratio < 1.0 => limit,
                    _ => f32::NEG_INFINITY,
                };
                let own = next - self.size..next - self.size + tokens;
                let mut stays: Vec<bool> = loss.iter().map(|&loss| loss > limit).collect();
                stays.push(loss.first().is_some_and(|&loss| loss > 0.0));
                let dropped: Vec<usize> = own.clone().filter(|&i| !stays[i]).collect();
                for &i in dropped.iter().rev() {
                    from.remove(i);
                    if i < loss.len() {
                        loss.remove(i);
                    }
                }
                next = own.end - dropped.len() + self.size;
            }
            past = if i == 0 { 0 } else { end - self.size };
            end = next;
        }
        PrunedTokens { kept: from, nll }
    }
}

/// Scores of a few values, so that many tie.
fn scores(count: usize, random: &mut Random) -> Vec<f32> {
    let values = [0.0, -0.0, 0.25, 1.0, 1.5, 3.0, 3.0, 7.5];
    (0..count)
        .map(|_| values[random.below(values.len())])
        .collect()
}

/// The op alone, beside the rules as they are said, with scores that tie.
fn check_thinning<B: PruneOp>(backend: &B, jobs: &[Plan], seed: u64, what: &str) {
    let mut random = Random(seed);
    let texts: Vec<TokenPruning<'_>> = jobs.iter().map(Plan::text).collect();
    let capacity = Capacity::of(&texts);
    let limits = Limits {
        vocab: 300,
        positions: capacity.tokens,
    };
    let mut on_device = PruneBatch::new(backend, capacity, limits, 21).unwrap();
    // Twice: nothing of what was there before may count.
    for _ in 0..2 {
        on_device.write(backend, &texts).unwrap();
        let first = scores(capacity.texts * capacity.tokens, &mut random);
        let mut readings: Vec<Vec<Vec<f32>>> = (0..jobs.len())
            .map(|text| vec![first[text * capacity.tokens..][..capacity.tokens].to_vec()])
            .collect();
        backend.write(&first, on_device.first_scores()).unwrap();
        backend.prune(&mut on_device, None).unwrap();
        let max = jobs.iter().map(|job| job.windows.len()).max().unwrap();
        // One more than there are windows: who is done stays as it is.
        for _ in 0..max {
            let fresh = scores(capacity.all_rows(), &mut random);
            for (text, readings) in readings.iter_mut().enumerate() {
                readings.push(fresh[text * capacity.rows..][..capacity.rows].to_vec());
            }
            let fresh = backend.upload(&fresh).unwrap();
            backend.prune(&mut on_device, Some(&fresh)).unwrap();
        }
        let got = on_device.read(backend, &texts).unwrap();
        for (i, ((job, readings), got)) in jobs.iter().zip(&readings).zip(got).enumerate() {
            let want = job.oracle(readings);
            assert_eq!(got.kept, want.kept, "{what}, text {i}");
            let bits = |nll: &[Option<f32>]| -> Vec<_> {
                nll.iter().map(|nll| nll.map(f32::to_bits)).collect()
            };
            assert_eq!(bits(&got.nll), bits(&want.nll), "{what}, text {i}");
        }
    }
}

#[test]
fn windows_lose_what_the_rules_say() {
    let mut random = Random(3);
    let shapes = [
        (57, 8, 0, 1),
        (64, 16, 5, 3),
        (9, 2, 0, 1),
        (3, 2, 7, 1),
        (1100, 200, 0, 2),
        (200, 200, 40, 1),
    ];
    let jobs = shapes.map(|(n, size, start, runs)| Plan::new(n, size, start, runs, &mut random));
    check_thinning(&Cpu::new(), &jobs, 1, "the CPU");
    everywhere(Precision::F32, |gpu, at| check_thinning(gpu, &jobs, 1, at));
    // More scores than shared memory has room for, in rounds of a whole block.
    let long = [Plan::new(12_500, 6000, 3, 2, &mut random)];
    check_thinning(&Cpu::new(), &long, 2, "the CPU");
    backends(Precision::F32, &SCHEDULES[1..2], |gpu, at| {
        check_thinning(&gpu, &long, 2, at);
    });
}

#[test]
fn plans_that_do_not_fit_are_refused() {
    let windows = vec![vec![(3, 0.5)], vec![(4, 0.5)]];
    fn text<'t>(
        ids: &'t [u32],
        size: usize,
        end: usize,
        windows: &'t [Vec<(usize, f64)>],
    ) -> TokenPruning<'t> {
        TokenPruning {
            ids,
            size,
            end,
            windows,
        }
    }
    let ids: Vec<u32> = (0..8).collect();
    assert!(text(&ids, 4, 4, &windows).check().is_ok());
    // Beyond the text, before its window, too short a window, more runs than a window, none at all.
    assert!(text(&ids, 4, 6, &windows).check().is_err());
    assert!(text(&ids, 4, 3, &windows).check().is_err());
    assert!(text(&ids, 1, 4, &windows).check().is_err());
    assert!(text(&ids, 3, 4, &windows).check().is_err());
    assert!(text(&ids, 4, 4, &[]).check().is_err());
    assert!(text(&ids, 4, 4, &[Vec::new()]).check().is_err());
    assert!(
        text(&ids, 4, 4, &[vec![(usize::MAX, 0.5), (2, 0.5)]])
            .check()
            .is_err()
    );
    let capacity = Capacity::of(&[text(&ids, 4, 4, &windows)]);
    let cpu = Cpu::new();
    let limits = Limits {
        vocab: 7,
        positions: 8,
    };
    let mut texts = PruneBatch::new(&cpu, capacity, limits, 1).unwrap();
    let error = texts
        .write(&cpu, &[text(&ids, 4, 4, &windows)])
        .unwrap_err();
    assert!(error.to_string().contains("token id 7"), "{error}");
    assert!(
        texts
            .write(&cpu, &[text(&ids[..7], 4, 4, &windows[..1])])
            .is_err()
    );
}

/// The tiny model of a family, if it is there.
fn tiny(family: &str) -> Option<Weights> {
    let folder = common::shared()?.join("golden/models").join(family);
    Some(Weights::open(&folder).unwrap())
}

/// Prompts that differ in length, in contexts, and in what is in front of them.
fn prompts() -> Vec<Request> {
    let text = "The committee met on the third of May. It chose the smaller of the two bridges, because \
                the larger one would have cost nine million more. Nobody asked the ferrymen, who had \
                carried the town across for two hundred years and more.";
    let options = |iterative_size| LlmLingua::default().with_iterative_size(iterative_size);
    let of = |range: std::ops::Range<usize>| &text[range];
    vec![
        Request::new([of(0..210)]).with_mode(options(20)),
        Request::new([of(30..180)])
            .with_rate(0.33)
            .with_mode(options(32)),
        // Several runs in a window, at rates of their own.
        Request::new([of(0..60), of(60..130), of(130..200)])
            .with_rate(0.6)
            .with_mode(options(25).with_use_context_level_filter(false)),
        // A question in front, which is read and not judged.
        Request::new([of(0..150)])
            .with_question("Which bridge?")
            .with_mode(
                options(20)
                    .with_condition_in_question(Condition::NoneCondition)
                    .with_rank_method(RankMethod::Longllmlingua),
            ),
        // One window, not even full.
        Request::new([of(0..30)]).with_mode(options(40)),
    ]
}

fn compress(model: &dyn Scorer, tokenizer: &Tokenizer, request: &Request) -> Compressed {
    hard::compress(model, tokenizer, request).unwrap()
}

/// Whole prompts by kernels, token for token as the CPU's loop that looks at every window's scores; from
/// the first pass's launch on the host waits once, and after two passes all others are replayed.
#[test]
fn a_device_thins_without_a_word() {
    let tokenizer = byte_tokenizer();
    for family in ["llama3", "qwen3", "gpt2"] {
        let Some(weights) = tiny(family) else {
            return;
        };
        let cpu = Model::load(Cpu::new(), &weights).unwrap();
        let want: Vec<Compressed> = prompts()
            .iter()
            .map(|case| compress(&cpu, &tokenizer, case))
            .collect();
        backends(Precision::F32, &SCHEDULES[1..2], |gpu, at| {
            let model = Model::load(gpu, &weights).unwrap();
            let told = Told::new(&model, true);
            let mut replays = 0;
            for (i, (case, want)) in prompts().iter().zip(&want).enumerate() {
                let what = format!("{family}, {at}, prompt {i}");
                let before = told.count();
                device::log();
                let got = compress(&told, &tokenizer, case);
                assert_eq!(got.text, want.text, "{what}");
                assert_eq!(kept(&got), kept(want), "{what}");
                let log = device::log();
                let Some(first) = log.iter().position(|&entry| entry == "prune") else {
                    assert!(i == 4 && told.count() == before, "{what}: {log:?}");
                    continue;
                };
                assert_eq!(told.count(), before + 1, "{what}");
                let count = |name| log[first..].iter().filter(|&&entry| entry == name).count();
                assert_eq!((count("read"), count("write")), (1, 0), "{what}: {log:?}");
                // Before the first pass all is queued too, where no contexts are ranked.
                let filter = matches!(&case.mode, Mode::LlmLingua(o) if o.use_context_level_filter);
                let ranked = case.contexts.len() > 1 && filter;
                assert_eq!(log[..first].contains(&"read"), ranked, "{what}: {log:?}");
                assert!(count("graph") <= 1, "{what}: {log:?}");
                replays += count("replay");
            }
            assert!(replays > 10, "{family}, {at}: only {replays} replays");
        });
    }
}

/// Text and decision of each piece.
fn kept(result: &Compressed) -> Vec<(&str, bool)> {
    let pieces = result.pieces.iter();
    pieces
        .map(|piece| (piece.text.as_str(), piece.kept))
        .collect()
}

/// Prompts of all kinds at once come out as alone, and what they ask goes to the model together; one that
/// is refused does not hold up the others.
#[test]
fn prompts_that_share_launches_come_out_as_alone() {
    let Some(weights) = tiny("llama3") else {
        return;
    };
    let tokenizer = byte_tokenizer();
    let mut jobs: Vec<Request> = Vec::new();
    for request in prompts() {
        let rank_method = match &request.mode {
            Mode::LlmLingua(options) => Some(options.rank_method),
            _ => None,
        };
        let exact = Exact::default().with_rank_method(rank_method);
        jobs.push(request.clone());
        jobs.push(request.with_mode(exact));
    }
    jobs[3] = jobs[3].clone().with_rate(7.0);
    let tagged = "<llmlingua, compress=False>Minutes.</llmlingua><llmlingua, rate=0.4>The smaller bridge \
                  was chosen, as the larger would have cost nine million more.</llmlingua>";
    let tagged = Request::new([tagged]).with_structured(true);
    jobs.push(tagged.with_mode(jobs[0].mode.clone()));
    let said = |result: prefold::Result<Compressed>| match result {
        Ok(result) => serde_json::to_value(result.text).unwrap(),
        Err(error) => Value::String(format!("error: {error}")),
    };
    let cpu = Model::load(Cpu::new(), &weights).unwrap();
    let want = hard::compress_many(&cpu, &tokenizer, &jobs);
    let want: Vec<Value> = want.into_iter().map(said).collect();
    let alone = hard::compress(&cpu, &tokenizer, &jobs[4]);
    assert_eq!(want[4], said(alone));
    assert!(want[3].to_string().contains("error: rate 7"), "{}", want[3]);
    let check = |model: &dyn Scorer, at: &str| {
        let told = Told::new(model, true);
        let got = hard::compress_many(&told, &tokenizer, &jobs);
        for (i, (got, want)) in got.into_iter().zip(&want).enumerate() {
            assert_eq!(&said(got), want, "{at}, prompt {i}");
        }
        // Four of those five, and the tagged one.
        assert_eq!(*told.pruned.lock().unwrap(), [5], "{at}");
    };
    check(&cpu, "the CPU");
    backends(Precision::F32, &SCHEDULES[1..2], |gpu, at| {
        check(&Model::load(gpu, &weights).unwrap(), at);
    });
}

/// Texts that share forward passes, one alone, the same again from the record, and again after everything that
/// ops share has moved.
#[test]
fn texts_that_share_launches_come_out_as_alone() {
    let mut random = Random(8);
    // The last has one window, and is read once.
    let shapes = [
        (110, 24, 0, 1),
        (130, 24, 6, 2),
        (70, 24, 0, 1),
        (48, 23, 0, 1),
        (30, 24, 0, 1),
    ];
    let jobs = shapes.map(|(n, size, start, runs)| Plan::new(n, size, start, runs, &mut random));
    let texts: Vec<TokenPruning<'_>> = jobs.iter().map(Plan::text).collect();
    for family in ["mistral", "gpt2"] {
        let Some(weights) = tiny(family) else {
            return;
        };
        let cpu = Model::load(Cpu::new(), &weights).unwrap();
        let alone = |model: &dyn Scorer| -> Vec<PrunedTokens> {
            let each = texts
                .iter()
                .map(|&text| model.prune(&[text]).unwrap().remove(0));
            each.collect()
        };
        let want = alone(&cpu);
        assert!(want.iter().zip(&jobs).all(|(pruned, job)| {
            let share = pruned.kept.len() as f64 / job.ids.len() as f64;
            (0.05..1.0).contains(&share)
        }));
        let same = |got: &[PrunedTokens], what: &str| {
            assert_eq!(got.len(), want.len(), "{what}");
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                assert_eq!(got.kept, want.kept, "{what}, text {i}");
                for (got, want) in got.nll.iter().zip(&want.nll) {
                    let off = got.zip(*want).map(|(a, b)| (a - b).abs());
                    assert_eq!(got.is_some(), want.is_some(), "{what}, text {i}");
                    assert!(
                        off.is_none_or(|off| off < 3e-5),
                        "{what}, text {i}: {off:?}"
                    );
                }
            }
        };
        same(&cpu.prune(&texts).unwrap(), "the CPU");
        backends(Precision::F32, &SCHEDULES[2..3], |gpu, at| {
            let model = Model::load(gpu, &weights).unwrap();
            same(&alone(&model), at);
            device::log();
            same(&model.prune(&texts).unwrap(), at);
            let count = |log: &[&str], name| log.iter().filter(|&&entry| entry == name).count();
            let log = device::log();
            assert_eq!(
                (count(&log, "read"), count(&log, "graph")),
                (1, 1),
                "{at}: {log:?}"
            );
            let readings = jobs.iter().map(|job| job.windows.len()).max().unwrap() - 1;
            same(&model.prune(&texts).unwrap(), at);
            let log = device::log();
            assert_eq!(count(&log, "replay"), readings, "{at}: {log:?}");
            assert_eq!(count(&log, "graph"), 0, "{at}: {log:?}");
            // A larger pass: what ops share grows, and the record's addresses are not good any more.
            let many: Vec<Vec<u32>> = (0..6).map(|_| (0..100).collect()).collect();
            let many: Vec<&[u32]> = many.iter().map(Vec::as_slice).collect();
            model.score_each(&many).unwrap();
            device::log();
            same(&model.prune(&texts).unwrap(), at);
            let log = device::log();
            assert_eq!(count(&log, "graph"), 1, "{at}: {log:?}");
            assert_eq!(count(&log, "replay"), readings - 1, "{at}: {log:?}");
        });
    }
}

/// A model that prunes itself, if it is told to.
struct Told<'m> {
    model: &'m dyn Scorer,
    prunes: bool,
    /// Texts of each call.
    pruned: Mutex<Vec<usize>>,
}

impl<'m> Told<'m> {
    fn new(model: &'m dyn Scorer, prunes: bool) -> Self {
        Told {
            model,
            prunes,
            pruned: Mutex::default(),
        }
    }

    /// Texts that were pruned.
    fn count(&self) -> usize {
        self.pruned.lock().unwrap().iter().sum()
    }
}

impl Scorer for Told<'_> {
    fn max_positions(&self) -> usize {
        self.model.max_positions()
    }

    fn session(&self) -> prefold::Result<Box<dyn Session + '_>> {
        self.model.session()
    }

    fn score_tails(&self, sequences: &[(&[u32], usize)]) -> prefold::Result<Vec<Vec<f32>>> {
        self.model.score_tails(sequences)
    }

    fn prunes(&self) -> bool {
        self.prunes
    }

    fn prune(&self, texts: &[TokenPruning<'_>]) -> prefold::Result<Vec<PrunedTokens>> {
        self.pruned.lock().unwrap().push(texts.len());
        self.model.prune(texts)
    }
}

/// Golden compressions with the real model, by the ops of the CPU: which tokens stay depends on
/// nothing but scores, and those are the same.
#[test]
fn golden_rows_come_out_the_same() {
    let Some((shared, path)) = common::shared().zip(common::smollm2()) else {
        return;
    };
    let weights = Weights::open(&path).unwrap();
    let model = Model::load(Cpu::new(), &weights).unwrap();
    let tokenizer = Tokenizer::from_vocab(weights.gguf().unwrap().vocab().unwrap()).unwrap();
    let text = std::fs::read_to_string(shared.join("golden/llmlingua.jsonl")).unwrap();
    let (mut pruned, mut wrong) = (0, Vec::new());
    // One of each kind of plan, as a pass of the whole text by the real model is what takes time;
    // `tests/selection` compares every row by the loop.
    let chosen = [
        "gsm3_t150",
        "long_two_stage",
        "own_multi_r0.5",
        "struct_json",
        "struct_meeting",
        "unicode",
    ];
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        if !chosen.contains(&row["name"].as_str().unwrap()) {
            continue;
        }
        let structured = match row["call"].as_str() {
            Some("compress_prompt") => false,
            Some("structured_compress_prompt") => true,
            _ => continue,
        };
        let args = row["args"].as_object().unwrap().clone();
        let request = Request::from_python(args, structured).unwrap();
        let told = Told::new(&model, true);
        let result: prefold::Result<Compressed> = hard::compress(&told, &tokenizer, &request);
        let got = match result {
            Ok(result) => serde_json::to_value(result.llmlingua()).unwrap(),
            Err(error) => Value::String(error.to_string()),
        };
        let by_itself = told.count();
        pruned += by_itself;
        eprintln!("{}: {by_itself} texts pruned", row["name"]);
        if got != row["result"] {
            wrong.push(format!("{}: {got}", row["name"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(pruned, chosen.len());
}
