//! Token pruning of texts, window by window, from the first forward pass to what is left, in one queue.

use std::sync::PoisonError;

use crate::error::Result;
use crate::model::decoder::Workspace;
use crate::model::kv::Kv;
use crate::model::score::Adapted;
use crate::ops::{Backend, Capacity, PrunedTokens, TokenPruning};

/// Rows of a pass of texts that share it: enough to keep a large device busy.
const ROWS: usize = 2048;
/// Bytes of K and V that texts which share passes have, at most; a text alone has what it needs.
const CACHE: usize = 2 << 30;
/// Rooms that are kept for texts to come, with the launches that were recorded for them.
const KEPT: usize = 2;

impl<B: Backend> Adapted<'_, B> {
    /// See [`crate::model::Scorer::prune`].
    pub(super) fn prune_all(self, texts: &[TokenPruning<'_>]) -> Result<Vec<PrunedTokens>> {
        for text in texts {
            text.check()?;
            self.model.check_positions(0, text.ids.len())?;
        }
        // Those with about as many windows together: one that is done still takes up rows.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&i| texts[i].windows.len());
        let mut done: Vec<Option<PrunedTokens>> = vec![None; texts.len()];
        let mut rest = &order[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.fitting(texts, rest));
            let group: Vec<TokenPruning<'_>> = now.iter().map(|&i| texts[i]).collect();
            for (&i, pruned) in now.iter().zip(self.prune_group(&group)?) {
                done[i] = Some(pruned);
            }
            rest = later;
        }
        Ok(done.into_iter().flatten().collect())
    }

    /// How many of the first of `order` can share passes.
    fn fitting(self, texts: &[TokenPruning<'_>], order: &[usize]) -> usize {
        let mut group = Vec::new();
        let fits = order.iter().take_while(|&&i| {
            group.push(texts[i]);
            let capacity = Capacity::of(&group);
            let tokens = capacity.texts.saturating_mul(capacity.tokens);
            capacity.all_rows() <= ROWS
                && tokens.saturating_mul(self.model.bytes_per_token()) <= CACHE
        });
        fits.count().max(1)
    }

    fn prune_group(self, texts: &[TokenPruning<'_>]) -> Result<Vec<PrunedTokens>> {
        let backend = self.model.backend();
        let mut workspace = self.capacity(Capacity::of(texts))?;
        workspace.texts.write(backend, texts)?;

        // The first pass is of all the text at once, and its K and V are of no use: what follows is
        // read again without what is dropped.
        let sequences: Vec<(&[u32], usize)> = texts.iter().map(|text| (text.ids, 1)).collect();
        let tokens = workspace.texts.capacity().tokens;
        let places: Vec<usize> = (0..texts.len()).map(|text| text * tokens).collect();
        let mut kv = Kv::transient(backend, self.model.config())?;
        let scores = workspace.texts.first_scores();
        self.score_to(&sequences, &mut kv, false, scores, &places)?;
        backend.prune(&mut workspace.texts, None)?;

        let readings = texts
            .iter()
            .map(|text| text.windows.len())
            .max()
            .unwrap_or(0);
        for _ in 1..readings {
            self.model.read(&mut workspace, self.lora)?;
        }
        let pruned = workspace.texts.read(backend, texts)?;
        self.keep(workspace);
        Ok(pruned)
    }

    /// A room that was kept, or a new one.
    fn capacity(self, need: Capacity) -> Result<Workspace<B>> {
        let mut kept = self
            .model
            .workspaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let suits = |workspace: &Workspace<B>| workspace.texts.capacity().suits(&need);
        match kept.iter().position(suits) {
            // What was recorded is of the model alone.
            Some(i) if self.lora.is_none() => Ok(kept.remove(i)),
            _ => {
                drop(kept);
                self.model.workspace(need)
            }
        }
    }

    fn keep(self, workspace: Workspace<B>) {
        if self.lora.is_some() || !self.model.backend().runs_ahead() {
            return;
        }
        let mut kept = self
            .model
            .workspaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push(workspace);
    }
}
