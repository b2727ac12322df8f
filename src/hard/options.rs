//! What a caller may ask of hard compression, under the reference's parameter names and defaults.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A prompt in its three parts; the result joins what is left of them with blank lines.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prompt {
    /// Kept whole, in front.
    pub instruction: String,
    /// The documents or demonstrations to compress.
    pub context: Vec<String>,
    /// Kept whole, at the end (unless `concate_question` is off).
    pub question: String,
}

/// How contexts and sentences are ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RankMethod {
    /// By their own perplexity, the most surprising first.
    Llmlingua,
    /// By the question's perplexity given the context (LongLLMLingua, eq. 2 and 3).
    Longllmlingua,
    /// Okapi BM25 between context and question.
    Bm25,
    /// Normalised compression distance between context and question.
    Gzip,
}

/// Where the question stands when a context is ranked, and whether the token level is conditioned
/// on it too (`_condition`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    #[default]
    /// The text alone.
    None,
    /// The text after the question.
    Before,
    /// The question after the text.
    After,
    /// `none`, with the question in front at the token level.
    NoneCondition,
    /// `before`, with the question in front at the token level.
    BeforeCondition,
    /// `after`, with the question in front at the token level.
    AfterCondition,
}

/// Where the question stands when a text is ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    None,
    Before,
    After,
}

impl Condition {
    /// The two things that the one name says.
    pub(crate) fn split(self) -> (Where, bool) {
        match self {
            Condition::None => (Where::None, false),
            Condition::Before => (Where::Before, false),
            Condition::After => (Where::After, false),
            Condition::NoneCondition => (Where::None, true),
            Condition::BeforeCondition => (Where::Before, true),
            Condition::AfterCondition => (Where::After, true),
        }
    }
}

/// The order of contexts in the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reorder {
    /// As given.
    #[default]
    Original,
    /// By rank, best first.
    Sort,
    /// Best at both ends, worst in the middle.
    TwoStage,
    /// By rank, best last: next to the question.
    Reverse,
}

impl Reorder {
    /// Puts ranked contexts (best first) in their order in the result.
    pub(crate) fn arrange<T: Copy>(
        self,
        mut ranked: Vec<T>,
        place: impl Fn(&T) -> usize,
    ) -> Vec<T> {
        match self {
            Reorder::Sort => {}
            Reorder::Reverse => ranked.reverse(),
            Reorder::Original => ranked.sort_by_key(place),
            Reorder::TwoStage => {
                let even = ranked.iter().step_by(2);
                let odd: Vec<&T> = ranked.iter().skip(1).step_by(2).collect();
                ranked = even.chain(odd.into_iter().rev()).copied().collect();
            }
        }
        ranked
    }
}

/// How closely the budget is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Budget {
    /// prefold's own: coarse to fine under one exact budget. The result has as many tokens as it was
    /// given, to one token; fewer only where the next character (a flag, a family of emoji) takes more
    /// than are left, as it is kept or dropped whole.
    #[default]
    Exact,
    /// Token for token what Microsoft's `llmlingua` 0.2.2 does.
    Reference,
}

/// How far down the exact budget goes before it starts to cut inside a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// Whole contexts; only the last one taken is cut, at its passages and sentences.
    Context,
    /// Whole passages: a context of up to 320 tokens, or some sentences of a longer one. Only the last
    /// one taken is cut. The default: of all four it leaves a reader the most (`benches/quality`).
    #[default]
    Passage,
    /// Whole sentences; only the last one taken is cut.
    Sentence,
    /// Tokens everywhere.
    Token,
}

/// Whose tokens the exact budget counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Count {
    /// OpenAI's cl100k_base, as the reference's results count.
    #[default]
    Cl100k,
    /// The scoring model's own.
    Scorer,
}

