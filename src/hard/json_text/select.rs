//! Which units of a JSON text stay under a budget. Pure: worth and a count in, a selection out.

use std::ops::Range;

use crate::error::Result;
use crate::hard::exact::fit;

use super::render::{Omission, Rendered, Selection, render};
use super::tree::{Tree, decode};
use super::units::Outline;

/// What the units are worth: the higher, the rather they are kept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Worth {
    pub blocks: Vec<f64>,
    pub units: Vec<f64>,
}

/// Units with a share of the budget of their own.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    /// Neighbours.
    pub units: Range<usize>,
    /// Share of them to keep; 1 keeps all, whatever the budget.
    pub rate: f64,
    /// Whether the best of them is kept, whatever the budget.
    pub stays: bool,
}

/// Units, the most wanted first, and how many of them must be kept.
#[derive(Debug, PartialEq)]
pub(crate) struct Order {
    pub units: Vec<usize>,
    pub forced: usize,
}

impl Order {
    /// Orders units by their blocks' worth, then by their own. A block of a record comes after the short
    /// members of that record. Units of `groups` take turns by the share of their group that is used up.
    pub fn new(outline: &Outline, worth: &Worth, groups: &[Group]) -> Self {
        let better =
            |worth: &[f64], a: usize, b: usize| worth[b].total_cmp(&worth[a]).then(a.cmp(&b));
        let mut blocks: Vec<usize> = (0..outline.blocks.len()).collect();
        blocks.sort_by(|&a, &b| better(&worth.blocks, a, b));
        let mut placed = vec![false; outline.blocks.len()];
        let mut units = Vec::with_capacity(outline.units.len());
        for block in blocks {
            for block in outline.blocks[block].head.into_iter().chain([block]) {
                if !std::mem::replace(&mut placed[block], true) {
                    let first = units.len();
                    units.extend_from_slice(&outline.blocks[block].units);
                    units[first..].sort_by(|&a, &b| better(&worth.units, a, b));
                }
            }
        }
        if groups.is_empty() {
            return Order { units, forced: 0 };
        }

        let mut of = vec![None; outline.units.len()];
        for (g, group) in groups.iter().enumerate() {
            of[group.units.clone()].fill(Some(g));
        }
        let bytes = |unit: usize| outline.units[unit].range.len() as f64;
        let sizes: Vec<f64> = groups
            .iter()
            .map(|group| group.units.clone().map(bytes).sum())
            .collect();
        let mut used = vec![0.0; groups.len()];
        let mut keyed: Vec<(bool, f64, usize)> = units
            .into_iter()
            .map(|unit| {
                let Some(g) = of[unit] else {
                    return (true, 0.0, unit);
                };
                let group = &groups[g];
                let best = used[g] == 0.0;
                used[g] += bytes(unit).max(1.0);
                let share = used[g] / (group.rate * sizes[g]).max(1e-9);
                (group.rate >= 1.0 || (group.stays && best), share, unit)
            })
            .collect();
        keyed.sort_by(|x, y| y.0.cmp(&x.0).then(x.1.total_cmp(&y.1)));
        Order {
            forced: keyed.iter().filter(|(forced, ..)| *forced).count(),
            units: keyed.into_iter().map(|(.., unit)| unit).collect(),
        }
    }
}

/// Picks what fits into `target` tokens by `count`: the longest beginning of the order, then single units
/// from what follows; a sentence of a string that does not fit whole is cut between words.
///
/// # Errors
/// Those of `count`.
pub(crate) fn select(
    tree: &Tree,
    outline: &Outline,
    order: &Order,
    target: usize,
    omission: Omission,
    mut count: impl FnMut(&str) -> Result<usize>,
) -> Result<Rendered> {
    let mut failed = None;
    let mut tokens = |selection: &Selection| {
        count(&render(tree, outline, selection, omission).text).unwrap_or_else(|error| {
            failed.get_or_insert(error);
            0
        })
    };
    let kept = fit::fit(outline.units.len(), &order.units, target, |kept| {
        let kept = kept.to_vec();
        tokens(&Selection { kept, cut: None })
    });
    let mut selection = Selection { kept, cut: None };
    let first = order.units.iter().find(|&&unit| !selection.kept[unit]);
    if let Some(&unit) = first.filter(|&&unit| outline.units[unit].fragment) {
        let whole = selection.clone();
        selection.kept[unit] = true;
        let ends = word_ends(tree, outline.units[unit].range.clone());
        // Tokens grow with the words: the last end that fits lies between one that does and one that
        // does not.
        let (mut fits, mut above) = (None, ends.len());
        while fits.map_or(0, |end| end + 1) < above {
            let from = fits.map_or(0, |end| end + 1);
            let middle = from + (above - from) / 2;
            selection.cut = Some((unit, ends[middle]));
            match tokens(&selection) <= target {
                true => fits = Some(middle),
                false => above = middle,
            }
        }
        selection = match fits {
            Some(end) => Selection {
                cut: Some((unit, ends[end])),
                ..selection
            },
            None => whole,
        };
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(render(tree, outline, &selection, omission)),
    }
}

/// Where a stretch of a string's literal can be cut: after the white space that follows a word, and short
/// of its end.
fn word_ends(tree: &Tree, stretch: Range<usize>) -> Vec<usize> {
    let literal = format!("\"{}\"", &tree.text[stretch.clone()]);
    let Some(decoded) = decode(&literal) else {
        return Vec::new();
    };
    let text = decoded.text.trim_end();
    let mut ends = Vec::new();
    let mut before = None;
    for (at, c) in text.char_indices() {
        if !c.is_whitespace() && before.is_some_and(char::is_whitespace) {
            ends.push(stretch.start + decoded.raw(at) - 1);
        }
        before = Some(c);
    }
    ends
}
