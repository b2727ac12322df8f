//! Keyword arguments, as Python's `PromptCompressor` takes them, from JSON: for the batch command,
//! the C ABI and the tests.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::options::{Budget, Options, Prompt};
use crate::error::{Error, Result};

/// A call of `compress_prompt` or `structured_compress_prompt`.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What is to be compressed.
    pub prompt: Prompt,
    /// How.
    pub options: Options,
}

/// Arguments of the reference that only its other methods (LLMLingua-2) read: taken, whatever they
/// say, as the reference takes them.
const IGNORED: [&str; 9] = [
    "target_context",
    "context_level_rate",
    "context_level_target_token",
    "return_word_label",
    "word_sep",
    "label_sep",
    "token_to_word",
    "drop_consecutive",
    "chunk_end_tokens",
];

impl Request {
    /// Reads the reference's keyword arguments, with its defaults, and prefold's own: `budget`
    /// (`reference` unless it says `exact`), `granularity` and `count`.
    ///
    /// `context` is a string or a list of strings and must be there. `target_token: -1` and `null`
    /// where the reference's default is `None` mean "not given".
    ///
    /// # Errors
    /// [`Error::Input`] naming the argument that is missing, unknown or of the wrong type;
    /// [`Error::Unsupported`] for a rank method that there is not, or for segments outside
    /// `<llmlingua>` tags.
    pub fn from_python(arguments: Map<String, Value>) -> Result<Self> {
        let mut args = Arguments::new(arguments);
        let d = Options::default();
        if let Some(Value::String(name)) = args.0.get("rank_method")
            && serde_json::from_value::<super::RankMethod>(name.as_str().into()).is_err()
        {
            return Err(Error::Unsupported {
                what: format!("rank_method `{name}`"),
                have: "llmlingua, longllmlingua, bm25, gzip".into(),
            });
        }
        for name in ["context_segs", "context_segs_rate", "context_segs_compress"] {
            if args.0.remove(name).is_some_and(|value| !value.is_null()) {
                return Err(Error::Unsupported {
                    what: format!("argument `{name}`"),
                    have: "structured_compress_prompt, which reads segments from tags".into(),
                });
            }
        }
        for name in IGNORED {
            args.0.remove(name);
        }
        let request = Request {
            prompt: Prompt {
                instruction: args.or("instruction", String::new())?,
                context: args.context()?,
                question: args.or("question", String::new())?,
            },
            options: Options {
                budget: args.or("budget", Budget::Reference)?,
                rate: args.or("rate", d.rate)?,
                target_token: args.optional("target_token")?.filter(|&n: &f64| n != -1.0),
                iterative_size: args.or("iterative_size", d.iterative_size)?,
                force_context_ids: args.optional("force_context_ids")?,
                force_context_number: args.optional("force_context_number")?,
                use_context_level_filter: args
                    .or("use_context_level_filter", d.use_context_level_filter)?,
                use_sentence_level_filter: args
                    .or("use_sentence_level_filter", d.use_sentence_level_filter)?,
                use_token_level_filter: args
                    .or("use_token_level_filter", d.use_token_level_filter)?,
                keep_split: args.or("keep_split", d.keep_split)?,
                keep_first_sentence: args.or("keep_first_sentence", d.keep_first_sentence)?,
                keep_last_sentence: args.or("keep_last_sentence", d.keep_last_sentence)?,
                keep_sentence_number: args.or("keep_sentence_number", d.keep_sentence_number)?,
                high_priority_bonus: args.or("high_priority_bonus", d.high_priority_bonus)?,
                context_budget: args.or("context_budget", d.context_budget)?,
                token_budget_ratio: args.or("token_budget_ratio", d.token_budget_ratio)?,
                condition_in_question: args.or("condition_in_question", d.condition_in_question)?,
                condition_compare: args.or("condition_compare", d.condition_compare)?,
                reorder_context: args.or("reorder_context", d.reorder_context)?,
                dynamic_context_compression_ratio: args.or(
                    "dynamic_context_compression_ratio",
                    d.dynamic_context_compression_ratio,
                )?,
                add_instruction: args.or("add_instruction", d.add_instruction)?,
                rank_method: args.or("rank_method", d.rank_method)?,
                concate_question: args.or("concate_question", d.concate_question)?,
                strict_preserve_uncompressed: args.or(
                    "strict_preserve_uncompressed",
                    d.strict_preserve_uncompressed,
                )?,
                granularity: args.or("granularity", d.granularity)?,
                count: args.or("count", d.count)?,
                trace: d.trace,
                force_tokens: args.or("force_tokens", d.force_tokens)?,
                force_reserve_digit: args.or("force_reserve_digit", d.force_reserve_digit)?,
            },
        };
        args.finish()?;
        Ok(request)
    }
}

/// Named JSON values that are taken out one by one; what is left over is an error.
#[derive(Debug)]
pub struct Arguments(Map<String, Value>);

impl Arguments {
    /// All of a call's arguments.
    pub fn new(arguments: Map<String, Value>) -> Self {
        Arguments(arguments)
    }

