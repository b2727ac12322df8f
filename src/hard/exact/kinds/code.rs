//! Source code and configuration: whole statements, a line of a body needs its signature, what opens
//! needs what closes. Statements are found by a grammar, or else by indentation and brackets.

use std::ops::Range;

use super::statement::{LONG_LITERAL, LONG_STATEMENT, Statement};
use super::{Class, Layout, Unit, indent, lines};

/// Takes code apart.
pub(super) fn layout(text: &str) -> Layout {
    let mut syntax = Syntax::of(text);
    let statements = match by_grammar(text, &syntax) {
        Some((comment, statements)) => {
            syntax.comment = Some(comment);
            statements
        }
        None => statements(text, &syntax),
    };
    Layout {
        units: link(text, &statements, &syntax),
        ..Layout::default()
    }
}

#[cfg(feature = "grammars")]
fn by_grammar(text: &str, syntax: &Syntax) -> Option<(&'static str, Vec<Statement>)> {
    super::grammar::statements(text, syntax.comment)
}

#[cfg(not(feature = "grammars"))]
fn by_grammar(_: &str, _: &Syntax) -> Option<(&'static str, Vec<Statement>)> {
    None
}

/// What the layout must know of a language.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Syntax {
    /// What starts a comment up to the end of its line.
    comment: Option<&'static str>,
    /// `/* … */`
    block_comments: bool,
    /// `"""` and `'''`
    triple_quotes: bool,
    /// Strings in backticks that hold line breaks.
    backticks: bool,
}

impl Syntax {
    /// Finds the comment style from comments, line ends and keywords.
    fn of(text: &str) -> Syntax {
        let (mut hash, mut slash, mut dash, mut none) = (0, 0, 0, 0);
        for line in text.lines().map(str::trim).take(2000) {
            let first = line
                .split(|c: char| !c.is_alphanumeric())
                .next()
                .unwrap_or_default();
            if line.starts_with("# ") || line.starts_with("#!") || line == "#" {
                hash += 3;
            } else if line.starts_with("//")
                || line.starts_with("#include")
                || line.starts_with("#[")
            {
                slash += 3;
            } else if line.starts_with("-- ") {
                dash += 3;
            } else if line.starts_with('"') && line.contains("\":") {
                none += 1;
            } else if line.ends_with(';') || line.ends_with('{') || line.starts_with('}') {
                slash += 1;
            } else if line.ends_with(':')
                || matches!(
                    first,
                    "import" | "from" | "elif" | "fi" | "done" | "echo" | "end" | "def"
                )
            {
                hash += 1;
            } else if matches!(
                first,
                "SELECT" | "INSERT" | "CREATE" | "UPDATE" | "FROM" | "local" | "WHERE"
            ) {
                dash += 1;
            } else if line.starts_with('<') && line.ends_with('>') {
                none += 1;
            } else if line.contains(" = ") || line.contains(": ") {
                // Assignments and keys without an end mark: Python, shell, YAML, TOML.
                hash += 1;
            }
        }
        // Style sheets have `/* */` only.
        let declarations = text
            .lines()
            .map(str::trim)
            .filter(|l| l.ends_with(';') && l.contains(": ") && !l.contains(['(', '=']))
            .count();
        if declarations * 2 >= slash && slash > 0 && !text.contains("//") {
            none += slash + 1;
        }
        let best = hash.max(slash).max(dash);
        let comment = match best {
            _ if none >= best || best == 0 => None,
            _ if hash == best => Some("#"),
            _ if slash == best => Some("//"),
            _ => Some("--"),
        };
        Syntax {
            comment,
            block_comments: comment != Some("#"),
            triple_quotes: comment == Some("#"),
            backticks: comment == Some("//"),
        }
    }

    /// Whether a line holds nothing but a comment.
    fn is_comment(&self, line: &str) -> bool {
        let line = line.trim();
        let docs =
            |quotes: &str| line.len() >= 6 && line.starts_with(quotes) && line.ends_with(quotes);
        match self.comment {
            Some("#") if line.starts_with('#') => !line.starts_with("#!"),
            Some("#") => docs("\"\"\"") || docs("'''"),
            Some(mark) if line.starts_with(mark) => true,
            _ => self.block_comments && line.starts_with("/*") && line.ends_with("*/"),
        }
    }

