//! GGUF files, versions 2 and 3, little-endian: metadata and tensor descriptions.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::quant::DType;
use super::raw::RawTensor;
use crate::error::{Error, Result};
use crate::mapped::{Access, Mapped, one_line};
use crate::text::GgufVocab;

/// The first bytes of every GGUF file.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";

/// Key–value pairs of a GGUF file, decoded when asked for.
///
/// Getters give `Ok(None)` for an absent key, and [`Error::Format`] where the value is of another
/// type or out of the type's range.
#[derive(Debug, Clone)]
pub struct Metadata {
    file: Arc<Mapped>,
    entries: BTreeMap<String, Entry>,
}

/// Where a value lies: one scalar, or an array's elements without their header.
#[derive(Debug, Clone)]
struct Entry {
    kind: Kind,
    /// `None`: a scalar.
    count: Option<usize>,
    range: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Str,
    U64,
    I64,
    F64,
}

/// The type number of arrays, which are not a [`Kind`].
const ARRAY: u32 = 9;

impl Kind {
    fn from_number(number: u32) -> Option<Kind> {
        Some(match number {
            0 => Kind::U8,
            1 => Kind::I8,
            2 => Kind::U16,
            3 => Kind::I16,
            4 => Kind::U32,
            5 => Kind::I32,
            6 => Kind::F32,
            7 => Kind::Bool,
            8 => Kind::Str,
            10 => Kind::U64,
            11 => Kind::I64,
            12 => Kind::F64,
            _ => return None,
        })
    }

    /// Bytes of one value; `None` for strings, which carry their own length.
    fn size(self) -> Option<usize> {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => Some(1),
            Kind::U16 | Kind::I16 => Some(2),
            Kind::U32 | Kind::I32 | Kind::F32 => Some(4),
            Kind::U64 | Kind::I64 | Kind::F64 => Some(8),
            Kind::Str => None,
        }
    }
}

/// Reads forward through a file and never past its end.
struct Cursor<'a> {
    file: &'a Mapped,
    at: usize,
    end: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let bytes = self
            .at
            .checked_add(count)
            .filter(|&stop| stop <= self.end)
            .and_then(|stop| self.file.bytes().get(self.at..stop));
        let Some(bytes) = bytes else {
            return Err(self.file.error(format!(
                "cut short or corrupt: {count} bytes needed at byte {}, there are {}",
                self.at,
                self.end - self.at
            )));
        };
        self.at += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// A 64-bit count or size; one beyond the address space is beyond the file too.
    fn size(&mut self) -> Result<usize> {
        let value = u64::from_le_bytes(self.array()?);
        Ok(usize::try_from(value).unwrap_or(usize::MAX))
    }

    fn str_bytes(&mut self) -> Result<&'a [u8]> {
        let length = self.size()?;
        self.take(length)
    }

    fn str(&mut self) -> Result<&'a str> {
        let at = self.at;
        std::str::from_utf8(self.str_bytes()?).map_err(|_| {
            self.file
                .error(format!("the text at byte {at} is not UTF-8"))
        })
    }

    fn kind(&mut self, key: &str, number: u32) -> Result<Kind> {
        Kind::from_number(number).ok_or_else(|| {
            self.file.error(format!(
                "{}: values of type {number} are not known",
                one_line(key)
            ))
        })
    }

    /// Passes over one value of a key.
    fn entry(&mut self, key: &str) -> Result<Entry> {
        let number = self.u32()?;
        let (kind, count) = if number == ARRAY {
            let number = self.u32()?;
            let kind = self.kind(key, number)?;
            (kind, Some(self.size()?))
        } else {
            (self.kind(key, number)?, None)
        };
        let start = self.at;
        match kind.size() {
            Some(size) => {
                self.take(count.unwrap_or(1).saturating_mul(size))?;
            }
            None => {
                for _ in 0..count.unwrap_or(1) {
                    self.str_bytes()?;
                }
            }
        }
        Ok(Entry {
            kind,
            count,
            range: start..self.at,
        })
    }
}

