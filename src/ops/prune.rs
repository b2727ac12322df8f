//! Token pruning, window by window (LLMLingua, algorithm 2), without a wait for any score.
//!
//! How many tokens a window keeps depends on scores. If the host had to know them before it could
//! launch the next forward pass, it would wait once a window. So what depends on scores stays where
//! scores are. Counts, ids, positions and places in the cache are written by [`PruneOp::prune`] and read
//! by the ops named `…_staged`; the host reckons with bounds:
//!
//! * How many windows a text has does not depend on scores: the end of a window and the length of
//!   what is left shrink alike.
//! * A pass is what the last window kept and the next window: at most twice a window, whatever was
//!   kept. All passes of a text have that many rows. Those beyond the text come last, where causal
//!   attention hides them; they have the id 0 and no place in the cache, and nothing reads their
//!   scores. The alternative, grids that read their own size from memory, saves these rows' work in our
//!   kernels only: a library's product has its rows from the host.
//!
//! So every pass is the same list of launches with the same parameters, and a device can record it
//! once ([`PruneOp::repeat`]). Several texts share the launches, each with a region of its own in the
//! cache.

use super::attention::{Attention, AttentionOp};
use super::gemm::Shaped;
use super::layer::{LayerOp, Rotate};
use super::nll::NllOp;
use super::storage::{Buffer, Storage};
use super::{Checked, expect_ids, expect_len};
use crate::error::{Error, Result};

/// A text, and what it is to lose.
#[derive(Debug, Clone, Copy)]
pub struct TokenPruning<'a> {
    /// Its tokens.
    pub ids: &'a [u32],
    /// Tokens of a window, 2 or more.
    pub size: usize,
    /// Where the first window could end, `size` or more: it begins `size` before.
    pub end: usize,
    /// Each window's runs: how many tokens are judged together, and the rank of the threshold as a share
    /// of all that is left of the text by then. At most `size` tokens together, and a window after the
    /// first ends within the text by `end` and the tokens of all before it.
    pub windows: &'a [Vec<(usize, f64)>],
}

/// What is left of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct PrunedTokens {
    /// The indices of its tokens, in order.
    pub kept: Vec<usize>,
    /// Of every token, the nll (natural log) it last had; the first has none.
    pub nll: Vec<Option<f32>>,
}

impl TokenPruning<'_> {
    /// An error unless everything is as the fields' comments say.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for windows that do not lie within the text.
    pub fn check(&self) -> Result<()> {
        let length = self.ids.len();
        let mut end = Some(self.end);
        let mut sound = self.size >= 2 && self.end >= self.size && !self.windows.is_empty();
        for window in self.windows {
            sound &= end.is_some_and(|end| end <= length);
            let tokens = window
                .iter()
                .try_fold(0usize, |sum, (tokens, _)| sum.checked_add(*tokens));
            sound &= !window.is_empty() && tokens.is_some_and(|tokens| tokens <= self.size);
            end = end
                .zip(tokens)
                .and_then(|(end, more)| end.checked_add(more));
        }
        if sound && u32::try_from(length).is_ok_and(|length| length < u32::MAX / 4) {
            return Ok(());
        }
        Err(Error::Shape {
            op: "prune",
            want: format!("windows of {} within a text of {length} tokens", self.size),
            got: format!("windows {:?} that end at {}", self.windows, self.end),
        })
    }

    /// Rows of its longest pass but the first.
    fn rows(&self) -> usize {
        let tokens = |window: &[(usize, f64)]| window.iter().map(|run| run.0).sum::<usize>();
        let others = self.windows.iter().rev().skip(1);
        let mut rows = others.map(|window| self.size + tokens(window)).max();
        if let [first, _, ..] = self.windows {
            rows = rows.max(Some(self.end + tokens(first)));
        }
        rows.unwrap_or(0)
    }
}

/// How much room texts need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Texts.
    pub texts: usize,
    /// Tokens of the longest.
    pub tokens: usize,
    /// Rows of a pass, of each.
    pub rows: usize,
    /// Runs of all together.
    pub runs: usize,
}

