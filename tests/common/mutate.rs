//! Seeded damages to valid inputs.

use super::Random;

/// One of several ways to damage a file whose first `header` bytes are read as structure.
pub fn mutate(bytes: &mut Vec<u8>, header: usize, random: &mut Random) {
    const NASTY: [u64; 12] = [
        0,
        1,
        7,
        0x7f,
        0xff,
        0xffff,
        0x7fff_ffff,
        0xffff_ffff,
        0x1_0000_0000,
        i64::MAX as u64,
        u64::MAX - 7,
        u64::MAX,
    ];
    for _ in 0..1 + random.below(3) {
        if bytes.is_empty() {
            return;
        }
        // Mostly where it hurts.
        let end = if random.below(8) == 0 {
            bytes.len()
        } else {
            header.min(bytes.len())
        };
        let at = random.below(end);
        match random.below(8) {
            0 | 1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = random.next() as u8,
            3 | 4 => {
                let value = NASTY[random.below(NASTY.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)];
                for (byte, value) in bytes[at..].iter_mut().zip(&value[..width]) {
                    *byte = *value;
                }
            }
            5 => bytes.truncate(at),
            6 => {
                let stop = (at + 1 + random.below(16)).min(bytes.len());
                bytes.drain(at..stop);
            }
            _ => {
                let stop = (at + 1 + random.below(16)).min(bytes.len());
                let copy = bytes[at..stop].to_vec();
                bytes.splice(at..at, copy);
            }
        }
    }
}

/// Damages a text: swaps one number, word or sign for another.
pub fn mutate_text(bytes: &mut Vec<u8>, random: &mut Random) {
    const NASTY: [&str; 14] = [
        "0",
        "-1",
        "1e400",
        "NaN",
        "18446744073709551615",
        "99999999999999999999",
        "null",
        "true",
        "\"\"",
        "[]",
        "{}",
        "[[",
        "1.5",
        "16777216",
    ];
    let text = String::from_utf8_lossy(bytes).into_owned();
    let words: Vec<(usize, usize)> = text
        .match_indices(|c: char| c.is_ascii_alphanumeric())
        .map(|(at, _)| at)
        .collect::<Vec<_>>()
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| (run[0], run[run.len() - 1] + 1))
        .collect();
    if words.is_empty() {
        return;
    }
    let (start, stop) = words[random.below(words.len())];
    let replacement = NASTY[random.below(NASTY.len())];
    bytes.splice(start..stop, replacement.bytes());
}
