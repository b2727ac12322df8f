//! Structured prompts: `<llmlingua, rate=0.3, compress=False>…</llmlingua>` around each segment.

use std::ops::Range;
use std::sync::LazyLock;

use regex::{Captures, Regex};

use super::source::push_span;
use crate::error::{Error, Result};

/// A stretch of a context with its own rate.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Segment {
    pub text: String,
    /// Where it begins in the context that was given, in bytes.
    pub at: usize,
    pub rate: f64,
    pub compress: bool,
}

const CLOSE: &str = "</llmlingua>";

/// An opening tag: its rate is group 1 or 3, its flag group 2 or 4.
fn opening() -> String {
    let rate = r"(?:,\s*rate\s*=\s*([\d.]+))?\s*";
    let compress = r"(?:,\s*compress\s*=\s*(True|False))?\s*";
    format!(r"<llmlingua\s*{rate}{compress}{rate}{compress}>")
}

static TAG: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(&format!("{}([^<]+){CLOSE}", opening())).expect("a constant pattern")
});

static OPENING: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(&format!("^{}$", opening())).expect("a constant pattern"));

/// What means to be an opening tag.
static LIKE_OPENING: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"<llmlingua(?:[\s,][^<>]*)?>").expect("a constant pattern"));

/// The segments of one context as the reference reads them: text outside of tags is taken in only at
/// the two ends, and a segment that holds a `<` is lost. `rate` serves segments that name none.
pub(crate) fn segments(context: &str, rate: f64) -> Result<Vec<Segment>> {
    const OPEN: &str = "<llmlingua>";
    let mut tagged = context.to_string();
    let mut inserted = 0;
    if !tagged.starts_with("<llmlingua") {
        tagged.insert_str(0, OPEN);
        inserted = OPEN.len();
    }
    if !tagged.ends_with(CLOSE) {
        tagged.push_str(CLOSE);
    }
    TAG.captures_iter(&tagged)
        .map(|found| {
            let at = found.get(5).map_or(0, |text| text.start());
            segment(&found, &found[5], at.saturating_sub(inserted), rate)
        })
        .collect()
}

/// The segments of one context with all of its text: what a tag opens may hold anything up to its end,
/// and what stands outside of tags is compressed at `rate`, as are segments that name none.
pub(crate) fn gapless_segments(context: &str, rate: f64) -> Result<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut rest = context;
    while !rest.is_empty() {
        let tag = LIKE_OPENING.find(rest);
        let outside = tag.map_or(rest, |tag| &rest[..tag.start()]);
        // An end without a beginning is not part of the text.
        let mut at = context.len() - rest.len();
        for text in outside.split(CLOSE) {
            if !text.is_empty() {
                segments.push(Segment {
                    text: text.to_string(),
                    at,
                    rate,
                    compress: true,
                });
            }
            at += text.len() + CLOSE.len();
        }
        let Some(tag) = tag else { break };
        let found = OPENING.captures(tag.as_str()).ok_or_else(|| {
            Error::input(
                format!("tag {:?}", tag.as_str()),
                "expected <llmlingua, rate=0.5, compress=True>, either part or none",
            )
        })?;
        let inside = &rest[tag.end()..];
        let (text, after) = inside.split_once(CLOSE).unwrap_or((inside, ""));
        let at = context.len() - inside.len();
        let segment = segment(&found, text, at, rate)?;
        if !text.is_empty() {
            segments.push(segment);
        }
        rest = after;
    }
    Ok(segments)
}

/// Bytes of a context that are not white space, nor tags, and in none of the segments that the reference
/// reads; `None` without any.
pub(crate) fn lost(context: &str, segments: &[Segment]) -> Option<usize> {
    let shown = |text: &str| text.split_whitespace().map(str::len).sum::<usize>();
    let all = match gapless_segments(context, 1.0) {
        Ok(all) => all.iter().map(|segment| shown(&segment.text)).sum(),
        // A misspelt tag: all but what looks like one is text.
        Err(_) => shown(&LIKE_OPENING.replace_all(context, "").replace(CLOSE, "")),
    };
    let read: usize = segments.iter().map(|segment| shown(&segment.text)).sum();
    Some(all.saturating_sub(read)).filter(|&lost| lost > 0)
}

/// Spans of the segments' joined texts as spans of the context that was given.
pub(crate) fn given_spans(segments: &[Segment], spans: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut given = Vec::new();
    let mut start = 0;
    for segment in segments {
        let end = start + segment.text.len();
        for span in spans {
            let (from, to) = (span.start.max(start), span.end.min(end));
            if from < to {
                push_span(
                    &mut given,
                    segment.at + from - start..segment.at + to - start,
                );
            }
        }
        start = end;
    }
    given
}