    /// The argument `name`; absent and `null` are both `None`.
    ///
    /// # Errors
    /// [`Error::Input`] where it has another type than `T`.
    pub fn optional<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => typed(name, value).map(Some),
        }
    }

    /// The argument `name`.
    ///
    /// # Errors
    /// [`Error::Input`] where it is missing or has another type than `T`.
    pub fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T> {
        match self.0.remove(name) {
            None => Err(bad(name, "is missing")),
            Some(value) => typed(name, value),
        }
    }

    /// Checks that nothing is left over.
    ///
    /// # Errors
    /// [`Error::Input`] naming an argument that nobody asked for.
    pub fn finish(self) -> Result<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(bad(name, "there is no such argument")),
        }
    }

    /// The argument `name`, or `default` where it is absent; `null` is a wrong type.
    fn or<T: DeserializeOwned>(&mut self, name: &str, default: T) -> Result<T> {
        match self.0.remove(name) {
            None => Ok(default),
            Some(value) => typed(name, value),
        }
    }

    /// `context`: a string counts as a list of one, and an empty one as none.
    fn context(&mut self) -> Result<Vec<String>> {
        match self.0.remove("context") {
            None => Err(bad("context", "is missing")),
            Some(Value::String(text)) if text.is_empty() => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text]),
            Some(value @ Value::Array(_)) => typed("context", value),
            Some(other) => Err(bad(
                "context",
                format!("expected a string or a list of strings, got {other}"),
            )),
        }
    }
}

/// `value` as a `T`.
fn typed<T: DeserializeOwned>(name: &str, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| bad(name, error.to_string()))
}

/// Something is wrong with the argument `name`.
fn bad(name: &str, reason: impl Into<String>) -> Error {
    Error::input(format!("argument `{name}`"), reason)
}

#[cfg(test)]
mod tests {
    use super::super::{Condition, Granularity, RankMethod, Reorder};
    use super::*;
    use serde_json::json;

    fn read(arguments: Value) -> Result<Request> {
        match arguments {
            Value::Object(arguments) => Request::from_python(arguments),
            other => panic!("{other} is no object"),
        }
    }

    fn complaint(arguments: Value) -> String {
        read(arguments).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_the_references() {
        let request = read(json!({"context": "a"})).unwrap();
        assert_eq!(request.prompt.context, ["a"]);
        let empty = read(json!({"context": ""})).unwrap();
        assert!(empty.prompt.context.is_empty());
        let want = Options {
            budget: Budget::Reference,
            ..Options::default()
        };
        assert_eq!(request.options, want);
    }

    #[test]
    fn python_none_and_minus_one_mean_not_given() {
        let request = read(json!({
            "context": ["a", "b"], "target_token": -1, "force_context_ids": null,
            "force_context_number": null, "context_segs": null, "drop_consecutive": true,
        }))
        .unwrap();
        assert_eq!(request.options.target_token, None);
        assert_eq!(request.options.force_context_ids, None);
        assert_eq!(request.options.force_context_number, None);
        assert_eq!(request.prompt.context, ["a", "b"]);
    }

    #[test]
    fn arguments_arrive() {
        let request = read(json!({
            "context": [], "instruction": "i", "question": "q", "rate": 1, "target_token": 90,
            "force_context_ids": [2, 0], "condition_in_question": "after_condition",
            "reorder_context": "two_stage", "rank_method": "longllmlingua", "context_budget": "*2",
            "keep_split": true, "budget": "exact", "granularity": "token", "force_tokens": ["\n"],
        }))
        .unwrap();
        let want = Options {
            budget: Budget::Exact,
            rate: 1.0,
            target_token: Some(90.0),
            force_context_ids: Some(vec![2, 0]),
            condition_in_question: Condition::AfterCondition,
            reorder_context: Some(Reorder::TwoStage),
            rank_method: Some(RankMethod::Longllmlingua),
            context_budget: "*2".into(),
            keep_split: true,
            granularity: Granularity::Token,
            force_tokens: vec!["\n".into()],
            ..Options::default()
        };
        assert_eq!(request.options, want);
        assert_eq!(request.prompt.instruction, "i");
        assert_eq!(request.prompt.question, "q");
    }

    #[test]
    fn every_complaint_names_its_argument() {
        for (arguments, name) in [
            (json!({}), "context"),
            (json!({"context": 3}), "context"),
            (json!({"context": ["a", 3]}), "context"),
            (json!({"context": "a", "rate": "0.5"}), "rate"),
            (json!({"context": "a", "rate": null}), "rate"),
            (
                json!({"context": "a", "iterative_size": 20.5}),
                "iterative_size",
            ),
            (
                json!({"context": "a", "force_context_ids": [-1]}),
                "force_context_ids",
            ),
            (json!({"context": "a", "keep_split": 1}), "keep_split"),
            (json!({"context": "a", "budget": "loose"}), "budget"),
            (json!({"context": "a", "ratio": 0.5}), "ratio"),
        ] {
            let said = complaint(arguments.clone());
            assert!(
                said.contains(&format!("argument `{name}`")),
                "{arguments}: {said}"
            );
        }
    }

    #[test]
    fn an_unknown_rank_method_is_told_which_there_are() {
        let said = complaint(json!({"context": "a", "rank_method": "bge"}));
        assert_eq!(
            said,
            "rank_method `bge` is not supported; there is llmlingua, longllmlingua, bm25, gzip"
        );
    }
}
