//! Dequantisation against the reference's values, bit for bit.

use prefold::Error;
use prefold::model::quant::{DType, dequantize, dequantize_rows};

const GOLDEN: &[u8] = include_bytes!("../data/quants.safetensors");

/// The bytes and the floats of one type.
fn golden(dtype: DType) -> (Vec<u8>, Vec<f32>) {
    let file = safetensors::SafeTensors::deserialize(GOLDEN).unwrap();
    let part = |suffix: &str| {
        let name = format!("{}.{suffix}", dtype.name());
        file.tensor(&name).unwrap().data().to_vec()
    };
    let floats = part("f32")
        .as_chunks()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    (part("bytes"), floats)
}

fn bits(floats: &[f32]) -> Vec<u32> {
    floats.iter().map(|f| f.to_bits()).collect()
}

#[test]
fn every_type_is_exact() {
    for dtype in DType::ALL {
        let (bytes, want) = golden(dtype);
        assert_eq!(dtype.bytes(want.len()), Some(bytes.len()));
        let mut got = vec![f32::NAN; want.len()];
        dequantize(dtype, &bytes, &mut got).unwrap();
        assert_eq!(bits(&got), bits(&want), "{}", dtype.name());
    }
}

#[test]
fn parallel_and_unaligned_give_the_same() {
    for dtype in DType::ALL {
        let (bytes, want) = golden(dtype);
        // Beyond two tasks, and no whole number of them.
        let times = (3 << 16) / want.len() + 1;
        let want = want.repeat(times);
        let mut padded = vec![0xff];
        padded.extend(bytes.repeat(times));
        for shift in [0, 1] {
            let data = if shift == 0 {
                bytes.repeat(times)
            } else {
                padded.clone()
            };
            let data = &data[shift..];
            let mut got = vec![f32::NAN; want.len()];
            dequantize(dtype, data, &mut got).unwrap();
            assert_eq!(bits(&got), bits(&want), "{}", dtype.name());
            got.fill(f32::NAN);
            dequantize_rows(dtype, data, &mut got).unwrap();
            assert_eq!(bits(&got), bits(&want), "{}", dtype.name());
        }
    }
}

#[test]
fn wrong_sizes_are_refused() {
    for dtype in DType::ALL {
        let (bytes, want) = golden(dtype);
        let mut out = vec![0.0; want.len()];
        for (data, len) in [
            (&bytes[1..], want.len()),
            (&bytes[..], want.len() - 1),
            (&[][..], want.len()),
            (&bytes[..], 0),
        ] {
            for f in [dequantize, dequantize_rows] {
                let error = f(dtype, data, &mut out[..len]).unwrap_err();
                assert!(matches!(error, Error::Shape { .. }));
                assert!(error.to_string().contains(dtype.name()), "{error}");
            }
        }
    }
    assert_eq!(DType::Q4_0.bytes(33), None);
    assert_eq!(DType::F32.bytes(usize::MAX), None);
}
