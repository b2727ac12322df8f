//! A GGUF with its weights unpacked to F32: a host computes with such ones in f32, as we do with any, and not with
//! activations of eight bits.

use std::io::{BufWriter, Write};
use std::path::Path;

use prefold::model::quant::{DType, dequantize};

/// ggml's type numbers.
const TYPES: [(u32, DType); 11] = [
    (0, DType::F32),
    (1, DType::F16),
    (2, DType::Q4_0),
    (3, DType::Q4_1),
    (6, DType::Q5_0),
    (7, DType::Q5_1),
    (8, DType::Q8_0),
    (12, DType::Q4K),
    (13, DType::Q5K),
    (14, DType::Q6K),
    (30, DType::BF16),
];
/// Bytes of a value by its type number; strings (8) and arrays (9) have none.
const VALUE_BYTES: [usize; 13] = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
const ALIGNMENT: usize = 32;

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        self.at += count;
        &self.bytes[self.at - count..self.at]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(*self.take(4).first_chunk().unwrap())
    }

    fn u64(&mut self) -> usize {
        u64::from_le_bytes(*self.take(8).first_chunk().unwrap()) as usize
    }

    fn text(&mut self) -> &'a [u8] {
        let length = self.u64();
        self.take(length)
    }

    fn skip_value(&mut self, kind: u32) {
        match kind {
            8 => drop(self.text()),
            9 => {
                let kind = self.u32();
                for _ in 0..self.u64() {
                    self.skip_value(kind);
                }
            }
            _ => drop(self.take(VALUE_BYTES[kind as usize])),
        }
    }
}

struct Packed<'a> {
    name: &'a [u8],
    dims: &'a [u8],
    elements: usize,
    dtype: DType,
    offset: usize,
}

/// Writes the GGUF `from` to `to`, its metadata as they are. For files that are known to be sound.
pub fn unpack_gguf(from: &Path, to: &Path) {
    let bytes = std::fs::read(from).unwrap();
    let mut reader = Reader {
        bytes: &bytes,
        at: 0,
    };
    assert_eq!(reader.take(8), b"GGUF\x03\0\0\0");
    let (tensors, pairs) = (reader.u64(), reader.u64());
    for _ in 0..pairs {
        assert_ne!(reader.text(), b"general.alignment");
        let kind = reader.u32();
        reader.skip_value(kind);
    }
    let head = &bytes[..reader.at];
    let packed: Vec<Packed> = (0..tensors)
        .map(|_| {
            let name = reader.text();
            let rank = reader.u32() as usize;
            let dims = reader.take(8 * rank);
            let kind = reader.u32();
            Packed {
                name,
                dims,
                elements: dims
                    .as_chunks()
                    .0
                    .iter()
                    .map(|&dim| u64::from_le_bytes(dim) as usize)
                    .product(),
                dtype: TYPES.iter().find(|(number, _)| *number == kind).unwrap().1,
                offset: reader.u64(),
            }
        })
        .collect();
    let data = &bytes[reader.at.next_multiple_of(ALIGNMENT)..];

    let mut out = BufWriter::new(std::fs::File::create(to).unwrap());
    let mut infos = Vec::new();
    let mut end = 0usize;
    for tensor in &packed {
        infos.extend((tensor.name.len() as u64).to_le_bytes());
        infos.extend(tensor.name);
        infos.extend((tensor.dims.len() as u32 / 8).to_le_bytes());
        infos.extend(tensor.dims);
        infos.extend(0u32.to_le_bytes());
        infos.extend((end as u64).to_le_bytes());
        end = (end + 4 * tensor.elements).next_multiple_of(ALIGNMENT);
    }
    let length = head.len() + infos.len();
    infos.resize(infos.len() + length.next_multiple_of(ALIGNMENT) - length, 0);
    out.write_all(head).unwrap();
    out.write_all(&infos).unwrap();
    for tensor in &packed {
        let mut floats = vec![0f32; tensor.elements];
        let size = tensor.dtype.bytes(tensor.elements).unwrap();
        dequantize(
            tensor.dtype,
            &data[tensor.offset..tensor.offset + size],
            &mut floats,
        )
        .unwrap();
        for part in floats.chunks(1 << 14) {
            let part: Vec<u8> = part.iter().flat_map(|value| value.to_le_bytes()).collect();
            out.write_all(&part).unwrap();
        }
        let written = 4 * tensor.elements;
        let pad = written.next_multiple_of(ALIGNMENT) - written;
        out.write_all(&[0; ALIGNMENT][..pad]).unwrap();
    }
    out.flush().unwrap();
}
