//! Copies: what stands twice costs nothing the second time.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use super::kinds::Class;
use super::units::Parsed;

/// Words of a passage from which on a copy of it is one, and not a turn of phrase.
const SENTENCE: usize = 6;
/// The same for lines of code and other form, where short repeats are what they are made of.
const LINES: usize = 24;

/// For each unit of each context whether it is a copy.
pub(super) struct Copies {
    /// The same text stands in a better place.
    pub exact: Vec<Vec<bool>>,
    /// A record that differs from an earlier one in figures alone.
    pub near: Vec<Vec<bool>>,
}

/// Finds copies; the one in the context of the better rank stays, and in one context the first.
///
/// A figure of the question is not a mere figure: records that have it stand for themselves.
pub(super) fn find(
    contexts: &[String],
    parsed: &[Parsed],
    ranked: &[usize],
    question: &str,
    dedupe: bool,
) -> Copies {
    let none = || {
        parsed
            .iter()
            .map(|p| vec![false; p.units.len()])
            .collect::<Vec<_>>()
    };
    let mut copies = Copies {
        exact: none(),
        near: none(),
    };
    if !dedupe {
        return copies;
    }
    let figures: Vec<&str> = question
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| word.contains(|c: char| c.is_numeric()))
        .collect();
    // All units in order of rank, as hashes of their words.
    let mut units: Vec<(usize, usize)> = Vec::new();
    let mut hashes: Vec<u64> = Vec::new();
    let mut words: Vec<usize> = Vec::new();
    let mut first_of: HashMap<u64, usize> = HashMap::new();
    let mut whole: HashMap<u64, usize> = HashMap::new();
    let mut shapes: HashMap<u64, usize> = HashMap::new();
    for &c in ranked {
        let (context, _) = hash(&contexts[c]);
        let copied = !contexts[c].trim().is_empty() && *whole.entry(context).or_insert(c) != c;
        for (u, unit) in parsed[c].units.iter().enumerate() {
            let text = &contexts[c][unit.range.clone()];
            if copied {
                copies.exact[c][u] = true;
                continue;
            }
            if unit.record {
                let shape = shape(text, &figures);
                copies.near[c][u] = *shapes.entry(shape).or_insert(units.len()) != units.len();
            }
            let (hash, count) = hash(text);
            units.push((c, u));
            hashes.push(hash);
            words.push(count);
        }
    }
    // Runs of units that follow each other in both places.
    let mut i = 0;
    while i < units.len() {
        let (c, u) = units[i];
        let unit = &parsed[c].units[u];
        let first = *first_of.entry(hashes[i]).or_insert(i);
        // A body under another signature is not a copy: it says what that one does.
        let form = unit.whole && !unit.record;
        let body = form && unit.needs.iter().any(|&need| need < u);
        if first == i || unit.class == Class::Blank || body {
            i += 1;
            continue;
        }
        let mut length = 0;
        while i + length < units.len()
            && hashes[first + length] == hashes[i + length]
            && units[i + length].0 == c
            && units[first + length].0 == units[first].0
        {
            length += 1;
        }
        let total: usize = words[i..i + length].iter().sum();
        let enough = if form { LINES } else { SENTENCE };
        if total >= enough {
            for &(c, u) in &units[i..i + length] {
                copies.exact[c][u] = true;
            }
            i += length;
        } else {
            i += 1;
        }
    }
    copies
}

/// A hash of the words of a text, and how many there are.
fn hash(text: &str) -> (u64, usize) {
    let mut hasher = DefaultHasher::new();
    let mut count = 0;
    for word in text.split_whitespace() {
        word.hash(&mut hasher);
        // Scripts without spaces have more words than runs.
        count += 1 + word.chars().filter(|&c| super::words::unspaced(c)).count() / 2;
    }
    (hasher.finish(), count)
}