    /// What closes a string or comment that is open at the end of a line; `Err` holds the brackets
    /// `(` and `[` that are open, less those that were closed.
    fn open_at_end(&self, line: &str) -> Result<&'static str, isize> {
        let mut rest = line;
        let mut depth = 0;
        while let Some(c) = rest.chars().next() {
            let mut skip = c.len_utf8();
            if self.comment.is_some_and(|mark| rest.starts_with(mark)) {
                break;
            }
            let closed_by = match c {
                '/' if self.block_comments && rest.starts_with("/*") => Some((2, "*/")),
                '"' if self.triple_quotes && rest.starts_with("\"\"\"") => Some((3, "\"\"\"")),
                '\'' if self.triple_quotes && rest.starts_with("'''") => Some((3, "'''")),
                '`' if self.backticks => Some((1, "`")),
                _ => None,
            };
            if let Some((opening, closing)) = closed_by {
                match rest[opening..].find(closing) {
                    Some(at) => skip = opening + at + closing.len(),
                    None => return Ok(closing),
                }
            } else if matches!(c, '"' | '\'') {
                // A quote without its end is an apostrophe, a lifetime, or a string that continues.
                skip = string_end(rest, c).unwrap_or(1);
            } else if matches!(c, '(' | '[') {
                depth += 1;
            } else if matches!(c, ')' | ']') {
                depth -= 1;
            }
            rest = &rest[skip..];
        }
        Err(depth)
    }
}

/// Where the string that `text` begins with ends.
fn string_end(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + c.len_utf8()),
            _ => {}
        }
    }
    None
}

/// Groups lines to statements; blank lines are left to what stands before them.
fn statements(text: &str, syntax: &Syntax) -> Vec<Statement> {
    let all: Vec<Range<usize>> = lines(text).collect();
    let line = |i: usize| text[all[i].clone()].trim_end();
    let mut out: Vec<Statement> = Vec::new();
    let mut i = 0;
    // Places of closing marks that were looked for in vain: nothing after them closes either.
    let mut unclosed: Vec<&str> = Vec::new();
    while i < all.len() {
        if line(i).trim().is_empty() {
            i += 1;
            continue;
        }
        let comment = syntax.is_comment(line(i));
        let mut end = i + 1;
        let mut literal = false;
        if !comment {
            match syntax.open_at_end(line(i)) {
                Ok(closing) if !unclosed.contains(&closing) => {
                    match (end..all.len()).find(|&j| line(j).contains(closing)) {
                        Some(last) => {
                            end = last + 1;
                            literal = true;
                        }
                        None => unclosed.push(closing),
                    }
                }
                Err(depth) if depth > 0 && !line(i).ends_with('{') => {
                    if let Some(last) = bracket_end(&all, text, i, depth, syntax) {
                        end = last + 1;
                    }
                }
                _ => {}
            }
            while !literal
                && end < all.len()
                && end - i < LONG_STATEMENT
                && continues(line(end - 1), line(end))
            {
                end += 1;
            }
        }
        let start = line(i).trim_start();
        let docs = literal
            && (start.starts_with("\"\"\"") || start.starts_with("'''") || start.starts_with("/*"));
        // A brace on its own line belongs to the line that it opens the block of.
        if line(i).trim() == "{"
            && let Some(last) = out.last_mut()
            && !last.comment
            && indent(&text[last.range.clone()]) == indent(line(i))
        {
            last.range.end = all[i].end;
            i += 1;
            continue;
        }
        if literal && end - i > LONG_LITERAL && !docs {
            let first = out.len();
            let last = first + end - i - 1;
            for (j, range) in all[i..end].iter().enumerate() {
                let blank = text[range.clone()].trim().is_empty();
                let inner = (j > 0 || blank).then_some((first, last));
                out.push(Statement {
                    range: range.clone(),
                    comment: false,
                    literal: inner,
                });
            }
        } else {
            out.push(Statement {
                range: all[i].start..all[end - 1].end,
                comment: comment || docs,
                literal: None,
            });
        }
        i = end;
    }
    out
}

