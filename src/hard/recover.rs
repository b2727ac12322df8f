//! From a response to a compressed prompt back to the words of the original.
//!
//! llmlingua's `recover`: what a response copies from the compressed prompt is replaced by what stands there
//! in the original. By exact spans where the result of a compression is at hand; by words where only the
//! texts are left.

use std::collections::HashMap;
use std::ops::Range;

use super::result::KeptContext;

/// Words that may have been dropped between two that a response copies next to each other.
const LONGEST_GAP: usize = 10;

/// Replaces what `response` copies from kept contexts by what stands there in the `contexts` that were
/// given.
///
/// ```
/// use prefold::hard::{KeptContext, recover};
///
/// let context = "The mill was built, after long talks, in 1901.".to_string();
/// let kept = KeptContext::new(0, "The mill was built, in 1901.", vec![0..19, 38..46]);
/// let response = "It was built, in 1901.";
/// let recovered = recover::by_spans(&[context], &[kept], response);
/// assert_eq!(recovered, "It was built, after long talks, in 1901.");
/// ```
pub fn by_spans(contexts: &[String], kept: &[KeptContext], response: &str) -> String {
    let places: Vec<Option<Places>> = kept
        .iter()
        .map(|kept| Places::new(contexts.get(kept.index)?, &kept.text, &kept.spans))
        .collect();
    let texts: Vec<&str> = kept.iter().map(|kept| kept.text.as_str()).collect();
    copied(response, &texts, |at, found, _| {
        let places = places[at].as_ref()?;
        let start = places.given(found.start)?;
        let end = places.given(found.end - 1)? + 1;
        let original = contexts[kept[at].index].get(start..end)?;
        let words = |text: &str| text.split_whitespace().count();
        let copied = words(&kept[at].text[found]);
        (words(original) <= copied * (LONGEST_GAP + 1)).then(|| original.to_string())
    })
}

/// Replaces what `response` copies from the prompt `compressed` by what stands there in `original`: the
/// shortest stretch of it that has the most of the copied words in their order.
pub fn by_words(original: &str, compressed: &str, response: &str) -> String {
    let words: Vec<Range<usize>> = words(original).collect();
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (i, word) in words.iter().enumerate() {
        places.entry(&original[word.clone()]).or_default().push(i);
    }
    copied(response, &[compressed], |_, _, copied| {
        let copied: Vec<&[usize]> = copied
            .split_whitespace()
            .map(|word| places.get(word).map_or(&[][..], Vec::as_slice))
            .collect();
        let mut best: Option<(usize, Range<usize>)> = None;
        for &first in *copied.first()? {
            let (mut last, mut found) = (first, 1);
            for places in &copied[1..] {
                let next = places.get(places.partition_point(|&place| place <= last));
                if let Some(&next) = next.filter(|&&next| next - last <= LONGEST_GAP) {
                    (last, found) = (next, found + 1);
                }
            }
            let stretch = first..last + 1;
            let better = best.as_ref().is_none_or(|(most_found, shortest)| {
                found > *most_found || (found == *most_found && stretch.len() < shortest.len())
            });
            if better {
                best = Some((found, stretch));
            }
        }
        let (_, stretch) = best?;
        Some(original[words[stretch.start].start..words[stretch.end - 1].end].to_string())
    })
}

/// A response with each longest run of words that one of `texts` has too replaced by what `replace` says,
/// which is told the text, the place in it, and the run.
fn copied(
    response: &str,
    texts: &[&str],
    replace: impl Fn(usize, Range<usize>, &str) -> Option<String>,
) -> String {
    let words: Vec<Range<usize>> = words(response).collect();
    let find = |run: &str| {
        texts
            .iter()
            .enumerate()
            .find_map(|(at, text)| Some((at, whole_words(text, run)?)))
    };
    let mut out = String::new();
    let (mut done, mut first) = (0, 0);
    while first < words.len() {
        let mut found = None;
        let mut last = first;
        while let Some(word) = words.get(last) {
            let Some(place) = find(&response[words[first].start..word.end]) else {
                break;
            };
            found = Some(place);
            last += 1;
        }
        let Some((at, place)) = found else {
            first += 1;
            continue;
        };
        let run = words[first].start..words[last - 1].end;
        if let Some(original) = replace(at, place, &response[run.clone()]) {
            out.push_str(&response[done..run.start]);
            out.push_str(&original);
            done = run.end;
        }
        first = last;
    }
    out.push_str(&response[done..]);
    out
}