/// A hash of a record without its figures; those in `figures` stay.
fn shape(text: &str, figures: &[&str]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for word in text.split(|c: char| !c.is_alphanumeric()) {
        if !word.contains(|c: char| c.is_numeric()) || figures.contains(&word) {
            word.hash(&mut hasher);
        } else if word.contains(char::is_alphabetic) && !is_hex(word) {
            // `worker1`: the letters count.
            word.split(|c: char| c.is_numeric())
                .for_each(|part| part.hash(&mut hasher));
        } else {
            0.hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// Whether a word may be a hexadecimal figure.
fn is_hex(word: &str) -> bool {
    word.len() >= 4 && word.bytes().all(|b| b.is_ascii_hexdigit()) || word.starts_with("0x")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hard::exact::kinds::{ContentKind, layout};
    use crate::hard::exact::units::Parsed;

    fn parse(text: &str, kind: ContentKind) -> Parsed {
        let layout = layout(text, Some(kind));
        Parsed {
            ids: Vec::new(),
            spans: Vec::new(),
            atoms: Vec::new(),
            sentences: layout.units.iter().map(|u| u.range.clone()).collect(),
            atoms_of: Vec::new(),
            json: None,
            units: layout.units,
        }
    }

    fn run(texts: &[&str], kind: ContentKind, ranked: &[usize], question: &str) -> Copies {
        let contexts: Vec<String> = texts.iter().map(|t| t.to_string()).collect();
        let parsed: Vec<Parsed> = texts.iter().map(|t| parse(t, kind)).collect();
        find(&contexts, &parsed, ranked, question, true)
    }

    #[test]
    fn the_copy_in_the_better_context_stays() {
        let text = "The mayor is called Ilse Brandt today.";
        let other = "It rains. The mayor is called  Ilse Brandt today. It rains.";
        let found = run(&[text, other, text], ContentKind::Text, &[1, 0, 2], "");
        assert_eq!(found.exact, [vec![true], vec![false; 3], vec![true]]);
        // A short document twice is a copy, a short sentence twice is not.
        let found = run(&["A note.", "A note."], ContentKind::Text, &[0, 1], "");
        assert_eq!(found.exact, [vec![false], vec![true]]);
    }

    #[test]
    fn lines_of_code_are_copies_by_the_block() {
        let function = |name: &str| {
            format!(
                "def {name}(a, b):\n    x = a + b * 2 + 1\n    y = x * x - a - b\n    z = x + y + a + b\n    return x, y, z\n\n"
            )
        };
        let text = format!(
            "{}x = 1\nx = 1\n{}{}",
            function("f"),
            function("f"),
            function("g")
        );
        let found = run(&[&text], ContentKind::Code, &[0], "");
        let exact = &found.exact[0];
        // The second `f` is a copy as a whole; the assignments are not, and `g` shares its body alone.
        assert_eq!(&exact[..7], [false; 7], "{exact:?}");
        assert_eq!(&exact[7..12], [true; 5], "{exact:?}");
        assert_eq!(&exact[12..], [false; 5], "{exact:?}");
    }

    #[test]
    fn records_that_differ_in_figures_alone_are_near_copies() {
        let log = "10:00:01 GET /a 200 in 5 ms\n10:00:02 GET /a 200 in 7 ms\n10:00:03 GET /b 500 in 7 ms\n10:00:04 GET /a 404 in 9 ms\n";
        assert_eq!(
            run(&[log], ContentKind::Log, &[0], "").near[0],
            [false, true, false, true]
        );
        let near = run(&[log], ContentKind::Log, &[0], "Why 404?").near;
        assert_eq!(near[0], [false, true, false, false]);
    }

    #[test]
    fn equal_lines_take_linear_time() {
        let log = "a line that is as long as others are\n".repeat(100_000);
        let found = run(&[&log], ContentKind::Log, &[0], "");
        assert_eq!(found.exact[0].iter().filter(|e| !**e).count(), 1);
    }
}
