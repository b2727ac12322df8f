//! The options of each mode: a struct of its own, which holds only what has an effect there.

use serde::{Deserialize, Serialize};

use super::arguments::Arguments;
use super::count::Count;
use super::{ContentKind, Omission, Ranker};
use crate::error::{Error, Result};

/// How contexts and sentences are ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(
    feature = "cli",
    derive(clap::ValueEnum),
    value(rename_all = "snake_case")
)]
#[serde(rename_all = "lowercase")]
pub enum RankMethod {
    /// By their own perplexity, the highest first.
    #[default]
    Llmlingua,
    /// By the question's perplexity given the context (LongLLMLingua, eq. 2 and 3).
    Longllmlingua,
    /// Okapi BM25 between context and question.
    Bm25,
    /// Normalised compression distance between context and question.
    #[cfg(feature = "gzip")]
    Gzip,
    /// By an encoder that is open beside the model: the cosine of two vectors, or a reranker's score.
    Sentbert,
}

/// Where the question stands when a context is ranked, and whether the token level is conditioned
/// on it too (`_condition`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(
    feature = "cli",
    derive(clap::ValueEnum),
    value(rename_all = "snake_case")
)]
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
#[cfg_attr(
    feature = "cli",
    derive(clap::ValueEnum),
    value(rename_all = "snake_case")
)]
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

/// How far down the exact budget goes before it starts to cut inside a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(
    feature = "cli",
    derive(clap::ValueEnum),
    value(rename_all = "snake_case")
)]
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

/// What the ranking of the exact mode may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(
    feature = "cli",
    derive(clap::ValueEnum),
    value(rename_all = "snake_case")
)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// Words alone: the model is never run.
    Fast,
    /// Words; the model reads what lies close to the cut, and without a question about as many tokens
    /// as the budget has.
    #[default]
    Balanced,
    /// The model reads every passage that may still be chosen, and without a question everything.
    Best,
}

