//! Times launches by the device's own clock, beside what the device can do at best.

use crate::emu::Emu;
use prefold::Result;
use prefold::gpu::{Cuda, Launch, Launcher, Operand, Precision, Product};

use super::tape::Tape;

/// Seconds of one run of an op's launches.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Median with nothing of its operands in the last cache.
    pub cold: f64,
    /// Mean over runs right after one another, in one graph: no gaps, a warm cache.
    pub warm: f64,
}

/// What the device does at best, measured in the same run.
#[derive(Debug, Clone, Copy)]
pub struct Ceilings {
    /// Bytes per second of a large copy, read and written.
    pub bytes: f64,
    /// The same of 32 MB that stay in the last cache.
    pub cached: f64,
    /// Operations per second of a large bf16 product by the device's library, if it has one.
    pub flops: Option<f64>,
}

/// A device with a clock, or one that serves to check only.
pub trait Clock: Launcher {
    fn ceilings(&self) -> Result<Option<Ceilings>>;

    /// # Safety
    ///
    /// All memory that `entries` use is still there.
    unsafe fn time(tape: &Tape<Self>, entries: &[Launch]) -> Result<Option<Times>>;
}

const RUNS: usize = 21;
/// Runs in the graph.
const CHAIN: usize = 10;
/// Half of what is in the last cache when its speed is measured.
const CACHED: usize = 16 << 20;
/// More than any last cache.
const SWEEP: usize = 256 << 20;

impl Clock for Cuda {
    fn ceilings(&self) -> Result<Option<Ceilings>> {
        const COPY: usize = 1 << 30;
        const SIDE: usize = 8192;
        let from = self.alloc(COPY, true)?;
        let mut to = self.alloc(COPY, true)?;
        let mut copies = Vec::new();
        for _ in 0..RUNS {
            copies.push(self.time(|| self.copy(&from, 0, &mut to, 0, COPY))?);
        }
        let mut cached = Vec::new();
        for _ in 0..RUNS {
            cached.push(
                self.time(|| (0..CHAIN).try_for_each(|_| self.copy(&from, 0, &mut to, 0, CACHED)))?,
            );
        }
        // Random bits would be NaN here and there; random numbers draw the power that products draw.
        let numbers: Vec<u16> = (0..SIDE * SIDE)
            .map(|i| {
                let mixed = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                half::bf16::from_f32(mixed as f32 / (1 << 23) as f32 - 1.0).to_bits()
            })
            .collect();
        let mut matrix = self.alloc(SIDE * SIDE * 2, false)?;
        self.write(&mut matrix, 0, bytemuck::cast_slice(&numbers))?;
        let y = self.alloc(SIDE * SIDE * 4, true)?;
        let operand = Operand {
            at: self.address(&matrix),
            ld: SIDE,
        };
        let product = Product {
            x: operand,
            w: operand,
            bias: 0,
            y: self.address(&y),
            rows: SIDE,
            columns: SIDE,
            inner: SIDE,
            add: false,
            precision: Precision::Bf16,
        };
        let mut products = Vec::new();
        for _ in 0..RUNS {
            let mut done = None;
            let seconds = self.time(|| {
                // SAFETY: the operands were just made, of these shapes.
                done = unsafe { self.product_by_library(&product) };
                Ok(())
            })?;
            match done {
                Some(result) => result?,
                None => break,
            }
            products.push(seconds);
        }
        let flops = 2.0 * (SIDE as f64).powi(3);
        Ok(Some(Ceilings {
            bytes: 2.0 * COPY as f64 / median(copies),
            cached: 2.0 * (CHAIN * CACHED) as f64 / median(cached),
            flops: (!products.is_empty()).then(|| flops / median(products)),
        }))
    }

    unsafe fn time(tape: &Tape<Self>, entries: &[Launch]) -> Result<Option<Times>> {
        let cuda = &tape.device;
        let bytes = SWEEP.max(4 * cuda.cache());
        let from = cuda.alloc(bytes, true)?;
        let mut to = cuda.alloc(bytes, true)?;
        let mut cold = Vec::new();
        for _ in 0..RUNS {
            cuda.copy(&from, 0, &mut to, 0, bytes)?;
            // SAFETY: the caller's promise.
            cold.push(cuda.time(|| unsafe { tape.play(entries) })?);
        }
        let graph = cuda.record(|| {
            // SAFETY: as above.
            (0..CHAIN).try_for_each(|_| unsafe { tape.play(entries) })
        })?;
        let mut warm = Vec::new();
        for _ in 0..RUNS / 2 {
            // SAFETY: as above.
            warm.push(cuda.time(|| unsafe { cuda.replay(&graph) })? / CHAIN as f64);
        }
        Ok(Some(Times {
            cold: median(cold),
            warm: median(warm),
        }))
    }
}

/// Executed by a CPU: nothing to time.
impl Clock for Emu {
    fn ceilings(&self) -> Result<Option<Ceilings>> {
        Ok(None)
    }

    unsafe fn time(_: &Tape<Self>, _: &[Launch]) -> Result<Option<Times>> {
        Ok(None)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
