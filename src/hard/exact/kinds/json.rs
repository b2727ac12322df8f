//! JSON: units are values with their names, and the sentences of long strings.
//!
//! What is left parses: [`Form`] puts units together again, so that containers, commas and quotes
//! follow from what stays.

use std::ops::Range;
use std::sync::Arc;

use crate::hard::json_text::Tree;
use crate::hard::json_text::render::{Form, Place};
use crate::hard::json_text::tree::{Decoded, Kind, decode};

use super::{Class, Layout, Unit};

/// Objects and arrays of up to this many bytes are one unit.
const RECORD: usize = 240;
/// Strings shorter than this are kept or dropped whole.
const WHOLE: usize = 64;
/// Members shorter than this may say which record a longer one is a part of.
const SHORT: usize = 128;
/// An object of more short members than this is a dictionary of entries, not a record of fields.
const FIELDS: usize = 16;
/// Bytes of the short members that a kept part of a record brings along.
const HEAD: usize = 256;

/// Whether a text is one JSON object or array.
pub(super) fn is_json(text: &str) -> bool {
    let text = text.trim();
    let closed = text.starts_with('{') && text.ends_with('}')
        || text.starts_with('[') && text.ends_with(']');
    closed && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// Takes a JSON text apart; `None` where it is not one.
pub(in crate::hard) fn layout(text: &str) -> Option<Layout> {
    let tree = Tree::parse(text).ok()?;
    let mut builder = Builder {
        layout: Layout::default(),
        places: Vec::new(),
        units: vec![0..0; tree.nodes.len()],
        at: 0,
        tree: &tree,
    };
    builder.value(0);
    builder.between(text.len());
    let Builder {
        mut layout,
        places,
        units,
        ..
    } = builder;
    layout.json = Some(Arc::new(Form {
        places,
        units,
        nodes: tree.nodes.into_owned(),
    }));
    Some(layout)
}

struct Builder<'a> {
    tree: &'a Tree<'a>,
    layout: Layout,
    places: Vec<Place>,
    units: Vec<Range<usize>>,
    /// The end of the last unit.
    at: usize,
}

impl Builder<'_> {
    /// Adds the units of a value.
    fn value(&mut self, node: usize) {
        let tree = self.tree;
        let value = &tree.nodes[node];
        let splits = node == 0 || value.element().len() > RECORD;
        if !value.children.is_empty() && splits {
            let first = self.layout.units.len();
            value.children.clone().for_each(|child| self.value(child));
            self.units[node] = first..self.layout.units.len();
            if node != 0 && value.kind == Kind::Object {
                self.bind_to_head(value.children.clone());
            }
            return;
        }
        if value.kind == Kind::String
            && (node == 0 || value.value.len() >= WHOLE)
            && let Some(decoded) = decode(tree.raw(node)).filter(|decoded| !decoded.text.is_empty())
        {
            let inner = super::layout(&decoded.text, None);
            // JSON inside of a string would not survive a cut.
            if inner.json.is_none() {
                return self.string(node, &decoded, inner);
            }
        }
        let parent = &tree.nodes[value.parent];
        let first = self.layout.units.len();
        let unit = Unit {
            whole: true,
            record: node != 0 && (parent.kind == Kind::Array || parent.children.len() > FIELDS),
            ..Unit::default()
        };
        // What parts it from the unit before is its own.
        self.push(self.at..value.element().end, unit, value.element(), false);
        self.units[node] = first..first + 1;
    }

    /// Adds the units of a string's text.
    fn string(&mut self, node: usize, decoded: &Decoded, inner: Layout) {
        let start = self.tree.nodes[node].value.start;
        let raw =
            |range: &Range<usize>| start + decoded.raw(range.start)..start + decoded.raw(range.end);
        self.between(start + 1);
        let first = self.layout.units.len();
        for unit in inner.units {
            let bytes = raw(&unit.range);
            let needs = unit.needs.iter().map(|need| first + need).collect();
            let unit = Unit {
                needs,
                comment: None,
                ..unit
            };
            self.push(bytes.clone(), unit, bytes, true);
        }
        self.units[node] = first..self.layout.units.len();
        let escapes = decoded.escapes().map(|e| start + e.start..start + e.end);
        let mut glued: Vec<Range<usize>> = inner.glued.iter().map(raw).chain(escapes).collect();
        glued.sort_by_key(|range| range.start);
        for range in glued {
            match self.layout.glued.last_mut() {
                Some(last) if range.start < last.end => last.end = last.end.max(range.end),
                _ => self.layout.glued.push(range),
            }
        }
    }

    fn push(&mut self, range: Range<usize>, unit: Unit, bytes: Range<usize>, in_string: bool) {
        self.at = range.end;
        self.layout.units.push(Unit { range, ..unit });
        self.places.push(Place { bytes, in_string });
    }

    /// Adds what stands between units as one of no worth.
    fn between(&mut self, end: usize) {
        if self.at < end {
            let unit = Unit {
                whole: true,
                class: Class::Blank,
                ..Unit::default()
            };
            self.push(self.at..end, unit, end..end, false);
        }
    }

    /// Makes the longer members of a record need its short ones, which say what it is.
    fn bind_to_head(&mut self, members: Range<usize>) {
        let size = |&member: &usize| self.tree.nodes[member].element().len();
        let short: Vec<usize> = members
            .clone()
            .filter(|member| size(member) < SHORT)
            .collect();
        let bytes: usize = short.iter().map(size).sum();
        if short.is_empty() || short.len() > FIELDS || bytes > HEAD {
            return;
        }
        let head: Vec<usize> = short.iter().flat_map(|&m| self.units[m].clone()).collect();
        for member in members.filter(|member| !short.contains(member)) {
            for unit in self.units[member].clone() {
                let needs = &mut self.layout.units[unit].needs;
                // What has needs inside of the record reaches its head by them.
                if needs.is_empty() {
                    needs.extend(&head);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
