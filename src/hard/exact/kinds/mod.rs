//! Content kinds: what a context is made of, so that it is cut where its own form allows it.
//!
//! A kind turns a text into a [`Layout`]: units with what each needs beside it (a table row its
//! header, a body line its signature). Everything after that, from ranking to rendering, knows units
//! only.

mod code;
#[cfg(feature = "formats")]
mod csv_form;
mod detect;
#[cfg(feature = "grammars")]
mod grammar;
#[cfg(feature = "formats")]
mod html;
pub(crate) mod json;
mod lines;
#[cfg(feature = "formats")]
mod markdown;
mod statement;
mod text;

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::hard::json_text::render::Form;

/// The form of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(
    feature = "cli",
    derive(clap::ValueEnum),
    value(rename_all = "snake_case")
)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ContentKind {
    /// Prose: units are sentences; lines that are records stay whole.
    Text,
    /// CommonMark with tables: units are sentences, list items, table rows, lines of code. Prose without
    /// the feature `formats`.
    Markdown,
    /// Source code and configuration: units are lines and statements.
    Code,
    /// Logs, listings and other lines that each stand for themselves.
    Log,
    /// Rows of fields by commas, semicolons, tabs or bars; a header stays. Lines without the feature
    /// `formats`.
    Csv,
    /// One JSON value: units are members, items and the sentences of long strings, and what is left is
    /// JSON.
    Json,
    /// One JSON value a line.
    Jsonl,
    /// HTML: units are the sentences of each element; tags stay balanced. Prose without the feature
    /// `formats`.
    Html,
}

impl ContentKind {
    /// Finds the kind of a text by its form.
    pub fn of(text: &str) -> Self {
        detect::kind(text)
    }
}

/// When a unit has its turn, whatever it is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Class {
    #[default]
    /// By its worth.
    Normal,
    /// After all that is normal: comments in code, a heading without its text.
    Low,
    /// After that: form without content of its own, as a fence or a line of brackets.
    Form,
    /// After that: records that differ from an earlier one in figures alone.
    Copy,
    /// Last: white space.
    Blank,
}

/// A stretch of a context that is chosen as one.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Unit {
    /// Its bytes; the ranges of a layout's units follow each other without a gap.
    pub range: Range<usize>,
    /// Units without which this one would be misread, by index.
    pub needs: Vec<usize>,
    /// Whole or absent; others may be cut between words.
    pub whole: bool,
    pub class: Class,
    /// A record: ranked by itself, and a copy of another that differs in figures alone.
    pub record: bool,
    /// What starts a comment here; a gap between two such units is marked with one.
    pub comment: Option<&'static str>,
}

/// A context taken apart by its kind.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Layout {
    pub units: Vec<Unit>,
    /// Stretches inside units that are never cut, as links: ascending, not overlapping.
    pub glued: Vec<Range<usize>>,
    /// How the units of a JSON text make one again.
    pub json: Option<Arc<Form>>,
}

/// White space of this many bytes is a unit of its own, which goes first.
const LONG_SPACE: usize = 64;

/// Takes a text apart as what it is said to be, or else as what it looks like.
pub(crate) fn layout(text: &str, kind: Option<ContentKind>) -> Layout {
    let kind = kind.unwrap_or_else(|| ContentKind::of(text));
    if kind == ContentKind::Json
        && let Some(layout) = json::layout(text)
    {
        return layout;
    }
    let layout = match kind {
        // A request that calls something JSON that is not was refused before.
        ContentKind::Text | ContentKind::Json => text::layout(text),
        #[cfg(feature = "formats")]
        ContentKind::Markdown => markdown::layout(text),
        ContentKind::Code => code::layout(text),
        ContentKind::Log | ContentKind::Jsonl => lines::log(text),
        #[cfg(feature = "formats")]
        ContentKind::Csv => csv_form::layout(text),
        #[cfg(not(feature = "formats"))]
        ContentKind::Csv => lines::log(text),
        #[cfg(feature = "formats")]
        ContentKind::Html => html::layout(text),
        #[cfg(not(feature = "formats"))]
        ContentKind::Markdown | ContentKind::Html => text::layout(text),
    };
    layout.finish(text)
}

impl Layout {
    /// Adds the layout of a text that follows; `at` is where it begins.
    pub fn append(&mut self, other: Layout, at: usize) {
        let base = self.units.len();
        self.units.extend(other.units.into_iter().map(|mut unit| {
            unit.range = at + unit.range.start..at + unit.range.end;
            unit.needs.iter_mut().for_each(|need| *need += base);
            unit
        }));
        self.glued
            .extend(other.glued.iter().map(|g| at + g.start..at + g.end));
    }

    /// Makes the ranges gapless and long white space units of their own.
    ///
    /// Units come in with ascending starts; each reaches to the start of the next.
    fn finish(mut self, text: &str) -> Layout {
        if self.units.is_empty() && !text.is_empty() {
            self.units.push(Unit::default());
        }
        let mut end = text.len();
        for unit in self.units.iter_mut().rev() {
            unit.range.end = end;
            end = unit.range.start;
        }
        if let Some(first) = self.units.first_mut() {
            first.range.start = 0;
        }
        let mut index = Vec::with_capacity(self.units.len());
        let mut units = Vec::with_capacity(self.units.len());
        for mut unit in self.units {
            let blank = |range: Range<usize>| Unit {
                range,
                whole: true,
                class: Class::Blank,
                ..Unit::default()
            };
            let own = &text[unit.range.clone()];
            let (start, end) = (unit.range.start, unit.range.end);
            let visible = end - own.len() + own.trim_end().len();
            if visible == start {
                index.push(units.len());
                units.push(blank(start..end));
                continue;
            }
            let lead = own.len() - own.trim_start().len();
            if lead >= LONG_SPACE {
                // The line's own indentation stays with it.
                let cut = own[..lead].rfind('\n').map_or(lead, |at| at + 1);
                if cut > 0 {
                    units.push(blank(start..start + cut));
                }
                unit.range.start = start + cut;
            }
            index.push(units.len());
            if end - visible >= LONG_SPACE {
                let cut = text[visible..end]
                    .find('\n')
                    .map_or(visible, |at| visible + at + 1);
                unit.range.end = cut;
                units.push(unit);
                if cut < end {
                    units.push(blank(cut..end));
                }
            } else {
                units.push(unit);
            }
        }
        for unit in &mut units {
            unit.needs.iter_mut().for_each(|need| *need = index[*need]);
        }
        Layout { units, ..self }
    }
}

/// The lines of a text with their line breaks, as ranges.
fn lines(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    text.split_inclusive('\n').map(move |line| {
        let start = at;
        at += line.len();
        start..at
    })
}

/// The white space that a line begins with, as a width; a tab reaches to the next multiple of 4.
fn indent(line: &str) -> usize {
    line.chars()
        .take_while(|c| matches!(c, ' ' | '\t'))
        .fold(0, |width, c| {
            if c == '\t' {
                width / 4 * 4 + 4
            } else {
                width + 1
            }
        })
}
