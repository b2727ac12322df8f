//! A JSON text as a tree of byte ranges: what is not touched can be copied byte for byte.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Containers deeper than this are one value: each level is scanned anew, so depth bounds the time.
const DEEPEST: usize = 96;

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Object,
    Array,
    String,
    /// A number, `true`, `false`, `null`, or a container below the deepest level.
    Other,
}

/// A value of the text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    /// Bytes of the value, without white space around it.
    pub value: Range<usize>,
    /// Bytes of a member's name, quotes included; `None` for array items and the root.
    pub key: Option<Range<usize>>,
    pub kind: Kind,
    /// The container that holds it; the root's own index for the root.
    pub parent: usize,
    /// Indices of members or items, ascending, in the order of the text.
    pub children: Range<usize>,
}

impl Node {
    /// Bytes of the value with its name.
    pub fn element(&self) -> Range<usize> {
        self.key.as_ref().map_or(self.value.start, |key| key.start)..self.value.end
    }
}

/// A JSON text and its values; the root is node 0.
#[derive(Debug)]
pub(crate) struct Tree<'t> {
    pub text: &'t str,
    pub nodes: Cow<'t, [Node]>,
}

impl<'t> Tree<'t> {
    /// Parses `text`, which is one JSON value.
    ///
    /// # Errors
    /// serde_json's complaint, with line and column.
    pub fn parse(text: &'t str) -> serde_json::Result<Self> {
        let root: &RawValue = serde_json::from_str(text)?;
        let place = |raw: &RawValue| {
            // A raw value is a slice of the text that it was read from.
            let start = raw.get().as_ptr() as usize - text.as_ptr() as usize;
            start..start + raw.get().len()
        };
        let node = |key: Option<&RawValue>, raw: &RawValue, parent: usize| Node {
            value: place(raw),
            key: key.map(place),
            kind: kind_of(raw.get()),
            parent,
            children: 0..0,
        };
        let mut nodes = vec![node(None, root, 0)];
        let mut depths = vec![0_u8];
        let mut at = 0;
        while at < nodes.len() {
            if matches!(nodes[at].kind, Kind::Object | Kind::Array) {
                if usize::from(depths[at]) == DEEPEST {
                    nodes[at].kind = Kind::Other;
                } else {
                    let level: Level = serde_json::from_str(&text[nodes[at].value.clone()])?;
                    let first = nodes.len();
                    nodes.extend(level.0.into_iter().map(|(key, raw)| node(key, raw, at)));
                    depths.resize(nodes.len(), depths[at] + 1);
                    nodes[at].children = first..nodes.len();
                }
            }
            at += 1;
        }
        Ok(Tree {
            text,
            nodes: Cow::Owned(nodes),
        })
    }

    /// The text of a value.
    pub fn raw(&self, node: usize) -> &'t str {
        &self.text[self.nodes[node].value.clone()]
    }

    /// A member's name; `None` for array items, the root, and a name that is not text.
    pub fn key(&self, node: usize) -> Option<Cow<'t, str>> {
        let key = self.nodes[node].key.clone()?;
        Some(decode(&self.text[key])?.text)
    }

    /// The member of an object by its name; of several the last, as most readers take it.
    pub fn member(&self, object: usize, name: &str) -> Option<usize> {
        let node = &self.nodes[object];
        if node.kind != Kind::Object {
            return None;
        }
        let mut members = node.children.clone().rev();
        members.find(|&child| self.key(child).is_some_and(|key| key == name))
    }

    /// The items of an array; none for another value.
    pub fn items(&self, array: usize) -> Range<usize> {
        match self.nodes[array].kind {
            Kind::Array => self.nodes[array].children.clone(),
            _ => 0..0,
        }
    }

    /// The text of a string; `None` for another value, and where an escape stands for half a character.
    pub fn string(&self, node: usize) -> Option<Cow<'t, str>> {
        match self.nodes[node].kind {
            Kind::String => Some(decode(self.raw(node))?.text),
            _ => None,
        }
    }
}

