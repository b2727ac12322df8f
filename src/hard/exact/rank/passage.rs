//! What the ranker sees of a passage: its words, its head, the names in it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::super::lexical::{Bag, Term, each_gram, each_word, grams, term, terms};

/// A passage to rank, as text.
#[derive(Debug, Clone)]
pub(crate) struct Passage<'t> {
    /// The whole of it, its title included.
    pub text: &'t str,
    /// Byte ranges of its sentences.
    pub sentences: Vec<Range<usize>>,
    /// Title or heading that stands above it and not in it.
    pub heading: Option<&'t str>,
}

/// Its words.
#[derive(Debug)]
pub(super) struct Words {
    pub terms: Vec<Term>,
    pub bag: Bag,
    /// What it is on: its names, of which one is enough. None is empty.
    pub heads: Vec<Vec<Term>>,
    /// Whether the head stands in its own text; one from a heading above belongs to its neighbours
    /// too.
    pub own_head: bool,
}

impl Words {
    pub fn new(passage: &Passage<'_>) -> Self {
        let terms = terms(passage.text);
        let bag = Bag::new(&terms);
        let own = heads(passage.text);
        let own_head = !own.is_empty() || passage.heading.is_none();
        let heads = match own_head {
            true => own,
            false => different(passage.heading.into_iter().flat_map(names_of)),
        };
        Words {
            terms,
            bag,
            heads,
            own_head,
        }
    }

    /// The largest of a figure over the heads; 0 without any.
    pub fn by_head(&self, figure: impl Fn(&[Term]) -> f64) -> f64 {
        self.heads
            .iter()
            .fold(0.0, |max, head| f64::max(max, figure(head)))
    }
}

/// Names of what a text is on: its title as others would write it, and what its first sentence is on.
fn heads(text: &str) -> Vec<Vec<Term>> {
    let (title, body) = title(text).map_or((None, text), |(title, body)| (Some(title), body));
    different(title.into_iter().flat_map(names_of).chain(subject(body)))
}

/// A title without what tells it from others of its name: `Riviera (hotel)` and `Springfield, Illinois` are
/// known elsewhere as the Riviera and Springfield.
fn names_of(title: &str) -> impl Iterator<Item = &str> {
    let bare = match title.find(" (") {
        Some(at) if at > 0 => &title[..at],
        _ => title,
    };
    let short = bare.split_once(", ").map(|(name, _)| name);
    std::iter::once(bare).chain(short)
}

/// The words of names, each once; none is empty.
fn different<'t>(names: impl Iterator<Item = &'t str>) -> Vec<Vec<Term>> {
    let mut heads = Vec::new();
    for terms in names.map(terms) {
        if !terms.is_empty() && !heads.contains(&terms) {
            heads.push(terms);
        }
    }
    heads
}

/// Longest head in bytes, and in words where it is the beginning of a sentence.
const LONGEST_HEAD: usize = 70;
const LONGEST_SUBJECT: usize = 7;

/// What a text is on: its title (`Title: text`, `# Title`, or a short first line), or what stands
/// before the verb of its first sentence.
pub(crate) fn head(text: &str) -> Option<&str> {
    title(text)
        .map(|(title, _)| title)
        .or_else(|| subject(text))
}

/// A title and the text after it.
pub(crate) fn title(text: &str) -> Option<(&str, &str)> {
    let line = text.trim_start().lines().next()?.trim_end();
    let rest = |end: usize| text.trim_start()[end..].trim_start();
    if let Some(heading) = line.strip_prefix('#') {
        let heading = heading.trim_matches(['#', ' ']);
        return (!heading.is_empty()).then(|| (heading, rest(line.len())));
    }
    if let Some(colon) = line.find(": ") {
        let title = &line[..colon];
        let long = title.chars().nth(LONGEST_HEAD).is_some();
        let body = rest(colon + 1);
        if !long && title.chars().nth(1).is_some() && (is_name(title) || repeats(body, title)) {
            return Some((title, body));
        }
    }
    let short = line.chars().nth(LONGEST_HEAD).is_none();
    let begun = line.starts_with(char::is_alphanumeric);
    let closed = line.ends_with(['.', ',', ';', '?', '!', '。', '।', '؟']);
    let follows = rest(line.len());
    (short && begun && !closed && !follows.is_empty()).then_some((line, follows))
}

