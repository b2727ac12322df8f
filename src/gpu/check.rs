//! A quick look at whether a device computes what it should, before it is used unasked.

use super::{Gpu, Launcher, Precision};
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::ops::gemm::Shaped;
use crate::ops::{
    Attention, Backend, Capacity, Keep, Limits, Linear, LoraPart, LoraUpdate, NllTarget, Norm,
    NormKind, Pairing, PruneBatch, Rotate, Select, TokenPruning, TopKOutput,
};

const ROWS: usize = 70;
const WIDTH: usize = 96;
const VOCAB: usize = 300;
/// More than one warp has.
const RANKS: usize = 72;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;

impl<L: Launcher> Gpu<L> {
    /// Runs the ops of a forward pass and of a selection on small shapes, ragged and, within a tile, long enough that
    /// every pipeline wraps, beside the CPU: some milliseconds.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] that names the first op which differs by more than the precision explains, or if the
    /// device fails.
    pub fn self_check(&self) -> Result<()> {
        let mine = forward(self)?;
        let cpu = forward(&Cpu::new())?;
        for ((op, got), (_, want)) in mine.iter().zip(&cpu) {
            // Operands are up to 1, sums of squares of rows about 32: in bf16 each product is off by up
            // to 2^-8 of itself, and few of 96 are so the same way.
            let bound = match (self.precision, *op) {
                (_, "topk" | "prune") => 0.0,
                (Precision::F32, _) => 1e-4,
                // Three in one.
                (Precision::Bf16, "replay") => 0.3,
                (Precision::Bf16, _) => 0.1,
            };
            let off = got.iter().zip(want).map(|(a, b)| (a - b).abs());
            // NaN is more than any bound.
            let wrong = off.clone().any(|off| off.is_nan() || off > bound);
            if wrong || got.len() != want.len() {
                let worst = off.fold(0.0, f32::max);
                return Err(Error::Device {
                    device: self.describe(),
                    reason: format!("its {op} differs from the CPU's by {worst:e}"),
                });
            }
        }
        Ok(())
    }
}

