//! GGUF models in several files, `NAME-00001-of-00003.gguf` and so on.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::gguf::{self, Metadata};
use super::raw::RawTensor;
use crate::error::{Error, Result};
use crate::mapped::{Access, one_line};

/// Reads the metadata and the tensors' descriptions of the GGUF at `path`, and of the files that belong
/// to it; any of them stands for all.
pub(crate) fn read(path: &Path, access: Access) -> Result<(Metadata, HashMap<String, RawTensor>)> {
    let (metadata, tensors) = gguf::read(path, access)?;
    let count = metadata.usize("split.count")?.unwrap_or(1);
    if count <= 1 {
        return Ok((metadata, tensors));
    }
    let own = metadata.usize("split.no")?.unwrap_or(0);
    let wanted = metadata.usize("split.tensors.count")?;
    let bad = |path: &Path, reason: String| Err(Error::format(path, reason));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ending = |part: usize| format!("-{:05}-of-{count:05}.gguf", part + 1);
    let Some(stem) = name.strip_suffix(&ending(own)) else {
        return bad(
            path,
            format!(
                "is part {} of {count} of a model; name it as it was split, with {} at the end",
                own + 1,
                ending(own)
            ),
        );
    };
    let mut first = (own == 0).then(|| metadata.clone());
    let mut all = tensors;
    for part in (0..count).filter(|&part| part != own) {
        let path: PathBuf = path.with_file_name(format!("{stem}{}", ending(part)));
        if !path.exists() {
            return bad(
                &path,
                format!("is missing; the model has {count} parts, which lie in one folder"),
            );
        }
        let (metadata, tensors) = gguf::read(&path, access)?;
        let says = (metadata.usize("split.no")?, metadata.usize("split.count")?);
        if says != (Some(part), Some(count)) {
            return bad(
                &path,
                format!(
                    "its name says part {} of {count}, its metadata do not",
                    part + 1
                ),
            );
        }
        for (name, tensor) in tensors {
            let file = tensor.file.clone();
            if all.contains_key(&name) {
                return Err(file.error(format!(
                    "tensor {} stands in another part too",
                    one_line(&name)
                )));
            }
            all.insert(name, tensor);
        }
        if part == 0 {
            first = Some(metadata);
        }
    }
    if let Some(wanted) = wanted.filter(|&wanted| wanted != all.len()) {
        return bad(
            path,
            format!(
                "the parts hold {} tensors, split.tensors.count says {wanted}",
                all.len()
            ),
        );
    }
    match first {
        Some(metadata) => Ok((metadata, all)),
        None => bad(
            path,
            format!("split.no is {own}, but there are {count} parts"),
        ),
    }
}

/// Refuses what holds weights but is not a model, each with what to do.
pub(crate) fn check_is_model(path: &Path, is_folder: bool) -> Result<()> {
    let refuse = |reason: &str| Err(Error::format(path, reason.to_string()));
    if !is_folder {
        let safetensors = path.extension().is_some_and(|end| end == "safetensors");
        return match safetensors {
            true => refuse(
                "holds weights without a configuration; give the folder that it lies in, with config.json \
                 and tokenizer.json",
            ),
            false => Ok(()),
        };
    }
    if path.join("config.json").exists() {
        return Ok(());
    }
    if path.join("adapter_config.json").exists() {
        return refuse(
            "is an adapter, not a model; give the model it was trained on, and this one as its adapter",
        );
    }
    let mut names: Vec<String> = std::fs::read_dir(path)
        .map_err(Error::io(path))?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    let ggufs: Vec<&String> = names
        .iter()
        .filter(|name| name.ends_with(".gguf"))
        .collect();
    match &ggufs[..] {
        [] if names.iter().any(|name| name.ends_with(".safetensors")) => {
            refuse("holds weights but no config.json; put the model's own beside them")
        }
        [] => Ok(()),
        [one] => refuse(&format!(
            "is a folder with a GGUF in it; give the file, {}",
            path.join(one).display()
        )),
        [one, ..] => refuse(&format!(
            "is a folder of {} GGUFs; give one of them, as {}",
            ggufs.len(),
            path.join(one).display()
        )),
    }
}
