//! Source code by its grammar: which lines are one statement, and which are comments.
//!
//! A statement without a block is one unit, however many lines it takes; so is a signature over several
//! lines. Texts that no grammar reads are left to [`super::code`]'s rules of indentation.

use std::ops::{ControlFlow, Range};

use tree_sitter::{Node, ParseOptions, Parser, Tree};

use super::lines;
use super::statement::{LONG_LITERAL, LONG_STATEMENT, Statement};

/// Bytes of a text by which its language is found.
const SAMPLE: usize = 4 << 10;
/// Longer texts are not parsed.
const LONGEST: usize = 4 << 20;
/// Lines of a sample for each error that is put up with, besides the one where it was cut off.
const LINES_PER_ERROR: usize = 40;

/// What starts a comment in a language, and its grammar.
type Language = (&'static str, fn() -> tree_sitter::Language);

/// Those that are tried, in this order; the first that reads a sample without an error is taken.
const LANGUAGES: [Language; 10] = [
    ("#", || tree_sitter_python::LANGUAGE.into()),
    ("//", || tree_sitter_rust::LANGUAGE.into()),
    ("//", || tree_sitter_go::LANGUAGE.into()),
    ("//", || tree_sitter_java::LANGUAGE.into()),
    ("//", || tree_sitter_c::LANGUAGE.into()),
    ("//", || tree_sitter_javascript::LANGUAGE.into()),
    ("//", || tree_sitter_typescript::LANGUAGE_TYPESCRIPT.into()),
    ("//", || tree_sitter_typescript::LANGUAGE_TSX.into()),
    ("//", || tree_sitter_cpp::LANGUAGE.into()),
    ("#", || tree_sitter_bash::LANGUAGE.into()),
];

/// The statements of a text and what starts a comment in its language; `None` where no grammar reads it.
/// `comment` is what its comments seem to start with.
pub(super) fn statements(
    text: &str,
    comment: Option<&str>,
) -> Option<(&'static str, Vec<Statement>)> {
    if text.len() > LONGEST || text.trim().is_empty() {
        return None;
    }
    let (language, sample) = language_of(text, comment?)?;
    // A short text is its own sample.
    let tree = match text.len() <= SAMPLE {
        true => sample,
        false => parse(text, language)?,
    };
    let (comment, _) = *language;
    let mut rows = Rows::new(text);
    rows.read(&tree, comment == "#");
    Some((comment, rows.statements()))
}

/// The language whose grammar finds the fewest errors in the beginning of a text, and the tree of that.
fn language_of(text: &str, comment: &str) -> Option<(&'static Language, Tree)> {
    let end = match text.len() <= SAMPLE {
        true => text.len(),
        false => text[..text.floor_char_boundary(SAMPLE)].rfind('\n')? + 1,
    };
    let sample = &text[..end];
    let mut best: Option<(usize, &Language, Tree)> = None;
    for language in LANGUAGES.iter().filter(|(mark, _)| *mark == comment) {
        let Some(tree) = parse(sample, language) else {
            continue;
        };
        let errors = errors(&tree);
        if errors == 0 {
            return Some((language, tree));
        }
        if best.as_ref().is_none_or(|(fewest, ..)| errors < *fewest) {
            best = Some((errors, language, tree));
        }
    }
    let allowed = sample.lines().count() / LINES_PER_ERROR + usize::from(end < text.len());
    best.filter(|(errors, ..)| *errors <= allowed)
        .map(|(_, language, tree)| (language, tree))
}

/// Parses a text; `None` where that takes more steps than any program needs.
fn parse(text: &str, (_, grammar): &Language) -> Option<Tree> {
    let mut parser = Parser::new();
    parser.set_language(&grammar()).ok()?;
    let bytes = text.as_bytes();
    let mut left = 10_000 + bytes.len();
    let mut progress = |_: &tree_sitter::ParseState| match left.checked_sub(1) {
        Some(fewer) => {
            left = fewer;
            ControlFlow::Continue(())
        }
        None => ControlFlow::Break(()),
    };
    let options = ParseOptions::new().progress_callback(&mut progress);
    let mut read = |at: usize, _| bytes.get(at..).unwrap_or_default();
    parser.parse_with_options(&mut read, None, Some(options))
}

/// How often a grammar had to skip something, or to make something up.
fn errors(tree: &Tree) -> usize {
    let mut count = 0;
    let mut left = vec![tree.root_node()];
    while let Some(node) = left.pop() {
        if node.has_error() {
            count += usize::from(node.is_error() || node.is_missing());
            left.extend(children(node));
        }
    }
    count
}

fn children(node: Node<'_>) -> impl Iterator<Item = Node<'_>> {
    let mut cursor = node.walk();
    let mut more = cursor.goto_first_child();
    std::iter::from_fn(move || {
        let child = more.then(|| cursor.node());
        more = more && cursor.goto_next_sibling();
        child
    })
}

/// Whether a node's children are statements of their own.
fn is_block(node: Node<'_>) -> bool {
    let kind = node.kind();
    node.is_error()
        || kind.ends_with("block")
        || kind.ends_with("_body")
        || kind.ends_with("declaration_list")
        || kind.ends_with("_case")
        || matches!(
            kind,
            "compound_statement"
                | "do_group"
                | "case_statement"
                | "case_item"
                | "switch_default"
                | "switch_block_statement_group"
                | "object"
                | "enum_variant_list"
                | "enumerator_list"
        )
}

/// What becomes of each line.
struct Rows<'t> {
    text: &'t str,
    lines: Vec<Range<usize>>,
    /// It continues the statement of the line before it.
    joined: Vec<bool>,
    comment: Vec<bool>,
    /// The first and last line of the long string that it is a line of.
    literal: Vec<Option<(usize, usize)>>,
}

impl<'t> Rows<'t> {
    fn new(text: &'t str) -> Self {
        let lines: Vec<Range<usize>> = lines(text).collect();
        Rows {
            text,
            joined: vec![false; lines.len()],
            comment: vec![false; lines.len()],
            literal: vec![None; lines.len()],
            lines,
        }
    }

    /// The first and last line of a node.
    fn of(&self, node: Node<'_>) -> (usize, usize) {
        let (start, end) = (node.start_position(), node.end_position());
        // A node that ends with a line break ends at the start of the next line.
        let last = match end.column == 0 && end.row > start.row {
            true => end.row - 1,
            false => end.row,
        };
        let last = last.min(self.lines.len() - 1);
        (start.row.min(last), last)
    }

    fn join(&mut self, first: usize, last: usize) {
        if last > first && last - first < LONG_STATEMENT {
            self.joined[first + 1..=last].fill(true);
        }
    }

    /// `docstrings`: a string that begins a block is a comment.
    fn read(&mut self, tree: &Tree, docstrings: bool) {
        if self.lines.is_empty() {
            return;
        }
        let mut blocks = vec![tree.root_node()];
        while let Some(block) = blocks.pop() {
            for (i, node) in children(block).filter(Node::is_named).enumerate() {
                if is_block(node) {
                    blocks.push(node);
                } else if docstrings && i == 0 && is_docstring(node) {
                    self.comment(node);
                } else {
                    self.statement(node, &mut blocks);
                }
            }
        }
    }

    /// Lines that hold a comment and nothing else.
    fn comment(&mut self, node: Node<'_>) {
        let (first, last) = self.of(node);
        let before = &self.text[self.lines[first].start..node.start_byte()];
        let end = node.end_byte().max(self.lines[last].start);
        let after = self.text.get(end..self.lines[last].end).unwrap_or_default();
        if before.trim().is_empty() && after.trim().is_empty() {
            self.comment[first..=last].fill(true);
            self.joined[first + 1..=last].fill(true);
        }
    }

    /// A statement: its lines outside of its blocks belong together; the blocks are left for later.
    fn statement<'n>(&mut self, node: Node<'n>, blocks: &mut Vec<Node<'n>>) {
        if node.kind().contains("comment") {
            return self.comment(node);
        }
        let (first, last) = self.of(node);
        if first == last {
            return;
        }
        let mut inner: Vec<Node<'n>> = Vec::new();
        let mut left = vec![node];
        while let Some(part) = left.pop() {
            let (start, end) = self.of(part);
            let own_line = || {
                let before = &self.text[self.lines[start].start..part.start_byte()];
                start > first && before.trim().is_empty()
            };
            if is_block(part) && (start != end || own_line()) {
                inner.push(part);
            } else if start == end {
                continue;
            } else if part.kind().contains("string") {
                self.string(start, end);
            } else {
                left.extend(children(part));
            }
        }
        inner.sort_by_key(|block| (block.start_byte(), block.end_byte()));
        let mut from = first;
        for block in &inner {
            let (start, end) = self.of(*block);
            // An opening bracket stands in the line of what it opens.
            let opened = block.child(0).is_some_and(|child| !child.is_named());
            match opened {
                true => self.join(from, start),
                false => self.join(from, start.saturating_sub(1).max(from)),
            }
            let rest = self.text.get(block.end_byte()..self.lines[end].end);
            let closed = rest.unwrap_or_default().trim_end();
            let closed = closed.chars().all(|c| ",;)]} \t".contains(c));
            from = from.max(end + usize::from(closed));
        }
        self.join(from, last);
        blocks.extend(inner);
    }

    /// A string over several lines: one statement, or, where it is long, lines that need its first and last.
    fn string(&mut self, first: usize, last: usize) {
        if last - first < LONG_LITERAL {
            self.joined[first + 1..=last].fill(true);
        } else {
            self.literal[first..=last].fill(Some((first, last)));
        }
    }

    /// Blank lines are left to what stands before them.
    fn statements(self) -> Vec<Statement> {
        let mut out: Vec<Statement> = Vec::new();
        // The statement that each line became.
        let mut index: Vec<usize> = vec![0; self.lines.len()];
        for (i, line) in self.lines.iter().enumerate() {
            let blank = self.text[line.clone()].trim().is_empty();
            let literal = self.literal[i];
            match out.last_mut() {
                Some(last) if self.joined[i] && literal.is_none() => last.range.end = line.end,
                _ if blank && literal.is_none() => continue,
                _ => out.push(Statement {
                    range: line.clone(),
                    comment: self.comment[i],
                    literal: literal.filter(|&(first, _)| i > first || blank),
                }),
            }
            index[i] = out.len() - 1;
        }
        for statement in &mut out {
            if let Some((first, last)) = &mut statement.literal {
                (*first, *last) = (index[*first], index[*last]);
            }
        }
        out
    }
}

