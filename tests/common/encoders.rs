//! Golden values of tiny random encoders (`tests/data/golden/encoders/README.md`), on any device.

use super::compare::assert_close;
use prefold::model::weights::Weights;
use prefold::model::{Encoder, EncoderInput, Pooling};
use prefold::ops::Backend;
use safetensors::SafeTensors;

/// The folder of such a model.
pub fn folder(name: &str) -> std::path::PathBuf {
    let golden = super::shared().expect("golden values").join("golden");
    golden.join("encoders").join(name)
}

fn floats(golden: &SafeTensors, name: &str) -> Vec<f64> {
    let tensor = golden.tensor(name).unwrap();
    let chunks = tensor.data().as_chunks::<4>().0.iter();
    chunks
        .map(|&bytes| f32::from_le_bytes(bytes).into())
        .collect()
}

/// Integers, of any width.
fn numbers(golden: &SafeTensors, name: &str) -> Vec<u32> {
    let Ok(tensor) = golden.tensor(name) else {
        return Vec::new();
    };
    let count = tensor.shape().iter().product::<usize>();
    let size = tensor.data().len() / count;
    let low = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    tensor.data().chunks(size).map(low).collect()
}

/// Everything that a folder's golden values say, on a device.
pub fn agrees<B: Backend>(name: &str, backend: B, bound: f64) {
    let folder = folder(name);
    let encoder = Encoder::load(backend, &Weights::open(&folder).unwrap()).unwrap();
    let golden = std::fs::read(folder.join("golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    // Both in one pass, which must not see each other.
    let inputs: Vec<EncoderInput> = (0..2)
        .map(|i| EncoderInput {
            ids: numbers(&golden, &format!("ids.{i}")),
            types: numbers(&golden, &format!("types.{i}")),
            ..EncoderInput::default()
        })
        .collect();
    let states = encoder.states(&inputs).unwrap();
    for (i, states) in states.iter().enumerate() {
        let want = floats(&golden, &format!("hidden.{i}"));
        assert_close(&format!("{name}, states"), states, &want, bound, bound);
    }
    if golden.tensor("embedding.0").is_ok() {
        let vectors = encoder.embed(&inputs, Pooling::Mean, false).unwrap();
        for (i, vector) in vectors.iter().enumerate() {
            let want = floats(&golden, &format!("embedding.{i}"));
            assert_close(&format!("{name}, vector"), vector, &want, bound, bound);
        }
    }
    if golden.tensor("logits.0").is_ok() {
        let logits = match name.ends_with("tokens") || name == "bert3" {
            true => encoder.token_logits(&inputs),
            false => encoder.text_logits(&inputs),
        };
        for (i, logits) in logits.unwrap().iter().enumerate() {
            let want = floats(&golden, &format!("logits.{i}"));
            assert_close(&format!("{name}, classes"), logits, &want, bound, bound);
        }
    }
}
