//! Just enough of GGUF to read a vocabulary: for trusted files, and independent of the crate's own
//! reader, so that neither can hide the other's mistakes.

use std::collections::HashMap;
use std::io::{BufReader, Read};
use std::path::Path;

use prefold::text::GgufVocab;

enum Value {
    Text(String),
    Number(f64),
    List(Vec<Value>),
}

struct Reader<R>(R);

impl<R: Read> Reader<R> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.0.read_exact(&mut out).expect("GGUF is cut short");
        out
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    fn text(&mut self) -> String {
        let mut out = vec![0; self.u64() as usize];
        self.0.read_exact(&mut out).expect("GGUF is cut short");
        String::from_utf8(out).expect("a GGUF string is UTF-8")
    }

    fn value(&mut self, kind: u32) -> Value {
        Value::Number(match kind {
            0 => f64::from(u8::from_le_bytes(self.bytes())),
            1 => f64::from(i8::from_le_bytes(self.bytes())),
            2 => f64::from(u16::from_le_bytes(self.bytes())),
            3 => f64::from(i16::from_le_bytes(self.bytes())),
            4 => f64::from(self.u32()),
            5 => f64::from(i32::from_le_bytes(self.bytes())),
            6 => f64::from(f32::from_le_bytes(self.bytes())),
            7 => f64::from(self.bytes::<1>()[0]),
            8 => return Value::Text(self.text()),
            9 => {
                let kind = self.u32();
                let count = self.u64();
                return Value::List((0..count).map(|_| self.value(kind)).collect());
            }
            10 => self.u64() as f64,
            11 => i64::from_le_bytes(self.bytes()) as f64,
            12 => f64::from_le_bytes(self.bytes()),
            other => panic!("GGUF has no type {other}"),
        })
    }
}

/// The `tokenizer.ggml.*` keys of a GGUF file.
pub fn read(path: &Path) -> GgufVocab {
    let mut r = Reader(BufReader::new(std::fs::File::open(path).expect("opens")));
    assert_eq!(&r.bytes::<4>(), b"GGUF");
    r.u32();
    r.u64();
    let mut keys = HashMap::new();
    for _ in 0..r.u64() {
        let key = r.text();
        let kind = r.u32();
        keys.insert(key, r.value(kind));
    }
    let mut take = |key: &str| keys.remove(&format!("tokenizer.ggml.{key}"));
    let text = |v| match v {
        Value::Text(s) => s,
        _ => panic!("not a string"),
    };
    let number = |v| match v {
        Value::Number(n) => n,
        _ => panic!("not a number"),
    };
    let list = |v: Option<Value>| match v {
        Some(Value::List(l)) => l,
        None => Vec::new(),
        _ => panic!("not a list"),
    };
    let mut strings = |key: &str| list(take(key)).into_iter().map(text).collect();
    let tokens = strings("tokens");
    let merges = strings("merges");
    let mut numbers = |key: &str| {
        list(take(key))
            .into_iter()
            .map(number)
            .collect::<Vec<f64>>()
    };
    let scores = numbers("scores").into_iter().map(|s| s as f32).collect();
    let token_types = numbers("token_type")
        .into_iter()
        .map(|t| t as i32)
        .collect();
    let mut id = |key: &str| take(key).map(|v| number(v) as u32);
    let (bos, eos, unk) = (
        id("bos_token_id"),
        id("eos_token_id"),
        id("unknown_token_id"),
    );
    let mut flag = |key: &str| take(key).map(|v| number(v) != 0.0);
    GgufVocab {
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        add_space_prefix: flag("add_space_prefix"),
        lowercase: flag("normalizer.lowercase"),
        strip_accents: flag("normalizer.strip_accents"),
        char_map: Vec::new(),
        model: take("model").map_or(String::new(), text),
        pre: take("pre").map_or(String::new(), text),
        tokens,
        scores,
        token_types,
        merges,
        bos,
        eos,
        unk,
    }
}