/// Whether a statement is a string and nothing else.
fn is_docstring(node: Node<'_>) -> bool {
    let alone = node.child(0).filter(|_| node.child_count() == 1);
    node.kind() == "expression_statement" && alone.is_some_and(|child| child.kind() == "string")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Statements with a mark before comments, and what starts a comment.
    fn read(text: &str, hint: &str) -> (&'static str, Vec<String>) {
        let (comment, statements) = statements(text, Some(hint)).expect("a language");
        let shown = |s: &Statement| {
            let mark = if s.comment { "* " } else { "" };
            format!("{mark}{}", text[s.range.clone()].trim_end())
        };
        (comment, statements.iter().map(shown).collect())
    }

    #[test]
    fn signatures_and_calls_over_several_lines_are_one_statement() {
        let text = "import os\n\n\n@cached(\n    size=3,\n)\ndef load(\n    path,\n    mode='r',\n):\n    \"\"\"Reads.\n\n    All of it.\n    \"\"\"\n    # quickly\n    rows = [\n        1,\n        2,\n    ]\n    if rows:\n        return rows\n    else:\n        return None\n";
        let (comment, got) = read(text, "#");
        assert_eq!(comment, "#");
        assert_eq!(
            got,
            [
                "import os",
                "@cached(\n    size=3,\n)\ndef load(\n    path,\n    mode='r',\n):",
                "*     \"\"\"Reads.\n\n    All of it.\n    \"\"\"",
                "*     # quickly",
                "    rows = [\n        1,\n        2,\n    ]",
                "    if rows:",
                "        return rows",
                "    else:",
                "        return None",
            ]
        );
    }

    #[test]
    fn braces_stand_with_what_they_open() {
        let text = "// Adds.\nfn add(\n    a: u32,\n    b: u32,\n) -> u32\n{\n    /* two\n       lines */\n    if a > b {\n        a\n    } else if b\n        > 3\n    {\n        b\n    } else {\n        a + b\n    }\n}\n";
        let (comment, got) = read(text, "//");
        assert_eq!(comment, "//");
        assert_eq!(
            got,
            [
                "* // Adds.",
                "fn add(\n    a: u32,\n    b: u32,\n) -> u32\n{",
                "*     /* two\n       lines */",
                "    if a > b {",
                "        a",
                "    } else if b\n        > 3\n    {",
                "        b",
                "    } else {",
                "        a + b",
                "    }",
                "}",
            ]
        );
    }

    #[test]
    fn methods_of_an_object_are_apart() {
        let text = "export default {\n  name: 'list',\n  created() {\n    this.load();\n  },\n  load() {\n    fetch(url)\n      .then(show)\n      .catch(fail);\n  },\n};\n";
        let (_, got) = read(text, "//");
        assert_eq!(
            got,
            [
                "export default {",
                "  name: 'list',",
                "  created() {",
                "    this.load();",
                "  },",
                "  load() {",
                "    fetch(url)\n      .then(show)\n      .catch(fail);",
                "  },",
                "};",
            ]
        );
    }

    #[test]
    fn what_no_grammar_reads_is_left_alone() {
        for text in ["", "SELECT a, b FROM t WHERE c = 1;\n", "((((((((((\n"] {
            assert!(statements(text, Some("//")).is_none(), "{text}");
        }
        let deep = "(".repeat(200_000);
        assert!(statements(&deep, Some("#")).is_none());
    }
}