/// The first place where a text has a run of words, not inside of longer ones.
fn whole_words(text: &str, run: &str) -> Option<Range<usize>> {
    let inner = |c: char| c.is_alphanumeric();
    text.match_indices(run)
        .map(|(at, run)| at..at + run.len())
        .find(|place| {
            let before = text[..place.start].chars().next_back().is_some_and(inner);
            let after = text[place.end..].chars().next().is_some_and(inner);
            let inside = before && run.starts_with(inner) || after && run.ends_with(inner);
            !inside
        })
}

/// Words between white space.
fn words(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + text[at..].find(|c: char| !c.is_whitespace())?;
        let rest = &text[start..];
        at = start + rest.find(char::is_whitespace).unwrap_or(rest.len());
        Some(start..at)
    })
}

/// Where the bytes of a kept text stand in its context.
struct Places {
    /// In the kept text, and in the context: stretches of equal length, ascending.
    stretches: Vec<(Range<usize>, usize)>,
}

impl Places {
    /// Finds the spans in the text that was made of them; `None` where it was not.
    fn new(context: &str, text: &str, spans: &[Range<usize>]) -> Option<Self> {
        let mut stretches = Vec::with_capacity(spans.len());
        let mut at = 0;
        for span in spans {
            let own = context.get(span.clone())?;
            let start = at + text.get(at..)?.find(own)?;
            at = start + own.len();
            stretches.push((start..at, span.start));
        }
        Some(Places { stretches })
    }

    /// The byte of the context that a byte of the text was.
    fn given(&self, at: usize) -> Option<usize> {
        let after = self.stretches.partition_point(|(own, _)| own.start <= at);
        let (own, start) = self.stretches.get(after.checked_sub(1)?)?;
        own.contains(&at).then(|| start + at - own.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGINAL: &str =
        "John bought four apples. He gave two of the red apples to Ann, and he kept two.";
    const COMPRESSED: &str = "John bought apples. He gave two apples to Ann, kept two.";

    fn kept() -> KeptContext {
        let spans = [
            "John bought",
            "apples. He gave two",
            "apples to Ann,",
            "kept two.",
        ];
        let mut at = 0;
        let spans = spans.map(|text| {
            let start = at + ORIGINAL[at..].find(text).unwrap();
            at = start + text.len();
            start..at
        });
        KeptContext::new(0, COMPRESSED, spans.to_vec())
    }

    #[test]
    fn what_was_copied_is_as_it_was() {
        for (response, want) in [
            (
                "Ann got: gave two apples to Ann, it says.",
                "Ann got: gave two of the red apples to Ann, it says.",
            ),
            (
                "John bought apples. Nothing else.",
                "John bought four apples. Nothing else.",
            ),
            ("He kept two.", "He kept two."),
            ("Nothing is copied here", "Nothing is copied here"),
            ("", ""),
            ("  two \n apples ", "  two \n apples "),
        ] {
            assert_eq!(by_spans(&[ORIGINAL.to_string()], &[kept()], response), want);
            assert_eq!(by_words(ORIGINAL, COMPRESSED, response), want);
        }
    }

    #[test]
    fn parts_of_words_and_wide_gaps_are_left() {
        let context = format!("cat {} dog", "word ".repeat(40).trim());
        let kept = KeptContext::new(0, "cat dog", vec![0..3, context.len() - 3..context.len()]);
        let response = "cat dog category";
        assert_eq!(
            by_spans(std::slice::from_ref(&context), &[kept], response),
            response
        );
        assert_eq!(by_words(&context, "cat dog", "category at"), "category at");
    }

    #[test]
    fn spans_that_are_not_of_the_text_change_nothing() {
        for spans in [vec![0..900], vec![3..9, 0..4], vec![40..50, 0..2], vec![]] {
            let kept = KeptContext::new(0, COMPRESSED, spans);
            let response = "gave two apples to Ann,";
            assert_eq!(
                by_spans(&[ORIGINAL.to_string()], &[kept], response),
                response
            );
        }
        let elsewhere = KeptContext::new(7, COMPRESSED, vec![0..4]);
        assert_eq!(by_spans(&[], &[elsewhere], "John bought"), "John bought");
    }
}