/// Options of hard compression. Names and defaults are those of `PromptCompressor.compress_prompt`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Exact (prefold's own) or reference.
    pub budget: Budget,
    /// Share of tokens to keep, in (0, 1].
    pub rate: f64,
    /// Tokens to keep; overrides `rate`. The reference's -1 is `None`.
    pub target_token: Option<f64>,
    /// Reference: tokens per segment of the token level (paper, section 4.2).
    pub iterative_size: usize,
    /// Contexts that are always kept. Empty and absent differ nowhere.
    pub force_context_ids: Option<Vec<usize>>,
    /// Reference: number of contexts that are forcibly kept.
    pub force_context_number: Option<usize>,
    /// Drop whole contexts. Exact budget: off gives every context the same share.
    pub use_context_level_filter: bool,
    /// Reference: drop whole sentences.
    pub use_sentence_level_filter: bool,
    /// Reference: drop tokens.
    pub use_token_level_filter: bool,
    /// Reference: keep double line breaks.
    pub keep_split: bool,
    /// Sentences of the whole prompt that come first and are to be kept.
    pub keep_first_sentence: usize,
    /// Sentences of the whole prompt that come last and are to be kept.
    pub keep_last_sentence: usize,
    /// Sentences kept in every context.
    pub keep_sentence_number: usize,
    /// What the score of a sentence that is to be kept is raised by.
    pub high_priority_bonus: f64,
    /// Reference: arithmetic on the target for the context level, an operator and a number, as in `+100`
    /// or `*1.5`.
    pub context_budget: String,
    /// Reference: what the sentence level takes of the target, as a factor.
    pub token_budget_ratio: f64,
    /// Reference: where the question stands when texts are ranked.
    pub condition_in_question: Condition,
    /// Reference: tokens are judged by what the question takes off their nll (LongLLMLingua, eq. 4).
    pub condition_compare: bool,
    /// The order of contexts in the result. `None`: the reference leaves them as given; the exact
    /// budget puts the best last where there is a question, and leaves them as given where there is
    /// none.
    pub reorder_context: Option<Reorder>,
    /// Reference: how much more the best context keeps than the middle one (LongLLMLingua, eq. 5).
    pub dynamic_context_compression_ratio: f64,
    /// Reference: put the instruction in front of the condition.
    pub add_instruction: bool,
    /// `None`: the reference takes `llmlingua`; the exact budget takes `longllmlingua` where there is a
    /// question and `llmlingua` where there is none.
    pub rank_method: Option<RankMethod>,
    /// Put the question at the end of the result.
    pub concate_question: bool,
    /// Reference, structured prompts: contexts with an uncompressed segment are never dropped. The exact
    /// budget drops nothing of what is not to be compressed.
    pub strict_preserve_uncompressed: bool,

    /// Exact budget: how far down to go.
    pub granularity: Granularity,
    /// Exact budget: whose tokens are counted.
    pub count: Count,
    /// Exact budget: score every token, also where the choice does not need it, so that
    /// [`super::Piece::nll`] can be shown.
    pub trace: bool,
    /// Exact budget: strings that are kept wherever they stand, white space in them too.
    pub force_tokens: Vec<String>,
    /// Exact budget: keep every digit.
    pub force_reserve_digit: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            budget: Budget::default(),
            rate: 0.5,
            target_token: None,
            iterative_size: 200,
            force_context_ids: None,
            force_context_number: None,
            use_context_level_filter: true,
            use_sentence_level_filter: false,
            use_token_level_filter: true,
            keep_split: false,
            keep_first_sentence: 0,
            keep_last_sentence: 0,
            keep_sentence_number: 0,
            high_priority_bonus: 100.0,
            context_budget: "+100".into(),
            token_budget_ratio: 1.4,
            condition_in_question: Condition::default(),
            condition_compare: false,
            reorder_context: None,
            dynamic_context_compression_ratio: 0.0,
            add_instruction: false,
            rank_method: None,
            concate_question: true,
            strict_preserve_uncompressed: true,
            granularity: Granularity::default(),
            count: Count::default(),
            trace: false,
            force_tokens: Vec::new(),
            force_reserve_digit: false,
        }
    }
}

/// Refuses a rate that is none.
///
/// # Errors
/// [`Error::Input`] naming it and the range.
pub fn check_rate(rate: f64) -> Result<()> {
    match rate > 0.0 && rate <= 1.0 {
        true => Ok(()),
        false => Err(Error::input(
            format!("rate {rate}"),
            "the share of tokens to keep lies in (0, 1]",
        )),
    }
}

impl Options {
    /// Refuses values outside their range, as every call does that takes options.
    ///
    /// # Errors
    /// [`Error::Input`] naming the option, its value and the range.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: &str, value: f64, reason: &str| {
            Err(Error::input(format!("{what} {value}"), reason))
        };
        check_rate(self.rate)?;
        if let Some(target) = self.target_token
            && !(target.is_finite() && target >= 0.0)
        {
            return refuse(
                "target_token",
                target,
                "expected a number of tokens, 0 or more",
            );
        }
        if self.iterative_size == 0 {
            return refuse("iterative_size", 0.0, "expected 1 token or more");
        }
        for (what, value) in [
            ("token_budget_ratio", self.token_budget_ratio),
            ("high_priority_bonus", self.high_priority_bonus),
            (
                "dynamic_context_compression_ratio",
                self.dynamic_context_compression_ratio,
            ),
        ] {
            if !value.is_finite() {
                return refuse(what, value, "expected a finite number");
            }
        }
        Ok(())
    }
}
