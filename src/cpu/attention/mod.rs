//! Attention on a CPU: the tasks that threads take.

mod backward;
mod cache;
mod forward;

use rayon::prelude::*;

use super::device::Cpu;
use crate::error::Result;
use crate::ops::Checked;
use crate::ops::attention::{Attended, Attention, AttentionOp};

use backward::{BackwardTask, KeyGradients, backward_task};
use forward::{Task, attention_task};

impl AttentionOp for Cpu {
    fn attention_checked(
        &self,
        _: Checked,
        shape: &Attention<'_>,
        qkv: &Vec<f32>,
        [k, v]: [&Vec<f32>; 2],
        out: &mut Vec<f32>,
        lse: Option<&mut Vec<f32>>,
    ) -> Result<()> {
        let (rows, heads, d) = (shape.rows(), shape.heads, shape.head_dim);
        let mut lse = lse.map_or(&mut [][..], |lse| &mut lse[..rows * heads]);
        // So many positions that the queries of a group fill whole panels.
        let group = heads / shape.kv_heads;
        let positions = self.tile.columns / gcd(self.tile.columns, group);
        let mut tasks = Vec::with_capacity(rows / positions + shape.lengths.len());
        let mut rest = &mut out[..rows * heads * d];
        let mut row = 0;
        for (i, &length) in shape.lengths.iter().enumerate() {
            let mut first = 0;
            while first < length {
                let count = positions.min(length - first);
                let (out, others) = rest.split_at_mut(count * heads * d);
                rest = others;
                let (of_task, others) = lse.split_at_mut(lse.len().min(count * heads));
                lse = others;
                tasks.push(Task {
                    group,
                    count,
                    row: row + first,
                    position: shape.prefix + first,
                    end: shape.prefix + length,
                    from: shape.prefixes.get(i).copied().unwrap_or(0),
                    own: shape.at + row,
                    out,
                    lse: of_task,
                });
                first += count;
            }
            row += length;
        }
        tasks.into_par_iter().for_each_init(
            || self.scratch(0),
            |scratch, task| attention_task(self.arch, shape, [qkv, k, v], task, &mut scratch.data),
        );
        Ok(())
    }

    fn attention_bwd_checked(
        &self,
        _: Checked,
        shape: &Attention<'_>,
        attended: Attended<'_, Self>,
        dout: &Vec<f32>,
        dqkv: &mut Vec<f32>,
        [dk, dv]: [&mut Vec<f32>; 2],
    ) -> Result<()> {
        let Attended {
            qkv,
            k,
            v,
            out,
            lse,
        } = attended;
        let (heads, kv_heads, d) = (shape.heads, shape.kv_heads, shape.head_dim);
        let (rows, stride) = (shape.rows(), (heads + 2 * kv_heads) * d);
        // A task has one key head of one sequence, and gradients of its keys and values of its own.
        let group = heads / kv_heads;
        let mut tasks = Vec::with_capacity(shape.lengths.len() * kv_heads);
        let mut row = 0;
        for (i, &length) in shape.lengths.iter().enumerate() {
            if length == 0 {
                continue;
            }
            tasks.extend((0..kv_heads).map(|kv| BackwardTask {
                group,
                kv,
                count: length,
                row,
                from: shape.prefixes.get(i).copied().unwrap_or(0),
                dq: Vec::with_capacity(length),
            }));
            row += length;
        }
        let mut rest = dqkv[..rows * stride].chunks_exact_mut(stride);
        for tasks in tasks.chunks_exact_mut(kv_heads) {
            for row in rest.by_ref().take(tasks[0].count) {
                let dq = row[..heads * d].chunks_exact_mut(group * d);
                for (task, dq) in tasks.iter_mut().zip(dq) {
                    task.dq.push(dq);
                }
            }
        }
        let done: Vec<KeyGradients> = tasks
            .into_par_iter()
            .map_init(
                || self.scratch(0),
                |scratch, task| {
                    let mut gradients = KeyGradients::new(shape, &task, self.tile.columns);
                    let operands: [&[f32]; 6] = [qkv, k, v, out, lse, dout];
                    let scratch = &mut scratch.data;
                    backward_task(self.arch, shape, operands, task, &mut gradients, scratch);
                    gradients
                },
            )
            .collect();
        for gradients in done {
            gradients.add_to(shape, self.tile.columns, [dk, dv]);
        }
        Ok(())
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