/// Reads the metadata and the tensors' descriptions of the GGUF at `path`.
pub(crate) fn read(path: &Path, access: Access) -> Result<(Metadata, HashMap<String, RawTensor>)> {
    let file = Mapped::open(path, access)?;
    let mut cursor = Cursor {
        file: &file,
        at: 0,
        end: file.bytes().len(),
    };
    if cursor.take(4).ok() != Some(MAGIC) {
        return Err(file.error("not a GGUF file: it does not begin with \"GGUF\""));
    }
    let version = cursor.u32()?;
    if !matches!(version, 2 | 3) {
        return Err(Error::Unsupported {
            what: if matches!(version.swap_bytes(), 1..=3) {
                format!("{}: big-endian GGUF", path.display())
            } else {
                format!("{}: GGUF version {version}", path.display())
            },
            have: "little-endian GGUF of version 2 or 3".into(),
        });
    }
    let tensors = cursor.size()?;
    let pairs = cursor.size()?;

    let mut entries = BTreeMap::new();
    for _ in 0..pairs {
        let key = cursor.str()?;
        let entry = cursor.entry(key)?;
        if entries.insert(key.to_owned(), entry).is_some() {
            return Err(file.error(format!("the key {} stands twice", one_line(key))));
        }
    }
    let metadata = Metadata {
        file: file.clone(),
        entries,
    };

    let alignment = match metadata.u32("general.alignment")? {
        None => 32,
        Some(n) if n.is_power_of_two() => n as usize,
        Some(n) => return Err(file.error(format!("general.alignment is {n}, no power of two"))),
    };
    let mut headers = Vec::new();
    for _ in 0..tensors {
        headers.push(tensor_header(&mut cursor)?);
    }
    let data_start = cursor
        .at
        .checked_next_multiple_of(alignment)
        .unwrap_or(usize::MAX);
    Ok((metadata, place(&file, headers, data_start, alignment)?))
}

/// A tensor's description: name, shape (outermost first), type, offset from the data's start.
struct Header<'a> {
    name: &'a str,
    shape: Vec<usize>,
    dtype: DType,
    offset: usize,
}

fn tensor_header<'a>(cursor: &mut Cursor<'a>) -> Result<Header<'a>> {
    let name = cursor.str()?;
    let dims = cursor.u32()?;
    if dims > 4 {
        return Err(cursor.file.error(format!(
            "tensor {}: {dims} dimensions, at most 4 are allowed",
            one_line(name)
        )));
    }
    let mut shape = Vec::with_capacity(dims as usize);
    for _ in 0..dims {
        shape.push(cursor.size()?);
    }
    shape.reverse();
    let number = cursor.u32()?;
    let dtype = dtype_from_number(number).ok_or_else(|| Error::Unsupported {
        what: format!(
            "{}: tensor {}: {}",
            cursor.file.path().display(),
            one_line(name),
            other_dtype(number)
        ),
        have: DType::names(),
    })?;
    Ok(Header {
        name,
        shape,
        dtype,
        offset: cursor.size()?,
    })
}

/// Gives every tensor its bytes, once it is certain that they exist and are its own.
///
/// Tensors that share bytes are refused: a small file could otherwise unfold into any amount of
/// memory.
fn place(
    file: &Arc<Mapped>,
    headers: Vec<Header>,
    data_start: usize,
    alignment: usize,
) -> Result<HashMap<String, RawTensor>> {
    let length = file.bytes().len();
    let mut extents = Vec::new();
    let mut tensors = HashMap::new();
    for header in headers {
        let bad =
            |reason: String| file.error(format!("tensor {}: {reason}", one_line(header.name)));
        let whole_blocks = header
            .shape
            .last()
            .is_none_or(|row| row.is_multiple_of(header.dtype.block_elements()));
        let size = header
            .shape
            .iter()
            .try_fold(1usize, |product, &dim| product.checked_mul(dim))
            .filter(|_| whole_blocks)
            .and_then(|elements| header.dtype.bytes(elements))
            .ok_or_else(|| {
                bad(format!(
                    "{:?} is not a possible shape for {}",
                    header.shape,
                    header.dtype.name()
                ))
            })?;
        if !header.offset.is_multiple_of(alignment) {
            return Err(bad(format!(
                "offset {} is not a multiple of {alignment}",
                header.offset
            )));
        }
        let range = data_start
            .checked_add(header.offset)
            .and_then(|start| Some(start..start.checked_add(size)?))
            .filter(|range| range.end <= length)
            .ok_or_else(|| {
                bad(format!(
                    "{size} bytes at offset {} of the data reach past the file's end at {length}: \
                     is the file cut short?",
                    header.offset
                ))
            })?;
        extents.push((range.start, range.end));
        let raw = RawTensor {
            file: file.clone(),
            range,
            dtype: Ok(header.dtype),
            shape: header.shape,
        };
        if tensors.insert(header.name.to_owned(), raw).is_some() {
            return Err(bad("stands twice".into()));
        }
    }
    extents.sort_unstable();
    if let Some(pair) = extents.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        return Err(file.error(format!("two tensors share byte {}", pair[1].0)));
    }
    Ok(tensors)
}

