//! The context level: whole contexts under the target and `context_budget`
//! (`control_context_budget`; LongLLMLingua, section 4.1 and 4.2).

use super::budget_expression;
use crate::error::Result;
use crate::hard::request::Request;
use crate::hard::structured::Segment;

use super::{Conditioning, Reference};

impl Reference<'_> {
    /// The contexts that stay, in their order in the result, each with what the dynamic ratio adds to
    /// its rate.
    pub(super) fn filter_contexts(
        &self,
        prompt: &Request,
        contexts: &[String],
        lengths: &[usize],
        target: f64,
        condition: Conditioning,
        segments: &Option<Vec<Vec<Segment>>>,
    ) -> Result<(Vec<usize>, Vec<f64>)> {
        let options = self.options;
        let ranked = match options.context_scores.is_empty() {
            true => {
                let texts: Vec<&str> = contexts.iter().map(String::as_str).collect();
                self.rank(&texts, &prompt.question, condition.at)?
            }
            false => {
                let scores = &options.context_scores;
                let mut order: Vec<usize> = (0..scores.len()).collect();
                order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
                order
            }
        };

        let target = if target < 0.0 { 100.0 } else { target };
        let mut left = budget_expression::evaluate(target, &options.context_budget)?;
        // Forced contexts cost nothing until the ranking comes to them.
        let mut used = options.force_context_ids.clone();
        used.retain(|&i| i < contexts.len());
        if let Some(segments) = segments
            && options.strict_preserve_uncompressed
        {
            for (i, context) in segments.iter().enumerate() {
                if context.iter().any(|s| !s.compress) && !used.contains(&i) {
                    used.push(i);
                }
            }
        }
        for i in ranked {
            left -= lengths[i] as f64;
            if !used.contains(&i) {
                used.push(i);
            }
            // The reference compares force_context_number with a list that is still empty, so only 0
            // has an effect.
            if left < 0.0 || options.force_context_number == Some(0) {
                break;
            }
        }
        let ratios = dynamic_ratios(used.len(), options.dynamic_context_compression_ratio);
        let ranked: Vec<(usize, f64)> = used.into_iter().zip(ratios).collect();
        let ranked = options.reorder_context.arrange(ranked, |&(i, _)| i);
        Ok(ranked.into_iter().unzip())
    }
}

/// Evenly spaced from `+ratio` for the best context to `-ratio` for the worst (LongLLMLingua, eq. 5).
fn dynamic_ratios(n: usize, ratio: f64) -> Vec<f64> {
    if ratio <= 0.0 || n < 2 {
        return vec![0.0; n];
    }
    let step = ratio / (n - 1) as f64;
    let last = n as i64 - 1;
    (0..n as i64)
        .map(|i| (last - 2 * i) as f64 * step)
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn ratios_fall_evenly() {
        assert_eq!(super::dynamic_ratios(3, 0.5), [0.5, 0.0, -0.5]);
        assert_eq!(super::dynamic_ratios(1, 0.5), [0.0]);
        assert_eq!(super::dynamic_ratios(2, 0.0), [0.0, 0.0]);
    }
}
