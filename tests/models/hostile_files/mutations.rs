//! Thousands of seeded damages, and files whose structure outweighs their content.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use prefold::model::config::Family;

use super::{alone, assert_says, read_all};
use crate::common::mutate::{mutate, mutate_text};
use crate::common::{self, Random, TempDir, gguf, tiny};

/// Valid files whose structure is many times their size in memory if one is careless.
#[test]
fn bulky_headers() {
    let _alone = alone();
    const COUNT: usize = 100_000;
    let folder = TempDir::new();
    let config = tiny::config(Family::Llama).to_string();
    folder.write("config.json", &config);
    let many = |one: &dyn Fn(usize) -> String| (0..COUNT).map(one).collect::<Vec<_>>().join(",");
    let long_shape = many(&|_| "1".into());
    for header in [
        format!(r#"{{"a":{{"dtype":"U8","shape":[{long_shape}],"data_offsets":[0,1]}}}}"#),
        format!(
            "{{{}}}",
            many(&|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#))
        ),
        format!(
            r#"{{"__metadata__":{{{}}}}}"#,
            many(&|i| format!(r#""{i}":"""#))
        ),
    ] {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        if header.starts_with("{\"a\"") {
            bytes.push(0);
        }
        folder.write("model.safetensors", &bytes);
        let line = read_all(folder.path(), config.len() + bytes.len()).unwrap();
        assert_says(&line, "embed_tokens.weight is missing");
    }
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let index = format!(
        r#"{{"weight_map":{{{}}}}}"#,
        many(&|i| format!(r#""{i}":"a""#))
    );
    folder.write("model.safetensors.index.json", &index);
    let line = read_all(folder.path(), config.len() + index.len()).unwrap();
    assert_says(&line, "a: No such file");

    let dir = TempDir::new();
    let empty = vec![String::new(); COUNT];
    let mut tokens = tiny::gguf(Family::Llama);
    tokens.strs("empty", &empty);
    let mut keys = tiny::gguf(Family::Llama);
    let mut tensors = tiny::gguf(Family::Llama);
    for i in 0..COUNT {
        keys.raw(&i.to_string(), 0, &[0]);
        tensors.tensor(&i.to_string(), &[], gguf::F32, vec![0; 4]);
    }
    for writer in [tokens, keys, tensors] {
        let bytes = writer.bytes();
        assert_eq!(read_all(&dir.write("m.gguf", &bytes), bytes.len()), None);
    }
}

/// Runs `times` seeded damages; `damage` writes the model's files and gives its path and their size.
fn survives(times: u64, mut damage: impl FnMut(&mut Random) -> (PathBuf, usize)) {
    let mut refused = 0;
    for seed in 0..times {
        let (path, size) = damage(&mut Random(seed));
        let outcome = catch_unwind(AssertUnwindSafe(|| read_all(&path, size)));
        match outcome {
            Ok(error) => refused += u64::from(error.is_some()),
            Err(_) => panic!("seed {seed} is not survived"),
        }
    }
    // A damage may hit a weight, which cannot be told; most must be noticed.
    assert!(refused > times / 3, "only {refused} of {times} noticed");
}

/// Length of a safetensors file's header.
fn header_of(bytes: &[u8]) -> usize {
    8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

#[test]
fn mutated_ggufs() {
    let _alone = alone();
    let dir = TempDir::new();
    for family in tiny::FAMILIES {
        let mut writer = tiny::gguf(family);
        // Quantised tensors too.
        for (name, kind, bytes) in [
            ("blk.0.ffn_up.weight", gguf::Q8_0, 34),
            ("blk.0.ffn_down.weight", gguf::Q4_1, 20),
            ("blk.1.ffn_up.weight", gguf::F16, 64),
        ] {
            let tensor = writer.tensor_mut(name);
            tensor.kind = kind;
            tensor.data = vec![0x3c; tiny::HIDDEN * tiny::FFN / 32 * bytes];
        }
        let whole = writer.bytes();
        let data: usize = writer.tensors.iter().map(|t| t.data.len()).sum();
        let header = whole.len() - data;
        assert_eq!(
            read_all(&dir.write("whole.gguf", &whole), whole.len()),
            None
        );
        survives(1500, |random| {
            let mut bytes = whole.clone();
            mutate(&mut bytes, header, random);
            (dir.write("m.gguf", &bytes), bytes.len())
        });
    }
}

#[test]
fn ggufs_cut_anywhere() {
    let _alone = alone();
    let dir = TempDir::new();
    let whole = tiny::gguf(Family::Llama).bytes();
    for length in (0..4096).chain((4096..whole.len()).step_by(997)) {
        assert!(
            read_all(&dir.write("m.gguf", &whole[..length]), length).is_some(),
            "taken at {length} of {}",
            whole.len()
        );
    }
}

#[test]
fn mutated_folders() {
    let _alone = alone();
    for family in [Family::Llama, Family::Gpt2] {
        let tensors = tiny::tensors(family);
        let config = tiny::config(family).to_string().into_bytes();
        let whole = tiny::safetensors(&tensors);
        let dir = tiny::folder(&tiny::config(family), &tensors);
        survives(1500, |random| {
            let (mut bytes, mut text) = (whole.clone(), config.clone());
            match random.below(4) {
                0 => mutate_text(&mut text, random),
                1 => mutate(&mut text, usize::MAX, random),
                2 => {
                    let mut header = bytes.drain(..header_of(&whole)).collect::<Vec<_>>();
                    let mut json = header.split_off(8);
                    mutate_text(&mut json, random);
                    header = (json.len() as u64).to_le_bytes().to_vec();
                    bytes.splice(..0, [header, json].concat());
                }
                _ => mutate(&mut bytes, header_of(&whole), random),
            }
            dir.write("config.json", &text);
            dir.write("model.safetensors", &bytes);
            (dir.path().to_owned(), text.len() + bytes.len())
        });
    }
}

#[test]
fn mutated_golden_models() {
    let _alone = alone();
    let Some(shared) = common::shared() else {
        eprintln!("skipped: no ../shared");
        return;
    };
    let dir = TempDir::new();
    for name in ["llama3", "qwen3"] {
        let source = shared.join("golden/models").join(name);
        let config = std::fs::read(source.join("config.json")).unwrap();
        let whole = std::fs::read(source.join("model.safetensors")).unwrap();
        survives(500, |random| {
            let (mut bytes, mut text) = (whole.clone(), config.clone());
            if random.below(3) == 0 {
                mutate_text(&mut text, random);
            } else {
                mutate(&mut bytes, header_of(&whole), random);
            }
            dir.write("config.json", &text);
            dir.write("model.safetensors", &bytes);
            (dir.path().to_owned(), text.len() + bytes.len())
        });
    }
}