fn dtype_from_number(number: u32) -> Option<DType> {
    Some(match number {
        0 => DType::F32,
        1 => DType::F16,
        2 => DType::Q4_0,
        3 => DType::Q4_1,
        6 => DType::Q5_0,
        7 => DType::Q5_1,
        8 => DType::Q8_0,
        10 => DType::Q2K,
        11 => DType::Q3K,
        12 => DType::Q4K,
        13 => DType::Q5K,
        14 => DType::Q6K,
        20 => DType::IQ4NL,
        23 => DType::IQ4XS,
        30 => DType::BF16,
        39 => DType::MXFP4,
        _ => return None,
    })
}

/// Names of the commoner types that are not read.
fn other_dtype(number: u32) -> String {
    let name = match number {
        16..=19 | 21 | 22 | 29 => "an IQ type",
        24..=27 => "an integer type",
        28 => "F64",
        34 | 35 => "a ternary type",
        _ => return format!("element type {number}"),
    };
    format!("element type {number} ({name})")
}

impl Metadata {
    /// The file it comes from.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// What it says of its tokenizer.
    ///
    /// # Errors
    /// [`Error::Format`] for a key of another type.
    pub fn vocab(&self) -> Result<GgufVocab> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let text = |name: &str| -> Result<String> {
            Ok(self.str(&key(name))?.unwrap_or_default().to_owned())
        };
        let texts = |name: &str| -> Result<Vec<String>> {
            let found = self.strs(&key(name))?.unwrap_or_default();
            Ok(found.into_iter().map(str::to_owned).collect())
        };
        Ok(GgufVocab {
            model: text("model")?,
            pre: text("pre")?,
            tokens: texts("tokens")?,
            scores: self.f32s(&key("scores"))?.unwrap_or_default(),
            token_types: self.i32s(&key("token_type"))?.unwrap_or_default(),
            merges: texts("merges")?,
            bos: self.u32(&key("bos_token_id"))?,
            eos: self.u32(&key("eos_token_id"))?,
            unk: self.u32(&key("unknown_token_id"))?,
            add_bos: self.bool(&key("add_bos_token"))?,
            add_eos: self.bool(&key("add_eos_token"))?,
            add_space_prefix: self.bool(&key("add_space_prefix"))?,
            lowercase: self.bool(&key("normalizer.lowercase"))?,
            strip_accents: self.bool(&key("normalizer.strip_accents"))?,
            char_map: self
                .bytes_of(&key("precompiled_charsmap"))?
                .unwrap_or_default()
                .to_vec(),
        })
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether the key is there.
    pub fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Number of elements of an array.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        self.read(key, "an array", |entry| entry.count)
    }

    /// A text.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.read(key, "a UTF-8 text", |entry| {
            if entry.kind != Kind::Str || entry.count.is_some() {
                return None;
            }
            std::str::from_utf8(self.cursor(entry).str_bytes().ok()?).ok()
        })
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "a truth value", |entry| {
            match (entry.kind, entry.count, self.bytes(entry)) {
                (Kind::Bool, None, [byte]) => Some(*byte != 0),
                _ => None,
            }
        })
    }

    /// A whole number of any width from 0 to 2³²−1.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.read(key, "a whole number of 32 bits", |entry| {
            self.scalar(entry, integer)?.try_into().ok()
        })
    }

    /// A whole number of any width from 0 on.
    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.read(key, "a whole number", |entry| {
            self.scalar(entry, integer)?.try_into().ok()
        })
    }

    /// A number with a fraction.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.read(key, "a floating-point number", |entry| {
            self.scalar(entry, float)
        })
    }

    /// An array of texts.
    pub fn strs(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.read(key, "an array of UTF-8 texts", |entry| {
            let count = entry.count.filter(|_| entry.kind == Kind::Str)?;
            let mut cursor = self.cursor(entry);
            (0..count)
                .map(|_| std::str::from_utf8(cursor.str_bytes().ok()?).ok())
                .collect()
        })
    }

    /// An array of whole numbers of any width that fit 32 bits and a sign.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>> {
        self.read(key, "an array of whole numbers of 32 bits", |entry| {
            self.array(entry, |kind, bytes| integer(kind, bytes)?.try_into().ok())
        })
    }

    /// An array of bytes.
    fn bytes_of(&self, key: &str) -> Result<Option<&[u8]>> {
        self.read(key, "an array of bytes", |entry| {
            (entry.count.is_some() && entry.kind.size() == Some(1)).then(|| self.bytes(entry))
        })
    }

    /// An array of numbers with fractions.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.read(key, "an array of floating-point numbers", |entry| {
            self.array(entry, float)
        })
    }

    fn read<'a, T>(
        &'a self,
        key: &str,
        want: &str,
        decode: impl FnOnce(&'a Entry) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(entry) = self.entries.get(key) else {
            return Ok(None);
        };
        match decode(entry) {
            Some(value) => Ok(Some(value)),
            None => Err(self.file.error(format!("{} is not {want}", one_line(key)))),
        }
    }

    fn bytes(&self, entry: &Entry) -> &[u8] {
        self.file
            .bytes()
            .get(entry.range.clone())
            .unwrap_or_default()
    }

    fn cursor(&self, entry: &Entry) -> Cursor<'_> {
        Cursor {
            file: &self.file,
            at: entry.range.start,
            end: entry.range.end,
        }
    }

    fn scalar<T>(&self, entry: &Entry, decode: fn(Kind, &[u8]) -> Option<T>) -> Option<T> {
        if entry.count.is_some() {
            return None;
        }
        decode(entry.kind, self.bytes(entry))
    }

    fn array<T>(&self, entry: &Entry, decode: fn(Kind, &[u8]) -> Option<T>) -> Option<Vec<T>> {
        entry.count?;
        self.bytes(entry)
            .chunks_exact(entry.kind.size()?)
            .map(|bytes| decode(entry.kind, bytes))
            .collect()
    }
}

fn integer(kind: Kind, bytes: &[u8]) -> Option<i128> {
    Some(match kind {
        Kind::U8 => u8::from_le_bytes(bytes.try_into().ok()?).into(),
        Kind::I8 => i8::from_le_bytes(bytes.try_into().ok()?).into(),
        Kind::U16 => u16::from_le_bytes(bytes.try_into().ok()?).into(),
        Kind::I16 => i16::from_le_bytes(bytes.try_into().ok()?).into(),
        Kind::U32 => u32::from_le_bytes(bytes.try_into().ok()?).into(),
        Kind::I32 => i32::from_le_bytes(bytes.try_into().ok()?).into(),
        Kind::U64 => u64::from_le_bytes(bytes.try_into().ok()?).into(),
        Kind::I64 => i64::from_le_bytes(bytes.try_into().ok()?).into(),
        Kind::F32 | Kind::F64 | Kind::Bool | Kind::Str => return None,
    })
}

fn float(kind: Kind, bytes: &[u8]) -> Option<f32> {
    match kind {
        Kind::F32 => Some(f32::from_le_bytes(bytes.try_into().ok()?)),
        Kind::F64 => Some(f64::from_le_bytes(bytes.try_into().ok()?) as f32),
        _ => None,
    }
}
