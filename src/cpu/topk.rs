//! Token selection on a CPU: by sorting.

use std::cmp::Ordering;

use super::device::Cpu;
use crate::error::Result;
use crate::ops::Checked;
use crate::ops::topk::{Keep, Select, TopKOp, TopKOutput};

/// −0 as 0, NaN below all.
fn compare(a: f32, b: f32) -> Ordering {
    a.partial_cmp(&b)
        .unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
}

impl TopKOp for Cpu {
    fn topk_checked(
        &self,
        _: Checked,
        segments: &[Select],
        scores: &Vec<f32>,
        ids: &Vec<u32>,
        out: &mut TopKOutput<Self>,
    ) -> Result<()> {
        for (segment, kept) in segments.iter().zip(&mut out.kept) {
            let first = segment.first as usize;
            let scores = &scores[first..][..segment.len as usize];
            let mask = &mut out.mask[first..][..scores.len()];
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| compare(scores[b], scores[a]));
            mask.fill(0);
            match segment.keep {
                Keep::Count(count) => {
                    for &i in order.iter().take(count as usize) {
                        mask[i] = 1;
                    }
                }
                Keep::Above(quantile) if !scores.is_empty() => {
                    let last = scores.len() - 1;
                    let at = f64::from(quantile) * last as f64;
                    let lower = (at as usize).min(last);
                    let statistic = |rank: usize| f64::from(scores[order[last - rank]]);
                    let (a, b) = (statistic(lower), statistic((lower + 1).min(last)));
                    let limit = (a + (b - a) * (at - lower as f64)) as f32;
                    for (mask, &score) in mask.iter_mut().zip(scores) {
                        *mask = u32::from(compare(score, limit).is_gt());
                    }
                }
                Keep::Beyond(rank) if !scores.is_empty() => {
                    let limit = scores[order[(rank as usize).min(order.len() - 1)]];
                    for (mask, &score) in mask.iter_mut().zip(scores) {
                        *mask = u32::from(compare(score, limit).is_gt());
                    }
                }
                Keep::Above(_) | Keep::Beyond(_) => {}
            }
            *kept = 0;
            for (i, &keep) in mask.iter().enumerate() {
                if keep == 1 {
                    out.ids[first + *kept as usize] = ids[first + i];
                    out.rows[first + *kept as usize] = (first + i) as u32;
                    *kept += 1;
                }
            }
        }
        Ok(())
    }

    fn gather_checked(
        &self,
        _: Checked,
        width: usize,
        x: &Vec<f32>,
        selection: &TopKOutput<Self>,
        segment: usize,
        of: Select,
        to: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let (first, len) = (of.first as usize, of.len as usize);
        let kept = (selection.kept[segment] as usize).min(len);
        let to = out[to * width..].chunks_exact_mut(width.max(1));
        for (to, &row) in to.zip(&selection.rows[first..][..kept]) {
            to.copy_from_slice(&x[row as usize * width..][..width]);
        }
        Ok(())
    }
}
