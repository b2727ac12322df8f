//! Safetensors files: one, or the shards that an index names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::{Component, Path};

use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::quant::DType;
use super::raw::RawTensor;
use crate::error::{Error, Result};
use crate::mapped::{Access, Mapped, one_line, read_json};

/// The one file of a model that is not sharded.
const SINGLE: &str = "model.safetensors";
/// The map from tensors to shards.
const INDEX: &str = "model.safetensors.index.json";
/// Half a million tensors with long names fit.
const LONGEST_INDEX: u64 = 64 << 20;

/// What is read of an index.
#[derive(Deserialize)]
struct Index {
    /// From tensors to the file names of shards.
    weight_map: BTreeMap<String, String>,
}

/// What a header says about its tensors, by name.
///
/// The header is parsed here and not by the crate of the format: that one holds all of it as loose
/// JSON values first, thirty times the size of a header made for it.
struct Header(HashMap<String, Info>);

#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    /// From the end of the header.
    data_offsets: (usize, usize),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut tensors = HashMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else if let Some(twice) = tensors.insert(name, map.next_value::<Info>()?) {
                        let shape = twice.shape;
                        return Err(A::Error::custom(format!("a tensor {shape:?} stands twice")));
                    }
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

/// Describes the tensors of one safetensors file by their names in it.
pub(crate) fn read(path: &Path, access: Access) -> Result<HashMap<String, RawTensor>> {
    let file = Mapped::open(path, access)?;
    let bytes = file.bytes();
    // 8 bytes of header length, the header, and data to the end.
    let data_start = bytes
        .first_chunk()
        .map(|length| u64::from_le_bytes(*length))
        .and_then(|length| usize::try_from(length).ok()?.checked_add(size_of::<u64>()))
        .filter(|&start| start <= bytes.len())
        .ok_or_else(|| {
            file.error("not a whole safetensors file: its header reaches past its end")
        })?;
    let Header(infos) = serde_json::from_slice(&bytes[size_of::<u64>()..data_start])
        .map_err(|e| file.error(one_line(&format!("not a safetensors header: {e}"))))?;

    let length = bytes.len() - data_start;
    let mut extents = Vec::new();
    let mut tensors = HashMap::new();
    for (name, info) in infos {
        let (start, end) = info.data_offsets;
        let bad = |reason: String| file.error(format!("tensor {}: {reason}", one_line(&name)));
        if start > end || end > length {
            return Err(bad(format!(
                "bytes {start}..{end} of the data, of which there are {length}: is the file cut \
                 short?"
            )));
        }
        let dtype = match info.dtype.as_str() {
            "F32" => Ok(DType::F32),
            "F16" => Ok(DType::F16),
            "BF16" => Ok(DType::BF16),
            other => Err(one_line(other)),
        };
        if let Ok(dtype) = dtype {
            let size = info
                .shape
                .iter()
                .try_fold(1usize, |product, &dim| product.checked_mul(dim))
                .and_then(|elements| dtype.bytes(elements));
            if size != Some(end - start) {
                let shape = one_line(&format!("{:?}", info.shape));
                return Err(bad(format!(
                    "{shape} of {} cannot be {} bytes",
                    dtype.name(),
                    end - start
                )));
            }
        }
        extents.push((start, end));
        let raw = RawTensor {
            file: file.clone(),
            range: data_start + start..data_start + end,
            dtype,
            shape: info.shape,
        };
        tensors.insert(name, raw);
    }
    // As the format demands; it also keeps a small file from unfolding into any amount of memory.
    extents.sort_unstable();
    let mut covered = 0;
    for (start, end) in extents {
        if start != covered {
            return Err(file.error(format!(
                "a gap or an overlap at byte {} of the data",
                start.min(covered)
            )));
        }
        covered = end;
    }
    if covered != length {
        return Err(file.error(format!("{} bytes after the last tensor", length - covered)));
    }
    Ok(tensors)
}

/// Describes the tensors of a folder: of `model.safetensors`, or of all shards in the index.
pub(crate) fn read_folder(folder: &Path, access: Access) -> Result<HashMap<String, RawTensor>> {
    let single = folder.join(SINGLE);
    if single.exists() {
        return read(&single, access);
    }
    let index = folder.join(INDEX);
    if index.exists() {
        return read_shards(folder, &index, access);
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

fn read_shards(folder: &Path, index: &Path, access: Access) -> Result<HashMap<String, RawTensor>> {
    let Index { weight_map } = read_json(index, LONGEST_INDEX)?;
    let shards: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
    if let Some(shard) = shards.iter().find(|shard| !is_plain_file_name(shard)) {
        return Err(Error::format(
            index,
            format!("{:?} is not a plain file name", one_line(shard)),
        ));
    }
    let mut tensors = HashMap::new();
    for shard in shards {
        let path = folder.join(shard);
        for (name, raw) in read(&path, access)? {
            if weight_map.get(&name).map(String::as_str) != Some(shard) {
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
    let missing = weight_map.keys().find(|name| !tensors.contains_key(*name));
    if let Some(name) = missing {
        return Err(Error::format(
            index,
            format!("tensor {}: its shard does not hold it", one_line(name)),
        ));
    }
    Ok(tensors)
}

/// A shard lies beside its index: a name with a folder in it could point anywhere.
fn is_plain_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let plain = matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(part)), None) if part == name
    );
    plain && !name.contains('\\')
}