/// Declares a struct of options: fields with defaults, a setter each, and their names in JSON.
macro_rules! options {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($(#[$doc:meta])* pub $field:ident ($with:ident): $type:ty = $default:expr,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[non_exhaustive]
        pub struct $name {
            $($(#[$doc])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                $name { $($field: $default,)* }
            }
        }

        impl $name {
            /// The names of all options.
            pub(super) const NAMES: &[&str] = &[$(stringify!($field)),*];

            $(
                #[doc = concat!("Sets [`", stringify!($field), "`](Self::", stringify!($field), ").")]
                #[must_use]
                pub fn $with(mut self, value: $type) -> Self {
                    self.$field = value;
                    self
                }
            )*

            /// Takes the options out of a call's arguments by their names here; an absent one keeps its
            /// default.
            ///
            /// # Errors
            /// [`Error::Input`] naming the one of the wrong type.
            #[doc(hidden)]
            pub fn from_arguments(arguments: &mut Arguments) -> Result<Self> {
                Self::take(arguments)
            }

            /// Takes the options out of a call's arguments; an absent one keeps its default.
            pub(super) fn take(arguments: &mut Arguments) -> Result<Self> {
                let default = Self::default();
                Ok($name {
                    $($field: arguments.or(stringify!($field), default.$field)?,)*
                })
            }
        }
    };
}

options! {
    /// Options of prefold's own mode: one exact budget, spent from coarse to fine.
    ///
    /// ```
    /// use prefold::hard::{Exact, Granularity, Request};
    ///
    /// let exact = Exact::default().with_granularity(Granularity::Sentence).with_force_digits(true);
    /// let request = Request::new(["A long document."]).with_mode(exact);
    /// ```
    pub struct Exact {
        /// The unit that is kept or dropped whole.
        pub granularity (with_granularity): Granularity = Granularity::default(),
        /// Whose tokens the budget and the result count.
        pub count (with_count): Count = Count::default(),
        /// How contexts and sentences are ranked. `None`: with a question by the learned ranker, which
        /// reads words alone and asks the model where [`effort`](Self::effort) says so; without one
        /// sentences by their surprisal, early ones of a paragraph a little more.
        pub rank_method (with_rank_method): Option<RankMethod> = None,
        /// A score for each context, the higher the better, by a ranking of the caller's: contexts are
        /// taken in that order. Empty: they are ranked here.
        pub context_scores (with_context_scores): Vec<f64> = Vec::new(),
        /// The ranker to use in place of the one that is shipped.
        pub ranker (with_ranker): Option<Ranker> = None,
        /// What the ranking may cost.
        pub effort (with_effort): Effort = Effort::default(),
        /// Stop before the budget is full, where what is left is far below the best: the budget is a
        /// ceiling then, and the length a result. Without a question it has no effect.
        pub enough (with_enough): bool = false,
        /// The order of contexts in the result. `None`: the best last with a question, next to it; as
        /// given without one.
        pub reorder (with_reorder): Option<Reorder> = None,
        /// Put the question at the end of the result.
        pub keep_question (with_keep_question): bool = true,
        /// Contexts that are kept whole, counted from 0.
        pub force_contexts (with_force_contexts): Vec<usize> = Vec::new(),
        /// Strings that are kept wherever they occur, white space in them too.
        pub force_tokens (with_force_tokens): Vec<String> = Vec::new(),
        /// Keep every digit.
        pub force_digits (with_force_digits): bool = false,
        /// Sentences at the start of the whole prompt that rank before all others.
        pub keep_first_sentence (with_keep_first_sentence): usize = 0,
        /// Sentences at the end of the whole prompt that rank before all others.
        pub keep_last_sentence (with_keep_last_sentence): usize = 0,
        /// Sentences of every context that rank before all others.
        pub keep_sentence_number (with_keep_sentence_number): usize = 0,
        /// What the score of such a sentence is raised by.
        pub high_priority_bonus (with_high_priority_bonus): f64 = 100.0,
        /// Give every context the same share of the budget, so that none is dropped whole.
        pub per_context (with_per_context): bool = false,
        /// The form of the contexts. `None`: what each looks like.
        pub as_kind (with_as_kind): Option<ContentKind> = None,
        /// Drop copies of documents and passages before anything else; the one in the better place stays.
        pub dedupe (with_dedupe): bool = true,
        /// Put where something was dropped. `None`: in code a comment of `…`, elsewhere nothing; empty:
        /// nothing at all.
        pub mark (with_mark): Option<String> = None,
        /// Spend the last token of the budget, at the price of half a word.
        pub fill (with_fill): bool = false,
        /// What stands for the items that a JSON array lost.
        pub omitted_items (with_omitted_items): Omission = Omission::default(),
        /// Score every token, also where the choice does not need it, so that
        /// [`Piece::nll`](super::Piece::nll) can be shown.
        pub trace (with_trace): bool = false,
    }
}

options! {
    /// Options of Microsoft's `llmlingua` 0.2.2, under its names and with its defaults: the result is
    /// the same, token for token.
    ///
    /// ```
    /// use prefold::hard::{LlmLingua, RankMethod, Request};
    ///
    /// let preset = LlmLingua::default().with_rank_method(RankMethod::Longllmlingua);
    /// let request = Request::new(["A long document."]).with_question("Who?").with_mode(preset);
    /// ```
    pub struct LlmLingua {
        /// Tokens per segment of the token level (LLMLingua, section 4.2).
        pub iterative_size (with_iterative_size): usize = 200,
        /// Contexts that are always kept.
        pub force_context_ids (with_force_context_ids): Vec<usize> = Vec::new(),
        /// Number of contexts that are forcibly kept. As in the reference only 0 has an effect.
        pub force_context_number (with_force_context_number): Option<usize> = None,
        /// Drop whole contexts.
        pub use_context_level_filter (with_use_context_level_filter): bool = true,
        /// Drop whole sentences.
        pub use_sentence_level_filter (with_use_sentence_level_filter): bool = false,
        /// Drop tokens.
        pub use_token_level_filter (with_use_token_level_filter): bool = true,
        /// Keep double line breaks.
        pub keep_split (with_keep_split): bool = false,
        /// Sentences at the start of the whole prompt that are kept.
        pub keep_first_sentence (with_keep_first_sentence): usize = 0,
        /// Sentences at the end of the whole prompt that are kept.
        pub keep_last_sentence (with_keep_last_sentence): usize = 0,
        /// Sentences kept in every context.
        pub keep_sentence_number (with_keep_sentence_number): usize = 0,
        /// What the score of a sentence that is kept is raised by.
        pub high_priority_bonus (with_high_priority_bonus): f64 = 100.0,
        /// Arithmetic on the target for the context level, an operator and a number, as in `+100`
        /// or `*1.5`.
        pub context_budget (with_context_budget): String = "+100".into(),
        /// What the sentence level takes of the target, as a factor.
        pub token_budget_ratio (with_token_budget_ratio): f64 = 1.4,
        /// Where the question stands when texts are ranked.
        pub condition_in_question (with_condition_in_question): Condition = Condition::default(),
        /// Judge tokens by what the question takes off their nll (LongLLMLingua, eq. 4).
        pub condition_compare (with_condition_compare): bool = false,
        /// The order of contexts in the result.
        pub reorder_context (with_reorder_context): Reorder = Reorder::default(),
        /// How much more the best context keeps than the middle one (LongLLMLingua, eq. 5).
        pub dynamic_context_compression_ratio (with_dynamic_context_compression_ratio): f64 = 0.0,
        /// Put the instruction in front of the condition.
        pub add_instruction (with_add_instruction): bool = false,
        /// How contexts and sentences are ranked.
        pub rank_method (with_rank_method): RankMethod = RankMethod::default(),
        /// A score for each context, the higher the better, in place of their ranking. Not an option of
        /// the reference.
        pub context_scores (with_context_scores): Vec<f64> = Vec::new(),
        /// Put the question at the end of the result.
        pub concate_question (with_concate_question): bool = true,
        /// Structured prompts: never drop a context that has an uncompressed segment.
        pub strict_preserve_uncompressed (with_strict_preserve_uncompressed): bool = true,
    }
}

/// How the probabilities of a word's tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(
    feature = "cli",
    derive(clap::ValueEnum),
    value(rename_all = "snake_case")
)]
#[serde(rename_all = "lowercase")]
pub enum TokenToWord {
    /// Their mean.
    #[default]
    Mean,
    /// That of the first.
    First,
}

