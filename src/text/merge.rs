//! The inner loop of byte-pair encoding, shared by the byte-level and the SentencePiece kind.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A piece of a word: a range of its bytes and the token that stands for it, if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) id: Option<u32>,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Merges neighbours until none can: always the pair of the lowest rank, of equals the leftmost.
/// `join` gives a pair's rank and the token it becomes. O(n log n) in the number of parts.
pub(super) fn merge(parts: &mut Vec<Part>, join: impl Fn(&Part, &Part) -> Option<(u32, u32)>) {
    if parts.len() < 2 {
        return;
    }
    let mut list = Linked::new(parts);
    let mut heap = BinaryHeap::with_capacity(parts.len());
    let offer = |heap: &mut BinaryHeap<_>, parts: &[Part], left: usize, right: usize| {
        if let Some((rank, id)) = join(&parts[left], &parts[right]) {
            heap.push(Reverse((rank, left, parts[right].end, id)));
        }
    };
    for left in 0..parts.len() - 1 {
        offer(&mut heap, parts, left, left + 1);
    }
    while let Some(Reverse((_, left, end, id))) = heap.pop() {
        // An offer is stale if its left part is gone or its pair no longer ends where it did.
        let Some(right) = list.next(left) else {
            continue;
        };
        if parts[right].end != end {
            continue;
        }
        parts[left].id = Some(id);
        parts[left].end = end;
        list.remove(right);
        if let Some(before) = list.previous(left) {
            offer(&mut heap, parts, before, left);
        }
        if let Some(after) = list.next(left) {
            offer(&mut heap, parts, left, after);
        }
    }
    let mut index = 0;
    parts.retain(|_| {
        index += 1;
        list.alive(index - 1)
    });
}

/// Doubly linked indices; the ends and whatever was removed link to `NONE`.
struct Linked {
    links: Vec<(usize, usize)>,
}

const NONE: usize = usize::MAX;
const GONE: usize = usize::MAX - 1;

impl Linked {
    fn new(parts: &[Part]) -> Self {
        let last = parts.len() - 1;
        let links = (0..parts.len())
            .map(|i| {
                let previous = if i == 0 { NONE } else { i - 1 };
                (previous, if i == last { NONE } else { i + 1 })
            })
            .collect();
        Linked { links }
    }

    fn alive(&self, i: usize) -> bool {
        self.links[i].1 != GONE
    }

    fn next(&self, i: usize) -> Option<usize> {
        Some(self.links[i].1).filter(|&n| n < GONE)
    }

    fn previous(&self, i: usize) -> Option<usize> {
        Some(self.links[i].0).filter(|&n| n < GONE)
    }

    fn remove(&mut self, i: usize) {
        let (previous, next) = std::mem::replace(&mut self.links[i], (GONE, GONE));
        if previous < GONE {
            self.links[previous].1 = next;
        }
        if next < GONE {
            self.links[next].0 = previous;
        }
    }
}