/// The line that closes what is open after line `i`, if it is near and no block is in between.
fn bracket_end(
    all: &[Range<usize>],
    text: &str,
    i: usize,
    depth: isize,
    syntax: &Syntax,
) -> Option<usize> {
    let mut depth = depth;
    for (j, range) in all.iter().enumerate().skip(i + 1).take(LONG_STATEMENT) {
        let line = text[range.clone()].trim_end();
        depth += syntax.open_at_end(line).err()?;
        if depth <= 0 {
            return Some(j);
        }
        if line.ends_with('{') {
            return None;
        }
    }
    None
}

/// Whether a statement continues over the end of a line.
fn continues(line: &str, next: &str) -> bool {
    let next = next.trim_start();
    let chain =
        next.starts_with('.') && next[1..].starts_with(|c: char| c.is_alphabetic() || c == '.');
    line.ends_with('\\')
        || chain
        || ["?.", "&&", "||", "??", "|>", "and ", "or "]
            .iter()
            .any(|mark| next.starts_with(mark))
}

/// What a statement does in its block.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Role {
    Plain,
    /// Closes the one before it at its indentation: a bracket or `end`.
    Closes,
    /// Continues it: `else`.
    Continues,
    /// Belongs to the next: a decorator or an attribute.
    Decorates,
}

fn role(statement: &str) -> Role {
    let start = statement.trim_start();
    let word = start
        .split(|c: char| !c.is_alphanumeric())
        .next()
        .unwrap_or_default();
    let closing_word = matches!(
        word,
        "end" | "fi" | "done" | "esac" | "endif" | "endfunction" | "endfor" | "endwhile" | "END"
    );
    if closing_word || start.starts_with(['}', ')', ']']) || start.starts_with("</") {
        Role::Closes
    } else if matches!(
        word,
        "else"
            | "elif"
            | "elsif"
            | "elseif"
            | "except"
            | "finally"
            | "catch"
            | "rescue"
            | "ensure"
            | "then"
    ) {
        Role::Continues
    } else if start.starts_with("#[")
        || (start.starts_with('@') && start[1..].starts_with(|c: char| c.is_alphabetic()))
    {
        Role::Decorates
    } else {
        Role::Plain
    }
}

/// For each comment the statement that it describes: the next one, with no blank line between, if it has
/// the same indentation. A docstring describes the line above it.
fn described(text: &str, statements: &[Statement]) -> Vec<Option<usize>> {
    let mut found = vec![None; statements.len()];
    // From the end, as one statement may have any number of comments.
    let (mut next, mut end) = (None, text.len());
    for (i, statement) in statements.iter().enumerate().rev() {
        let own = &text[statement.range.clone()];
        let lines = &text[statement.range.start..end];
        end = statement.range.start;
        if !statement.comment {
            next = Some((i, indent(own)));
            continue;
        }
        if lines.lines().any(|line| line.trim().is_empty()) {
            next = None;
        }
        if !own.trim_start().starts_with(['"', '\'']) {
            found[i] = next
                .filter(|&(_, width)| width == indent(own))
                .map(|(next, _)| next);
        }
    }
    found
}

