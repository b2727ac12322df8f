//! Requests from JSON: in our own words, and in the keyword arguments of Python's `PromptCompressor`.
//! The batch command and the C ABI read them.

use serde_json::{Map, Value};

use super::arguments::{Arguments, bad};
use super::options::{Exact, LlmLingua, LlmLingua2, Mode};
use super::request::{Budget, Request};
use super::result::Compressed;
use crate::error::{Error, Result};

/// Arguments of the reference that only its other methods (LLMLingua-2) read: taken, whatever they
/// say, as the reference takes them.
const IGNORED: [&str; 11] = [
    "target_context",
    "context_level_rate",
    "context_level_target_token",
    "return_word_label",
    "word_sep",
    "label_sep",
    "token_to_word",
    "drop_consecutive",
    "chunk_end_tokens",
    "force_tokens",
    "force_reserve_digit",
];

/// Arguments of the reference that take segments apart from the contexts.
const SEGMENTS: [&str; 3] = ["context_segs", "context_segs_rate", "context_segs_compress"];

impl Request {
    /// Reads a request in our own words.
    ///
    /// `contexts` (a string or a list) must be there; `instruction`, `question`, `structured`, one of
    /// `rate` and `target_tokens`, `mode` (`exact`, `llmlingua`, `llmlingua2`) and the mode's options, under
    /// the names of the fields of [`Exact`], [`LlmLingua`] or [`LlmLingua2`], may be.
    ///
    /// # Errors
    /// [`Error::Input`] naming the argument that is missing, unknown, of the wrong type, or an option of
    /// the other mode.
    pub fn from_json(arguments: Map<String, Value>) -> Result<Self> {
        let mut args = Arguments::new(arguments);
        let budget = match (args.optional("rate")?, args.optional("target_tokens")?) {
            (None, None) => Budget::default(),
            (Some(rate), None) => Budget::Rate(rate),
            (None, Some(tokens)) => Budget::Tokens(tokens),
            (Some(_), Some(_)) => {
                return Err(bad("rate", "give this or `target_tokens`, not both"));
            }
        };
        let mut request = Request {
            contexts: args.texts("contexts")?,
            instruction: args.or("instruction", String::new())?,
            question: args.or("question", String::new())?,
            structured: args.or("structured", false)?,
            budget,
            mode: Mode::default(),
        };
        let mode: Option<String> = args.optional("mode")?;
        request.mode = match mode.as_deref() {
            None | Some("exact") => Exact::take(&mut args)?.into(),
            Some("llmlingua") => LlmLingua::take(&mut args)?.into(),
            Some("llmlingua2") => LlmLingua2::take(&mut args)?.into(),
            Some(name) => {
                return Err(Error::Unsupported {
                    what: format!("mode `{name}`"),
                    have: "exact, llmlingua, llmlingua2".into(),
                });
            }
        };
        // What is left of these belongs to another mode.
        let own = request.mode.name();
        let reason = format!("it has no effect in mode `{own}`; leave it out");
        for names in [Exact::NAMES, LlmLingua::NAMES, LlmLingua2::NAMES] {
            args.refuse(names, &reason)?;
        }
        args.finish()?;
        Ok(request)
    }

    /// Reads the keyword arguments of the reference's `compress_prompt_llmlingua2`, with its defaults.
    ///
    /// As there, what else `compress_prompt` takes is taken and has no effect; a question has one under
    /// [`LlmLingua2::rank_by_question`] alone.
    ///
    /// # Errors
    /// [`Error::Input`] naming the argument that is missing, unknown, of the wrong type, or without effect.
    pub fn from_llmlingua2(arguments: Map<String, Value>) -> Result<Self> {
        let mut args = Arguments::new(arguments);
        // Above 1 is the whole there.
        let rate = args.or("rate", 0.5f64)?.min(1.0);
        let budget = match args.optional("target_token")?.filter(|&n: &f64| n >= 0.0) {
            None => Budget::Rate(rate),
            Some(tokens) => Budget::Tokens(whole("target_token", tokens)?),
        };
        // An empty text is a text here.
        let contexts = match args.0.get("context") {
            Some(Value::String(text)) if text.is_empty() => vec![args.required("context")?],
            _ => args.texts("context")?,
        };
        let options = LlmLingua2::take(&mut args)?;
        let question = match options.rank_by_question {
            true => args.or("question", String::new())?,
            false => String::new(),
        };
        for name in ["instruction", "question"]
            .iter()
            .chain(LlmLingua::NAMES)
            .chain(&SEGMENTS)
        {
            args.0.remove(*name);
        }
        args.finish()?;
        Ok(Request::new(contexts)
            .with_question(question)
            .with_budget(budget)
            .with_mode(options))
    }

