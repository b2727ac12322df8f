//! Models in several files, and files that are something else than a model: each has its sentence.

use prefold::model::config::Family;
use prefold::model::weights::Weights;

use super::common::gguf::Writer;
use super::common::{TempDir, tiny};
use super::{alone, assert_says};

const PARTS: usize = 3;

/// A tiny model in three files; `change` makes one of them wrong.
fn split(change: &dyn Fn(usize, &mut Writer)) -> TempDir {
    let dir = TempDir::new();
    let whole = tiny::gguf(Family::Llama);
    let count = whole.tensors.len();
    let mut tensors = whole.tensors.into_iter();
    for part in 0..PARTS {
        let mut writer = Writer::new();
        if part == 0 {
            writer.pairs = whole.pairs.clone();
        }
        writer.raw("split.no", 2, &(part as u16).to_le_bytes());
        writer.raw("split.count", 2, &(PARTS as u16).to_le_bytes());
        writer.raw("split.tensors.count", 5, &(count as i32).to_le_bytes());
        let own = count / PARTS + usize::from(part < count % PARTS);
        writer.tensors = tensors.by_ref().take(own).collect();
        change(part, &mut writer);
        dir.write(&name(part), writer.bytes());
    }
    dir
}

fn name(part: usize) -> String {
    format!("tiny-{:05}-of-{PARTS:05}.gguf", part + 1)
}

fn line(path: &std::path::Path) -> String {
    let line = Weights::open(path).unwrap_err().to_string();
    assert!(!line.contains('\n'), "{line}");
    line
}

#[test]
fn any_part_of_a_split_model_stands_for_all() {
    let _alone = alone();
    let dir = TempDir::new();
    let whole = Weights::open(&dir.write("tiny.gguf", tiny::gguf(Family::Llama).bytes())).unwrap();
    let parts = split(&|_, _| {});
    for part in 0..PARTS {
        let split = Weights::open(&parts.path().join(name(part))).unwrap();
        assert_eq!(split.fingerprint(), whole.fingerprint());
        assert_eq!(split.config(), whole.config());
        for tensor in whole.names() {
            let [a, b] =
                [&split, &whole].map(|weights| weights.get(tensor).unwrap().to_f32().unwrap());
            assert_eq!(a, b, "{tensor}");
        }
    }
}

#[test]
fn parts_that_do_not_fit_together() {
    let _alone = alone();
    let dir = split(&|_, _| {});
    std::fs::remove_file(dir.path().join(name(1))).unwrap();
    for part in [0, 2] {
        let said = line(&dir.path().join(name(part)));
        assert_says(
            &said,
            "tiny-00002-of-00003.gguf: is missing; the model has 3 parts",
        );
    }
    let renamed = dir.path().join("other.gguf");
    std::fs::rename(dir.path().join(name(2)), &renamed).unwrap();
    assert_says(
        &line(&renamed),
        "is part 3 of 3 of a model; name it as it was split",
    );

    type Change = fn(usize, &mut Writer);
    let cases: [(&str, Change); 4] = [
        (
            "tiny-00002-of-00003.gguf: its name says part 2 of 3",
            |part, w| {
                if part == 1 {
                    w.without("split.no")
                        .raw("split.no", 2, &2u16.to_le_bytes());
                }
            },
        ),
        ("stands in another part too", |part, w| {
            if part == 2 {
                w.tensors[0].name = "token_embd.weight".into();
            }
        }),
        ("split.tensors.count says 7", |_, w| {
            let seven = 7i32.to_le_bytes();
            w.without("split.tensors.count")
                .raw("split.tensors.count", 5, &seven);
        }),
        ("split.count is not a whole number", |part, w| {
            if part == 0 {
                w.without("split.count").str("split.count", "three");
            }
        }),
    ];
    for (says, change) in cases {
        assert_says(&line(&split(&change).path().join(name(0))), says);
    }
}

#[test]
fn what_is_not_a_model_is_called_by_its_name() {
    let _alone = alone();
    let dir = TempDir::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
    let gguf = tiny::gguf(Family::Llama).bytes();
    assert_says(
        &line(&dir.write("m.gguf", pointer)),
        "m.gguf: a pointer of Git LFS, not the file itself; `git lfs pull` fetches that",
    );
    let lora = |key: &str, value: &str| {
        let mut writer = tiny::gguf(Family::Llama);
        writer.str(key, value);
        line(&dir.write("lora.gguf", writer.bytes()))
    };
    for said in [
        lora("general.type", "adapter"),
        lora("adapter.type", "lora"),
    ] {
        assert_says(
            &said,
            "lora.gguf: is a LoRA adapter for llama.cpp, not a model",
        );
    }
    let tensors = tiny::safetensors(&tiny::tensors(Family::Llama));
    assert_says(
        &line(&dir.write("model.safetensors", &tensors)),
        "model.safetensors: holds weights without a configuration; give the folder",
    );
    assert_says(
        &line(dir.path()),
        "is a folder of 2 GGUFs; give one of them, as ",
    );

    let folder = TempDir::new();
    folder.write("model.safetensors", &tensors);
    assert_says(&line(folder.path()), "holds weights but no config.json");
    folder.write("m.gguf", &gguf);
    assert_says(
        &line(folder.path()),
        "is a folder with a GGUF in it; give the file, ",
    );
    folder.write("adapter_config.json", "{}");
    assert_says(&line(folder.path()), "is an adapter, not a model");

    let folder = tiny::folder(&tiny::config(Family::Llama), &tiny::tensors(Family::Llama));
    folder.write("model.safetensors", pointer);
    assert_says(
        &line(folder.path()),
        "model.safetensors: a pointer of Git LFS",
    );
    folder.write("config.json", pointer);
    assert_says(&line(folder.path()), "config.json: a pointer of Git LFS");
}