/// Makes units of statements and says what each needs.
fn link(text: &str, statements: &[Statement], syntax: &Syntax) -> Vec<Unit> {
    let mut units: Vec<Unit> = statements
        .iter()
        .map(|s| Unit {
            range: s.range.clone(),
            whole: true,
            class: if s.comment { Class::Low } else { Class::Normal },
            comment: if s.literal.is_some() {
                None
            } else {
                syntax.comment
            },
            ..Unit::default()
        })
        .collect();
    let described = described(text, statements);
    let both = |units: &mut Vec<Unit>, a: usize, b: usize| {
        units[a].needs.push(b);
        units[b].needs.push(a);
    };
    // The statements that are open, by indentation: (index, indentation).
    let mut open: Vec<(usize, usize)> = Vec::new();
    let mut section = None;
    let mut decorators: Vec<usize> = Vec::new();
    let mut conditions: Vec<usize> = Vec::new();
    for (i, statement) in statements.iter().enumerate() {
        let own = &text[statement.range.clone()];
        let start = own.trim_start();
        let width = indent(own);
        if let Some((first, last)) = statement.literal {
            units[i].needs.extend([first, last]);
            if i == last {
                units[first].needs.push(last);
            }
            continue;
        }
        if statement.comment {
            let parent = open.iter().rev().find(|(_, at)| *at < width);
            units[i].needs.extend(parent.map(|&(parent, _)| parent));
            units[i].needs.extend(described[i]);
            continue;
        }
        if let Some(rest) = start
            .strip_prefix('#')
            .filter(|_| syntax.comment == Some("//"))
        {
            let directive = rest.trim_start();
            if directive.starts_with("if") {
                conditions.push(i);
                continue;
            }
            let closes = directive.starts_with("endif");
            if (closes || directive.starts_with("el"))
                && let Some(before) = conditions.pop()
            {
                both(&mut units, before, i);
                if !closes {
                    conditions.push(i);
                }
                continue;
            }
        }
        while open.last().is_some_and(|&(_, at)| at > width) {
            open.pop();
        }
        let role = role(own);
        let peer = open
            .pop_if(|&mut (_, at)| at == width)
            .map(|(peer, _)| peer);
        if let Some(peer) = peer {
            let bracket = start.starts_with(['}', ')', ']', '<']);
            let attempt = text[statements[peer].range.clone()]
                .trim_start()
                .starts_with("try");
            match role {
                Role::Closes => both(&mut units, peer, i),
                Role::Continues if attempt || bracket => both(&mut units, peer, i),
                Role::Continues => units[i].needs.push(peer),
                _ => {}
            }
        }
        match open.last() {
            Some(&(parent, _)) => units[i].needs.push(parent),
            None => units[i].needs.extend(section),
        }
        let shown = own.trim();
        if role == Role::Closes && shown.chars().all(|c| "{}()[];,".contains(c)) {
            units[i].class = Class::Form;
        }
        if width == 0
            && shown.starts_with('[')
            && shown.ends_with(']')
            && !shown.contains([',', '"'])
        {
            // A section of a configuration file holds what follows, at the same indentation.
            units[i].needs.clear();
            section = Some(i);
        }
        if role == Role::Decorates {
            decorators.push(i);
        } else {
            for decorator in decorators.drain(..) {
                both(&mut units, decorator, i);
            }
        }
        open.push((i, width));
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text that is left when only the units that contain `wanted` and what they need stay.
    fn with_needs(text: &str, wanted: &str) -> String {
        let layout = layout(text).finish(text);
        let mut kept = vec![false; layout.units.len()];
        let mut stack: Vec<usize> = (0..kept.len())
            .filter(|&i| text[layout.units[i].range.clone()].contains(wanted))
            .collect();
        assert!(!stack.is_empty());
        while let Some(i) = stack.pop() {
            if !std::mem::replace(&mut kept[i], true) {
                stack.extend(&layout.units[i].needs);
            }
        }
        let kept = layout.units.iter().zip(kept).filter(|(_, k)| *k);
        kept.map(|(u, _)| text[u.range.clone()].trim_end_matches('\n').to_string() + "\n")
            .collect()
    }

    #[test]
    fn a_line_keeps_its_signature_and_its_closing_bracket() {
        let rust = "impl A {\n    #[test]\n    fn f(\n        a: u8,\n        b: u8,\n    ) -> u8 {\n        let x = 1;\n        x + 2\n    }\n\n    fn g() {\n        y();\n    }\n}\n";
        assert_eq!(
            with_needs(rust, "x + 2"),
            "impl A {\n    #[test]\n    fn f(\n        a: u8,\n        b: u8,\n    ) -> u8 {\n        x + 2\n    }\n}\n"
        );
        let python = "class A:\n    def f(self):\n        if x:\n            return 1\n        else:\n            return 2\n";
        assert_eq!(
            with_needs(python, "return 2"),
            "class A:\n    def f(self):\n        if x:\n        else:\n            return 2\n"
        );
        let c = "int f(void)\n{\n    if (x) {\n        a();\n    } else {\n        b();\n    }\n    return 0;\n}\n";
        assert_eq!(
            with_needs(c, "a();"),
            "int f(void)\n{\n    if (x) {\n        a();\n    } else {\n    }\n}\n"
        );
        let shell = "for x in a b; do\n  echo $x\n  ls\ndone\n";
        assert_eq!(
            with_needs(shell, "echo"),
            "for x in a b; do\n  echo $x\ndone\n"
        );
        let toml = "[a]\nx = 1\ny = 2\n\n[b]\nz = 3\n";
        assert_eq!(with_needs(toml, "z = 3"), "[b]\nz = 3\n");
        let yaml = "a:\n  b:\n    - c: 1\n      d: 2\n  e: 3\n";
        assert_eq!(
            with_needs(yaml, "d: 2"),
            "a:\n  b:\n    - c: 1\n      d: 2\n"
        );
    }

    #[test]
    fn a_comment_keeps_the_statement_it_describes() {
        let python = "def f():\n    \"\"\"Docs.\"\"\"\n    # why\n    # more\n    x = 1\n    # apart\n\n    y = 2\n";
        assert_eq!(
            with_needs(python, "# why"),
            "def f():\n    # why\n    x = 1\n"
        );
        assert_eq!(with_needs(python, "# apart"), "def f():\n    # apart\n");
        assert_eq!(
            with_needs(python, "Docs"),
            "def f():\n    \"\"\"Docs.\"\"\"\n"
        );
        let rust = "/// Adds.\nfn add() {\n    go();\n    // done\n}\n";
        assert_eq!(with_needs(rust, "Adds"), "/// Adds.\nfn add() {\n}\n");
        assert_eq!(with_needs(rust, "done"), "fn add() {\n    // done\n}\n");
    }

    #[test]
    fn a_statement_over_several_lines_is_one_unit() {
        let text = "x = f(\n    a,\n    b,\n)\ny = (z\n    .a()\n    .b())\ndef g():\n    \"\"\"Does g.\n\n    Well.\n    \"\"\"\n    s = '''\n  a\n'''\n    return 1\n";
        let layout = layout(text).finish(text);
        let units: Vec<&str> = layout
            .units
            .iter()
            .map(|u| &text[u.range.clone()])
            .collect();
        assert_eq!(
            units,
            [
                "x = f(\n    a,\n    b,\n)\n",
                "y = (z\n    .a()\n    .b())\n",
                "def g():\n",
                "    \"\"\"Does g.\n\n    Well.\n    \"\"\"\n",
                "    s = '''\n  a\n'''\n",
                "    return 1\n"
            ]
        );
        assert_eq!(layout.units[3].class, Class::Low);
        assert_eq!(layout.units[5].comment, Some("#"));
    }

    #[test]
    fn comments_are_known_by_the_language() {
        for (text, want) in [
            ("fn f() {\n    // x\n}\n", Some("//")),
            ("def f():\n    # x\n    pass\n", Some("#")),
            ("SELECT a\nFROM b\n-- x\nWHERE c = 1;\n", Some("--")),
            ("{\n  \"a\": 1,\n  \"b\": 2\n}\n", None),
            ("a {\n  color: red;\n  margin: 0;\n}\n", None),
        ] {
            assert_eq!(Syntax::of(text).comment, want, "{text}");
        }
        // A quote that never closes swallows nothing.
        let text = "let a = 1;\nlet t = `never closed;\nlet b = 2;\nlet c = 3;\n";
        assert_eq!(layout(text).units.len(), 4);
    }
}
