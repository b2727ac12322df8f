//! What a JSON text is made of: units that are kept or dropped whole, and blocks of units that are
//! ranked together.

use std::ops::Range;

use super::tree::{Kind, Tree, decode};

/// Bytes of a block: about as many tokens as a passage of prose has.
const BLOCK: usize = 640;
/// Members and items smaller than this are ranked together with their neighbours.
const SMALL: usize = 128;
/// Strings shorter than this are kept or dropped whole.
const WHOLE: usize = 64;
/// An object of more small members than this is a dictionary of entries, not a record of fields.
const FIELDS: usize = 16;
/// Bytes of the short members that a kept part of a record brings along.
const HEAD: usize = 256;

/// A value without members or items of its own, or a sentence of a long string.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Unit {
    /// The value.
    pub node: usize,
    /// Bytes of the text: the value with its name, or a stretch inside a string's quotes.
    pub range: Range<usize>,
    /// Whether it is a stretch of a string.
    pub fragment: bool,
}

/// Units that are ranked together.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Block {
    /// Ascending.
    pub units: Vec<usize>,
    /// The block of the short members of the record that this one is a part of.
    pub head: Option<usize>,
    /// Bytes that name the value that the block is taken from; empty for the root.
    pub path: Vec<Range<usize>>,
}

/// A text's units in order, and the blocks that they form.
#[derive(Debug, Default)]
pub(crate) struct Outline {
    pub units: Vec<Unit>,
    pub blocks: Vec<Block>,
    /// For each node its units; a container's are those of all that it holds.
    of_node: Vec<Range<usize>>,
}

impl Outline {
    /// Takes a text apart; `sentences` cuts the text of a string, without a gap.
    pub fn new(tree: &Tree, sentences: &dyn Fn(&str) -> Vec<Range<usize>>) -> Self {
        let mut outline = Outline {
            of_node: vec![0..0; tree.nodes.len()],
            ..Outline::default()
        };
        let mut leaves: Vec<usize> = (0..tree.nodes.len())
            .filter(|&node| tree.nodes[node].children.is_empty())
            .collect();
        leaves.sort_unstable_by_key(|&node| tree.nodes[node].value.start);
        for leaf in leaves {
            outline.leaf(tree, leaf, sentences);
        }
        // Children follow their parents in the list of nodes.
        for node in (0..tree.nodes.len()).rev() {
            let children = tree.nodes[node].children.clone();
            if !children.is_empty() {
                let first = outline.of_node[children.start].start;
                outline.of_node[node] = first..outline.of_node[children.end - 1].end;
            }
        }
        outline.gather(tree, 0, None, &mut Vec::new());
        outline
    }

    /// The units of a value.
    pub fn units_of(&self, node: usize) -> Range<usize> {
        self.of_node[node].clone()
    }

    /// A block as a text to rank, and where its units stand in it.
    pub fn text_of(&self, tree: &Tree, block: &Block) -> (String, Vec<Range<usize>>) {
        let mut text = String::new();
        for key in &block.path {
            text.push_str(tree.text[key.clone()].trim_matches('"'));
            text.push_str(if Some(key) == block.path.last() {
                ": "
            } else {
                "."
            });
        }
        let mut places = Vec::with_capacity(block.units.len());
        for (i, &unit) in block.units.iter().enumerate() {
            // The first one takes the path, so that the places have no gap.
            let start = if i == 0 { 0 } else { text.len() };
            let unit = &self.units[unit];
            text.push_str(&tree.text[unit.range.clone()]);
            if !unit.fragment {
                text.push('\n');
            }
            places.push(start..text.len());
        }
        (text, places)
    }

    fn leaf(&mut self, tree: &Tree, leaf: usize, sentences: &dyn Fn(&str) -> Vec<Range<usize>>) {
        let node = &tree.nodes[leaf];
        let first = self.units.len();
        let decoded = match node.kind {
            Kind::String => decode(tree.raw(leaf)),
            _ => None,
        };
        // The root has no container to be dropped from: what is left of it stands in its quotes.
        let long = node.value.len() >= WHOLE || leaf == 0;
        match decoded.filter(|decoded| long && !decoded.text.is_empty()) {
            Some(decoded) => {
                self.units
                    .extend(sentences(&decoded.text).iter().map(|cut| {
                        let start = node.value.start + decoded.raw(cut.start);
                        Unit {
                            node: leaf,
                            range: start..node.value.start + decoded.raw(cut.end),
                            fragment: true,
                        }
                    }));
            }
            _ => self.units.push(Unit {
                node: leaf,
                range: node.element(),
                fragment: false,
            }),
        }
        self.of_node[leaf] = first..self.units.len();
    }

    /// Makes blocks of a value; `head` is that of the record around it, `path` the names above it.
    fn gather(
        &mut self,
        tree: &Tree,
        node: usize,
        head: Option<usize>,
        path: &mut Vec<Range<usize>>,
    ) {
        let value = &tree.nodes[node];
        path.extend(value.key.clone());
        let units = self.units_of(node);
        if value.element().len() <= BLOCK {
            self.push(units.collect(), head, path);
        } else if value.children.is_empty() {
            self.gather_runs(units.map(|unit| unit..unit + 1), BLOCK, head, path);
        } else {
            let small = |&child: &usize| tree.nodes[child].element().len() < SMALL;
            let fields: Vec<usize> = value.children.clone().filter(small).collect();
            let record = value.kind == Kind::Object && fields.len() <= FIELDS;
            let mut own_head = head;
            if record && !fields.is_empty() {
                let bytes: usize = fields.iter().map(|&f| tree.nodes[f].element().len()).sum();
                let units = fields.iter().flat_map(|&f| self.units_of(f)).collect();
                self.push(units, head, path);
                if bytes <= HEAD {
                    own_head = Some(self.blocks.len() - 1);
                }
            }
            let mut run = Vec::new();
            for child in value.children.clone() {
                if small(&child) {
                    if !record {
                        run.push(self.units_of(child));
                    }
                    continue;
                }
                self.gather_runs(run.drain(..), SMALL, own_head, path);
                self.gather(tree, child, own_head, path);
            }
            self.gather_runs(run.into_iter(), SMALL, own_head, path);
        }
        if value.key.is_some() {
            path.pop();
        }
    }

    /// Makes blocks of about `bytes` of neighbours.
    fn gather_runs(
        &mut self,
        neighbours: impl Iterator<Item = Range<usize>>,
        bytes: usize,
        head: Option<usize>,
        path: &[Range<usize>],
    ) {
        let mut run: Vec<usize> = Vec::new();
        for units in neighbours {
            run.extend(units);
            if let (Some(&first), Some(&last)) = (run.first(), run.last())
                && self.units[last].range.end - self.units[first].range.start >= bytes
            {
                self.push(std::mem::take(&mut run), head, path);
            }
        }
        if !run.is_empty() {
            self.push(run, head, path);
        }
    }

    fn push(&mut self, units: Vec<usize>, head: Option<usize>, path: &[Range<usize>]) {
        self.blocks.push(Block {
            units,
            head,
            path: path.to_vec(),
        });
    }
}
