//! HTML: sentences need the elements that they stand in, tags stay balanced, rows stay whole.

use std::ops::Range;

use html5gum::{DefaultEmitter, Token, Tokenizer};

use super::detect::LONG_SENTENCE;
use super::text::{Wrap, prose_around};
use super::{Class, Layout, Unit, lines};

/// Elements inside a line of text.
const INLINE: &str = " a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark q rp rt ruby s \
    samp small span strike strong sub sup time tt u var ";
/// Elements without an end.
const VOID: &str = " area base br col embed hr img input link meta param source track wbr ";
/// Those of them that show nothing.
const UNSEEN: &str = " base link meta param source track ";
/// Elements that hold no text for a reader.
const HIDDEN: &str = " script style svg noscript template iframe object canvas ";
/// Elements around a page's text that say little of it.
const AROUND: &str = " nav footer aside form button select menu ";
/// Elements that a block that starts ends.
const CLOSED_BY_BLOCK: &str = " p ";

fn is(list: &str, name: &str) -> bool {
    list.contains(&format!(" {name} "))
}

/// A tag or what stands between two.
#[derive(Debug)]
struct Part {
    range: Range<usize>,
    kind: Kind,
    /// In lower case.
    name: String,
    /// The part that ends or begins the same element.
    partner: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Start,
    End,
    Void,
    Text,
    Other,
}

/// Takes HTML apart.
pub(super) fn layout(text: &str) -> Layout {
    let parts = parts(text);
    let mut walk = Walk {
        text,
        wrap: Wrap::of(text),
        parts: &parts,
        layout: Layout::default(),
        open: Vec::new(),
        flow: None,
        header: None,
    };
    let mut i = 0;
    while i < parts.len() {
        i = walk.part(i);
    }
    walk.close_flow();
    walk.layout
}

/// The tags and texts of a document, with their partners.
fn parts(text: &str) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    let mut emitter = DefaultEmitter::<usize>::new_with_span();
    // Tags inside scripts are text.
    emitter.naively_switch_states(true);
    for token in Tokenizer::new_with_emitter(text, emitter) {
        let Ok(token) = token;
        let name = |name: &[u8]| String::from_utf8_lossy(name).to_ascii_lowercase();
        let (span, kind, name) = match token {
            Token::StartTag(tag) => {
                let name = name(&tag.name);
                let kind = if tag.self_closing || is(VOID, &name) {
                    Kind::Void
                } else {
                    Kind::Start
                };
                (tag.span, kind, name)
            }
            Token::EndTag(tag) => (tag.span, Kind::End, name(&tag.name)),
            Token::String(string) => (string.span, Kind::Text, String::new()),
            Token::Comment(comment) => (comment.span, Kind::Other, "comment".into()),
            Token::Doctype(doctype) => (doctype.span, Kind::Other, "doctype".into()),
            Token::Error(_) => continue,
        };
        let from = parts.last().map_or(0, |p| p.range.end);
        let (start, end) = (
            span.start.clamp(from, text.len()),
            span.end.clamp(from, text.len()),
        );
        if start >= end || !text.is_char_boundary(start) || !text.is_char_boundary(end) {
            continue;
        }
        let index = parts.len();
        let mut partner = None;
        match kind {
            Kind::Start => open.push(index),
            Kind::End => {
                // The innermost of that name, if it is near: others in between were never closed.
                let found = open
                    .iter()
                    .rev()
                    .take(32)
                    .position(|&o| parts[o].name == name);
                if let Some(depth) = found {
                    let own = open.len() - 1 - depth;
                    partner = Some(open[own]);
                    parts[open[own]].partner = Some(index);
                    open.truncate(own);
                }
            }
            _ => {}
        }
        parts.push(Part {
            range: start..end,
            kind,
            name,
            partner,
        });
    }
    parts
}

struct Walk<'a> {
    text: &'a str,
    wrap: Wrap,
    parts: &'a [Part],
    layout: Layout,
    /// The blocks that are open: (part, unit).
    open: Vec<(usize, usize)>,
    /// Running text that is not yet cut, with what must stay together in it.
    flow: Option<(Range<usize>, Vec<Range<usize>>)>,
    /// The header row of the open table.
    header: Option<usize>,
}