impl Capacity {
    /// What these need, rounded up so that similar ones need the same.
    pub fn of(texts: &[TokenPruning<'_>]) -> Self {
        let max = |of: &dyn Fn(&TokenPruning<'_>) -> usize| texts.iter().map(of).max().unwrap_or(0);
        let runs: usize = texts
            .iter()
            .flat_map(|text| text.windows)
            .map(Vec::len)
            .sum();
        Capacity {
            texts: texts.len(),
            tokens: max(&|text| text.ids.len()).next_power_of_two().max(1024),
            rows: max(&|text| text.rows()).next_multiple_of(16),
            runs: runs.next_power_of_two().max(64),
        }
    }

    /// Whether what needs `other` finds room, and the same launches serve it.
    pub fn suits(&self, other: &Capacity) -> bool {
        (self.texts, self.rows) == (other.texts, other.rows)
            && self.tokens >= other.tokens
            && self.runs >= other.runs
    }

    /// Rows of a pass of all texts.
    pub fn all_rows(&self) -> usize {
        self.texts * self.rows
    }
}

/// What ids and positions can be looked up in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Ids are below this.
    pub vocab: usize,
    /// Texts have at most so many tokens.
    pub positions: usize,
}

/// Where a text stands. All in tokens of what is left of it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct State {
    /// Tokens.
    pub left: u32,
    /// Of them in the cache.
    pub past: u32,
    /// Where the last pass ended.
    pub read: u32,
    /// Where the next window's last run could end; it begins `size` before.
    pub end: u32,
    /// The first run of the next window.
    pub run: u32,
    /// Where this text's runs end.
    pub runs: u32,
    /// Tokens of a window.
    pub size: u32,
    pub unused: u32,
}

/// Words of a [`State`].
pub(crate) const STATE: usize = size_of::<State>() / size_of::<u32>();
/// Words of a run: its ratio, a f64, low word first; its tokens; whether it is its window's last.
pub(crate) const RUN: usize = 4;
/// Words of a tile of attention: row, positions, first position, two rows of the cache, and one that is
/// not used.
pub(crate) const TILE: usize = 6;
/// The place of a row that is not to be kept.
pub(crate) const NOWHERE: u32 = u32::MAX;
/// The bits of an nll that is missing.
const NO_NLL: u32 = u32::MAX;

/// Texts on a device, and what the next forward pass reads of them. Only ops write it.
pub struct PruneBatch<S: Storage> {
    pub(crate) capacity: Capacity,
    pub(crate) limits: Limits,
    /// Positions of a tile of attention.
    pub(crate) tile: usize,
    /// `[texts, tokens]`.
    pub(crate) ids: S::Buf<u32>,
    /// `[texts]` states; `[texts, tokens]`: where each token stood at first; `[texts, tokens]`: bits of
    /// the last nll of each by where it stood at first. In one, so that one copy brings it back.
    pub(crate) table: S::Buf<u32>,
    /// `[texts, tokens]`: nll of the token after each.
    pub(crate) loss: S::Buf<f32>,
    pub(crate) runs: S::Buf<u32>,
    /// `[texts, rows]`, each.
    pub(crate) inputs: S::Buf<u32>,
    pub(crate) targets: S::Buf<u32>,
    pub(crate) positions: S::Buf<u32>,
    pub(crate) places: S::Buf<u32>,
    pub(crate) tiles: S::Buf<u32>,
    /// The number of rows.
    pub(crate) count: S::Buf<u32>,
}

impl<S: Storage> PruneBatch<S> {
    /// Capacity on a device whose attention takes tiles of so many positions ([`PruneOp::tile`]).
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for more rows than can be counted; [`Error::Device`] without memory for them.
    pub fn new(storage: &S, capacity: Capacity, limits: Limits, tile: usize) -> Result<Self> {
        let rows = capacity.all_rows();
        let words = capacity.texts.checked_mul(capacity.tokens).filter(|&all| {
            u32::try_from(all).is_ok_and(|all| all < u32::MAX / 4)
                && u32::try_from(rows).is_ok_and(|rows| rows < u32::MAX / 4)
        });
        let Some(words) = words else {
            return Err(Error::Shape {
                op: "prune",
                want: format!("fewer than {} rows", u32::MAX / 4),
                got: format!("{} texts of {} tokens", capacity.texts, capacity.tokens),
            });
        };
        let tile = tile.max(1);
        Ok(PruneBatch {
            capacity,
            limits,
            tile,
            ids: storage.zeros(words)?,
            table: storage.zeros(capacity.texts * STATE + 2 * words)?,
            loss: storage.zeros(words)?,
            runs: storage.zeros(capacity.runs * RUN)?,
            inputs: storage.zeros(rows)?,
            targets: storage.zeros(rows)?,
            positions: storage.zeros(rows)?,
            places: storage.zeros(rows)?,
            tiles: storage.zeros(capacity.texts * capacity.rows.div_ceil(tile) * TILE)?,
            count: storage.upload(&[rows as u32])?,
        })
    }

