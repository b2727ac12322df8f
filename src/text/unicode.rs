//! Sets of characters that the standard library does not know, from Unicode's own tables.

use std::sync::OnceLock;

/// A set of characters.
pub(super) struct CharSet {
    /// Inclusive and ascending.
    ranges: Vec<(char, char)>,
}

impl CharSet {
    /// General category L. (The standard library's "alphabetic" is wider.)
    pub(super) fn letters() -> &'static CharSet {
        static SET: OnceLock<CharSet> = OnceLock::new();
        SET.get_or_init(|| CharSet::parse(r"\p{L}"))
    }

    /// Letters of upper and title case and those without case, and marks.
    pub(super) fn upper_or_caseless() -> &'static CharSet {
        static SET: OnceLock<CharSet> = OnceLock::new();
        SET.get_or_init(|| CharSet::parse(r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"))
    }

    /// Letters of lower case and those without case, and marks.
    pub(super) fn lower_or_caseless() -> &'static CharSet {
        static SET: OnceLock<CharSet> = OnceLock::new();
        SET.get_or_init(|| CharSet::parse(r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"))
    }

    /// General category Nd, `\d`. (The standard library's "numeric" is wider.)
    pub(super) fn digits() -> &'static CharSet {
        static SET: OnceLock<CharSet> = OnceLock::new();
        SET.get_or_init(|| CharSet::parse(r"\d"))
    }

    /// `[^\W\d]`: letters, marks, letter-like numbers and connectors, but no digits.
    pub(super) fn word_but_digits() -> &'static CharSet {
        static SET: OnceLock<CharSet> = OnceLock::new();
        SET.get_or_init(|| CharSet::parse(r"[\w--\d]"))
    }

    /// The characters of a regular expression that is one class.
    fn parse(class: &str) -> CharSet {
        use regex_syntax::hir::{Class, HirKind};
        match regex_syntax::parse(class).map(|hir| hir.into_kind()) {
            Ok(HirKind::Class(Class::Unicode(class))) => CharSet {
                ranges: class.iter().map(|r| (r.start(), r.end())).collect(),
            },
            _ => unreachable!("{class} is not a Unicode class"),
        }
    }

    /// Whether `c` is in the set.
    pub(super) fn has(&self, c: char) -> bool {
        let after = self.ranges.partition_point(|&(start, _)| start <= c);
        after > 0 && c <= self.ranges[after - 1].1
    }
}

#[cfg(test)]
mod tests {
    use super::CharSet;

    #[test]
    fn sets_have_their_edges() {
        let ascii = |set: &CharSet| (0..128u8).map(char::from).filter(|&c| set.has(c)).collect();
        let letters: String = ascii(CharSet::letters());
        assert_eq!(
            letters,
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
        );
        let digits: String = ascii(CharSet::digits());
        assert_eq!(digits, "0123456789");
        let words: String = ascii(CharSet::word_but_digits());
        assert_eq!(
            words,
            "ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
        );
        assert!(CharSet::digits().has('४') && !CharSet::digits().has('²'));
        // A Roman numeral and a vowel sign are alphabetic, but no letters.
        for c in ['Ⅷ', 'ि'] {
            assert!(CharSet::word_but_digits().has(c) && !CharSet::letters().has(c));
        }
        assert!(!CharSet::letters().has(char::MAX) && !CharSet::letters().has('\0'));
    }
}