options! {
    /// Options of LLMLingua-2 (arXiv 2403.12968) in Microsoft's `llmlingua` 0.2.2, under the names and with
    /// the defaults of its `compress_prompt_llmlingua2`: the result is the same, token for token. The model is
    /// a token classifier, as `microsoft/llmlingua-2-xlm-roberta-large-meetingbank`.
    ///
    /// ```
    /// use prefold::hard::{LlmLingua2, Request};
    ///
    /// let options = LlmLingua2::default().with_force_tokens(vec!["\n".into(), "?".into()]);
    /// let request = Request::new(["A long transcript."]).with_rate(0.33).with_mode(options);
    /// ```
    pub struct LlmLingua2 {
        /// Drop whole contexts first.
        pub use_context_level_filter (with_use_context_level_filter): bool = false,
        /// Drop words.
        pub use_token_level_filter (with_use_token_level_filter): bool = true,
        /// How many contexts the context level keeps; below 1 as the rates say.
        pub target_context (with_target_context): i64 = -1,
        /// The share of contexts that the context level keeps. 1: half-way between the whole and the rate.
        pub context_level_rate (with_context_level_rate): f64 = 1.0,
        /// The tokens that the context level keeps, as a share of all; below 1 as the rates say.
        pub context_level_target_token (with_context_level_target_token): i64 = -1,
        /// Contexts that are always kept.
        pub force_context_ids (with_force_context_ids): Vec<i64> = Vec::new(),
        /// Return every word with a 1 where it was kept, as one text.
        pub return_word_label (with_return_word_label): bool = false,
        /// Between two words of that text.
        pub word_sep (with_word_sep): String = "\t\t|\t\t".into(),
        /// Between a word of that text and its label.
        pub label_sep (with_label_sep): String = " ".into(),
        /// How the probabilities of a word's tokens become one.
        pub token_to_word (with_token_to_word): TokenToWord = TokenToWord::default(),
        /// Strings that are kept wherever they occur, at most 100.
        pub force_tokens (with_force_tokens): Vec<String> = Vec::new(),
        /// Keep every token that has a digit.
        pub force_reserve_digit (with_force_reserve_digit): bool = false,
        /// Of such strings that come to stand side by side keep one.
        pub drop_consecutive (with_drop_consecutive): bool = false,
        /// Keep the words whose probability is above this, from 0 to 1, instead of a share of them: the rate
        /// is then a result. `None`: as the budget says. Not an option of the reference.
        pub probability_threshold (with_probability_threshold): Option<f64> = None,
        /// Tokens after which a text of more than 510 tokens may be cut.
        pub chunk_end_tokens (with_chunk_end_tokens): Vec<String> = vec![".".into(), "\n".into()],
        /// Tokens before and after a chunk of a text of more than 510 tokens that the classifier reads with it,
        /// at most 192 and a quarter of what it reads at a time; chunks are so much shorter. Not an option of
        /// the reference, where each chunk is read by itself.
        pub overlap (with_overlap): usize = 0,
        /// Let the context level keep what answers the question best, by [`Ranker`], not the contexts whose
        /// words are likeliest to be kept. Needs a question and `use_context_level_filter`; of one context there
        /// is nothing to choose. Not an option of the reference.
        ///
        /// [`Ranker`]: crate::hard::Ranker
        pub rank_by_question (with_rank_by_question): bool = false,
    }
}

