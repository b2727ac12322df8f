//! The low-rank update on a CPU: made of matmuls.

use super::device::Cpu;
use super::panels::Panels;
use crate::error::Result;
use crate::ops::Checked;
use crate::ops::gemm::{GemmOp, Linear, Outer, Span};
use crate::ops::layer::{Dropout, LayerOp};
use crate::ops::lora::{LoraFactors, LoraOp, LoraUpdate};
use crate::ops::storage::Storage;

impl LoraOp for Cpu {
    fn lora_checked(
        &self,
        _: Checked,
        shape: &LoraUpdate<'_>,
        x: &Vec<f32>,
        a: &Panels,
        b: &Panels,
        y: &mut Vec<f32>,
    ) -> Result<()> {
        let Narrowed { low, .. } = narrowed(self, shape, x, a)?;
        let up = Linear {
            rows: shape.rows,
            inputs: shape.ranks,
            outputs: shape.outputs,
            add: true,
        };
        self.linear(up, &low, b, None, y)
    }

    fn lora_bwd_checked(
        &self,
        _: Checked,
        shape: &LoraUpdate<'_>,
        factors: &LoraFactors<'_, Panels>,
        x: &Vec<f32>,
        dy: &Vec<f32>,
        dx: Option<&mut Vec<f32>>,
        gradients: &mut [Option<[&mut Vec<f32>; 2]>],
    ) -> Result<()> {
        let &LoraUpdate {
            rows,
            inputs,
            outputs,
            ranks,
            ..
        } = shape;
        let Narrowed { low, dropped } = narrowed(self, shape, x, factors.a)?;
        let mut dlow = self.zeros(rows * ranks)?;
        let down = Linear {
            rows,
            inputs: outputs,
            outputs: ranks,
            add: false,
        };
        self.linear(down, dy, factors.b_across, None, &mut dlow)?;
        for (part, gradients) in shape.parts.iter().zip(gradients) {
            let Some([da, db]) = gradients else {
                continue;
            };
            let between = Span {
                stride: ranks,
                first: part.rank,
                width: part.ranks,
            };
            let of_a = Outer {
                rows,
                left: between,
                right: Span::all(inputs),
            };
            self.outer(of_a, &dlow, dropped.as_ref().unwrap_or(x), da)?;
            let of_b = Outer {
                rows,
                left: Span {
                    stride: outputs,
                    first: part.output,
                    width: part.outputs,
                },
                right: between,
            };
            self.outer(of_b, dy, &low, db)?;
        }
        let Some(dx) = dx else {
            return Ok(());
        };
        let up = |add| Linear {
            rows,
            inputs: ranks,
            outputs: inputs,
            add,
        };
        match shape.drops() {
            None => self.linear(up(true), &dlow, factors.a_across, None, dx),
            Some(drops) => {
                let mut whole = self.zeros(rows * inputs)?;
                self.linear(up(false), &dlow, factors.a_across, None, &mut whole)?;
                self.dropout(Dropout { add: true, ..drops }, &whole, dx)
            }
        }
    }
}

struct Narrowed {
    /// What lies between the factors.
    low: Vec<f32>,
    /// x after dropout, if there is one.
    dropped: Option<Vec<f32>>,
}

fn narrowed(cpu: &Cpu, shape: &LoraUpdate<'_>, x: &Vec<f32>, a: &Panels) -> Result<Narrowed> {
    let dropped = match shape.drops() {
        Some(drops) => {
            let mut out = cpu.zeros(drops.len)?;
            cpu.dropout(drops, x, &mut out)?;
            Some(out)
        }
        None => None,
    };
    let down = Linear {
        rows: shape.rows,
        inputs: shape.inputs,
        outputs: shape.ranks,
        add: false,
    };
    let mut low = cpu.zeros(shape.rows * shape.ranks)?;
    cpu.linear(down, dropped.as_ref().unwrap_or(x), a, None, &mut low)?;
    Ok(Narrowed { low, dropped })
}