    /// How much room there is.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Where the nll of the first pass belong, `[texts, tokens]`: that of a text's token `i + 1` at
    /// `i`.
    pub fn first_scores(&mut self) -> &mut S::Buf<f32> {
        &mut self.loss
    }

    /// Puts texts there, in place of those that were.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for texts beyond the capacity or windows outside their text; [`Error::Input`] for an
    /// id outside the vocabulary or a text of more tokens than there are positions; [`Error::Device`] if the
    /// device fails.
    pub fn write(&mut self, storage: &S, texts: &[TokenPruning<'_>]) -> Result<()> {
        let (capacity, Limits { vocab, positions }) = (self.capacity, self.limits);
        if !capacity.suits(&Capacity::of(texts)) {
            return Err(Error::Shape {
                op: "prune",
                want: format!("{capacity:?}"),
                got: format!("{:?}", Capacity::of(texts)),
            });
        }
        let words = capacity.texts * capacity.tokens;
        let mut ids = vec![0; words];
        let mut states = Vec::with_capacity(texts.len());
        let mut table = vec![0; texts.len() * STATE];
        let mut runs: Vec<u32> = Vec::with_capacity(capacity.runs * RUN);
        for (text, to) in texts.iter().zip(ids.chunks_exact_mut(capacity.tokens)) {
            text.check()?;
            expect_ids(text.ids.iter().copied(), vocab)?;
            let count = text.ids.len();
            if count > positions {
                return Err(Error::input(
                    format!("text of {count} tokens"),
                    format!("the model has {positions} positions"),
                ));
            }
            to[..count].copy_from_slice(text.ids);
            table.extend(0..capacity.tokens as u32);
            let run = runs.len() / RUN;
            for window in text.windows {
                for (i, &(tokens, ratio)) in window.iter().enumerate() {
                    let bits = ratio.to_bits();
                    let last = i + 1 == window.len();
                    runs.extend([bits as u32, (bits >> 32) as u32, tokens as u32, last.into()]);
                }
            }
            states.push(State {
                left: count as u32,
                past: 0,
                read: count as u32,
                end: text.end as u32,
                run: run as u32,
                runs: (runs.len() / RUN) as u32,
                size: text.size as u32,
                unused: 0,
            });
        }
        table[..texts.len() * STATE].copy_from_slice(bytemuck::cast_slice(&states));
        table.resize(table.len() + words, NO_NLL);
        storage.write(&ids, &mut self.ids)?;
        storage.write(&table, &mut self.table)?;
        storage.write(&runs, &mut self.runs)
    }

    /// What is left of the texts, in one copy: the one time that the host waits.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] if the device fails.
    pub fn read(&self, storage: &S, texts: &[TokenPruning<'_>]) -> Result<Vec<PrunedTokens>> {
        let Capacity {
            texts: n, tokens, ..
        } = self.capacity;
        let table = storage.download(&self.table, 0..n * STATE + 2 * n * tokens)?;
        let (states, table) = table.split_at(n * STATE);
        let (from, nll) = table.split_at(n * tokens);
        let states = states.chunks_exact(STATE);
        let each = states.zip(from.chunks_exact(tokens).zip(nll.chunks_exact(tokens)));
        let score = |&bits: &u32| (bits != NO_NLL).then(|| f32::from_bits(bits));
        Ok(texts
            .iter()
            .zip(each)
            .map(|(text, (state, (from, nll)))| PrunedTokens {
                kept: from
                    .iter()
                    .take(state[0] as usize)
                    .map(|&i| i as usize)
                    .collect(),
                nll: nll.iter().take(text.ids.len()).map(score).collect(),
            })
            .collect())
    }
}

/// Which of the staged numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staged {
    /// Ids.
    Inputs,
    /// Positions.
    Positions,
}

/// What happens between two passes, and the ops of a pass that has been staged by it. Their rows are
/// those of all texts, [`Capacity::all_rows`].
pub trait PruneOp: AttentionOp + LayerOp + NllOp {
    /// Launches that were recorded.
    type Recorded: Default + Send + Sync;

