//! Structured prompts: `<llmlingua, rate=0.3, compress=False>…</llmlingua>` round each segment.

use std::sync::LazyLock;

use regex::Regex;

use crate::error::{Error, Result};

/// A stretch of a context with its own rate.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Segment {
    pub text: String,
    pub rate: f64,
    pub compress: bool,
}

static TAG: LazyLock<Regex> = LazyLock::new(|| {
    let rate = r"(?:,\s*rate\s*=\s*([\d.]+))?\s*";
    let compress = r"(?:,\s*compress\s*=\s*(True|False))?\s*";
    Regex::new(&format!(
        r"<llmlingua\s*{rate}{compress}{rate}{compress}>([^<]+)</llmlingua>"
    ))
    .expect("a constant pattern")
});

/// The segments of one context. Text outside of tags is taken in only at the two ends, as the
/// reference does; `rate` serves segments that name none.
pub(crate) fn segments(context: &str, rate: f64) -> Result<Vec<Segment>> {
    let mut tagged = context.to_string();
    if !tagged.starts_with("<llmlingua") {
        tagged.insert_str(0, "<llmlingua>");
    }
    if !tagged.ends_with("</llmlingua>") {
        tagged.push_str("</llmlingua>");
    }
    TAG.captures_iter(&tagged)
        .map(|found| {
            let compress = found
                .get(2)
                .or(found.get(4))
                .is_none_or(|flag| flag.as_str() == "True");
            let own_rate = match found.get(1).or(found.get(3)) {
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
                text: found[5].to_string(),
                rate,
                compress,
            })
        })
        .collect()
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
    fn refuses_rates_that_are_none() {
        for bad in ["0.3.3", "1.5", "."] {
            let text = format!("<llmlingua, rate={bad}>x</llmlingua>");
            assert!(
                segments(&text, 0.5)
                    .unwrap_err()
                    .to_string()
                    .contains("rate")
            );
        }
    }
}
