//! llmlingua's `compress_json`: an object whose members have rates of their own.
//!
//! What comes out is JSON by construction. Names, numbers, `true`, `false` and `null` are never changed, and
//! every value keeps its type, where llmlingua writes numbers with digits missing and lists as strings.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

use super::arguments::Arguments;
use super::exact::kinds::json;
use super::json_text::Tree;
use super::json_text::tree::Kind;
use super::options::Exact;
use super::request::check_rate;
use super::structured::Segment;

/// How a member is compressed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JsonEntry {
    /// Share of the value to keep, above 0 and at most 1.
    pub rate: f64,
    /// Whether anything of the value may go.
    pub compress: bool,
    /// What the value is: `str`, `int`, `float`, `number`, `bool`, `list`, `dict`, `tuple`, or a longer name
    /// of one. A value that is not one, nor the text of one, is refused.
    pub value_type: String,
    /// Whether the whole member may go.
    pub pair_remove: bool,
}

/// How the members of an object are compressed, by their names.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JsonConfig(pub BTreeMap<String, JsonEntry>);

impl JsonConfig {
    /// Reads a configuration as llmlingua's YAML files have it.
    ///
    /// # Errors
    /// [`Error::Input`] saying what is wrong with it.
    #[cfg(feature = "yaml")]
    pub fn from_yaml(yaml: &str) -> Result<Self> {
        use yaml_rust2::{Yaml, YamlLoader};

        let bad = |reason: String| Error::input("json_config", reason);
        let documents = YamlLoader::load_from_str(yaml).map_err(|error| bad(error.to_string()))?;
        let [Yaml::Hash(members)] = &documents[..] else {
            return Err(bad("expected one mapping of names".into()));
        };
        let mut config = JsonConfig::default();
        for (name, entry) in members {
            let (Some(name), Yaml::Hash(_)) = (name.as_str(), entry) else {
                return Err(bad("expected a mapping under each name".into()));
            };
            let missing =
                |field: &str| bad(format!("{name}: {field} is missing or of another type"));
            let rate = &entry["rate"];
            let rate = rate
                .as_f64()
                .or_else(|| rate.as_i64().map(|rate| rate as f64));
            let flag = |field: &str| entry[field].as_bool().ok_or_else(|| missing(field));
            let entry = JsonEntry {
                rate: rate.ok_or_else(|| missing("rate"))?,
                compress: flag("compress")?,
                value_type: entry["value_type"]
                    .as_str()
                    .ok_or_else(|| missing("value_type"))?
                    .into(),
                pair_remove: flag("pair_remove")?,
            };
            config.0.insert(name.into(), entry);
        }
        Ok(config)
    }
}

/// An object to shorten, and how: see [`Engine::compress_json`](crate::Engine::compress_json).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct JsonRequest {
    /// The object, as JSON.
    pub json: String,
    /// How its members are compressed.
    pub config: JsonConfig,
    /// What ranks the values; not a part of the result.
    pub question: String,
    /// Tokens of the result; `None`: what the members' rates leave, at least what must stay.
    pub target: Option<usize>,
    /// Whether members that may go whole do.
    pub drop_members: bool,
    /// The other options.
    pub exact: Exact,
}

/// llmlingua's arguments that have no effect here, with its defaults as JSON.
const WITHOUT_EFFECT: [(&str, &str); 11] = [
    ("instruction", "\"\""),
    ("rate", "0.5"),
    ("iterative_size", "200"),
    ("use_sentence_level_filter", "false"),
    ("use_token_level_filter", "true"),
    ("keep_split", "false"),
    ("context_budget", "\"+100\""),
    ("token_budget_ratio", "1.4"),
    ("condition_in_question", "\"none\""),
    ("reorder_keyvalue", "\"original\""),
    ("condition_compare", "false"),
];

impl JsonRequest {
    /// Asks for an object by the rates of its members.
    pub fn new(json: impl Into<String>, config: JsonConfig) -> Self {
        JsonRequest {
            json: json.into(),
            config,
            question: String::new(),
            target: None,
            drop_members: false,
            exact: Exact::default(),
        }
    }

    /// Reads the other arguments of llmlingua's `compress_json`; gives also what has no effect here, a line
    /// each.
    ///
    /// # Errors
    /// [`Error::Input`] for an argument that is unknown or of the wrong type.
    pub fn from_python(
        json: impl Into<String>,
        config: JsonConfig,
        arguments: Map<String, Value>,
    ) -> Result<(Self, Vec<String>)> {
        let mut args = Arguments::new(arguments);
        let mut warnings = Vec::new();
        for (name, default) in WITHOUT_EFFECT {
            let given = args.optional::<Value>(name)?.map(|value| value.to_string());
            if given.is_some_and(|given| given != default) {
                warnings.push(format!(
                    "`{name}` has no effect: compress_json keeps to the rates of its members, in their order"
                ));
            }
        }
        let mut request = JsonRequest::new(json, config);
        request.question = args.optional("question")?.unwrap_or_default();
        request.target = match args.optional::<f64>("target_token")?.filter(|&n| n != -1.0) {
            None => None,
            Some(n) if n >= 0.0 && n.fract() == 0.0 && n <= u32::MAX.into() => Some(n as usize),
            Some(n) => {
                let what = format!("target_token {n}");
                return Err(Error::input(
                    what,
                    "expected a whole number of tokens, 0 or more",
                ));
            }
        };
        request.drop_members = args.optional("use_keyvalue_level_filter")?.unwrap_or(false);
        request.exact = Exact::from_arguments(&mut args)?;
        args.finish()?;
        Ok((request, warnings))
    }

