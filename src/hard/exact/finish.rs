//! The result: what is left of each context as text and spans, and the counts.

use std::ops::Range;

use crate::error::Result;
use crate::hard::count::Count;
use crate::hard::python::strip;
use crate::hard::result::{Compressed, KeptContext};
use crate::hard::source::Source;
use crate::hard::structured::{Segment, given_spans};

use super::Exact;
use super::inputs::Frame;

/// What is left of a context.
pub(super) struct Rendered {
    pub text: String,
    /// Bytes of the context that are in it, ascending.
    pub spans: Vec<Range<usize>>,
}

impl Rendered {
    /// One stretch of a context.
    pub fn verbatim(context: &str, range: Range<usize>) -> Self {
        Rendered {
            text: context[range.clone()].to_string(),
            spans: vec![range],
        }
    }
}

/// Every context as `text` has it, which is `everything` with or without the white space around it.
pub(super) fn whole_contexts(
    frame: &Frame<'_>,
    contexts: &[String],
    everything: &str,
    text: &str,
) -> Vec<(usize, Rendered)> {
    // Where `text` lies in `everything`.
    let start = match text.len() == everything.len() {
        true => 0,
        false => everything.len() - everything.trim_start().len(),
    };
    let end = start + text.len();
    let mut at = match frame.instruction.len() {
        0 => 0,
        length => length + 2,
    };
    let mut kept = Vec::new();
    for (c, context) in contexts.iter().enumerate().filter(|(_, c)| !c.is_empty()) {
        let from = start.clamp(at, at + context.len()) - at;
        let to = end.clamp(at, at + context.len()) - at;
        kept.push((c, Rendered::verbatim(context, from..to)));
        at += context.len() + 2;
    }
    kept
}

impl Exact<'_> {
    /// The result; `contexts` are in its order, and empty ones were dropped.
    pub(super) fn finish(
        &self,
        source: Source,
        text: String,
        target: usize,
        contexts: Vec<(usize, Rendered)>,
        segments: Option<&[Vec<Segment>]>,
    ) -> Result<Compressed> {
        let mut result = Compressed::new(strip(source.text()), text);
        if self.options.count != Count::Cl100k {
            result.tokens_before = self.count(strip(source.text()))?;
            result.tokens_after = self.count(&result.text)?;
        }
        result.target = Some(target);
        for (index, kept) in contexts {
            if kept.text.is_empty() {
                continue;
            }
            result.contexts.push(KeptContext {
                index,
                tokens: self.count(&kept.text)?,
                text: kept.text,
                spans: match segments {
                    Some(segments) => given_spans(&segments[index], &kept.spans),
                    None => kept.spans,
                },
            });
        }
        result.pieces = source.into_pieces();
        Ok(result)
    }
}