/// What selects the text to keep, with the options of that mode.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Mode {
    /// prefold's own: coarse to fine under one exact budget, a ceiling that is never passed. Words,
    /// figures, lines and rows are kept or dropped whole, so that a few tokens may be left.
    Exact(Exact),
    /// Token for token what Microsoft's `llmlingua` 0.2.2 does.
    LlmLingua(LlmLingua),
    /// Token for token what Microsoft's `llmlingua` 0.2.2 does with `use_llmlingua2=True`: a token classifier
    /// reads the contexts, and neither instruction nor, but for [`LlmLingua2::rank_by_question`], question.
    LlmLingua2(LlmLingua2),
}

impl Mode {
    /// `exact`, `llmlingua` or `llmlingua2`.
    pub fn name(&self) -> &'static str {
        match self {
            Mode::Exact(_) => "exact",
            Mode::LlmLingua(_) => "llmlingua",
            Mode::LlmLingua2(_) => "llmlingua2",
        }
    }
}

impl Default for Mode {
    fn default() -> Self {
        Mode::Exact(Exact::default())
    }
}

impl From<Exact> for Mode {
    fn from(options: Exact) -> Self {
        Mode::Exact(options)
    }
}

impl From<LlmLingua> for Mode {
    fn from(options: LlmLingua) -> Self {
        Mode::LlmLingua(options)
    }
}

impl From<LlmLingua2> for Mode {
    fn from(options: LlmLingua2) -> Self {
        Mode::LlmLingua2(options)
    }
}

/// Refuses a number that is not finite.
fn finite(name: &str, value: f64) -> Result<()> {
    match value.is_finite() {
        true => Ok(()),
        false => Err(Error::input(
            format!("{name} {value}"),
            "expected a finite number",
        )),
    }
}

/// Refuses scores that are not finite, or not one for each context.
fn check_scores(scores: &[f64], contexts: usize) -> Result<()> {
    if !scores.is_empty() && scores.len() != contexts {
        return Err(Error::input(
            "context_scores",
            format!(
                "{} scores for {contexts} contexts; give one for each",
                scores.len()
            ),
        ));
    }
    scores
        .iter()
        .try_for_each(|&score| finite("context_scores", score))
}

impl Exact {
    /// Refuses values outside their range.
    pub(super) fn check(&self, contexts: usize) -> Result<()> {
        finite("high_priority_bonus", self.high_priority_bonus)?;
        check_scores(&self.context_scores, contexts)?;
        match self.force_contexts.iter().find(|&&i| i >= contexts) {
            None => Ok(()),
            Some(i) => Err(Error::input(
                format!("force_contexts {i}"),
                format!("the prompt has {contexts} contexts, counted from 0"),
            )),
        }
    }
}

impl LlmLingua2 {
    /// Leaves a chunk 128 of 512 tokens.
    const MAX_OVERLAP: usize = 192;

    /// Refuses values outside their range, and what has no effect.
    pub(super) fn check(&self, question: &str) -> Result<()> {
        if self.context_level_rate.is_nan() || self.context_level_rate < 0.0 {
            return Err(Error::input(
                format!("context_level_rate {}", self.context_level_rate),
                "the share of contexts to keep is 0 or more",
            ));
        }
        if self.overlap > Self::MAX_OVERLAP {
            return Err(Error::input(
                format!("overlap {}", self.overlap),
                format!("at most {} tokens", Self::MAX_OVERLAP),
            ));
        }
        if self.rank_by_question && question.trim().is_empty() {
            return Err(Error::input(
                "rank_by_question",
                "no question was given; give one, or leave this out",
            ));
        }
        if self.rank_by_question && !self.use_context_level_filter {
            return Err(Error::input(
                "rank_by_question",
                "it has no effect without use_context_level_filter; leave it out",
            ));
        }
        match self.probability_threshold {
            Some(threshold) if !(0.0..=1.0).contains(&threshold) => Err(Error::input(
                format!("probability_threshold {threshold}"),
                "a probability lies between 0 and 1",
            )),
            _ => Ok(()),
        }
    }
}

impl LlmLingua {
    /// Refuses values outside their range.
    pub(super) fn check(&self, contexts: usize) -> Result<()> {
        check_scores(&self.context_scores, contexts)?;
        if self.iterative_size == 0 {
            return Err(Error::input("iterative_size 0", "expected 1 token or more"));
        }
        finite("token_budget_ratio", self.token_budget_ratio)?;
        finite("high_priority_bonus", self.high_priority_bonus)?;
        finite(
            "dynamic_context_compression_ratio",
            self.dynamic_context_compression_ratio,
        )
    }
}