    /// Whether the host can run ahead: launches return before they are done.
    fn runs_ahead(&self) -> bool;

    /// Does `work`: what it launches must be the same in every call with one `recorded`. A device may
    /// record it and do it from the record later, without calling `work`.
    ///
    /// # Errors
    ///
    /// The first error of `work`; [`Error::Device`] if the device fails.
    fn repeat(
        &self,
        recorded: &mut Self::Recorded,
        work: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()>;

    /// Positions of a tile of attention of such heads.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for heads that the attention is not built for.
    fn tile(&self, heads: usize, kv_heads: usize, head_dim: usize) -> Result<usize>;

    /// Takes in the nll of a pass (`None`: the first, whose nll are in [`PruneBatch::first_scores`]),
    /// judges each text's next window, drops tokens, and stages the next pass.
    ///
    /// A token stays if the nll of the token after it exceeds the threshold, which is the nll of rank
    /// `max(1, ⌊n · ratio⌋) - 1` among the n that are left, 0 being the largest; with a ratio of 1 all
    /// stay. The last token stays if the first nll is above 0. This is the reference's way.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for fewer nll than rows; [`Error::Device`] if the device fails.
    fn prune(&self, texts: &mut PruneBatch<Self>, fresh: Option<&Self::Buf<f32>>) -> Result<()> {
        if let Some(fresh) = fresh {
            expect_len("prune", "nll", texts.capacity.all_rows(), fresh.len())?;
        }
        self.prune_checked(Checked(()), texts, fresh)
    }

    /// [`LayerOp::embed`] of what is staged.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`].
    fn embed_staged(
        &self,
        texts: &PruneBatch<Self>,
        what: Staged,
        table: &Self::Matrix,
        add: bool,
        out: &mut Self::Buf<f32>,
    ) -> Result<()> {
        let [rows, width] = table.shape();
        texts.expect_table("embed", what, rows)?;
        expect_len(
            "embed",
            "the output",
            texts.capacity.all_rows() * width,
            out.len(),
        )?;
        self.embed_staged_checked(Checked(()), texts, what, table, add, out)
    }

    /// The angles of each row, of a table `[positions, width]` of as many positions as a text can have
    /// tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`].
    fn angles_staged(
        &self,
        texts: &PruneBatch<Self>,
        width: usize,
        table: &Self::Buf<f32>,
        out: &mut Self::Buf<f32>,
    ) -> Result<()> {
        let capacity = texts.capacity;
        expect_len("angles", "the table", capacity.tokens * width, table.len())?;
        expect_len(
            "angles",
            "the output",
            capacity.all_rows() * width,
            out.len(),
        )?;
        self.angles_staged_checked(Checked(()), texts, width, table, out)
    }

    /// [`LayerOp::rotate`] to each row's place in the cache, which has [`Capacity::tokens`] rows a text.
    /// `shape.rows` and `shape.at` do not matter.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`].
    #[allow(clippy::too_many_arguments)]
    fn rotate_staged(
        &self,
        texts: &PruneBatch<Self>,
        shape: Rotate,
        qkv: &mut Self::Buf<f32>,
        norms: Option<[&Self::Buf<f32>; 2]>,
        angles: Option<&Self::Buf<f32>>,
        k: &mut Self::Buf<f32>,
        v: &mut Self::Buf<f32>,
    ) -> Result<()> {
        let shape = Rotate {
            rows: texts.capacity.all_rows(),
            at: 0,
            ..shape
        };
        texts.expect_cache(
            "rotate",
            shape.kv_heads * shape.head_dim,
            [k.len(), v.len()],
        )?;
        shape.check("rotate", ("qkv", qkv.len()), norms, angles)?;
        self.rotate_staged_checked(Checked(()), texts, shape, qkv, norms, angles, k, v)
    }

    /// [`AttentionOp::attention`] of each row over its own text. Of `shape` only the heads and the window
    /// matter. Rows beyond a text's pass come out with any content.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`].
    fn attention_staged(
        &self,
        texts: &PruneBatch<Self>,
        shape: &Attention<'_>,
        qkv: &Self::Buf<f32>,
        k: &Self::Buf<f32>,
        v: &Self::Buf<f32>,
        out: &mut Self::Buf<f32>,
    ) -> Result<()> {
        let (op, rows, d) = ("attention", texts.capacity.all_rows(), shape.head_dim);
        shape.check_heads(op)?;
        let all = shape.heads + 2 * shape.kv_heads;
        texts.expect_cache(op, shape.kv_heads * d, [k.len(), v.len()])?;
        expect_len(op, "qkv", rows * all * d, qkv.len())?;
        expect_len(op, "the output", rows * shape.heads * d, out.len())?;
        self.attention_staged_checked(Checked(()), texts, shape, qkv, k, v, out)
    }

    /// [`NllOp::nll`] of each row's target.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`].
    fn nll_staged(
        &self,
        texts: &PruneBatch<Self>,
        width: usize,
        x: &Self::Buf<f32>,
        head: &Self::Matrix,
        out: &mut Self::Buf<f32>,
    ) -> Result<()> {
        let (op, rows, [vocab, inputs]) = ("nll", texts.capacity.all_rows(), head.shape());
        if inputs != width {
            return Err(Error::Shape {
                op,
                want: format!("a head of width {width}"),
                got: inputs.to_string(),
            });
        }
        texts.expect_table(op, Staged::Inputs, vocab)?;
        expect_len(op, "x", rows * width, x.len())?;
        expect_len(op, "the output", rows, out.len())?;
        self.nll_staged_checked(Checked(()), texts, width, x, head, out)
    }

    /// [`PruneOp::prune`], after its checks.
    fn prune_checked(
        &self,
        _: Checked,
        texts: &mut PruneBatch<Self>,
        fresh: Option<&Self::Buf<f32>>,
    ) -> Result<()>;

    /// [`PruneOp::embed_staged`], after its checks.
    fn embed_staged_checked(
        &self,
        _: Checked,
        texts: &PruneBatch<Self>,
        what: Staged,
        table: &Self::Matrix,
        add: bool,
        out: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`PruneOp::angles_staged`], after its checks.
    fn angles_staged_checked(
        &self,
        _: Checked,
        texts: &PruneBatch<Self>,
        width: usize,
        table: &Self::Buf<f32>,
        out: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`PruneOp::rotate_staged`], after its checks.
    #[allow(clippy::too_many_arguments)]
    fn rotate_staged_checked(
        &self,
        _: Checked,
        texts: &PruneBatch<Self>,
        shape: Rotate,
        qkv: &mut Self::Buf<f32>,
        norms: Option<[&Self::Buf<f32>; 2]>,
        angles: Option<&Self::Buf<f32>>,
        k: &mut Self::Buf<f32>,
        v: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`PruneOp::attention_staged`], after its checks.
    #[allow(clippy::too_many_arguments)]
    fn attention_staged_checked(
        &self,
        _: Checked,
        texts: &PruneBatch<Self>,
        shape: &Attention<'_>,
        qkv: &Self::Buf<f32>,
        k: &Self::Buf<f32>,
        v: &Self::Buf<f32>,
        out: &mut Self::Buf<f32>,
    ) -> Result<()>;

    /// [`PruneOp::nll_staged`], after its checks.
    fn nll_staged_checked(
        &self,
        _: Checked,
        texts: &PruneBatch<Self>,
        width: usize,
        x: &Self::Buf<f32>,
        head: &Self::Matrix,
        out: &mut Self::Buf<f32>,
    ) -> Result<()>;
}

impl<S: Storage> PruneBatch<S> {
    /// An error unless a table has so many rows that everything staged is in it.
    fn expect_table(&self, op: &'static str, what: Staged, rows: usize) -> Result<()> {
        let want = match what {
            Staged::Inputs => self.limits.vocab,
            Staged::Positions => self.limits.positions,
        };
        expect_len(op, "the table, in rows", want, rows)
    }
    /// An error unless k and v have rows for all tokens of all texts.
    fn expect_cache(&self, op: &'static str, width: usize, held: [usize; 2]) -> Result<()> {
        let rows = self.capacity.texts * self.capacity.tokens;
        expect_len(op, "k and of v", rows * width, held[0].min(held[1]))
    }
}
