//! A model as a scorer: which ids go through which forward pass.

use std::ops::Range;

use crate::error::Result;
use crate::model::decoder::{Batch, Hidden, Model};
use crate::model::kv::Kv;
use crate::model::lora::Lora;
use crate::model::{Scorer, Session};
use crate::ops::{Backend, Keep, Pick, Select, Selection, expect_len};

/// Rows of a forward pass: enough to keep all cores busy, few enough for buffers of some megabytes.
const PASS: usize = 1024;
/// Sequences up to this length are scored in one pass, which then needs K and V of one layer only.
const WHOLE: usize = 2048;

impl<B: Backend> Scorer for Model<B> {
    fn max_positions(&self) -> usize {
        self.config().max_positions
    }

    fn session(&self) -> Result<Box<dyn Session + '_>> {
        self.with(None).open()
    }

    fn score_tails(&self, sequences: &[(&[u32], usize)]) -> Result<Vec<Vec<f32>>> {
        self.with(None).score_tails(sequences)
    }

    fn estimate_tails(&self, sequences: &[(&[u32], usize)]) -> Result<Vec<Vec<f32>>> {
        self.with(None).estimate_tails(sequences)
    }
}

impl<B: Backend> Model<B> {
    /// The model as a scorer with an adapter on, if there is one.
    pub fn with<'a>(&'a self, lora: Option<&'a Lora<B>>) -> Adapted<'a, B> {
        Adapted { model: self, lora }
    }
}

/// A model and the adapter through which it scores.
pub struct Adapted<'a, B: Backend> {
    model: &'a Model<B>,
    lora: Option<&'a Lora<B>>,
}

impl<B: Backend> Clone for Adapted<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Adapted<'_, B> {}

impl<B: Backend> Scorer for Adapted<'_, B> {
    fn max_positions(&self) -> usize {
        self.model.config().max_positions
    }

    fn session(&self) -> Result<Box<dyn Session + '_>> {
        self.open()
    }

    fn score_tails(&self, sequences: &[(&[u32], usize)]) -> Result<Vec<Vec<f32>>> {
        self.score_alone(sequences, false)
    }

    fn estimate_tails(&self, sequences: &[(&[u32], usize)]) -> Result<Vec<Vec<f32>>> {
        self.score_alone(sequences, true)
    }
}

impl<'a, B: Backend> Adapted<'a, B> {
    fn open(self) -> Result<Box<dyn Session + 'a>> {
        Ok(Box::new(KvSession {
            scorer: self,
            kv: self.model.kv()?,
        }))
    }

    fn score_alone(self, sequences: &[(&[u32], usize)], estimate: bool) -> Result<Vec<Vec<f32>>> {
        for (ids, _) in sequences {
            self.model.check_positions(0, ids.len())?;
        }
        let mut kv = Kv::transient(self.model.backend(), self.model.config())?;
        self.score_packed(sequences, &mut kv, estimate)
    }

    /// Scores each sequence behind what `kv` holds, several to a pass, and leaves `kv` as it was.
    /// With `estimate` a sequence that fits a pass is estimated.
    fn score_packed(
        self,
        sequences: &[(&[u32], usize)],
        kv: &mut Kv<B>,
        estimate: bool,
    ) -> Result<Vec<Vec<f32>>> {
        let mut scores: Vec<Vec<f32>> = Vec::with_capacity(sequences.len());
        let mut rest = sequences;
        while let Some((first, from)) = rest.first() {
            if first.len() > WHOLE && kv.is_empty() {
                let mut session = KvSession {
                    scorer: self,
                    kv: self.model.kv()?,
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
            let Adapted { model, lora } = self;
            let mut hidden = match estimate {
                true => model.estimate(&batch, lora, kv)?,
                false => model.forward_scored(&batch, lora, kv)?,
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
    scorer: Adapted<'a, B>,
    kv: Kv<B>,
}

impl<B: Backend> KvSession<'_, B> {
    /// Appends `ids`, pass by pass, and lets `take` have each pass's hidden states and the picks that
    /// score its ids but the very first. After an error the cache is what it was.
    fn passes(
        &mut self,
        ids: &[u32],
        mut take: impl FnMut(&mut Hidden<'_, B>, &[Pick]) -> Result<()>,
    ) -> Result<()> {
        let Adapted { model, lora } = self.scorer;
        model.check_positions(self.kv.len(), ids.len())?;
        let before = self.kv.len();
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
            let result = model.forward_scored(&batch, lora, &mut self.kv);
            if let Err(error) = result.and_then(|mut hidden| take(&mut hidden, &picks)) {
                // As if nothing had been asked.
                self.kv.truncate(before)?;
                return Err(error);
            }
            self.kv.commit(pass.len())?;
        }
        Ok(())
    }
}

impl<B: Backend> Session for KvSession<'_, B> {
    fn len(&self) -> usize {
        self.kv.len()
    }

    fn score(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let mut scores = Vec::with_capacity(ids.len().saturating_sub(1));
        self.passes(ids, |hidden, picks| {
            scores.extend(hidden.nll(picks)?);
            Ok(())
        })?;
        Ok(scores)
    }

    fn judge(
        &mut self,
        ids: &[u32],
        losses: &mut [f32],
        at: usize,
        rank: usize,
    ) -> Result<Vec<bool>> {
        let backend = self.scorer.model.backend();
        let (n, fresh) = (losses.len(), ids.len().saturating_sub(1));
        expect_len("judge", "the losses", at.saturating_add(fresh), n)?;
        let mut all = backend.upload(losses)?;
        let mut to = at;
        self.passes(ids, |hidden, picks| {
            hidden.nll_to(picks, &mut all, to)?;
            to += picks.len();
            Ok(())
        })?;
        let mut chosen = Selection::new(backend, n, 1)?;
        let whole = Select {
            first: 0,
            len: u32::try_from(n).unwrap_or(u32::MAX),
            keep: Keep::Beyond(u32::try_from(rank).unwrap_or(u32::MAX)),
        };
        // What it says of ids is not asked for.
        let ids = backend.zeros(n)?;
        backend.topk(&[whole], &all, &ids, &mut chosen)?;
        losses.copy_from_slice(&backend.download(&all, 0..n)?);
        let mask = backend.download(&chosen.mask, 0..n)?;
        Ok(mask.into_iter().map(|kept| kept == 1).collect())
    }

    fn score_after(&mut self, continuations: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        for ids in continuations {
            self.scorer
                .model
                .check_positions(self.kv.len(), ids.len())?;
        }
        let tails: Vec<(&[u32], usize)> = continuations.iter().map(|ids| (*ids, 1)).collect();
        self.scorer.score_packed(&tails, &mut self.kv, false)
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        self.kv.truncate(len)
    }

    fn remove(&mut self, range: Range<usize>) -> Result<()> {
        self.kv.remove(self.scorer.model.backend(), range)
    }
}
