//! Safetensors files: one, or the shards that an index names.

use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path};

use ::safetensors::{Dtype, SafeTensors};

use super::mapped::{Mapped, RawTensor, one_line, read_json};
use super::quant::DType;
use crate::error::{Error, Result};

/// The one file of a model that is not sharded.
const SINGLE: &str = "model.safetensors";
/// The map from tensors to shards.
const INDEX: &str = "model.safetensors.index.json";
/// A million tensors with long names fit.
const LONGEST_INDEX: u64 = 256 << 20;

/// Describes the tensors of one safetensors file by their names in it.
pub(crate) fn read(path: &Path) -> Result<HashMap<String, RawTensor>> {
    let file = Mapped::open(path)?;
    let (header, metadata) = SafeTensors::read_metadata(file.bytes())
        .map_err(|e| file.error(one_line(&format!("not a whole safetensors file: {e}"))))?;
    let data_start = header.saturating_add(size_of::<u64>());
    let length = file.bytes().len();
    let mut tensors = HashMap::new();
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        let range = data_start
            .checked_add(start)
            .zip(data_start.checked_add(end))
            .filter(|&(start, end)| start <= end && end <= length)
            .map(|(start, end)| start..end)
            .ok_or_else(|| {
                file.error(format!(
                    "tensor {}: bytes {start}..{end} of the data reach past the file's end",
                    one_line(&name)
                ))
            })?;
        let dtype = match info.dtype {
            Dtype::F32 => Ok(DType::F32),
            Dtype::F16 => Ok(DType::F16),
            Dtype::BF16 => Ok(DType::BF16),
            other => Err(format!("{other:?}")),
        };
        let raw = RawTensor {
            file: file.clone(),
            range,
            dtype,
            shape: info.shape.clone(),
        };
        tensors.insert(name, raw);
    }
    Ok(tensors)
}

/// Describes the tensors of a folder: of `model.safetensors`, or of all shards in the index.
pub(crate) fn read_folder(folder: &Path) -> Result<HashMap<String, RawTensor>> {
    let single = folder.join(SINGLE);
    if single.exists() {
        return read(&single);
    }
    let index = folder.join(INDEX);
    if index.exists() {
        return read_shards(folder, &index);
    }
    if folder.join("pytorch_model.bin").exists() {
        return Err(Error::Unsupported {
            what: format!("{}: weights as pickled PyTorch", folder.display()),
            have: "safetensors and GGUF".into(),
        });
    }
    Err(Error::format(
        folder,
        format!("the folder holds neither {SINGLE} nor {INDEX}"),
    ))
}

fn read_shards(folder: &Path, index: &Path) -> Result<HashMap<String, RawTensor>> {
    let json = read_json(index, LONGEST_INDEX)?;
    let map = json
        .get("weight_map")
        .and_then(|map| map.as_object())
        .ok_or_else(|| Error::format(index, "there is no object \"weight_map\""))?;
    let mut shards = BTreeSet::new();
    for (name, shard) in map {
        let shard = shard.as_str().ok_or_else(|| {
            Error::format(
                index,
                format!("the shard of {} is not a text", one_line(name)),
            )
        })?;
        shards.insert(shard);
    }
    let mut tensors = HashMap::new();
    for shard in shards {
        // A shard lies beside its index: a name with a folder in it could point anywhere.
        let mut parts = Path::new(shard).components();
        let plain = matches!(
            (parts.next(), parts.next()),
            (Some(Component::Normal(part)), None) if part == shard
        );
        if !plain || shard.contains('\\') {
            return Err(Error::format(
                index,
                format!("{:?} is no plain file name", one_line(shard)),
            ));
        }
        let path = folder.join(shard);
        for (name, raw) in read(&path)? {
            if map.get(&name).and_then(|s| s.as_str()) != Some(shard) {
                return Err(Error::format(
                    &path,
                    format!(
                        "tensor {}: the index does not place it in this shard",
                        one_line(&name)
                    ),
                ));
            }
            tensors.insert(name, raw);
        }
    }
    if let Some(name) = map.keys().find(|name| !tensors.contains_key(*name)) {
        return Err(Error::format(
            index,
            format!("tensor {}: its shard does not hold it", one_line(name)),
        ));
    }
    Ok(tensors)
}
