//! Which files of a repository make up a model.

use crate::error::{Error, Result};

/// What of a repository is a model.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// One GGUF file.
    File(String),
    /// A Hugging Face folder of these files.
    Folder(Vec<String>),
}

/// Quantisations that are taken where a repository has several and none is named.
const PREFERRED: [&str; 2] = ["Q4_K_M", "Q8_0"];

/// Files of a Hugging Face folder that are read beside the weights, where they are there.
const BESIDE: [&str; 5] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "1_Pooling/config.json",
];
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Chooses among a repository's `files` by what follows the colon of its name, if anything: a file, or a
/// quantisation such as `Q4_K_M`.
pub(super) fn choose(repo: &str, files: &[String], wanted: Option<&str>) -> Result<Choice> {
    let ggufs: Vec<&String> = files.iter().filter(|file| is_model(file)).collect();
    let listed = || {
        let mut names: Vec<&str> = ggufs.iter().map(|file| file.as_str()).collect();
        names.truncate(12);
        names.join(", ")
    };
    if let Some(wanted) = wanted {
        if files.iter().any(|file| file == wanted) {
            return Ok(Choice::File(wanted.into()));
        }
        return match quantised(&ggufs, wanted)[..] {
            [file] => Ok(Choice::File(file.clone())),
            _ if ggufs.is_empty() => Err(Error::input(
                format!("{repo}:{wanted}"),
                "the repository has no GGUF files; leave out what follows the colon",
            )),
            _ => Err(Error::input(
                format!("{repo}:{wanted}"),
                format!("expected one of: {}", listed()),
            )),
        };
    }
    if let [file] = ggufs[..] {
        return Ok(Choice::File(file.clone()));
    }
    for quantisation in PREFERRED {
        if let [file] = quantised(&ggufs, quantisation)[..] {
            return Ok(Choice::File(file.clone()));
        }
    }
    if !ggufs.is_empty() {
        let reason = format!("name one of its files as {repo}:FILE, of: {}", listed());
        return Err(Error::input(repo, reason));
    }
    let has = |name: &str| files.iter().any(|file| file == name);
    let sharded = has(INDEX);
    if !has("config.json") || !(sharded || has(WEIGHTS)) {
        let reason =
            "expected GGUF files, or config.json with safetensors; name another repository";
        return Err(Error::format(repo, reason));
    }
    let weights = |file: &str| match sharded {
        true => file == INDEX || (file.ends_with(".safetensors") && !file.contains('/')),
        false => file == WEIGHTS,
    };
    let mut parts: Vec<String> = files
        .iter()
        .filter(|file| BESIDE.contains(&file.as_str()) || weights(file))
        .cloned()
        .collect();
    // What makes the folder a model comes last: a folder that was cut short is not taken for whole.
    parts.sort_by_key(|file| file == "config.json");
    Ok(Choice::Folder(parts))
}

/// A GGUF file that is a model by itself: neither a projector of images nor a part of several.
fn is_model(file: &str) -> bool {
    let lower = file.to_ascii_lowercase();
    lower.ends_with(".gguf") && !lower.contains("mmproj") && !lower.contains("-of-0")
}

/// The files whose names end in a quantisation.
fn quantised<'a>(files: &[&'a String], quantisation: &str) -> Vec<&'a String> {
    let end = format!("{quantisation}.gguf").to_ascii_lowercase();
    let ends = |file: &str| match file.to_ascii_lowercase().strip_suffix(&end) {
        Some(rest) => rest.is_empty() || rest.ends_with(['.', '-', '_', '/']),
        None => false,
    };
    files.iter().filter(|file| ends(file)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[&str], wanted: Option<&str>) -> Result<Choice> {
        let files: Vec<String> = files.iter().map(|&file| file.into()).collect();
        choose("a/b", &files, wanted)
    }

    fn file(name: &str) -> Choice {
        Choice::File(name.into())
    }

    #[test]
    fn a_gguf_is_chosen_by_name_quantisation_or_preference() {
        let many = [
            "m-Q2_K.gguf",
            "m.Q4_K_M.gguf",
            "m-q8_0.gguf",
            "mmproj-m.gguf",
            "README.md",
        ];
        assert_eq!(chosen(&many, None).unwrap(), file("m.Q4_K_M.gguf"));
        assert_eq!(chosen(&many, Some("q2_k")).unwrap(), file("m-Q2_K.gguf"));
        assert_eq!(chosen(&many, Some("Q8_0")).unwrap(), file("m-q8_0.gguf"));
        assert_eq!(
            chosen(&many, Some("m-Q2_K.gguf")).unwrap(),
            file("m-Q2_K.gguf")
        );
        assert_eq!(chosen(&["x/one.gguf"], None).unwrap(), file("x/one.gguf"));
        // Q5 is not the end of Q2_Q5.
        for (files, wanted) in [
            (&many[..], Some("Q5_0")),
            (&["a-Q2_K.gguf", "b-Q3_K.gguf"], None),
            (&["a-1Q8_0.gguf", "b.gguf"], Some("Q8_0")),
            (&["m-00001-of-00002.gguf"], None),
            (&["model.safetensors"], None),
            (&["config.json", "model.safetensors"], Some("Q8_0")),
        ] {
            let line = chosen(files, wanted).unwrap_err().to_string();
            assert!(line.starts_with("a/b"), "{line}");
        }
    }

    #[test]
    fn a_folder_ends_with_what_makes_it_one() {
        let Choice::Folder(parts) = chosen(
            &[
                "config.json",
                "model.safetensors",
                "pytorch_model.bin",
                "tokenizer.json",
            ],
            None,
        )
        .unwrap() else {
            panic!("expected a folder");
        };
        assert_eq!(
            parts,
            ["model.safetensors", "tokenizer.json", "config.json"]
        );
        let sharded = [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            INDEX,
            "onnx/x.safetensors",
        ];
        let Choice::Folder(parts) = chosen(&sharded, None).unwrap() else {
            panic!("expected a folder");
        };
        assert_eq!(parts.len(), 4);
    }
}