/// Whether no sentence ends in a title: a full stop stands in an abbreviation or a number alone.
fn is_name(title: &str) -> bool {
    let ends = |word: &str| match word.strip_suffix('.') {
        Some(short) => {
            short.chars().nth(ABBREVIATION).is_some() || !short.starts_with(char::is_uppercase)
        }
        None => false,
    };
    !title.contains([':', '?', '!']) && !title.split_whitespace().any(ends)
}

/// Longest abbreviation in a title, in characters: `Vol.`, `J.`, `St.`
const ABBREVIATION: usize = 3;

/// Whether a text begins with its title, as `Jeopardy!: Jeopardy! is a game show.`
fn repeats(body: &str, title: &str) -> bool {
    title.starts_with(char::is_uppercase) && body.starts_with(title)
}

/// The words before the verb of the first sentence, where a copula is that verb.
fn subject(text: &str) -> Option<&str> {
    let text = text.trim_start();
    // As far as a head can reach.
    let near = text
        .char_indices()
        .nth(LONGEST_HEAD)
        .map_or(text, |(end, _)| &text[..end]);
    let ends = [" (", ", ", " is ", " was ", " are ", " were "];
    let end = ends.iter().filter_map(|end| near.find(end)).min()?;
    let subject = &text[..end];
    let bare = ["The ", "A ", "An "]
        .iter()
        .find_map(|article| subject.strip_prefix(article))
        .unwrap_or(subject);
    let words = bare.split_whitespace().count();
    let begun = bare.starts_with(|c: char| c.is_uppercase() || c.is_numeric());
    (begun && (1..=LONGEST_SUBJECT).contains(&words) && !bare.contains(". ")).then_some(bare)
}

/// Names of two words and more: runs of capitalised words, by their hashes.
pub(super) fn names(text: &str) -> BTreeSet<Term> {
    name_ranges(text)
        .into_iter()
        .map(|range| term(&text[range]))
        .collect()
}

/// Byte ranges of names: capitalised words with a single space between.
pub(super) fn name_ranges(text: &str) -> Vec<Range<usize>> {
    let inner = |c: char| c.is_alphanumeric() || matches!(c, '_' | '’' | '\'' | '-');
    let mut ranges = Vec::new();
    // The run so far: its range and its number of words.
    let mut run: Option<(Range<usize>, usize)> = None;
    let mut close = |run: &mut Option<(Range<usize>, usize)>| {
        if let Some((range, words)) = run.take()
            && words > 1
        {
            ranges.push(range);
        }
    };
    let mut at = 0;
    while let Some(start) = text[at..].find(inner).map(|start| at + start) {
        let length = text[start..].find(|c| !inner(c));
        let end = length.map_or(text.len(), |length| start + length);
        let word = &text[start..end];
        let capitalised = word.starts_with(char::is_uppercase) && word.chars().nth(1).is_some();
        match &mut run {
            Some((range, words)) if capitalised && &text[range.end..start] == " " => {
                range.end = end;
                *words += 1;
            }
            _ => {
                close(&mut run);
                run = capitalised.then_some((start..end, 1));
            }
        }
        at = end;
    }
    close(&mut run);
    ranges
}

/// The name that a text repeats most, the first of several.
pub(crate) fn frequent_name(text: &str) -> Option<&str> {
    let ranges = name_ranges(text);
    let count = |range: &Range<usize>| {
        let name = &text[range.clone()];
        ranges
            .iter()
            .filter(|other| &text[(*other).clone()] == name)
            .count()
    };
    let commonest = ranges.iter().rev().max_by_key(|range| count(range))?;
    (count(commonest) > 1).then(|| &text[commonest.clone()])
}

/// What is asked.
#[derive(Debug)]
pub(super) struct Question {
    /// Its words in order.
    pub terms: Vec<Term>,
    /// Its different words in the order of their hashes.
    pub bag: Bag,
    /// Runs of four characters of its words, borders included.
    pub grams: BTreeSet<Term>,
    /// Names and quotations in it.
    pub names: BTreeSet<String>,
    /// Whether it compares or chooses.
    pub compares: bool,
    /// For each of its different words, in the order of their hashes, its runs of four characters.
    pub word_grams: Vec<Vec<Term>>,
    /// Its words with a digit.
    pub figures: Vec<Term>,
    /// What an answer is to be.
    pub kind: Option<Kind>,
}

