//! Markdown: sentences need the headings above them, rows their table's header, and what a fence
//! opens it closes.

use std::collections::HashMap;
use std::ops::Range;

use pulldown_cmark::{Event, LinkType, Options, Parser, Tag, TagEnd};

use super::text::{Wrap, prose_around};
use super::{Class, Layout, Unit, code};

/// Bytes up to which emphasis, a link or inline code is kept in one piece. Longer ones are marks of other
/// sentences that happen to make a pair: `*args … **kwargs`.
const GLUED: usize = 300;
/// Bytes up to which a list item, a quotation or a block of HTML is kept or dropped whole.
const WHOLE: usize = 2000;

/// Takes Markdown apart.
pub(super) fn layout(text: &str) -> Layout {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS;
    let parser = Parser::new_ext(text, options);
    let definitions: HashMap<String, Range<usize>> = parser
        .reference_definitions()
        .iter()
        .map(|(label, definition)| (label.to_lowercase(), definition.span.clone()))
        .collect();
    let mut reader = Reader {
        text,
        wrap: Wrap::of(text),
        layout: Layout::default(),
        headings: Vec::new(),
        items: Vec::new(),
        quotes: 0,
        table: None,
        paragraph: None,
        links: Vec::new(),
        definitions: HashMap::new(),
        spans: definitions,
    };
    let mut definitions: Vec<Range<usize>> = reader.spans.values().cloned().collect();
    definitions.sort_by_key(|span| span.start);
    let mut definitions = definitions.into_iter().peekable();
    // Fenced or indented code, metadata and HTML are taken as a whole.
    let mut skip_to = 0;
    for (event, range) in parser.into_offset_iter() {
        while definitions.peek().is_some_and(|d| d.start <= range.start) {
            reader.definition(definitions.next().unwrap_or_default());
        }
        if range.start >= skip_to {
            skip_to = reader.event(event, range).unwrap_or(skip_to);
        } else if let Event::End(_) = event {
            reader.event(event, range);
        }
    }
    definitions.for_each(|d| reader.definition(d));
    reader.finish()
}

/// The state of a walk over the events of a document.
struct Reader<'a> {
    text: &'a str,
    wrap: Wrap,
    layout: Layout,
    /// Headings that the text stands under: (level, unit).
    headings: Vec<(usize, usize)>,
    /// The list items or footnotes that are open; `None` until the first unit of one is known.
    items: Vec<Option<usize>>,
    quotes: usize,
    /// The header row of the open table.
    table: Option<usize>,
    /// The open paragraph, and what is whole inside of it.
    paragraph: Option<(Range<usize>, Vec<Range<usize>>)>,
    /// Links by reference: where, and to what.
    links: Vec<(usize, String)>,
    /// Units of link definitions by label.
    definitions: HashMap<String, usize>,
    spans: HashMap<String, Range<usize>>,
}