/// Numbers from −1 to 1, the same everywhere.
fn floats(count: usize, seed: u32) -> Vec<f32> {
    let number = |i: u32| {
        let mixed = (i ^ seed << 20).wrapping_mul(0x9e37_79b1);
        let mixed = (mixed ^ mixed >> 15).wrapping_mul(0x85eb_ca77);
        (mixed >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count as u32).map(number).collect()
}

/// Every op with its result, each from inputs of its own.
fn forward<B: Backend>(b: &B) -> Result<Vec<(&'static str, Vec<f32>)>> {
    let mut results = Vec::new();
    let input = |count, seed| b.upload(&floats(count, seed));
    let blank = |count| b.upload(&vec![f32::NAN; count]);

    let x = input(ROWS * WIDTH, 1)?;
    let head = b.matrix(VOCAB, WIDTH, &floats(VOCAB * WIDTH, 2))?;
    let bias = input(VOCAB, 3)?;
    let mut y = input(ROWS * VOCAB, 4)?;
    let shape = Linear {
        rows: ROWS,
        inputs: WIDTH,
        outputs: VOCAB,
        add: true,
    };
    b.linear(shape, &x, &head, Some(&bias), &mut y)?;
    results.push(("linear", b.download(&y, 0..ROWS * VOCAB)?));

    let picks: Vec<NllTarget> = (0..ROWS as u32)
        .map(|row| NllTarget {
            row,
            target: row * 37 % VOCAB as u32,
        })
        .collect();
    let mut nll = blank(ROWS)?;
    b.nll(WIDTH, &x, &head, &picks, &mut nll)?;
    results.push(("nll", b.download(&nll, 0..ROWS)?));

    // More rows than one tile has, and more steps of a sum than any kernel has stages.
    let (rows, width, vocab) = (130, 328, 700);
    let half: Vec<f32> = floats(rows * width, 20).iter().map(|x| x / 2.0).collect();
    let long = b.upload(&half)?;
    let wide = b.matrix(vocab, width, &floats(vocab * width, 21))?;
    let far: Vec<NllTarget> = (0..rows as u32)
        .map(|row| NllTarget {
            row,
            target: row * 37 % vocab as u32,
        })
        .collect();
    let mut nll = blank(rows)?;
    b.nll(width, &long, &wide, &far, &mut nll)?;
    results.push(("nll", b.download(&nll, 0..rows)?));

    // Directly after an op a product may read the operand that the op has left, in place of its result; all
    // that it needs is there before, since what is uploaded between them would end that.
    let product = |width| b.matrix(VOCAB, width, &floats(VOCAB * width, 14));
    let of_norm = product(WIDTH)?;
    let of_heads = product(HEADS * HEAD_DIM)?;
    let of_inner = product(WIDTH / 2)?;
    let mut products = blank(ROWS * VOCAB)?;
    let mut after = |op: &'static str, x: &B::Buf<f32>, matrix: &B::Matrix| -> Result<_> {
        let shape = Linear {
            rows: ROWS,
            inputs: matrix.shape()[1],
            outputs: VOCAB,
            add: false,
        };
        b.linear(shape, x, matrix, None, &mut products)?;
        Ok((op, b.download(&products, 0..ROWS * VOCAB)?))
    };

    let mut h = blank(ROWS * WIDTH)?;
    let ids: Vec<u32> = picks.iter().map(|pick| pick.target).collect();
    b.embed(&ids, &head, false, &mut h)?;
    results.push(("embed", b.download(&h, 0..ROWS * WIDTH)?));
    let weight = input(WIDTH, 5)?;
    let shape = Norm {
        rows: ROWS,
        width: WIDTH,
        eps: 1e-5,
        kind: NormKind::Rms,
    };
    b.norm(shape, &x, &weight, None, &mut h)?;
    results.push(("norm", b.download(&h, 0..ROWS * WIDTH)?));
    results.push(after("linear after norm", &h, &of_norm)?);
    // The same elements as few rows, for which another kernel stands.
    let shape = Norm {
        rows: 3,
        width: ROWS * WIDTH / 3,
        ..shape
    };
    let weight = input(shape.width, 13)?;
    b.norm(shape, &x, &weight, None, &mut h)?;
    results.push(("norm", b.download(&h, 0..ROWS * WIDTH)?));

    let (all, kv) = ((HEADS + 2 * KV_HEADS) * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let prefix = 40;
    let mut qkv = input(ROWS * all, 6)?;
    let angles = input(ROWS * HEAD_DIM, 7)?;
    let mut k = input((prefix + ROWS) * kv, 8)?;
    let mut v = input((prefix + ROWS) * kv, 9)?;
    let shape = Rotate {
        rows: ROWS,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        at: prefix,
        eps: 1e-5,
        pairing: Pairing::Halves,
    };
    b.rotate(shape, &mut qkv, None, Some(&angles), &mut k, &mut v)?;
    results.push(("rotate", b.download(&k, 0..(prefix + ROWS) * kv)?));
    let mut out = blank(ROWS * HEADS * HEAD_DIM)?;
    let shape = Attention {
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        prefix,
        prefixes: &[],
        at: prefix,
        lengths: &[ROWS - 9, 9],
        window: None,
        ahead: 0,
    };
    b.attention(&shape, &qkv, &k, &v, &mut out)?;
    results.push(("attention", b.download(&out, 0..ROWS * HEADS * HEAD_DIM)?));
    results.push(after("linear after attention", &out, &of_heads)?);

    let mut inner = blank(ROWS * WIDTH / 2)?;
    b.swiglu(ROWS, WIDTH / 2, &x, &mut inner)?;
    results.push(("swiglu", b.download(&inner, 0..ROWS * WIDTH / 2)?));
    results.push(after("linear after swiglu", &inner, &of_inner)?);
    b.gelu(ROWS * WIDTH / 2, &x, &mut inner)?;
    results.push(("gelu", b.download(&inner, 0..ROWS * WIDTH / 2)?));

    // What lies between the products is of the size of the operands.
    let small: Vec<f32> = floats(RANKS * WIDTH, 11).iter().map(|v| v / 8.0).collect();
    let a = b.matrix(RANKS, WIDTH, &small)?;
    let up = b.matrix(VOCAB, RANKS, &floats(VOCAB * RANKS, 12))?;
    let part = LoraPart {
        rank: 0,
        ranks: RANKS,
        output: 0,
        outputs: VOCAB,
    };
    let shape = LoraUpdate {
        rows: ROWS,
        inputs: WIDTH,
        outputs: VOCAB,
        ranks: RANKS,
        parts: &[part],
        dropout: None,
    };
    let mut y = input(ROWS * VOCAB, 4)?;
    b.lora(&shape, &x, &a, &up, &mut y)?;
    results.push(("lora", b.download(&y, 0..ROWS * VOCAB)?));

    let scores = input(ROWS * WIDTH, 10)?;
    let ids = b.zeros(ROWS * WIDTH)?;
    let mut chosen = TopKOutput::new(b, ROWS * WIDTH, 1)?;
    let whole = Select {
        first: 0,
        len: (ROWS * WIDTH) as u32,
        keep: Keep::Count((ROWS * WIDTH) as u32 / 3),
    };
    b.topk(&[whole], &scores, &ids, &mut chosen)?;
    let mask = b.download(&chosen.mask, 0..ROWS * WIDTH)?;
    results.push(("topk", mask.into_iter().map(|kept| kept as f32).collect()));

    // Launched, then recorded, then replayed.
    let mut y = b.zeros(ROWS * VOCAB)?;
    let shape = Linear {
        rows: ROWS,
        inputs: WIDTH,
        outputs: VOCAB,
        add: true,
    };
    let mut recorded = B::Recorded::default();
    for _ in 0..3 {
        b.repeat(&mut recorded, &mut || {
            b.linear(shape, &x, &head, None, &mut y)
        })?;
    }
    results.push(("replay", b.download(&y, 0..ROWS * VOCAB)?));

    let ids: Vec<u32> = (0..700).map(|i| i % VOCAB as u32).collect();
    let windows = [
        vec![(99, 0.5)],
        vec![(40, 0.2), (60, 0.7)],
        vec![(100, 0.4)],
    ];
    let text = TokenPruning {
        ids: &ids,
        size: 100,
        end: 100,
        windows: &windows,
    };
    let capacity = Capacity::of(&[text]);
    let limits = Limits {
        vocab: VOCAB,
        positions: capacity.tokens,
    };
    let mut texts = PruneBatch::new(b, capacity, limits, 16)?;
    texts.write(b, &[text])?;
    b.write(&floats(capacity.tokens, 11), texts.first_scores())?;
    b.prune(&mut texts, None)?;
    for seed in 12..14 {
        b.prune(&mut texts, Some(&input(capacity.all_rows(), seed)?))?;
    }
    let pruned = texts.read(b, &[text])?;
    let kept = pruned.into_iter().flat_map(|text| text.kept);
    results.push(("prune", kept.map(|i| i as f32).collect()));
    Ok(results)
}