    /// Reads the reference's keyword arguments, with its defaults, and prefold's own `budget`
    /// (`reference` unless it says `exact`), `granularity` and `count`.
    ///
    /// `context` is a string or a list of strings and must be there. `target_token: -1` and a `null`
    /// mean "not given". `structured` says that it is a call of `structured_compress_prompt`.
    ///
    /// # Errors
    /// [`Error::Input`] naming the argument that is missing, unknown, of the wrong type, or without
    /// effect under that budget; [`Error::Unsupported`] for an unknown rank method, or for segments
    /// outside `<llmlingua>` tags.
    pub fn from_python(arguments: Map<String, Value>, structured: bool) -> Result<Self> {
        let mut args = Arguments::new(arguments);
        if let Some(Value::String(name)) = args.0.get("rank_method")
            && serde_json::from_value::<super::RankMethod>(name.as_str().into()).is_err()
        {
            return Err(Error::Unsupported {
                what: format!("rank_method `{name}`"),
                have: "llmlingua, longllmlingua, bm25, gzip, sentbert".into(),
            });
        }
        for name in SEGMENTS {
            if args.0.remove(name).is_some_and(|value| !value.is_null()) {
                return Err(Error::Unsupported {
                    what: format!("argument `{name}`"),
                    have: "structured_compress_prompt, which reads segments from tags".into(),
                });
            }
        }
        let rate = args.or("rate", 0.5)?;
        let budget = match args.optional("target_token")?.filter(|&n: &f64| n != -1.0) {
            None => Budget::Rate(rate),
            Some(tokens) => Budget::Tokens(whole("target_token", tokens)?),
        };
        let mut request = Request {
            contexts: args.texts("context")?,
            instruction: args.or("instruction", String::new())?,
            question: args.or("question", String::new())?,
            structured,
            budget,
            mode: Mode::default(),
        };
        let exact = match args.optional::<String>("budget")?.as_deref() {
            None | Some("reference") => false,
            Some("exact") => true,
            Some(other) => {
                let reason = format!("expected `exact` or `reference`, got `{other}`");
                return Err(bad("budget", reason));
            }
        };
        if exact {
            request.mode = exact_by_reference_names(&mut args)?.into();
            let reason = "it has no effect with \"budget\": \"exact\"; leave it out";
            args.refuse(LlmLingua::NAMES, reason)?;
            args.refuse(&IGNORED, reason)?;
        } else {
            request.mode = LlmLingua::take(&mut args)?.into();
            for name in IGNORED {
                args.0.remove(name);
            }
            let reason = "it has an effect only with \"budget\": \"exact\"";
            args.refuse(&["granularity", "count"], reason)?;
        }
        args.finish()?;
        Ok(request)
    }
}

/// A compression by the name of its call, as the batch command and the C ABI take it.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// What is asked for.
    pub request: Request,
    form: Form,
}

/// The words that a result is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Our own.
    Own,
    /// The reference's six keys.
    LlmLingua,
}

impl Call {
    /// All calls.
    pub const NAMES: [&str; 4] = [
        "compress",
        "compress_prompt",
        "structured_compress_prompt",
        "compress_prompt_llmlingua2",
    ];

    /// Reads a call: `compress` by [`Request::from_json`], the others by [`Request::from_python`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another name, an unknown rank method, or segments outside `<llmlingua>`
    /// tags; [`Error::Input`] naming the argument that is missing, unknown, of the wrong type, or without
    /// effect.
    pub fn new(name: &str, arguments: Map<String, Value>) -> Result<Self> {
        let (request, form) = match name {
            "compress" => (Request::from_json(arguments)?, Form::Own),
            "compress_prompt" => (Request::from_python(arguments, false)?, Form::LlmLingua),
            "structured_compress_prompt" => {
                (Request::from_python(arguments, true)?, Form::LlmLingua)
            }
            "compress_prompt_llmlingua2" => (Request::from_llmlingua2(arguments)?, Form::LlmLingua),
            other => {
                return Err(Error::Unsupported {
                    what: format!("call `{other}`"),
                    have: Self::NAMES.join(", "),
                });
            }
        };
        Ok(Call { request, form })
    }