fn kind_of(raw: &str) -> Kind {
    match raw.as_bytes().first() {
        Some(b'{') => Kind::Object,
        Some(b'[') => Kind::Array,
        Some(b'"') => Kind::String,
        _ => Kind::Other,
    }
}

/// Members or items of one container, in the order of the text, repeated names included.
struct Level<'t>(Vec<(Option<&'t RawValue>, &'t RawValue)>);

impl<'t> Deserialize<'t> for Level<'t> {
    fn deserialize<D: Deserializer<'t>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;
        impl<'t> Visitor<'t> for Elements {
            type Value = Level<'t>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object or an array")
            }

            fn visit_map<A: MapAccess<'t>>(self, mut map: A) -> Result<Level<'t>, A::Error> {
                let mut level = Vec::new();
                while let Some((key, value)) = map.next_entry::<&RawValue, &RawValue>()? {
                    level.push((Some(key), value));
                }
                Ok(Level(level))
            }

            fn visit_seq<A: SeqAccess<'t>>(self, mut items: A) -> Result<Level<'t>, A::Error> {
                let mut level = Vec::new();
                while let Some(value) = items.next_element::<&RawValue>()? {
                    level.push((None, value));
                }
                Ok(Level(level))
            }
        }
        deserializer.deserialize_any(Elements)
    }
}

/// The text of a string literal, and where its bytes stand in the literal.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decoded<'t> {
    pub text: Cow<'t, str>,
    /// The end of each escape in the text, and its bytes in the literal.
    escapes: Vec<(usize, Range<usize>)>,
}

impl Decoded<'_> {
    /// The byte of the literal where byte `at` of the text stands, `at` a character's border.
    pub fn raw(&self, at: usize) -> usize {
        let after = self.escapes.partition_point(|&(text, _)| text <= at);
        let (text, raw) = after
            .checked_sub(1)
            .map_or((0, 1), |i| (self.escapes[i].0, self.escapes[i].1.end));
        raw + (at - text)
    }

    /// The bytes of the literal that each escape takes.
    pub fn escapes(&self) -> impl Iterator<Item = Range<usize>> {
        self.escapes.iter().map(|(_, raw)| raw.clone())
    }
}

/// Reads a string literal, quotes included; `None` where it is not one or an escape stands for half a
/// character.
pub(crate) fn decode(literal: &str) -> Option<Decoded<'_>> {
    let body = literal.strip_prefix('"')?.strip_suffix('"')?;
    if !body.contains('\\') {
        return Some(Decoded {
            text: Cow::Borrowed(body),
            escapes: Vec::new(),
        });
    }
    let mut text = String::with_capacity(body.len());
    let mut escapes = Vec::new();
    let mut rest = body;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let (c, len) = escape(&rest[at..])?;
        text.push(c);
        rest = &rest[at + len..];
        let end = 1 + body.len() - rest.len();
        escapes.push((text.len(), end - len..end));
    }
    text.push_str(rest);
    Some(Decoded {
        text: Cow::Owned(text),
        escapes,
    })
}

/// The character of the escape that begins here, and the bytes that it takes.
fn escape(text: &str) -> Option<(char, usize)> {
    let unit = |at: usize| u32::from_str_radix(text.get(at..at + 4)?, 16).ok();
    let plain = match text.as_bytes().get(1)? {
        b'"' => '"',
        b'\\' => '\\',
        b'/' => '/',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => {
            let first = unit(2)?;
            if let Some(c) = char::from_u32(first) {
                return Some((c, 6));
            }
            // Two escapes for one character.
            let second = unit(8).filter(|_| text.get(6..8) == Some("\\u"))?;
            let high = first.checked_sub(0xd800).filter(|&high| high < 0x400)?;
            let low = second.checked_sub(0xdc00).filter(|&low| low < 0x400)?;
            return Some((char::from_u32(0x1_0000 + (high << 10) + low)?, 12));
        }
        _ => return None,
    };
    Some((plain, 2))
}