    /// The stretches of the object with their rates.
    pub(super) fn segments(&self) -> Result<Vec<Segment>> {
        segments(&self.json, &self.config, self.drop_members)
    }
}

/// The stretches of an object, each with its rate: gapless, and none that splits a unit.
///
/// # Errors
/// [`Error::Input`] for what is not an object, for names in only one of object and configuration, for rates
/// out of their range, and for values that are not of their type.
fn segments(text: &str, config: &JsonConfig, drop_members: bool) -> Result<Vec<Segment>> {
    let bad = |reason: String| Error::input("json_data", reason);
    let tree = Tree::parse(text).map_err(|error| bad(format!("is not JSON: {error}")))?;
    let layout = json::layout(text).filter(|_| tree.nodes[0].kind == Kind::Object);
    let Some((layout, form)) = layout.and_then(|layout| Some((layout.units, layout.json?))) else {
        return Err(bad("expected an object".into()));
    };
    let members = tree.nodes[0].children.clone();
    let mut names = Vec::with_capacity(members.len());
    for member in members.clone() {
        let name = tree
            .key(member)
            .ok_or_else(|| bad("a name is not text".into()))?;
        names.push(name.into_owned());
    }
    if let Some(name) = names.iter().find(|name| !config.0.contains_key(*name)) {
        return Err(Error::input(
            "json_config",
            format!("has no entry for {name:?}"),
        ));
    }
    if let Some(name) = config.0.keys().find(|name| !names.contains(name)) {
        return Err(Error::input(
            "json_config",
            format!("names {name:?}, which json_data lacks"),
        ));
    }
    let mut segments = Vec::new();
    let mut at = 0;
    let mut add = |end: usize, rate: f64| {
        if at < end {
            segments.push(Segment {
                text: text[at..end].to_string(),
                at,
                rate,
                compress: rate < 1.0,
            });
            at = end;
        }
    };
    for (member, name) in members.zip(&names) {
        let entry = &config.0[name];
        check_type(&tree, member, name, &entry.value_type)?;
        if entry.compress {
            check_rate("rate", entry.rate)?;
        }
        let node = &tree.nodes[member];
        let end = node.element().end;
        if !entry.compress || entry.rate >= 1.0 {
            add(end, 1.0);
            continue;
        }
        let units = form.units[member].clone();
        if !entry.pair_remove || !drop_members {
            // Its first unit stays, at the expense of the others.
            let stays = layout[units.start].range.end.min(end);
            let kept = (stays - node.element().start) as f64;
            let all = node.element().len() as f64;
            add(stays, 1.0);
            add(
                end,
                ((entry.rate * all - kept) / (all - kept).max(1.0)).clamp(0.0, 0.999),
            );
        } else {
            add(end, entry.rate);
        }
    }
    add(text.len(), 1.0);
    Ok(segments)
}