/// What a question asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Year,
    Figure,
    Name,
}

impl Kind {
    fn of(question: &str) -> Option<Kind> {
        let lower = question.to_lowercase();
        let has = |word: &str| {
            lower
                .split(|c: char| !c.is_alphanumeric())
                .any(|w| w == word)
        };
        if has("when") || has("year") || has("date") || has("century") {
            Some(Kind::Year)
        } else if has("many")
            || has("much")
            || has("percentage")
            || has("percent")
            || has("population")
        {
            Some(Kind::Figure)
        } else if has("who") || has("whom") || has("whose") || has("where") {
            Some(Kind::Name)
        } else {
            None
        }
    }

    /// Whether a sentence has such a thing that the question has not.
    pub fn found(self, question: &Question, sentence: &str) -> bool {
        match self {
            Kind::Year => sentence
                .split(|c: char| !c.is_ascii_digit())
                .any(|run| run.len() == 4 && !question.figures.contains(&term(run))),
            Kind::Figure => sentence.split(|c: char| !c.is_alphanumeric()).any(|w| {
                w.starts_with(|c: char| c.is_ascii_digit()) && !question.figures.contains(&term(w))
            }),
            Kind::Name => sentence
                .split_whitespace()
                .skip(1)
                .filter(|w| w.starts_with(char::is_uppercase))
                .any(|w| {
                    let mut new = false;
                    each_word(w, |w| new |= !question.bag.has(term(w)));
                    new
                }),
        }
    }
}

/// Words of a question that weighs one thing against another.
const COMPARING: [&str; 7] = ["or", "both", "same", "between", "older", "first", "more"];

impl Question {
    pub fn new(text: &str) -> Self {
        let terms = terms(text);
        let mut names: BTreeSet<String> = name_ranges(text)
            .into_iter()
            .map(|range| text[range].to_string())
            .collect();
        names.extend(
            text.split('"')
                .skip(1)
                .step_by(2)
                .filter(|quoted| !quoted.is_empty())
                .map(String::from),
        );
        let compares = text
            .to_lowercase()
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .any(|word| COMPARING.contains(&word));
        let mut word_grams = BTreeMap::new();
        let mut figures = Vec::new();
        each_word(text, |word| {
            let mut own = Vec::new();
            each_gram(word, |gram| own.push(gram));
            word_grams.insert(term(word), own);
            if word.contains(|c: char| c.is_ascii_digit()) {
                figures.push(term(word));
            }
        });
        Question {
            word_grams: word_grams.into_values().collect(),
            figures,
            kind: Kind::of(text),
            bag: Bag::new(&terms),
            terms,
            grams: grams(text).into_iter().collect(),
            names,
            compares,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_titles_or_subjects() {
        for (text, want) in [
            ("Red Hat: an operating system.", Some("Red Hat")),
            ("# Install #\nRun make.", Some("Install")),
            ("Opening hours\nMondays at nine.", Some("Opening hours")),
            ("The Eiffel Tower is a tower.", Some("Eiffel Tower")),
            ("Ada Lovelace (1815 – 1852) wrote.", Some("Ada Lovelace")),
            ("It rained. All day: at noon it stopped.", None),
            ("J. P. Nagar: a part of Bangalore.", Some("J. P. Nagar")),
            ("St. Louis Blues: a team.", Some("St. Louis Blues")),
            ("Linux 2.6: a kernel.", Some("Linux 2.6")),
            ("Jeopardy!: Jeopardy! is a game show.", Some("Jeopardy!")),
            ("What now? He said: go.", None),
            ("once upon a time there was a king.", None),
            ("", None),
            (": x", None),
        ] {
            assert_eq!(head(text), want, "{text}");
        }
        assert_eq!(title("Red Hat:  Linux."), Some(("Red Hat", "Linux.")));
    }

    #[test]
    fn names_are_runs_of_capitalised_words() {
        let names = |text: &'static str| -> Vec<&str> {
            name_ranges(text).into_iter().map(|r| &text[r]).collect()
        };
        assert_eq!(
            names("Then Ada Lovelace met Jean-Luc O'Neil, Bob and Élise Roy"),
            ["Then Ada Lovelace", "Jean-Luc O'Neil", "Élise Roy"]
        );
        assert!(names("a I Am").is_empty());
        assert!(names("").is_empty());
    }
}
