//! A model as a scorer: which ids go through which forward pass.

use std::ops::Range;

use crate::control;
use crate::error::Result;
use crate::model::decoder::{Batch, Hidden, Model};
use crate::model::kv::Kv;
use crate::model::lora::Lora;
use crate::model::{Scorer, Session};
use crate::ops::{
    Backend, Keep, NllTarget, PrunedTokens, Select, TokenPruning, TopKOutput, expect_len,
};

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

    fn prunes(&self) -> bool {
        self.with(None).prunes()
    }

    fn prune(&self, texts: &[TokenPruning<'_>]) -> Result<Vec<PrunedTokens>> {
        self.with(None).prune(texts)
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
    pub(super) model: &'a Model<B>,
    pub(super) lora: Option<&'a Lora<B>>,
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

    fn prunes(&self) -> bool {
        self.model.backend().runs_ahead()
    }

    fn prune(&self, texts: &[TokenPruning<'_>]) -> Result<Vec<PrunedTokens>> {
        self.prune_all(texts)
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

    /// Scores each sequence after what `kv` holds, several to a pass, and leaves `kv` as it was.
    /// With `estimate` a sequence that fits a pass is estimated.
    fn score_packed(
        self,
        sequences: &[(&[u32], usize)],
        kv: &mut Kv<B>,
        estimate: bool,
    ) -> Result<Vec<Vec<f32>>> {
        let backend = self.model.backend();
        let counts: Vec<usize> = sequences
            .iter()
            .map(|(ids, from)| scored(ids, *from))
            .collect();
        let places: Vec<usize> = counts
            .iter()
            .scan(0, |at, count| Some(std::mem::replace(at, *at + count)))
            .collect();
        let all = counts.iter().sum();
        let mut out = backend.zeros(all)?;
        self.score_to(sequences, kv, estimate, &mut out, &places)?;
        // All passes are queued before the first score comes back.
        let mut scores = backend.download(&out, 0..all)?.into_iter();
        let take = |&count: &usize| scores.by_ref().take(count).collect();
        Ok(counts.iter().map(take).collect())
    }

    /// The same to the device's `out`, from each sequence's place on, without waiting for it.
    pub(super) fn score_to(
        self,
        sequences: &[(&[u32], usize)],
        kv: &mut Kv<B>,
        estimate: bool,
        out: &mut B::Buf<f32>,
        places: &[usize],
    ) -> Result<()> {
        let mut rest: Vec<_> = sequences
            .iter()
            .copied()
            .zip(places.iter().copied())
            .collect();
        let all: usize = sequences.iter().map(|(ids, _)| ids.len()).sum();
        let mut done = 0;
        rest.reverse();
        while let Some(((first, from), place)) = rest.pop() {
            if first.len() > WHOLE && kv.is_empty() {
                let mut session = KvSession {
                    scorer: self,
                    kv: self.model.kv()?,
                };
                // Of the picks those from `from` on.
                let mut skip = from.saturating_sub(1);
                let mut to = place;
                session.passes(first, |hidden, picks| {
                    let picks = &picks[skip.min(picks.len())..];
                    skip = skip.saturating_sub(PASS);
                    to += picks.len();
                    hidden.nll_to(picks, out, [(picks.len(), to - picks.len())])?;
                    done += hidden.rows();
                    control::report(done, all);
                    Ok(())
                })?;
                continue;
            }
            let mut now = vec![((first, from), place)];
            let mut rows = first.len();
            while let Some(&((ids, _), _)) = rest.last()
                && rows + ids.len() <= PASS
            {
                rows += ids.len();
                now.extend(rest.pop());
            }
            let ids: Vec<u32> = now.iter().flat_map(|((ids, _), _)| *ids).copied().collect();
            let lengths: Vec<usize> = now.iter().map(|((ids, _), _)| ids.len()).collect();
            let batch = Batch {
                ids: &ids,
                lengths: &lengths,
            };
            let mut picks = Vec::with_capacity(ids.len());
            let mut row = 0;
            for ((ids, from), _) in &now {
                for (i, &target) in ids.iter().enumerate().skip((*from).max(1)) {
                    picks.push(NllTarget {
                        row: row + i as u32 - 1,
                        target,
                    });
                }
                row += ids.len() as u32;
            }
            let Adapted { model, lora } = self;
            let mut hidden = match estimate {
                true => model.estimate(&batch, lora, kv)?,
                false => model.forward_with(&batch, lora, kv)?,
            };
            let parts = now
                .iter()
                .map(|((ids, from), at)| (scored(ids, *from), *at));
            hidden.nll_to(&picks, out, parts)?;
            done += ids.len();
            control::report(done, all);
        }
        Ok(())
    }
}

/// How many nll a sequence that is scored from `from` on has.
fn scored(ids: &[u32], from: usize) -> usize {
    ids.len().saturating_sub(from.max(1))
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
        mut take: impl FnMut(&mut Hidden<'_, B>, &[NllTarget]) -> Result<()>,
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
            let picks: Vec<NllTarget> = (0..)
                .zip(targets)
                .map(|(row, &target)| NllTarget { row, target })
                .collect();
            let result = model.forward_with(&batch, lora, &mut self.kv);
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
        let before = self.kv.len();
        let mut all = backend.upload(losses)?;
        let mut to = at;
        self.passes(ids, |hidden, picks| {
            hidden.nll_to(picks, &mut all, [(picks.len(), to)])?;
            to += picks.len();
            Ok(())
        })?;
        let whole = Select {
            first: 0,
            len: u32::try_from(n).unwrap_or(u32::MAX),
            keep: Keep::Beyond(u32::try_from(rank).unwrap_or(u32::MAX)),
        };
        match select(backend, whole, &all) {
            Ok((scores, mask)) => {
                losses.copy_from_slice(&scores);
                Ok(mask)
            }
            Err(error) => {
                // As if nothing had been asked.
                self.kv.truncate(before)?;
                Err(error)
            }
        }
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

/// The scores of a segment, and which of them it keeps.
fn select<B: Backend>(
    backend: &B,
    segment: Select,
    scores: &B::Buf<f32>,
) -> Result<(Vec<f32>, Vec<bool>)> {
    let n = segment.len as usize;
    let mut chosen = TopKOutput::new(backend, n, 1)?;
    // What it says of ids is not asked for.
    let ids = backend.zeros(n)?;
    backend.topk(&[segment], scores, &ids, &mut chosen)?;
    let scores = backend.download(scores, 0..n)?;
    let mask = backend.download(&chosen.mask, 0..n)?;
    Ok((scores, mask.into_iter().map(|kept| kept == 1).collect()))
}