/// The segment that a tag opens; `rate` serves it if it names none.
fn segment(tag: &Captures, text: &str, at: usize, rate: f64) -> Result<Segment> {
    let compress = tag
        .get(2)
        .or(tag.get(4))
        .is_none_or(|flag| flag.as_str() == "True");
    let own_rate = match tag.get(1).or(tag.get(3)) {
        Some(number) => {
            let value: f64 = number.as_str().parse().map_err(|_| {
                Error::input(
                    format!("<llmlingua> rate {:?}", number.as_str()),
                    "not a number",
                )
            })?;
            if value > 1.0 {
                return Err(Error::input(
                    format!("<llmlingua> rate {value}"),
                    "a rate lies in (0, 1]",
                ));
            }
            value
        }
        None => 0.0,
    };
    let rate = match own_rate {
        r if r > 0.0 => r,
        _ if compress => rate,
        _ => 1.0,
    };
    Ok(Segment {
        text: text.to_string(),
        at,
        rate,
        compress,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_tags_in_either_order_and_wraps_bare_ends() {
        let found = segments(
            "a <b<llmlingua, compress=False>x</llmlingua><llmlingua , rate = 0.3>y</llmlingua>\
             <llmlingua, compress=True, rate=0.4>z</llmlingua>",
            0.5,
        )
        .unwrap();
        let flat: Vec<_> = found
            .iter()
            .map(|s| (s.text.as_str(), s.rate, s.compress))
            .collect();
        assert_eq!(
            flat,
            [("x", 1.0, false), ("y", 0.3, true), ("z", 0.4, true)]
        );
        assert_eq!(segments("plain", 0.5).unwrap()[0].text, "plain");
    }

    #[test]
    fn every_segment_knows_where_it_was_given() {
        for text in [
            "plain",
            "a <llmlingua>x</llmlingua></llmlingua> between é<llmlingua, rate=0.3>y z</llmlingua>",
            "<llmlingua>x</llmlingua>y</llmlingua>",
        ] {
            for read in [segments, gapless_segments] {
                let segments = read(text, 0.5).unwrap();
                assert!(!segments.is_empty());
                let mut start = 0;
                for segment in &segments {
                    let end = start + segment.text.len();
                    let given = given_spans(&segments, &[start..end]);
                    assert_eq!(given, [segment.at..segment.at + segment.text.len()]);
                    assert_eq!(text[given[0].clone()], segment.text);
                    start = end;
                }
            }
        }
    }

    #[test]
    fn nothing_is_lost_between_tags_and_in_them() {
        let flat = |text: &str| -> Vec<(String, f64, bool)> {
            gapless_segments(text, 0.5)
                .unwrap()
                .into_iter()
                .map(|s| (s.text, s.rate, s.compress))
                .collect()
        };
        let some = |text: &str, rate: f64, compress: bool| (text.to_string(), rate, compress);
        assert_eq!(
            flat(
                "a < b <llmlingua, compress=False>if a < b: <i></llmlingua>\n\
                 <llmlingua , rate = 0.3>y</llmlingua><llmlingua></llmlingua> end"
            ),
            [
                some("a < b ", 0.5, true),
                some("if a < b: <i>", 1.0, false),
                some("\n", 0.5, true),
                some("y", 0.3, true),
                some(" end", 0.5, true)
            ]
        );
        assert_eq!(flat(""), []);
        assert_eq!(
            flat("plain <llmlinguas>"),
            [some("plain <llmlinguas>", 0.5, true)]
        );
        // Tags that lack their other half reach to the end, or from the beginning.
        assert_eq!(
            flat("x</llmlingua><llmlingua, rate=0.2>y"),
            [some("x", 0.5, true), some("y", 0.2, true)]
        );
    }

    #[test]
    fn lost_text_is_counted() {
        let lost_of = |text: &str| lost(text, &segments(text, 0.5).unwrap());
        for whole in [
            "plain",
            "",
            "a <b> c",
            "<llmlingua, rate=0.3>x y</llmlingua> \n",
        ] {
            assert_eq!(lost_of(whole).is_some(), whole.contains("<b"), "{whole}");
        }
        let tagged = |tag: &str, text: &str| format!("<{tag}>{text}</llmlingua>");
        assert_eq!(
            lost_of(&tagged("llmlingua, compress=False", "a<b")),
            Some(3)
        );
        assert_eq!(
            lost_of(&tagged("llmlingua, compres=False", "kept")),
            Some(4)
        );
        let between = tagged("llmlingua", "x") + " lost " + &tagged("llmlingua", "y");
        assert_eq!(lost_of(&between), Some(4));
    }

    #[test]
    fn refuses_malformed_rates() {
        for bad in ["0.3.3", "1.5", "."] {
            let text = format!("<llmlingua, rate={bad}>x</llmlingua>");
            for read in [segments, gapless_segments] {
                assert!(read(&text, 0.5).unwrap_err().to_string().contains("rate"));
            }
        }
    }

    #[test]
    fn refuses_tags_that_make_no_sense() {
        for bad in ["<llmlingua, compress=false>", "<llmlingua rate=0.5>"] {
            let text = format!("{bad}x</llmlingua>");
            let error = gapless_segments(&text, 0.5).unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
    }
}