    /// The result in the words of the call.
    ///
    /// # Errors
    /// [`Error::Io`] for a result that JSON cannot hold, which does not happen.
    pub fn answer(&self, result: &Compressed) -> Result<Value> {
        let value = match self.form {
            Form::Own => serde_json::to_value(result),
            Form::LlmLingua => serde_json::to_value(result.llmlingua()),
        };
        value.map_err(|error| Error::io("result")(std::io::Error::other(error)))
    }
}

/// A number of tokens, which Python may have as a float.
fn whole(name: &str, number: f64) -> Result<usize> {
    match number >= 0.0 && number.fract() == 0.0 && number <= u32::MAX.into() {
        true => Ok(number as usize),
        false => Err(Error::input(
            format!("{name} {number}"),
            "expected a whole number of tokens, 0 or more",
        )),
    }
}

/// The options of the exact mode, by the names that the reference has for such options.
fn exact_by_reference_names(args: &mut Arguments) -> Result<Exact> {
    let d = Exact::default();
    Ok(Exact {
        granularity: args.or("granularity", d.granularity)?,
        count: args.or("count", d.count)?,
        rank_method: args.optional("rank_method")?,
        context_scores: args.or("context_scores", d.context_scores)?,
        reorder: args.optional("reorder_context")?,
        keep_question: args.or("concate_question", d.keep_question)?,
        force_contexts: args.or("force_context_ids", d.force_contexts)?,
        force_tokens: args.or("force_tokens", d.force_tokens)?,
        force_digits: args.or("force_reserve_digit", d.force_digits)?,
        keep_first_sentence: args.or("keep_first_sentence", d.keep_first_sentence)?,
        keep_last_sentence: args.or("keep_last_sentence", d.keep_last_sentence)?,
        keep_sentence_number: args.or("keep_sentence_number", d.keep_sentence_number)?,
        high_priority_bonus: args.or("high_priority_bonus", d.high_priority_bonus)?,
        per_context: !args.or("use_context_level_filter", !d.per_context)?,
        ranker: args.optional("ranker")?,
        effort: args.or("effort", d.effort)?,
        enough: args.or("enough", d.enough)?,
        as_kind: args.optional("as_kind")?,
        dedupe: args.or("dedupe", d.dedupe)?,
        mark: args.optional("mark")?,
        fill: args.or("fill", d.fill)?,
        omitted_items: args.or("omitted_items", d.omitted_items)?,
        trace: d.trace,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Condition, Granularity, RankMethod, Reorder};
    use super::*;
    use serde_json::json;

    fn object(arguments: Value) -> Map<String, Value> {
        match arguments {
            Value::Object(arguments) => arguments,
            other => panic!("{other} is not an object"),
        }
    }

    fn python(arguments: Value) -> Result<Request> {
        Request::from_python(object(arguments), false)
    }

    fn ours(arguments: Value) -> Result<Request> {
        Request::from_json(object(arguments))
    }

    #[test]
    fn defaults_are_the_references_or_our_own() {
        let request = python(json!({"context": "a"})).unwrap();
        assert_eq!(request, Request::new(["a"]).with_mode(LlmLingua::default()));
        assert!(python(json!({"context": ""})).unwrap().contexts.is_empty());
        let request = ours(json!({"contexts": ["a", "b"]})).unwrap();
        assert_eq!(request, Request::new(["a", "b"]));
    }

    #[test]
    fn python_none_and_minus_one_mean_not_given() {
        let request = python(json!({
            "context": ["a", "b"], "target_token": -1, "force_context_ids": null,
            "force_context_number": null, "context_segs": null, "drop_consecutive": true,
            "rank_method": null,
        }));
        let want = Request::new(["a", "b"]).with_mode(LlmLingua::default());
        assert_eq!(request.unwrap(), want);
    }

    #[test]
    fn arguments_arrive() {
        let request = python(json!({
            "context": [], "instruction": "i", "question": "q", "rate": 1, "target_token": 90.0,
            "force_context_ids": [2, 0], "condition_in_question": "after_condition",
            "reorder_context": "two_stage", "rank_method": "longllmlingua", "context_budget": "*2",
            "keep_split": true,
        }));
        let want = Request::new([""; 0])
            .with_instruction("i")
            .with_question("q")
            .with_tokens(90)
            .with_mode(
                LlmLingua::default()
                    .with_force_context_ids(vec![2, 0])
                    .with_condition_in_question(Condition::AfterCondition)
                    .with_reorder_context(Reorder::TwoStage)
                    .with_rank_method(RankMethod::Longllmlingua)
                    .with_context_budget("*2".into())
                    .with_keep_split(true),
            );
        assert_eq!(request.unwrap(), want);
        let exact = Exact::default()
            .with_granularity(Granularity::Token)
            .with_force_tokens(vec!["\n".into()])
            .with_force_contexts(vec![0])
            .with_reorder(Some(Reorder::Sort))
            .with_keep_question(false)
            .with_per_context(true);
        let want = Request::new(["a"]).with_rate(0.25).with_mode(exact);
        let by_reference_names = python(json!({
            "context": ["a"], "rate": 0.25, "budget": "exact", "granularity": "token",
            "force_tokens": ["\n"], "force_context_ids": [0], "reorder_context": "sort",
            "concate_question": false, "use_context_level_filter": false,
        }));
        assert_eq!(by_reference_names.unwrap(), want);
        let by_our_names = ours(json!({
            "contexts": ["a"], "rate": 0.25, "granularity": "token", "force_tokens": ["\n"],
            "force_contexts": [0], "reorder": "sort", "keep_question": false, "per_context": true,
        }));
        assert_eq!(by_our_names.unwrap(), want);
    }

    #[test]
    fn every_complaint_names_its_argument() {
        let python: fn(Value) -> Result<Request> = python;
        for (read, arguments, name) in [
            (python, json!({}), "context"),
            (python, json!({"context": 3}), "context"),
            (python, json!({"context": ["a", 3]}), "context"),
            (python, json!({"context": "a", "rate": "0.5"}), "rate"),
            (
                python,
                json!({"context": "a", "iterative_size": 20.5}),
                "iterative_size",
            ),
            (
                python,
                json!({"context": "a", "force_context_ids": [-1]}),
                "force_context_ids",
            ),
            (
                python,
                json!({"context": "a", "keep_split": 1}),
                "keep_split",
            ),
            (python, json!({"context": "a", "budget": "loose"}), "budget"),
            (python, json!({"context": "a", "ratio": 0.5}), "ratio"),
            (ours, json!({"context": "a"}), "contexts"),
            (
                ours,
                json!({"contexts": "a", "target_token": 5}),
                "target_token",
            ),
            (
                ours,
                json!({"contexts": "a", "target_tokens": -1}),
                "target_tokens",
            ),
            (
                ours,
                json!({"contexts": "a", "rate": 0.5, "target_tokens": 1}),
                "rate",
            ),
        ] {
            let said = read(arguments.clone()).unwrap_err().to_string();
            assert!(
                said.contains(&format!("argument `{name}`")),
                "{arguments}: {said}"
            );
        }
        for target in [90.5, -2.0] {
            let said = python(json!({"context": "a", "target_token": target})).unwrap_err();
            assert!(
                said.to_string()
                    .starts_with(&format!("target_token {target}: "))
            );
        }
    }

    #[test]
    fn an_option_of_the_other_mode_is_refused_by_name() {
        let complaint = |read: fn(Value) -> Result<Request>, mut arguments: Value, name: &str| {
            arguments[name] = json!(1);
            let said = read(arguments).unwrap_err().to_string();
            assert!(
                said.starts_with(&format!("argument `{name}`: it has ")),
                "{said}"
            );
        };
        for &name in LlmLingua::NAMES {
            if !Exact::NAMES.contains(&name) {
                complaint(ours, json!({"contexts": "a"}), name);
            }
        }
        for &name in Exact::NAMES {
            if !LlmLingua::NAMES.contains(&name) {
                complaint(ours, json!({"contexts": "a", "mode": "llmlingua"}), name);
            }
        }
        for name in [
            "iterative_size",
            "condition_compare",
            "keep_split",
            "word_sep",
        ] {
            complaint(python, json!({"context": "a", "budget": "exact"}), name);
        }
        for name in ["granularity", "count"] {
            complaint(python, json!({"context": "a"}), name);
        }
    }

    #[test]
    fn an_unknown_rank_method_is_told_which_there_are() {
        let said = python(json!({"context": "a", "rank_method": "bge"}));
        assert_eq!(
            said.unwrap_err().to_string(),
            "rank_method `bge` is not supported; there is llmlingua, longllmlingua, bm25, gzip, sentbert"
        );
    }
}