impl Reader<'_> {
    /// Takes in an event; gives the end of what was taken as a whole, if it was.
    fn event(&mut self, event: Event, range: Range<usize>) -> Option<usize> {
        match event {
            Event::Start(tag) => return self.start(tag, range),
            Event::End(end) => self.end(end, range),
            Event::Code(_)
            | Event::InlineHtml(_)
            | Event::FootnoteReference(_)
            | Event::InlineMath(_) => self.glue(range),
            Event::Rule => {
                let unit = self.unit(range, Class::Form);
                self.layout.units[unit].whole = true;
            }
            Event::Text(_) | Event::SoftBreak | Event::HardBreak | Event::TaskListMarker(_)
                // The text of a tight list item has no paragraph around it.
                if self.paragraph.is_none() && self.table.is_none() && !self.items.is_empty() => {
                    self.item_text(range);
                }
            _ => {}
        }
        None
    }

    fn start(&mut self, tag: Tag, range: Range<usize>) -> Option<usize> {
        match tag {
            Tag::Heading { level, .. } => {
                let level = level as usize;
                self.headings.retain(|&(at, _)| at < level);
                let unit = self.unit(range.clone(), Class::Low);
                self.layout.units[unit].whole = true;
                self.headings.push((level, unit));
                return Some(range.end);
            }
            Tag::Paragraph => self.paragraph = Some((range, Vec::new())),
            Tag::Item | Tag::FootnoteDefinition(_) => {
                self.items.push(None);
                let unit = self.unit(range, Class::Normal);
                self.layout.units[unit].whole = true;
                if let Some(item) = self.items.last_mut() {
                    *item = Some(unit);
                }
            }
            Tag::BlockQuote(_) => self.quotes += 1,
            Tag::CodeBlock(_) => {
                self.code(range.clone());
                return Some(range.end);
            }
            Tag::HtmlBlock | Tag::MetadataBlock(_) => {
                let class = if matches!(tag, Tag::HtmlBlock) {
                    Class::Normal
                } else {
                    Class::Low
                };
                let unit = self.unit(range.clone(), class);
                self.layout.units[unit].whole = true;
                return Some(range.end);
            }
            // With the line of dashes under it, that is all up to the first row.
            Tag::TableHead => {
                let unit = self.unit(range, Class::Low);
                self.layout.units[unit].whole = true;
                self.table = Some(unit);
            }
            Tag::TableRow => {
                let unit = self.unit(range, Class::Normal);
                self.layout.units[unit].whole = true;
                self.layout.units[unit].needs.extend(self.table);
            }
            Tag::Emphasis | Tag::Strong | Tag::Strikethrough => self.glue(range),
            Tag::Link { link_type, id, .. } | Tag::Image { link_type, id, .. } => {
                if matches!(
                    link_type,
                    LinkType::Reference | LinkType::Collapsed | LinkType::Shortcut
                ) {
                    self.links.push((range.start, id.to_lowercase()));
                }
                self.glue(range);
            }
            _ => {}
        }
        None
    }

    fn end(&mut self, end: TagEnd, range: Range<usize>) {
        match end {
            TagEnd::Paragraph => self.close_paragraph(),
            TagEnd::Item | TagEnd::FootnoteDefinition => {
                self.items.pop();
            }
            TagEnd::BlockQuote(_) => self.quotes = self.quotes.saturating_sub(1),
            TagEnd::Table => {
                // What follows needs a row of its own to stand on.
                self.table = None;
                let _ = range;
            }
            _ => {}
        }
    }

    /// Adds a unit that starts with the line, as far as that is its own.
    fn unit(&mut self, range: Range<usize>, class: Class) -> usize {
        let line = self.text[..range.start].rfind('\n').map_or(0, |at| at + 1);
        let lead = &self.text[line..range.start];
        // Indentation and the marks of a quotation belong to the line.
        let own = lead.chars().all(|c| matches!(c, ' ' | '\t' | '>'));
        let before = self.layout.units.last().map_or(0, |u| u.range.start + 1);
        let start = if own {
            line.max(before.min(range.start))
        } else {
            range.start
        };
        self.push(start..range.end, class)
    }

    fn push(&mut self, range: Range<usize>, class: Class) -> usize {
        let index = self.layout.units.len();
        let mut needs: Vec<usize> = self
            .headings
            .last()
            .map(|&(_, unit)| unit)
            .into_iter()
            .collect();
        needs.extend(self.items.iter().rev().flatten().next());
        self.layout.units.push(Unit {
            range,
            needs,
            class,
            ..Unit::default()
        });
        index
    }

    /// Keeps a stretch of a paragraph together.
    fn glue(&mut self, range: Range<usize>) {
        if let Some((_, glued)) = &mut self.paragraph
            && range.len() <= GLUED
            && glued.last().is_none_or(|last| last.end <= range.start)
        {
            glued.push(range);
        }
    }

    /// The text of an item belongs to the unit of the item; after a nested list it would not.
    fn item_text(&mut self, range: Range<usize>) {
        let last = self.layout.units.len().checked_sub(1);
        let item = self.items.last().copied().flatten();
        if item.is_some()
            && last != item
            && self
                .layout
                .units
                .last()
                .is_some_and(|u| u.range.end <= range.start)
        {
            let unit = self.unit(range, Class::Normal);
            self.layout.units[unit].whole = true;
        }
    }

    fn close_paragraph(&mut self) {
        let Some((range, glued)) = self.paragraph.take() else {
            return;
        };
        let item = self.items.last().copied().flatten();
        let first_of_item = item.is_some() && item == self.layout.units.len().checked_sub(1);
        if first_of_item {
            return;
        }
        // The lines of a quotation carry its mark.
        if self.quotes > 0 || item.is_some() {
            let unit = self.unit(range, Class::Normal);
            self.layout.units[unit].whole = true;
            return;
        }
        let sentences = prose_around(self.text, range, &self.wrap, &glued);
        for (i, sentence) in sentences.into_iter().enumerate() {
            match i {
                0 => self.unit(sentence, Class::Normal),
                _ => self.push(sentence, Class::Normal),
            };
        }
        self.layout.glued.extend(glued);
    }

    /// Code in a fence is code; without one it is code too.
    fn code(&mut self, range: Range<usize>) {
        let block = &self.text[range.clone()];
        let fenced = super::detect::is_fence(block);
        let open = if fenced {
            block.find('\n').map_or(block.len(), |at| at + 1)
        } else {
            0
        };
        let last = block.trim_end().rfind('\n').map_or(0, |at| at + 1);
        let closed = fenced && last >= open && last > 0 && {
            let line = block[last..].trim_start_matches(['>', ' ', '\t']);
            super::detect::is_fence(line)
        };
        let close = if closed { last } else { block.len() };
        let mut fence = None;
        if fenced {
            let unit = self.unit(range.start..range.start + open, Class::Form);
            self.layout.units[unit].whole = true;
            fence = Some(unit);
        }
        // Indented code starts with its line.
        let start = match fenced {
            true => range.start + open,
            false => self.text[..range.start].rfind('\n').map_or(0, |at| at + 1),
        };
        let end = range.start + close;
        let first = self.layout.units.len();
        if start < end {
            let heading = self.headings.last().map(|&(_, unit)| unit);
            let item = self.items.iter().rev().flatten().next().copied();
            let mut inner = code::layout(&self.text[start..end]);
            if self.quotes > 0 || self.text[start..end].trim().is_empty() {
                // Marks of the quotation stand in front of every line.
                inner.units.iter_mut().for_each(|u| u.comment = None);
            }
            self.layout.append(inner, start);
            for unit in &mut self.layout.units[first..] {
                unit.needs.extend(fence.or(heading));
                unit.needs.extend(if fence.is_some() { None } else { item });
            }
        }
        if closed {
            let unit = self.push(range.start + close..range.end, Class::Form);
            self.layout.units[unit].whole = true;
            if let Some(fence) = fence {
                self.layout.units[unit].needs.push(fence);
                self.layout.units[fence].needs.push(unit);
            }
        }
    }

    /// Adds the definition of a link.
    fn definition(&mut self, span: Range<usize>) {
        let label = self
            .spans
            .iter()
            .find(|(_, s)| **s == span)
            .map(|(label, _)| label.clone());
        let after = self
            .layout
            .units
            .last()
            .is_none_or(|u| u.range.start < span.start);
        if let Some(label) = label.filter(|_| after) {
            let unit = self.unit(span, Class::Low);
            self.layout.units[unit].whole = true;
            self.layout.units[unit].needs.clear();
            self.definitions.insert(label, unit);
        }
    }

    fn finish(mut self) -> Layout {
        for unit in &mut self.layout.units {
            unit.whole &= unit.range.len() <= WHOLE || unit.class != Class::Normal;
        }
        for (at, label) in &self.links {
            let unit = self
                .layout
                .units
                .partition_point(|u| u.range.start <= *at)
                .checked_sub(1);
            if let (Some(unit), Some(&definition)) = (unit, self.definitions.get(label)) {
                self.layout.units[unit].needs.push(definition);
            }
        }
        self.layout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each unit with the units that it needs.
    fn units(text: &str) -> Vec<(&str, Vec<usize>)> {
        let layout = layout(text).finish(text);
        let all: Vec<_> = layout
            .units
            .iter()
            .map(|u| (&text[u.range.clone()], u.needs.clone()))
            .collect();
        assert_eq!(all.iter().map(|u| u.0).collect::<String>(), text);
        all
    }

    #[test]
    fn sentences_need_their_headings_and_headings_those_above() {
        let text = "# A\n\nOne. Two.\n\n## B\n\nThree.\n\n# C\n\nFour.\n";
        assert_eq!(
            units(text),
            [
                ("# A\n\n", vec![]),
                ("One. ", vec![0]),
                ("Two.\n\n", vec![0]),
                ("## B\n\n", vec![0]),
                ("Three.\n\n", vec![3]),
                ("# C\n\n", vec![]),
                ("Four.\n", vec![5]),
            ]
        );
    }

    #[test]
    fn items_rows_and_fences_are_whole() {
        let text = "- one. Two.\n- three\n  - four\n\n| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\n```rust\nfn f() {\n    x();\n}\n```\n\nEnd.\n";
        assert_eq!(
            units(text),
            [
                ("- one. Two.\n", vec![]),
                ("- three\n", vec![]),
                ("  - four\n\n", vec![1]),
                ("| a | b |\n|---|---|\n", vec![]),
                ("| 1 | 2 |\n", vec![3]),
                ("| 3 | 4 |\n\n", vec![3]),
                ("```rust\n", vec![10]),
                ("fn f() {\n", vec![9, 6]),
                ("    x();\n", vec![7, 6]),
                ("}\n", vec![7, 6]),
                ("```\n\n", vec![6]),
                ("End.\n", vec![]),
            ]
        );
    }

    #[test]
    fn links_are_whole_and_keep_their_definition() {
        let text =
            "See [the. Docs](http://x.org/ab). Then [this][that] here.\n\n[that]: http://y.org\n";
        let all = units(text);
        assert_eq!(all[0].0, "See [the. Docs](http://x.org/ab). ");
        assert_eq!(all[1], ("Then [this][that] here.\n\n", vec![2]));
        let text = "It is **very. Bold** here. `a. b` there.\n";
        assert_eq!(
            units(text).iter().map(|u| u.0).collect::<Vec<_>>(),
            ["It is **very. Bold** here. ", "`a. b` there.\n"]
        );
    }

    #[test]
    fn marks_that_make_a_pair_by_chance_join_no_sentences() {
        let filler = "Nothing of note is said here. ".repeat(40);
        let text = format!(
            "It takes *args first. {filler}Then *kwargs and ` follow. {filler}The ` ends.\n"
        );
        let all = units(&text);
        assert!(all.len() > 80, "{} units", all.len());
        // What is long is cut where it must be.
        let text = format!("- {filler}{filler}\n- short\n\n> {filler}{filler}\n");
        let whole: Vec<bool> = layout(&text).units.iter().map(|u| u.whole).collect();
        assert_eq!(whole, [false, true, false]);
    }

    #[test]
    fn loose_items_quotations_and_open_fences_are_covered() {
        for text in [
            "1. One.\n\n   More of one.\n\n2. Two.\n\n   ```\n   code\n   ```\n",
            "> Quoted. Text\n> of two lines.\n\nPlain.\n",
            "```\nnever closed\nat all\n",
            "    indented code\n    more\n\ntext\n",
            "---\ntitle: x\n---\n\n# T\n\n<div>\nhtml\n</div>\n\n***\n\ntext[^1]\n\n[^1]: note.\n",
            "Title\n=====\n\n* a\n\n  b\n* c\n- d\n  > q\n",
            "text\n| not | a table\n",
            "\n\n\n",
            "- \n- x\n",
        ] {
            units(text);
        }
        let text = "> Quoted. Text\n> of two lines.\n\nPlain.\n";
        assert_eq!(units(text).len(), 2);
    }
}
