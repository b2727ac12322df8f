//! What a sentence is worth without a question and a model: rare words, and an early place.

use std::collections::HashMap;
use std::ops::Range;

use super::lexical::{Bag, Term, idf, terms};
use super::rank::standardised;
use super::units::Parsed;

/// What each sentence before it in its paragraph takes off a sentence's worth, in nats: what a
/// paragraph is about stands at its beginning. Lines of code, logs and tables are paragraphs of their
/// own and lose nothing.
const LATE: f64 = 0.3;
/// Sentences from which on it gets no worse.
const LATEST: usize = 12;

/// The worth of the sentences of each context: the mean rarity of their words, less their lateness.
pub(super) fn salience(contexts: &[String], parsed: &[Parsed]) -> Vec<Vec<f64>> {
    let bags: Vec<Vec<Bag>> = contexts
        .iter()
        .zip(parsed)
        .map(|(text, p)| {
            let sentences = p.sentences.iter();
            sentences
                .map(|range| Bag::new(&terms(&text[range.clone()])))
                .collect()
        })
        .collect();
    let mut holding: HashMap<Term, usize> = HashMap::new();
    for term in bags.iter().flatten().flat_map(Bag::terms) {
        *holding.entry(term).or_default() += 1;
    }
    let n = bags.iter().map(Vec::len).sum();
    let rarity = |bag: &Bag| {
        let sum: f64 = bag.terms().map(|term| idf(holding[&term], n)).sum();
        // A few words are rare by chance.
        sum / (bag.terms().count() as f64 + 2.0)
    };
    let mut rarities =
        standardised(&bags.iter().flatten().map(rarity).collect::<Vec<_>>()).into_iter();
    contexts
        .iter()
        .zip(parsed)
        .map(|(text, p)| {
            let late = lateness(text, &p.sentences);
            late.into_iter()
                .zip(rarities.by_ref())
                .map(|(late, own)| own / 2.0 - late)
                .collect()
        })
        .collect()
}

/// Words by which a sentence tells its reader what to do, anywhere in it and at its start.
const DIRECT: &str = " you your must never always don't cannot please should shall ";
const IMPERATIVE: &str = " answer respond reply return write use include avoid ensure output format do keep make give \
    list explain describe follow ignore include limit start end begin check call ask say state cite quote summarize ";

/// Whether most of a text tells its reader what to do: the end of an instruction is worth no less than
/// its beginning.
fn instructs(text: &str, sentences: &[Range<usize>]) -> bool {
    let has = |list: &str, word: &str| !word.is_empty() && list.contains(&format!(" {word} "));
    let direct = |range: &&Range<usize>| {
        let own = text[(*range).clone()].to_lowercase();
        let mut words = own
            .split(|c: char| !c.is_alphanumeric() && c != '\'')
            .filter(|word| !word.is_empty());
        words
            .next()
            .is_some_and(|first| has(IMPERATIVE, first) || has(DIRECT, first))
            || words.any(|word| has(DIRECT, word))
    };
    let sample = &sentences[..sentences.len().min(100)];
    sample.len() > 1 && sample.iter().filter(direct).count() * 5 >= sample.len() * 2
}

/// What the place of each sentence in its paragraph takes off its worth. A paragraph ends with a line.
pub(super) fn lateness(text: &str, sentences: &[Range<usize>]) -> Vec<f64> {
    if instructs(text, sentences) {
        return vec![0.0; sentences.len()];
    }
    let mut before = 0;
    sentences
        .iter()
        .map(|range| {
            let late = LATE * before.min(LATEST) as f64;
            let own = &text[range.clone()];
            let space = &own[own.trim_end().len()..];
            before = if space.contains('\n') { 0 } else { before + 1 };
            late
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sentences_of_one_paragraph_are_late() {
        let text = "One. Two. Three.\nFour. Five.\n\nSix.";
        let ranges = [0..5, 5..10, 10..17, 17..23, 23..30, 30..34];
        let late: Vec<f64> = lateness(text, &ranges).iter().map(|x| x / LATE).collect();
        assert_eq!(late, [0.0, 1.0, 2.0, 0.0, 1.0, 0.0]);
        assert!(lateness("", &[]).is_empty());
        let text = "You are a clerk. Answer in one line. Never name a price. The shop is blue.";
        let ranges = [0..17, 17..37, 37..57, 57..74];
        assert_eq!(lateness(text, &ranges), [0.0; 4]);
    }
}