impl Walk<'_> {
    /// Takes in a part, or an element as a whole; gives the next.
    fn part(&mut self, i: usize) -> usize {
        let part = &self.parts[i];
        let whole = part.partner.filter(|&end| end > i);
        match part.kind {
            Kind::Text => self.add_text(part.range.clone()),
            Kind::Void if is(UNSEEN, &part.name) => {
                self.close_flow();
                self.unit(part.range.clone(), Class::Form);
            }
            Kind::Void => self.add_glued(part.range.clone()),
            Kind::Other => {
                self.close_flow();
                self.unit(
                    part.range.clone(),
                    if part.name == "comment" {
                        Class::Blank
                    } else {
                        Class::Low
                    },
                );
            }
            Kind::Start => {
                if let Some(end) = whole {
                    let range = part.range.start..self.parts[end].range.end;
                    if is(HIDDEN, &part.name) {
                        self.close_flow();
                        self.unit(range, Class::Form);
                        return end + 1;
                    }
                    if is(INLINE, &part.name) && range.len() <= LONG_SENTENCE {
                        self.add_glued(range);
                        return end + 1;
                    }
                    if part.name == "tr" {
                        self.close_flow();
                        self.row(range);
                        return end + 1;
                    }
                    if part.name == "pre" {
                        self.close_flow();
                        self.preformatted(range);
                        return end + 1;
                    }
                }
                self.close_flow();
                if is(
                    CLOSED_BY_BLOCK,
                    self.open.last().map_or("", |&(p, _)| &self.parts[p].name),
                ) {
                    self.open.pop();
                }
                let unit = self.unit(part.range.clone(), Class::Form);
                if part.name == "table" {
                    self.header = None;
                }
                if whole.is_some() || part.name == "p" {
                    self.open.push((i, unit));
                }
            }
            Kind::End => {
                self.close_flow();
                let depth = part
                    .partner
                    .and_then(|p| self.open.iter().rposition(|&(o, _)| o == p));
                let opened = depth.map(|depth| self.open[depth].1);
                if let Some(depth) = depth {
                    self.open.truncate(depth);
                }
                let unit = self.unit(part.range.clone(), Class::Form);
                if let Some(opened) = opened {
                    self.layout.units[unit].needs.push(opened);
                    self.layout.units[opened].needs.push(unit);
                }
            }
        }
        i + 1
    }

    /// Adds a whole unit in the innermost block.
    fn unit(&mut self, range: Range<usize>, class: Class) -> usize {
        let index = self.layout.units.len();
        self.layout.units.push(Unit {
            range,
            needs: self
                .open
                .last()
                .map(|&(_, unit)| unit)
                .into_iter()
                .collect(),
            whole: true,
            class,
            ..Unit::default()
        });
        index
    }

    fn class(&self) -> Class {
        match self
            .open
            .iter()
            .any(|&(p, _)| is(AROUND, &self.parts[p].name))
        {
            true => Class::Low,
            false => Class::Normal,
        }
    }

    fn add_text(&mut self, range: Range<usize>) {
        match &mut self.flow {
            Some((flow, _)) => flow.end = range.end,
            // White space between two blocks belongs to the first.
            None if self.text[range.clone()].trim().is_empty() => {}
            None => self.flow = Some((range, Vec::new())),
        }
    }

    fn add_glued(&mut self, range: Range<usize>) {
        let (flow, glued) = self.flow.get_or_insert((range.clone(), Vec::new()));
        flow.end = range.end;
        glued.push(range);
    }

    /// Cuts running text into sentences.
    fn close_flow(&mut self) {
        let Some((range, glued)) = self.flow.take() else {
            return;
        };
        let class = self.class();
        for sentence in prose_around(self.text, range, &self.wrap, &glued) {
            let unit = self.unit(sentence, class);
            self.layout.units[unit].whole = false;
        }
        self.layout.glued.extend(glued);
    }

    /// Adds a row; the rows after one of header cells need it.
    fn row(&mut self, range: Range<usize>) {
        let heads = {
            let own = self.text[range.clone()].to_ascii_lowercase();
            own.contains("<th") && !own.contains("<td")
        };
        let class = if heads { Class::Low } else { self.class() };
        let unit = self.unit(range, class);
        if heads {
            self.header = Some(unit);
        } else {
            self.layout.units[unit].needs.extend(self.header);
        }
    }

    /// Adds preformatted text by its lines: the first holds the tag, the last its end.
    fn preformatted(&mut self, range: Range<usize>) {
        let own = &self.text[range.clone()];
        let all: Vec<Range<usize>> = lines(own)
            .map(|l| range.start + l.start..range.start + l.end)
            .collect();
        if all.len() <= 3 {
            self.unit(range, self.class());
            return;
        }
        let class = self.class();
        let first = self.layout.units.len();
        let last = first + all.len() - 1;
        for (i, line) in all.into_iter().enumerate() {
            let unit = self.unit(line, class);
            let needs = &mut self.layout.units[unit].needs;
            needs.extend([first, last].into_iter().filter(|&n| n != unit));
            if i == 0 || unit == last {
                self.layout.units[unit].class = Class::Form;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of the units that contain `wanted` and of what they need.
    fn with_needs(text: &str, wanted: &str) -> String {
        let layout = layout(text).finish(text);
        assert_eq!(
            layout
                .units
                .iter()
                .map(|u| &text[u.range.clone()])
                .collect::<String>(),
            text
        );
        let mut kept = vec![false; layout.units.len()];
        let mut stack: Vec<usize> = (0..kept.len())
            .filter(|&i| text[layout.units[i].range.clone()].contains(wanted))
            .collect();
        assert!(!stack.is_empty(), "{wanted}");
        while let Some(i) = stack.pop() {
            if !std::mem::replace(&mut kept[i], true) {
                stack.extend(&layout.units[i].needs);
            }
        }
        let kept = layout.units.iter().zip(kept).filter(|(_, k)| *k);
        kept.map(|(u, _)| text[u.range.clone()].trim()).collect()
    }

    const PAGE: &str = "<!DOCTYPE html>\n<html><head><title>T</title><style>p { a: b }</style></head>\n<body>\n<nav><a href=\"/\">Home</a></nav>\n\
        <div class=\"x\"><p>One is <b>here. Now</b> ends. Two <a href=\"/a b\">link. x</a> too.</p><p>Three.</p></div>\n\
        <table><tr><th>a</th></tr><tr><td>1</td></tr><tr><td>2</td></tr></table></body></html>\n";

    #[test]
    fn elements_stay_balanced() {
        assert_eq!(
            with_needs(PAGE, "Two"),
            "<html><body><div class=\"x\"><p>Two <a href=\"/a b\">link. x</a> too.</p></div></body></html>"
        );
        assert_eq!(
            with_needs(PAGE, "here"),
            "<html><body><div class=\"x\"><p>One is <b>here. Now</b> ends.</p></div></body></html>"
        );
        assert_eq!(
            with_needs(PAGE, "<td>2"),
            "<html><body><table><tr><th>a</th></tr><tr><td>2</td></tr></table></body></html>"
        );
    }

    #[test]
    fn broken_pages_are_covered() {
        for text in [
            "<p>One<p>Two<li>three</ul></div>",
            "<div><span>never closed",
            "a < b & c > d </x>",
            "<pre>\na\nb\nc\nd\n</pre>",
            "<script>if (a < b) { x(\"</p>\") }</script><p>é</p>",
            "",
        ] {
            let layout = layout(text).finish(text);
            assert_eq!(
                layout
                    .units
                    .iter()
                    .map(|u| &text[u.range.clone()])
                    .collect::<String>(),
                text
            );
        }
        let layout = layout(PAGE).finish(PAGE);
        let nav = layout
            .units
            .iter()
            .find(|u| PAGE[u.range.clone()].contains("Home"));
        assert_eq!(nav.map(|u| u.class), Some(Class::Low));
    }
}
