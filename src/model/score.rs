//! A model as a scorer: which ids go through which forward pass.

use std::ops::Range;

use crate::error::Result;
use crate::model::decoder::{Batch, Model};
use crate::model::kv::Kv;
use crate::model::{Scorer, Session};
use crate::ops::{Backend, Pick};

/// Rows of a forward pass: enough to keep all cores busy, few enough for buffers of some megabytes.
const PASS: usize = 1024;
/// Sequences up to this length are scored in one pass, which then needs K and V of one layer only.
const WHOLE: usize = 2048;

impl<B: Backend> Scorer for Model<B> {
    fn max_positions(&self) -> usize {
        self.config().max_positions
    }

    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(KvSession {
            model: self,
            kv: self.kv()?,
        }))
    }

    fn score_tails(&self, sequences: &[(&[u32], usize)]) -> Result<Vec<Vec<f32>>> {
        self.score_alone(sequences, false)
    }

    fn estimate_tails(&self, sequences: &[(&[u32], usize)]) -> Result<Vec<Vec<f32>>> {
        self.score_alone(sequences, true)
    }
}

impl<B: Backend> Model<B> {
    fn score_alone(&self, sequences: &[(&[u32], usize)], estimate: bool) -> Result<Vec<Vec<f32>>> {
        for (ids, _) in sequences {
            self.check_positions(0, ids.len())?;
        }
        let mut kv = Kv::transient(self.backend(), self.config())?;
        self.score_packed(sequences, &mut kv, estimate)
    }

    /// Scores each sequence behind what `kv` holds, several to a pass, and leaves `kv` as it was.
    /// With `estimate` a sequence that fits a pass is estimated.
    fn score_packed(
        &self,
        sequences: &[(&[u32], usize)],
        kv: &mut Kv<B>,
        estimate: bool,
    ) -> Result<Vec<Vec<f32>>> {
        let mut scores: Vec<Vec<f32>> = Vec::with_capacity(sequences.len());
        let mut rest = sequences;
        while let Some((first, from)) = rest.first() {
            if first.len() > WHOLE && kv.is_empty() {
                let mut session = KvSession {
                    model: self,
                    kv: self.kv()?,
                };
                let mut nll = session.score(first)?;
                nll.drain(..from.saturating_sub(1).min(nll.len()));
                scores.push(nll);
                rest = &rest[1..];
                continue;
            }
            let mut rows = 0;
            let fit = rest
                .iter()
                .take_while(|(ids, _)| {
                    rows += ids.len();
                    rows <= PASS
                })
                .count()
                .max(1);
            let (now, later) = rest.split_at(fit);
            let ids: Vec<u32> = now
                .iter()
                .flat_map(|(ids, _)| ids.iter().copied())
                .collect();
            let lengths: Vec<usize> = now.iter().map(|(ids, _)| ids.len()).collect();
            let batch = Batch {
                ids: &ids,
                lengths: &lengths,
            };
            let mut picks = Vec::with_capacity(ids.len());
            let mut row = 0;
            for (ids, from) in now {
                let from = (*from).max(1);
                for (i, &target) in ids.iter().enumerate().skip(from) {
                    picks.push(Pick {
                        row: row + i as u32 - 1,
                        target,
                    });
                }
                row += ids.len() as u32;
            }
            let mut hidden = match estimate {
                true => self.estimate(&batch, kv)?,
                false => self.forward(&batch, kv)?,
            };
            let nll = hidden.nll(&picks)?;
            let mut nll = nll.into_iter();
            for (ids, from) in now {
                let count = ids.len().saturating_sub((*from).max(1));
                scores.push(nll.by_ref().take(count).collect());
            }
            rest = later;
        }
        Ok(scores)
    }
}

/// A KV cache with its model.
struct KvSession<'a, B: Backend> {
    model: &'a Model<B>,
    kv: Kv<B>,
}

impl<B: Backend> Session for KvSession<'_, B> {
    fn len(&self) -> usize {
        self.kv.len()
    }

    fn score(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.model.check_positions(self.kv.len(), ids.len())?;
        let before = self.kv.len();
        let mut scores = Vec::with_capacity(ids.len().saturating_sub(1));
        for start in (0..ids.len()).step_by(PASS) {
            let pass = &ids[start..ids.len().min(start + PASS)];
            let batch = Batch {
                ids: pass,
                lengths: &[pass.len()],
            };
            let targets = ids[start + 1..].iter().take(pass.len());
            let picks: Vec<Pick> = (0..)
                .zip(targets)
                .map(|(row, &target)| Pick { row, target })
                .collect();
            let result = self.model.forward(&batch, &mut self.kv);
            match result.and_then(|mut hidden| hidden.nll(&picks)) {
                Ok(nll) => scores.extend(nll),
                Err(error) => {
                    // As if nothing had been asked.
                    self.kv.truncate(before)?;
                    return Err(error);
                }
            }
            self.kv.commit(pass.len())?;
        }
        Ok(scores)
    }

    fn score_after(&mut self, continuations: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        for ids in continuations {
            self.model.check_positions(self.kv.len(), ids.len())?;
        }
        let tails: Vec<(&[u32], usize)> = continuations.iter().map(|ids| (*ids, 1)).collect();
        self.model.score_packed(&tails, &mut self.kv, false)
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        self.kv.truncate(len)
    }

    fn remove(&mut self, range: Range<usize>) -> Result<()> {
        self.kv.remove(self.model.backend(), range)
    }
}