/// A string literal of `text`, with characters outside ASCII escaped where `like`, the literal that it
/// replaces, escapes them.
pub(crate) fn encode_like(text: &str, like: &str) -> String {
    use fmt::Write;

    let ascii = like.is_ascii() && !text.is_ascii();
    let mut literal = String::with_capacity(text.len() + 2);
    literal.push('"');
    for c in text.chars() {
        match c {
            '"' => literal.push_str("\\\""),
            '\\' => literal.push_str("\\\\"),
            '\n' => literal.push_str("\\n"),
            '\r' => literal.push_str("\\r"),
            '\t' => literal.push_str("\\t"),
            c if c < ' ' || (ascii && !c.is_ascii()) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a string does not fail.
                    let _ = write!(literal, "\\u{unit:04x}");
                }
            }
            c => literal.push(c),
        }
    }
    literal.push('"');
    literal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_its_bytes() {
        let text = " {\"a\" : [1, \"x\\n\\u00e9\", {}], \"a\":{\"b\": null}, \"c\":true}\n";
        let tree = Tree::parse(text).unwrap();
        let flat: Vec<_> = tree
            .nodes
            .iter()
            .enumerate()
            .map(|(i, node)| (tree.key(i).map(Cow::into_owned), tree.raw(i), node.parent))
            .collect();
        let key = |name: &str| Some(name.to_string());
        assert_eq!(
            flat,
            [
                (None, text.trim(), 0),
                (key("a"), "[1, \"x\\n\\u00e9\", {}]", 0),
                (key("a"), "{\"b\": null}", 0),
                (key("c"), "true", 0),
                (None, "1", 1),
                (None, "\"x\\n\\u00e9\"", 1),
                (None, "{}", 1),
                (key("b"), "null", 2),
            ]
        );
        assert_eq!(tree.string(5).unwrap(), "x\n\u{e9}");
        assert_eq!(tree.member(0, "a"), Some(2));
        assert_eq!(tree.member(0, "d"), None);
        assert_eq!(tree.items(1), 4..7);
        assert_eq!(tree.nodes[1].element(), 2..text.find("], ").unwrap() + 1);
    }

    #[test]
    fn what_is_not_json_is_refused_and_depth_costs_no_stack() {
        for bad in [
            "", "{", "{\"a\":}", "[1,]", "{'a':1}", "[1] 2", "\"\n\"", "nul", "[01]",
        ] {
            assert!(Tree::parse(bad).is_err(), "{bad}");
        }
        let deep = "[".repeat(200_000) + &"]".repeat(200_000);
        let tree = Tree::parse(&deep).unwrap();
        assert_eq!(tree.nodes.len(), DEEPEST + 1);
        assert_eq!(tree.nodes[DEEPEST].kind, Kind::Other);
    }

    #[test]
    fn strings_are_read_and_written_with_their_places() {
        let literal = r#""a\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00z""#;
        let decoded = decode(literal).unwrap();
        let want: String = serde_json::from_str(literal).unwrap();
        assert_eq!(decoded.text, want);
        for (at, c) in decoded.text.char_indices() {
            let end = decoded.raw(at + c.len_utf8());
            let piece = format!("\"{}\"", &literal[decoded.raw(at)..end]);
            assert_eq!(
                serde_json::from_str::<String>(&piece).unwrap(),
                c.to_string()
            );
        }
        for bad in [
            r#""\ud83d""#,
            r#""\ude00\ud83d""#,
            r#""\ud83dx""#,
            "\"",
            "1",
        ] {
            assert_eq!(decode(bad), None, "{bad}");
        }
        let text = "q\"\\\n\u{1}\u{e9}\u{1f600}/";
        let plain = encode_like(text, "\"\u{e9}\"");
        assert_eq!(plain, "\"q\\\"\\\\\\n\\u0001\u{e9}\u{1f600}/\"");
        let ascii = encode_like(text, "\"e\"");
        assert_eq!(ascii, r#""q\"\\\n\u0001\u00e9\ud83d\ude00/""#);
        for literal in [plain, ascii] {
            assert_eq!(serde_json::from_str::<String>(&literal).unwrap(), text);
        }
    }
}
