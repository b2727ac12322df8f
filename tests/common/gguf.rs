//! Writes small GGUF files.

/// Type numbers of tensors.
pub const F32: u32 = 0;
pub const F16: u32 = 1;
pub const Q4_1: u32 = 3;
pub const Q8_0: u32 = 8;

/// A file in the making. The public fields are there to be made wrong.
pub struct Writer {
    pub version: u32,
    pub alignment: usize,
    /// Written instead of the true counts.
    pub tensor_count: Option<u64>,
    pub pair_count: Option<u64>,
    pub pairs: Vec<Vec<u8>>,
    pub tensors: Vec<Tensor>,
}

pub struct Tensor {
    pub name: String,
    /// As GGUF has them: innermost first.
    pub dims: Vec<u64>,
    pub kind: u32,
    /// From the start of the data; `None`: where the data are put.
    pub offset: Option<u64>,
    pub data: Vec<u8>,
}

impl Writer {
    pub fn new() -> Self {
        Writer {
            version: 3,
            alignment: 32,
            tensor_count: None,
            pair_count: None,
            pairs: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// A key with a value whose type number and bytes are given.
    pub fn raw(&mut self, key: &str, kind: u32, bytes: &[u8]) -> &mut Self {
        let mut pair = text(key);
        pair.extend(kind.to_le_bytes());
        pair.extend(bytes);
        self.pairs.push(pair);
        self
    }

    pub fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub fn bool(&mut self, key: &str, value: bool) -> &mut Self {
        self.raw(key, 7, &[value.into()])
    }

    pub fn str(&mut self, key: &str, value: &str) -> &mut Self {
        self.raw(key, 8, &text(value))
    }

    /// An array of `count` elements of type `kind`, already in bytes.
    pub fn array(&mut self, key: &str, kind: u32, count: u64, bytes: &[u8]) -> &mut Self {
        let mut value = kind.to_le_bytes().to_vec();
        value.extend(count.to_le_bytes());
        value.extend(bytes);
        self.raw(key, 9, &value)
    }

    pub fn strs(&mut self, key: &str, values: &[String]) -> &mut Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| text(value)).collect();
        self.array(key, 8, values.len() as u64, &bytes)
    }

    /// Removes a key.
    pub fn without(&mut self, key: &str) -> &mut Self {
        let start = text(key);
        self.pairs.retain(|pair| !pair.starts_with(&start));
        self
    }

    /// A tensor; `shape` is outermost first.
    pub fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, data: Vec<u8>) -> &mut Self {
        self.tensors.push(Tensor {
            name: name.into(),
            dims: shape.iter().rev().map(|&dim| dim as u64).collect(),
            kind,
            offset: None,
            data,
        });
        self
    }

    pub fn tensor_mut(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        let tensors = self.tensor_count.unwrap_or(self.tensors.len() as u64);
        file.extend(tensors.to_le_bytes());
        let pairs = self.pair_count.unwrap_or(self.pairs.len() as u64);
        file.extend(pairs.to_le_bytes());
        file.extend(self.pairs.iter().flatten());
        let mut end = 0;
        for tensor in &self.tensors {
            file.extend(text(&tensor.name));
            file.extend((tensor.dims.len() as u32).to_le_bytes());
            for dim in &tensor.dims {
                file.extend(dim.to_le_bytes());
            }
            file.extend(tensor.kind.to_le_bytes());
            file.extend(tensor.offset.unwrap_or(end as u64).to_le_bytes());
            end = (end + tensor.data.len()).next_multiple_of(self.alignment);
        }
        for tensor in &self.tensors {
            file.resize(file.len().next_multiple_of(self.alignment), 0);
            file.extend(&tensor.data);
        }
        file
    }
}

/// A length and the text.
pub fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}
