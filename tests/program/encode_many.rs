//! Many texts encoded at once: what each of them holds, which prefixes stay, and what is refused.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::common::compare::{assert_close, wide};
use crate::common::tiny::{self, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, Tensors};
use crate::common::{self, Random, TempDir};
use prefold::model::config::Family;
use prefold::prefix::{Adapter, Dtype, EncodeOptions, KRope, KvPrefix, Method, Shape, Source};
use prefold::{Device, Engine};

/// Memory tokens of the tiny adapter.
const MEMORY: usize = 4;
/// The longest text that it takes in one piece, in tokens.
const PIECE: usize = 64;
/// A pass has so many rows at most.
const PASS: usize = 1024;
/// How far K and V of a text may be from those that it has alone.
const CLOSE: f64 = 1e-4;

const METHODS: [Method; 2] = [Method::FiveHundredX, Method::Icae];

/// What a run left.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// A tiny model that reads bytes, an adapter for it, and a folder for texts and prefixes.
struct Case {
    model: TempDir,
    adapter: TempDir,
    work: TempDir,
}

impl Case {
    fn new() -> Self {
        Case {
            model: tiny::byte_model(512),
            adapter: adapter(1),
            work: TempDir::new(),
        }
    }

    /// The command with what all share, in the folder of texts.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_prefold"));
        command
            .current_dir(self.work.path())
            .args(["encode", "--device", "cpu"])
            .args(arguments);
        let given = |names: [&str; 2]| arguments.iter().any(|a| names.contains(a));
        if !given(["-m", "--model"]) {
            command.arg("--model").arg(self.model.path());
        }
        if !given(["-a", "--adapter"]) {
            command.arg("--adapter").arg(self.adapter.path());
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let done = self.command(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran {
            code: done.status.code().expect("ended by a signal"),
            out: text(done.stdout),
            err: text(done.stderr),
        }
    }

    /// A good run of `texts` to the folder `out`, of which so many were made and were there.
    #[track_caller]
    fn good(&self, more: &[&str], texts: &[&str], made: usize, there: usize) -> Ran {
        let ran = self.run(&[&["--output-dir", "out"], more, texts].concat());
        let told = format!("prefold: {made} prefixes made, {there} were there already\n");
        assert_eq!((ran.code, &ran.err), (0, &told), "{more:?}");
        let lines = |text: &str| text.lines().map(PathBuf::from).collect::<BTreeSet<_>>();
        let want = texts.iter().map(|text| prefix_of(text));
        assert_eq!(lines(&ran.out), want.collect::<BTreeSet<_>>());
        assert_eq!(ran.out.lines().count(), texts.len(), "{}", ran.out);
        ran
    }

    /// A command line that makes no sense: exit code 2 and one line, before a folder is made.
    #[track_caller]
    fn senseless(&self, arguments: &[&str], says: &[&str]) {
        let before = names(self.work.path());
        let ran = self.run(arguments);
        assert_eq!(
            (ran.code, ran.out.as_str()),
            (2, ""),
            "{arguments:?}: {}",
            ran.err
        );
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
        assert!(ran.err.starts_with("prefold: "), "{}", ran.err);
        for word in says {
            assert!(
                ran.err.contains(word),
                "{:?} does not say {word:?}",
                ran.err
            );
        }
        assert_eq!(names(self.work.path()), before, "{arguments:?}");
    }

    /// The prefix of a text alone, by `encode -o`.
    #[track_caller]
    fn alone(&self, more: &[&str], text: &str) -> (KvPrefix, Dtype) {
        let ran = self.run(&[more, &["-o", "alone", text]].concat());
        assert_eq!(ran.code, 0, "{}", ran.err);
        self.read("alone")
    }

    fn read(&self, name: &str) -> (KvPrefix, Dtype) {
        KvPrefix::read(&self.work.path().join(name)).unwrap()
    }

    /// The prefix of a text of the folder `out`.
    fn made(&self, text: &str) -> (KvPrefix, Dtype) {
        self.read(prefix_of(text).to_str().unwrap())
    }

    /// Those of `texts` in `out` are what each is alone.
    #[track_caller]
    fn as_alone(&self, more: &[&str], texts: &[&str]) {
        for text in texts {
            let ((got, dtype), (want, want_dtype)) = (self.made(text), self.alone(more, text));
            assert_eq!(dtype, want_dtype, "{text}");
            // One step of the type, where the last bit of f32 decides on the rounding.
            let step = match dtype {
                Dtype::F32 => 0.0,
                Dtype::F16 => 1.0 / f64::from(1 << 10),
                Dtype::Bf16 => 1.0 / f64::from(1 << 7),
            };
            same(text, &got, &want, step);
        }
    }

    /// Makes the prefixes of `texts` old, so that one that is written again is seen.
    fn age(&self, texts: &[&str]) -> Vec<Vec<u8>> {
        let old = texts.iter().map(|text| {
            let path = self.work.path().join(prefix_of(text));
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(long_ago()).unwrap();
            std::fs::read(path).unwrap()
        });
        old.collect()
    }

    /// Whether the prefix is as [`Case::age`] left it.
    fn untouched(&self, text: &str) -> bool {
        let path = self.work.path().join(prefix_of(text));
        path.metadata().unwrap().modified().unwrap() == long_ago()
    }

    fn engine(&self) -> (Engine, Adapter) {
        opened(self.model.path(), self.adapter.path())
    }
}

fn opened(model: &Path, adapter: &Path) -> (Engine, Adapter) {
    let engine = Engine::builder(model).device(Device::Cpu).build().unwrap();
    let adapter = engine.prefixes().adapter(adapter).unwrap();
    (engine, adapter)
}

fn long_ago() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

/// Where the prefix of a text lies below the folder of texts.
fn prefix_of(text: &str) -> PathBuf {
    let name = Path::new(text).file_name().unwrap().to_str().unwrap();
    Path::new("out").join(format!("{name}.safetensors"))
}

/// The names in a folder.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// An adapter of the tiny model: LoRA on q and v and some memory tokens, by a seed.
fn adapter(seed: u64) -> TempDir {
    const RANK: usize = 2;
    let mut random = Random(seed);
    let mut drawn = |shape: [usize; 2]| {
        let values = (0..shape[0] * shape[1]).map(|_| random.float() / 2.0);
        (shape.to_vec(), values.collect::<Vec<f32>>())
    };
    let mut lora = Tensors::new();
    for layer in 0..LAYERS {
        for (module, outputs) in [
            ("q_proj", HEADS * HEAD_DIM),
            ("v_proj", KV_HEADS * HEAD_DIM),
        ] {
            let name = |side| {
                format!(
                    "base_model.model.model.layers.{layer}.self_attn.{module}.lora_{side}.weight"
                )
            };
            lora.insert(name("A"), drawn([RANK, HIDDEN]));
            lora.insert(name("B"), drawn([outputs, RANK]));
        }
    }
    let memory = Tensors::from([("memory_embeddings".to_owned(), drawn([MEMORY, HIDDEN]))]);
    let folder = TempDir::new();
    let config = json!({
        "peft_type": "LORA", "r": RANK, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"],
    });
    folder.write("adapter_config.json", config.to_string());
    folder.write("adapter_model.safetensors", tiny::safetensors(&lora));
    folder.write("memory_embeddings.safetensors", tiny::safetensors(&memory));
    let settings = json!({"max_text_tokens": PIECE});
    folder.write("prefold.json", settings.to_string());
    folder
}

/// A text of `letters` letters, a token each.
fn letters(random: &mut Random, letters: usize) -> String {
    (0..letters)
        .map(|_| char::from(b'a' + random.below(7) as u8))
        .collect()
}

/// All but K and V are equal, and these are close.
#[track_caller]
fn same(what: &str, got: &KvPrefix, want: &KvPrefix, step: f64) {
    assert_eq!(got.origin(), want.origin(), "{what}");
    assert_eq!(got.shape(), want.shape(), "{what}");
    assert_eq!(got.k_rope(), want.k_rope(), "{what}");
    assert_eq!(got.rope(), want.rope(), "{what}");
    assert_eq!(got.positions(), want.positions(), "{what}");
    assert_eq!(got.next_pos(), want.next_pos(), "{what}");
    assert_eq!(got.source_ids(), want.source_ids(), "{what}");
    assert_eq!(got.content_id(), want.content_id(), "{what}");
    for layer in 0..want.shape().layers {
        for (side, name) in ["K", "V"].into_iter().enumerate() {
            let values = |prefix: &KvPrefix| prefix.layer(layer).unwrap()[side].clone();
            let want = wide(&values(want));
            let what = format!("{what}: {name} of layer {layer}");
            assert_close(&what, &values(got), &want, CLOSE, step);
        }
    }
}

/// No two of them are the same, so that one in another's place would be seen.
#[track_caller]
fn all_differ(prefixes: &[KvPrefix]) {
    for (i, a) in prefixes.iter().enumerate() {
        for b in &prefixes[..i] {
            let v = |prefix: &KvPrefix| {
                let Shape { layers, tokens, .. } = prefix.shape();
                (tokens, prefix.layer(layers - 1).unwrap()[1].clone())
            };
            let ((rows, a), (others, b)) = (v(a), v(b));
            let far = a.iter().zip(&b).any(|(a, b)| (a - b).abs() > 0.01);
            assert!(rows != others || far, "text {i} is like one before it");
        }
    }
}

/// Lengths around the piece, one of more rows than a pass has, and enough short ones for several passes.
fn lengths() -> Vec<usize> {
    let mut lengths = vec![1, 2, 63, 64, 65, 66, 127, 128, 129, 5, PASS + 100, 1, 300];
    lengths.extend([60, 64, 7].repeat(9));
    let rows: usize = lengths.iter().sum();
    assert!(rows > 3 * PASS, "{rows}");
    lengths
}

#[test]
fn each_text_is_what_it_is_alone() {
    let case = Case::new();
    let mut random = Random(7);
    let texts: Vec<String> = lengths()
        .into_iter()
        .enumerate()
        .map(|(i, length)| {
            let name = format!("{i}.txt");
            case.work.write(&name, letters(&mut random, length));
            name
        })
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for method in ["500xcompressor", "icae"] {
        let more = ["--method", method];
        let ran = case.good(&more, &texts, texts.len(), 0);
        // Nothing was there, so they come in the order of the texts.
        let told: Vec<PathBuf> = ran.out.lines().map(PathBuf::from).collect();
        let want: Vec<PathBuf> = texts.iter().map(|text| prefix_of(text)).collect();
        assert_eq!(told, want);
        // No more than these are left.
        let left = names(&case.work.path().join("out"));
        assert_eq!(left.len(), texts.len(), "{left:?}");

        case.as_alone(&more, &texts[..14]);
        let prefixes: Vec<KvPrefix> = texts.iter().map(|text| case.made(text).0).collect();
        all_differ(&prefixes[11..]);
        for (prefix, length) in prefixes.iter().zip(lengths()) {
            let origin = prefix.origin();
            assert_eq!(origin.method.name(), method);
            assert!((length..=length + 1).contains(&origin.source_tokens));
            assert_eq!(origin.pieces, origin.source_tokens.div_ceil(PIECE));
            assert_eq!(prefix.shape().tokens, origin.pieces * MEMORY);
        }
    }
}

#[test]
fn the_library_gives_each_text_in_its_place() {
    let case = Case::new();
    let (engine, adapter) = case.engine();
    let prefixes = engine.prefixes();
    let mut random = Random(8);
    let mut ids = |length: usize| (0..length).map(|_| random.below(256) as u32).collect();
    // The last ones fill a pass to its last row.
    let full = std::iter::repeat_n(PASS / 16 - MEMORY, 40);
    let lengths = lengths().into_iter().chain(full);
    let sources: Vec<Source> = lengths.map(|n| Source::ids(ids(n))).collect();
    for method in METHODS {
        for piece_tokens in [None, Some(50)] {
            let options = EncodeOptions {
                method: Some(method),
                piece_tokens,
            };
            let made = prefixes.encode_many(&adapter, &sources, &options).unwrap();
            assert_eq!(made.len(), sources.len());
            for (i, (got, source)) in made.iter().zip(&sources).enumerate() {
                let want = prefixes.encode(&adapter, source, &options).unwrap();
                same(&format!("text {i}"), got, &want, 0.0);
                assert_eq!(got.origin().source_sha256, source.sha256);
            }
            all_differ(&made[11..]);

            // Also not by their order.
            let back: Vec<Source> = sources.iter().rev().cloned().collect();
            let reversed = prefixes.encode_many(&adapter, &back, &options).unwrap();
            for (i, (got, want)) in reversed.iter().rev().zip(&made).enumerate() {
                same(&format!("text {i}, reversed"), got, want, 0.0);
            }
        }
    }

    let options = EncodeOptions::default();
    assert_eq!(
        prefixes.encode_many(&adapter, &[], &options).unwrap().len(),
        0
    );
    for (ids, says) in [(vec![], "no tokens"), (vec![3, 99_999], "99999")] {
        let texts = [sources[0].clone(), Source::ids(ids), sources[1].clone()];
        let error = prefixes.encode_many(&adapter, &texts, &options);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

/// What a family or a window of attention does to rows is done to those of each text.
#[test]
fn texts_stay_apart_in_every_family() {
    let adapter = adapter(3);
    adapter.write("prefold.json", json!({"max_text_tokens": 16}).to_string());
    let mut random = Random(12);
    let mut ids = |n: usize| (0..n).map(|_| random.below(tiny::VOCAB) as u32).collect();
    let lengths = [1, 15, 16, 17, 40, 3, 9];
    let sources: Vec<Source> = lengths.iter().map(|&n| Source::ids(ids(n))).collect();
    let window = |family| {
        let mut config = tiny::config(family);
        config["model_type"] = "mistral".into();
        config["sliding_window"] = 5.into();
        config
    };
    for (family, config) in [
        (Family::Llama, tiny::config(Family::Llama)),
        (Family::Llama, window(Family::Llama)),
        (Family::Qwen2, tiny::config(Family::Qwen2)),
        (Family::Qwen3, tiny::config(Family::Qwen3)),
    ] {
        let model = tiny::folder(&config, &tiny::tensors(family));
        let (engine, adapter) = opened(model.path(), adapter.path());
        let prefixes = engine.prefixes();
        for method in METHODS {
            let options = EncodeOptions {
                method: Some(method),
                ..EncodeOptions::default()
            };
            let made = prefixes.encode_many(&adapter, &sources, &options).unwrap();
            all_differ(&made);
            for (got, source) in made.iter().zip(&sources) {
                let want = prefixes.encode(&adapter, source, &options).unwrap();
                let what = format!("{config}, {} tokens", source.ids.len());
                same(&what, got, &want, 0.0);
            }
        }
    }
}

/// Against another way to the same values: before their rotation, a text's rows are those of its pieces.
#[test]
fn a_text_of_two_pieces_is_its_pieces_in_order() {
    let case = Case::new();
    let (engine, adapter) = case.engine();
    let mut random = Random(9);
    let mut ids = |n: usize| -> Vec<u32> { (0..n).map(|_| random.below(256) as u32).collect() };
    let texts: Vec<Vec<u32>> = (0..20).map(|_| ids(2 * PIECE)).collect();
    let mut sources: Vec<Source> = texts.iter().cloned().map(Source::ids).collect();
    for text in &texts {
        sources.extend(text.chunks(PIECE).map(|piece| Source::ids(piece.to_vec())));
    }
    let options = EncodeOptions {
        method: Some(Method::FiveHundredX),
        ..EncodeOptions::default()
    };
    let made = engine.prefixes();
    let made = made.encode_many(&adapter, &sources, &options).unwrap();
    let made = made.into_iter().map(|made| made.with_k_rope(KRope::None));
    let made: Vec<KvPrefix> = made.map(Result::unwrap).collect();
    let (whole, pieces) = made.split_at(texts.len());
    for (whole, pieces) in whole.iter().zip(pieces.chunks(2)) {
        assert_eq!(whole.origin().pieces, 2);
        for layer in 0..LAYERS {
            for side in 0..2 {
                let width = MEMORY * HEAD_DIM;
                let heads = |prefix: &KvPrefix| wide(&prefix.layer(layer).unwrap()[side]);
                let (first, second) = (heads(&pieces[0]), heads(&pieces[1]));
                let both = first.chunks(width).zip(second.chunks(width));
                let want: Vec<f64> = both.flat_map(|(a, b)| [a, b].concat()).collect();
                let got = &whole.layer(layer).unwrap()[side];
                assert_close("a text of two pieces", got, &want, CLOSE, 0.0);
            }
        }
    }
}

#[test]
fn what_is_there_and_the_same_stays() {
    let case = Case::new();
    let texts = ["a.txt", "b", "c.d.txt"];
    for (text, content) in texts.iter().zip(["the first", "the second", "the third"]) {
        case.work.write(text, content);
    }
    case.good(&[], &texts, 3, 0);
    let bytes = case.age(&texts);
    let untouched = |texts: &[&str]| texts.iter().all(|text| case.untouched(text));
    // As told otherwise, and a piece that is long enough for the same number of them.
    let ran = case.good(&[], &texts, 0, 3);
    let told: Vec<PathBuf> = ran.out.lines().map(PathBuf::from).collect();
    assert_eq!(told, texts.map(prefix_of));
    case.good(&["--dtype", "f32"], &texts, 0, 3);
    case.good(&["--k-rope", "applied"], &texts, 0, 3);
    case.good(&["--method", "500xcompressor"], &texts, 0, 3);
    case.good(&["--piece-tokens", "50"], &texts, 0, 3);
    // By its text, not by its file.
    std::fs::create_dir(case.work.path().join("elsewhere")).unwrap();
    case.work.write("elsewhere/b", "the second");
    case.good(&[], &["elsewhere/b"], 0, 1);
    case.work.write("b", "the second");
    case.good(&[], &texts, 0, 3);
    assert!(untouched(&texts));

    // A run that was cut short is taken up again: what is missing, or half there, is made.
    let path = |text: &str| case.work.path().join(prefix_of(text));
    std::fs::remove_file(path("b")).unwrap();
    case.good(&[], &texts, 1, 2);
    assert!(untouched(&["a.txt", "c.d.txt"]));
    std::fs::write(path("a.txt"), &bytes[0][..bytes[0].len() / 2]).unwrap();
    case.good(&[], &texts, 1, 2);
    assert!(untouched(&["c.d.txt"]));
    case.as_alone(&[], &texts);

    // One text more, and one that has changed.
    case.age(&texts);
    case.work.write("e", "one more");
    case.work.write("a.txt", "the first, with more to it");
    case.good(&[], &["a.txt", "b", "c.d.txt", "e"], 2, 2);
    assert!(untouched(&["b", "c.d.txt"]) && !case.untouched("a.txt"));
    case.as_alone(&[], &["a.txt", "b", "c.d.txt", "e"]);
}

#[test]
fn another_prefix_under_its_name_is_replaced() {
    let case = Case::new();
    let texts = ["a.txt", "b.txt"];
    let write = |more: &str| {
        for text in texts {
            case.work.write(text, format!("the text of {text}{more}"));
        }
    };
    write("");
    case.good(&[], &texts, 2, 0);
    let replaced = |more: &[&str]| {
        // Twice: from the prefixes that are there to these, and from these to no others.
        for (made, there) in [(2, 0), (0, 2)] {
            case.age(&texts);
            case.good(more, &texts, made, there);
            for text in texts {
                assert_eq!(case.untouched(text), made == 0, "{more:?}");
            }
        }
        case.as_alone(more, &texts);
    };
    let others = adapter(2);
    let model = tiny::byte_model(512);
    let config = std::fs::read_to_string(model.path().join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["rms_norm_eps"] = json!(1e-3);
    model.write("config.json", config.to_string());
    let path = |folder: &TempDir| folder.path().display().to_string();
    let (others, model) = (path(&others), path(&model));
    // Each differs from the one before in what is named and in what that one named.
    replaced(&["--dtype", "f16"]);
    replaced(&["--dtype", "bf16"]);
    replaced(&[]);
    replaced(&["--k-rope", "none"]);
    replaced(&[]);
    replaced(&["--method", "icae"]);
    replaced(&[]);
    replaced(&["--piece-tokens", "7"]);
    replaced(&[]);
    replaced(&["--adapter", &others]);
    replaced(&[]);
    replaced(&["--model", &model]);
    replaced(&[]);
    write(", with more to it");
    replaced(&[]);
}

/// The same weights, told to do otherwise with them.
#[test]
fn prefixes_of_other_settings_of_an_adapter_are_replaced() {
    let case = Case::new();
    let texts = ["a.txt", "b.txt"];
    for text in texts {
        case.work.write(text, format!("the text of {text}"));
    }
    case.good(&[], &texts, 2, 0);
    for settings in [
        json!({"max_text_tokens": PIECE, "next_position": "text"}),
        json!({"max_text_tokens": PIECE, "pad_to": PIECE, "pad_id": 9}),
        json!({"max_text_tokens": PIECE, "method": "icae"}),
    ] {
        case.adapter.write("prefold.json", settings.to_string());
        case.good(&[], &texts, 2, 0);
        case.good(&[], &texts, 0, 2);
        case.as_alone(&[], &texts);
    }
}

/// As many tokens as the model has room for are a piece then.
#[test]
fn prefixes_of_an_adapter_without_a_longest_text_stay() {
    let case = Case::new();
    case.adapter.write("prefold.json", "{}");
    case.work.write("short.txt", "a text");
    let long = letters(&mut Random(11), 1200);
    case.work.write("long.txt", long);
    let texts = ["short.txt", "long.txt"];
    case.good(&[], &texts, 2, 0);
    case.as_alone(&[], &texts);
    assert_eq!(case.made("long.txt").0.origin().pieces, 3);
    case.age(&texts);
    case.good(&[], &texts, 0, 2);
    assert!(texts.iter().all(|text| case.untouched(text)));
}

#[test]
fn a_killed_run_leaves_whole_prefixes_and_is_taken_up() {
    let case = Case::new();
    let mut random = Random(10);
    let texts: Vec<String> = (0..60)
        .map(|i| {
            let name = format!("{i}.txt");
            case.work.write(&name, letters(&mut random, 200));
            name
        })
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut child = case
        .command(&[&["--output-dir", "out"], &texts[..]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    // SIGKILL: nothing of the process runs any more.
    child.kill().unwrap();
    child.wait().unwrap();
    // What is told is there already.
    assert_eq!(Path::new(line.trim_end()), prefix_of(texts[0]));
    let there = |name: &&&str| case.work.path().join(prefix_of(name)).exists();
    let before: Vec<&str> = texts.iter().filter(there).copied().collect();
    assert!(before.contains(&texts[0]));
    case.age(&before);
    case.good(&[], &texts, texts.len() - before.len(), before.len());
    assert!(before.iter().all(|text| case.untouched(text)));
    let made = texts.iter().map(|text| case.made(text).0);
    all_differ(&made.collect::<Vec<_>>());
    case.as_alone(&[], &[texts[0], texts[59]]);
}

#[test]
fn after_a_bad_file_the_others_are_made() {
    let case = Case::new();
    let good = ["a.txt", "b.txt", "c.txt"];
    for text in good {
        case.work.write(text, format!("the text of {text}"));
    }
    std::fs::create_dir(case.work.path().join("folder")).unwrap();
    case.work.write("empty.txt", "");
    case.work.write("latin.txt", b"caf\xe9 au lait");
    let texts = [
        "missing.txt",
        "a.txt",
        "empty.txt",
        "b.txt",
        "folder",
        "c.txt",
        "latin.txt",
    ];
    let bad = ["missing.txt", "empty.txt", "folder", "latin.txt"];
    for (made, there) in [(3, 0), (0, 3)] {
        let ran = case.run(&[&["--output-dir", "out"], &texts[..]].concat());
        assert_eq!(ran.code, 1, "{}", ran.err);
        assert_eq!(
            ran.out.lines().map(PathBuf::from).collect::<Vec<_>>(),
            good.map(prefix_of)
        );
        let said: Vec<&str> = ran.err.lines().collect();
        assert_eq!(said.len(), bad.len() + 2, "{}", ran.err);
        for (name, line) in bad.iter().zip(&said) {
            assert!(line.starts_with(&format!("prefold: {name}: ")), "{line}");
        }
        let told = format!("prefold: {made} prefixes made, {there} were there already");
        assert_eq!(said[bad.len()], told);
        assert_eq!(said[bad.len() + 1], "prefold: 4 of 7 rows failed");
        let prefixes = good.map(|text| format!("{text}.safetensors"));
        assert_eq!(
            names(&case.work.path().join("out")),
            BTreeSet::from(prefixes)
        );
    }
    case.as_alone(&[], &good);

    let ran = case.run(&[&["--output-dir", "none"], &bad[..]].concat());
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(ran.err.ends_with("4 of 4 rows failed\n"), "{}", ran.err);

    // A good text among many bad ones, too long for --max-bytes.
    case.work.write("long.txt", "a".repeat(2000));
    let ran = case.run(&[
        "--output-dir",
        "out",
        "--max-bytes",
        "1000",
        "long.txt",
        "a.txt",
    ]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.starts_with("prefold: long.txt: "), "{}", ran.err);
    assert_eq!(Path::new(ran.out.trim_end()), prefix_of("a.txt"));
}

#[test]
fn what_makes_no_sense_is_said_before_anything_is_done() {
    let case = Case::new();
    for text in ["a.txt", "b.txt"] {
        case.work.write(text, text);
    }
    std::fs::create_dir(case.work.path().join("other")).unwrap();
    case.work.write("other/a.txt", "another");
    let here = case.work.path().join("a.txt").display().to_string();
    // Also where neither the model nor the adapter is there: nothing has been read yet.
    let nowhere = ["-m", "nowhere", "-a", "nowhere"];
    for lost in [&nowhere[..], &[]] {
        let refused = |arguments: &[&str], says: &[&str]| {
            case.senseless(&[arguments, lost].concat(), says);
        };
        let dir = ["--output-dir", "out"];
        // Two of one name.
        for other in ["other/a.txt", "a.txt", "./a.txt", &here] {
            refused(
                &[&dir[..], &["a.txt", "b.txt", other]].concat(),
                &["a.txt", other, "a.txt.safetensors"],
            );
        }
        refused(
            &[&dir[..], &["missing.txt", "b.txt", "other/missing.txt"]].concat(),
            &["missing.txt", "other/missing.txt"],
        );
        // What is not a file has no name.
        for texts in [&["-"][..], &["a.txt", "-"], &["-", "a.txt"], &[".."]] {
            refused(&[&dir[..], texts].concat(), &["--output-dir"]);
        }
        refused(&[&dir[..], &["--text", "a text"]].concat(), &[]);
        refused(&[&dir[..], &["--ids", "[1, 2]"]].concat(), &[]);
        refused(&[&dir[..], &["--text", "a text", "a.txt"]].concat(), &[]);
        refused(&dir, &[]);
        // One of the two.
        refused(&["a.txt"], &["--output"]);
        refused(&["a.txt", "b.txt"], &["--output"]);
        refused(
            &[&dir[..], &["-o", "file", "a.txt"]].concat(),
            &["--output", "--output-dir"],
        );
        refused(
            &["-o", "file", "a.txt", "b.txt"],
            &["--output", "--output-dir"],
        );
    }

    // A file in the folder's place, which stays.
    case.work.write("out", "a file");
    let ran = case.run(&["--output-dir", "out", "a.txt"]);
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.lines().count()),
        (1, "", 1),
        "{}",
        ran.err
    );
    assert!(ran.err.starts_with("prefold: out"), "{}", ran.err);
    assert_eq!(
        std::fs::read(case.work.path().join("out")).unwrap(),
        b"a file"
    );
}

#[test]
fn the_folder_is_made_with_those_above_it() {
    let case = Case::new();
    case.work.write("a.txt", "a text");
    let folder = case.work.path().join("new/and/deep");
    let ran = case.run(&["--output-dir", "new/and/deep", "a.txt"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let path = folder.join("a.txt.safetensors");
    let told = case.work.path().join(ran.out.trim_end());
    assert_eq!(told, path);
    let ((got, _), (want, _)) = (KvPrefix::read(&path).unwrap(), case.alone(&[], "a.txt"));
    same("a.txt", &got, &want, 0.0);
    assert_eq!(names(&folder), BTreeSet::from(["a.txt.safetensors".into()]));
}

/// The adapter that comes with the crate, with the model that it is for.
#[test]
fn a_few_texts_of_a_real_model() {
    let Some(model) = common::smollm2() else {
        eprintln!("skipped: no SmolLM2; `make model` fetches it");
        return;
    };
    let adapter = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/smollm2-135m-instruct-16");
    let texts = [
        "The town lies on the river and was first settled in the nineteenth century.",
        "No.",
        "The old lighthouse on the rock was built by an engineer from Leeds in the year 1887, and today it is \
         a museum with nine rooms, a garden that nobody tends, and a view over the whole bay: on clear days \
         one sees the ferry leave the harbour at nine, pass the three islands by ten, and come back at dusk \
         with the fishermen's children, who go to school in the town on the other side, where the bells of the \
         church can be heard until late in the evening.",
        "Bees dance.",
    ];
    let folder = TempDir::new();
    let names: Vec<String> = (0..texts.len()).map(|i| format!("{i}.txt")).collect();
    for (name, text) in names.iter().zip(texts) {
        folder.write(name, text);
    }
    let encode = |told: &str| {
        let done = Command::new(env!("CARGO_BIN_EXE_prefold"))
            .current_dir(folder.path())
            .args(["encode", "--device", "cpu", "--output-dir", "out"])
            .arg("--model")
            .arg(&model)
            .arg("--adapter")
            .arg(&adapter)
            .args(&names)
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(done.stderr).unwrap(), told);
    };
    encode("prefold: 4 prefixes made, 0 were there already\n");
    encode("prefold: 0 prefixes made, 4 were there already\n");

    let (engine, adapter) = opened(&model, &adapter);
    let sources = texts.map(|text| Source::text(text, engine.tokenize(text, true, false).unwrap()));
    for method in METHODS {
        let options = EncodeOptions {
            method: Some(method),
            ..EncodeOptions::default()
        };
        let prefixes = engine.prefixes();
        let made = prefixes.encode_many(&adapter, &sources, &options).unwrap();
        all_differ(&made);
        assert_eq!(made[2].origin().pieces, 2);
        for (i, (got, source)) in made.iter().zip(&sources).enumerate() {
            let alone = prefixes.encode(&adapter, source, &options).unwrap();
            same(texts[i], got, &alone, 0.0);
            if method == Method::FiveHundredX {
                let path = folder.path().join(format!("out/{i}.txt.safetensors"));
                same(texts[i], &KvPrefix::read(&path).unwrap().0, &alone, 0.0);
            }
        }
    }
}