/// Refuses a value that llmlingua could not take for what the configuration calls it.
fn check_type(tree: &Tree, member: usize, name: &str, value_type: &str) -> Result<()> {
    let (raw, kind) = (tree.raw(member), tree.nodes[member].kind);
    let text = tree.string(member);
    let shown = text.as_deref().unwrap_or(raw).trim();
    let fits = match value_type {
        "str" | "string" => true,
        "int" | "integer" => shown.parse::<f64>().is_ok() || matches!(raw, "true" | "false"),
        "float" | "number" => shown.parse::<f64>().is_ok() || matches!(raw, "true" | "false"),
        "bool" | "boolean" => matches!(
            shown,
            "true" | "false" | "True" | "False" | "TRUE" | "FALSE"
        ),
        "list" | "List" | "tuple" => kind == Kind::Array,
        "dict" | "dictionary" => kind == Kind::Object,
        _ => {
            return Err(Error::Unsupported {
                what: format!("value_type {value_type:?} of {name:?}"),
                have: "str, int, float, number, bool, list, tuple, dict".into(),
            });
        }
    };
    match fits {
        true => Ok(()),
        false => Err(Error::input(
            format!("json_data {name:?}"),
            format!("is not of the type {value_type} that json_config names"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(value: Value) -> JsonConfig {
        serde_json::from_value(value).unwrap()
    }

    fn entry(rate: f64, compress: bool, value_type: &str, pair_remove: bool) -> Value {
        json!({"rate": rate, "compress": compress, "value_type": value_type, "pair_remove": pair_remove})
    }

    #[test]
    fn members_have_their_rates() {
        let long = "One sentence here, of some words. ".repeat(9);
        let text = format!(r#"{{"id": 987654, "a": "{long}", "b": ["x", "y"], "c": "{long}"}}"#);
        let config = config(json!({
            "id": entry(0.2, false, "int", false), "a": entry(0.3, true, "str", false),
            "b": entry(0.5, true, "list", true), "c": entry(0.5, true, "str", true),
        }));
        let all = segments(&text, &config, true).unwrap();
        let joined: String = all.iter().map(|s| s.text.as_str()).collect();
        assert_eq!(joined, text);
        let flat: Vec<(&str, bool)> = all
            .iter()
            .map(|s| (&s.text[..9.min(s.text.len())], s.compress))
            .collect();
        assert_eq!(flat[0], ("{\"id\": 98", false));
        assert_eq!(flat[1], (", \"a\": \"O", false));
        assert_eq!(flat[2], ("One sente", true));
        assert!(all[2].rate < 0.3 && all[2].rate > 0.15, "{}", all[2].rate);
        assert_eq!(flat[3], (", \"b\": [\"", true));
        assert_eq!((all[3].rate, all[4].rate), (0.5, 0.5));
        assert_eq!(flat[5], ("}", false));
        // Without the level of members none goes.
        let all = segments(&text, &config, false).unwrap();
        assert!(
            all.iter()
                .any(|s| s.text.starts_with(", \"b\"") && !s.compress)
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let say = |data: &str, entries: Value| {
            segments(data, &config(entries), true)
                .unwrap_err()
                .to_string()
        };
        let one = |value_type: &str| json!({"a": entry(0.5, true, value_type, true)});
        assert!(say("[1]", one("str")).contains("expected an object"));
        assert!(say("{", one("str")).contains("not JSON"));
        assert!(say("{\"b\":1}", one("str")).contains("no entry for \"b\""));
        assert!(say("{}", one("str")).contains("names \"a\""));
        assert!(say("{\"a\":1}", one("set")).contains("value_type \"set\""));
        assert!(say("{\"a\":\"x\"}", one("int")).contains("not of the type int"));
        assert!(say("{\"a\":1}", one("list")).contains("not of the type list"));
        assert!(say("{\"a\":\"maybe\"}", one("bool")).contains("not of the type bool"));
        assert!(say("{\"a\":1}", json!({"a": entry(1.5, true, "int", true)})).contains("rate 1.5"));
        assert!(segments("{\"a\":\"17\"}", &config(one("int")), true).is_ok());
        assert!(segments("{}", &JsonConfig::default(), true).is_ok());
    }

    #[test]
    fn arguments_of_llmlingua_s_own_mode_are_told_of() {
        let read = |arguments: Value| {
            let Value::Object(arguments) = arguments else {
                unreachable!()
            };
            JsonRequest::from_python("{}", JsonConfig::default(), arguments)
        };
        let defaults = json!({
            "instruction": "", "question": "Q?", "rate": 0.5, "target_token": -1, "iterative_size": 200,
            "use_sentence_level_filter": false, "use_keyvalue_level_filter": true, "keep_split": false,
            "use_token_level_filter": true, "keep_first_sentence": 1, "high_priority_bonus": 100,
            "context_budget": "+100", "token_budget_ratio": 1.4, "condition_in_question": "none",
            "reorder_keyvalue": "original", "condition_compare": false, "rank_method": "bm25",
        });
        let (request, warnings) = read(defaults).unwrap();
        assert_eq!(warnings, [""; 0]);
        assert_eq!((request.question.as_str(), request.target), ("Q?", None));
        assert!(request.drop_members);
        assert_eq!(request.exact.keep_first_sentence, 1);
        let given = json!({"target_token": 90.0, "iterative_size": 100, "rate": 0.3});
        let (request, warnings) = read(given).unwrap();
        assert_eq!(request.target, Some(90));
        assert_eq!(warnings.len(), 2);
        for bad in [
            json!({"target_token": 1.5}),
            json!({"nothing": 1}),
            json!({"question": 3}),
        ] {
            assert!(read(bad).is_err());
        }
    }

    #[cfg(feature = "yaml")]
    #[test]
    fn configurations_come_as_yaml_too() {
        let yaml = "name:\n  rate: 0.3\n  compress: True\n  value_type: str\n  pair_remove: False\n\
                    id:\n  rate: 1\n  compress: false\n  value_type: int\n  pair_remove: true\n";
        let want = config(
            json!({"name": entry(0.3, true, "str", false), "id": entry(1.0, false, "int", true)}),
        );
        assert_eq!(JsonConfig::from_yaml(yaml).unwrap(), want);
        for bad in [
            "",
            "a: 1",
            "a:\n  rate: x\n",
            "- a",
            "a: [",
            "a:\n  rate: 0.1\n  compress: 3\n",
        ] {
            assert!(JsonConfig::from_yaml(bad).is_err(), "{bad}");
        }
    }
}
