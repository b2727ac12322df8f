//! The options of hard compression as flags: the library's names in kebab case without `use_`; a
//! switch that is on by default is off by `--no-…`.

use std::sync::LazyLock;

use crate::hard::{
    Budget, Condition, ContentKind, Count, Effort, Exact, Granularity, LlmLingua, LlmLingua2, Mode,
    Omission, RankMethod, Ranker, Reorder, TokenToWord,
};
use clap::ValueEnum;
use clap::builder::PossibleValue;

/// A share as a number, `0.5`, or in per cent, `50%`.
pub fn share(text: &str) -> Result<f64, String> {
    let (number, scale) = match text.strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text, 1.0),
    };
    match number.trim().parse::<f64>() {
        Ok(number) => Ok(number / scale),
        Err(_) => Err("expected a number or a percentage, as 0.5 or 50%".into()),
    }
}

/// Reads whose tokens are counted: a name, or the path of a tokenizer.json.
fn whose(name: &str) -> Result<Count, crate::Error> {
    match Count::from_name(name) {
        Some(count) => Ok(count),
        None if name.contains(['/', '\\', '.']) => Count::from_file(name.as_ref()),
        None => Err(crate::Error::Unsupported {
            what: format!("`{name}`"),
            have: format!(
                "{}, and any tokenizer.json by its path",
                Count::NAMES.join(", ")
            ),
        }),
    }
}

#[derive(clap::Args, Debug)]
pub struct Flags {
    /// Share of the tokens to keep, above 0 and at most 1, also as 50% [default: 0.5]
    #[arg(long, short, value_name = "SHARE", value_parser = share, allow_negative_numbers = true, help_heading = BUDGET)]
    rate: Option<f64>,
    /// Tokens to keep, in place of a share
    #[arg(long, short, value_name = "TOKENS", allow_negative_numbers = true, conflicts_with = "rate", help_heading = BUDGET)]
    target_token: Option<usize>,
    /// Do token for token what Microsoft's `llmlingua` 0.2.2 does, instead of keeping the budget exactly
    #[arg(long, help_heading = BUDGET)]
    reference: bool,
    /// Do token for token what it does with `use_llmlingua2=True`: the model is a token classifier, as
    /// microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank
    #[arg(long, conflicts_with = "reference", help_heading = BUDGET)]
    llmlingua2: bool,

    /// How far down to go before cutting inside a unit [default: passage]
    #[arg(long, value_name = "UNIT", value_enum,
        conflicts_with_all = ["reference", "llmlingua2"], help_heading = EXACT)]
    granularity: Option<Granularity>,
    /// Whose tokens the budget counts: cl100k, o200k, scorer, or those of a tokenizer.json [default: cl100k]
    #[arg(long, value_name = "WHOSE|FILE", value_parser = whose,
        conflicts_with_all = ["reference", "llmlingua2"], help_heading = EXACT)]
    count: Option<Count>,
    /// A string that is kept wherever it stands; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true,
        conflicts_with = "reference", help_heading = EXACT)]
    force_token: Vec<String>,
    /// Keep every digit
    #[arg(long, conflicts_with = "reference", help_heading = EXACT)]
    force_digits: bool,
    /// What the contexts are; `chat`: the one FILE is a conversation, as --messages takes it
    /// [default: what each looks like]
    #[arg(long = "as", value_name = "KIND", value_enum,
        conflicts_with_all = ["reference", "llmlingua2"], help_heading = EXACT)]
    as_kind: Option<AsKind>,
    /// Put TEXT where something was dropped; empty: nothing [default: `…` in a comment of code, else
    /// nothing]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true,
        conflicts_with_all = ["reference", "llmlingua2"], help_heading = EXACT)]
    mark: Option<String>,
    /// Treat copies of documents and passages as anything else
    #[arg(long, conflicts_with_all = ["reference", "llmlingua2"], help_heading = EXACT)]
    no_dedupe: bool,
    /// Spend the last token of the budget, at the price of half a word
    #[arg(long, conflicts_with_all = ["reference", "llmlingua2"], help_heading = BUDGET)]
    fill: bool,
    /// What stands for the items that a JSON array lost: nothing, the string "…", or their number
    /// [default: silent]
    #[arg(long, value_name = "WHAT", value_enum,
        conflicts_with_all = ["reference", "llmlingua2"], help_heading = EXACT)]
    omitted_items: Option<Omission>,

    /// What the ranking may cost: words alone, the model near the cut, or the model on all that may be
    /// chosen [default: balanced]
    #[arg(long, value_name = "EFFORT", value_enum,
        conflicts_with_all = ["reference", "llmlingua2"], help_heading = RANKING)]
    effort: Option<Effort>,
    /// Weights of a ranker of your own, by `prefold train rank` [default: the built-in ranker]
    #[arg(long, value_name = "FILE", value_parser = |path: &str| Ranker::open(path.as_ref()),
        conflicts_with_all = ["reference", "llmlingua2"], help_heading = RANKING)]
    ranker: Option<Ranker>,
    /// Stop before the budget is full where what is left is far below the best
    #[arg(long, conflicts_with_all = ["reference", "llmlingua2"], help_heading = BUDGET)]
    enough: bool,
    /// How contexts and sentences are ranked [default: with a question the learned ranker, without one
    /// surprisal; with --reference llmlingua]
    #[arg(long, conflicts_with = "llmlingua2", value_name = "METHOD", value_enum, help_heading = RANKING)]
    rank_method: Option<RankMethod>,
    /// The order of contexts in the result [default: with a question the best last, else as given; with
    /// --reference as given]
    #[arg(long, conflicts_with = "llmlingua2", value_name = "ORDER", value_enum, help_heading = RANKING)]
    reorder_context: Option<Reorder>,

    /// Drop no whole contexts
    #[arg(long, help_heading = LEVELS)]
    no_context_level_filter: bool,
    /// Contexts that are always kept, counted from 0
    #[arg(long, value_name = "0,2,…", value_delimiter = ',', help_heading = LEVELS)]
    force_context_ids: Option<Vec<usize>>,
    /// Sentences kept at the start of the text [default: 0]
    #[arg(long, conflicts_with = "llmlingua2", value_name = "N", help_heading = LEVELS)]
    keep_first_sentence: Option<usize>,
    /// Sentences kept at its end [default: 0]
    #[arg(long, conflicts_with = "llmlingua2", value_name = "N", help_heading = LEVELS)]
    keep_last_sentence: Option<usize>,
    /// Sentences kept in every context [default: 0]
    #[arg(long, conflicts_with = "llmlingua2", value_name = "N", help_heading = LEVELS)]
    keep_sentence_number: Option<usize>,
    /// Bonus of the kept sentences in the ranking [default: 100]
    #[arg(long, conflicts_with = "llmlingua2", value_name = "X", allow_negative_numbers = true, help_heading = LEVELS)]
    high_priority_bonus: Option<f64>,
    /// Leave the question out of the result
    #[arg(long, conflicts_with = "llmlingua2", help_heading = LEVELS)]
    no_concate_question: bool,

    /// Where the question stands while contexts are ranked; `…_condition` conditions the token level too
    /// [default: none]
    #[arg(long, value_name = "WHERE", value_enum,
        requires = "reference", help_heading = REFERENCE)]
    condition_in_question: Option<Condition>,
    /// Subtract the unconditional surprisal from the conditional one
    #[arg(long, requires = "reference", help_heading = REFERENCE)]
    condition_compare: bool,
    /// Put the instruction in front of the condition
    #[arg(long, requires = "reference", help_heading = REFERENCE)]
    add_instruction: bool,
    /// Drop whole sentences before tokens
    #[arg(long, requires = "reference", help_heading = REFERENCE)]
    sentence_level_filter: bool,
    /// Drop no tokens
    #[arg(long, requires = "reference", help_heading = REFERENCE)]
    no_token_level_filter: bool,
    /// How many contexts are always kept
    #[arg(long, value_name = "N", requires = "reference", help_heading = REFERENCE)]
    force_context_number: Option<usize>,
    /// Arithmetic on the target for the context level, as `+100` or `*1.5` [default: +100]
    #[arg(long, value_name = "SUM", allow_hyphen_values = true,
        requires = "reference", help_heading = REFERENCE)]
    context_budget: Option<String>,
    /// What the sentence level keeps, as a multiple of the target [default: 1.4]
    #[arg(long, value_name = "X", allow_negative_numbers = true,
        requires = "reference", help_heading = REFERENCE)]
    token_budget_ratio: Option<f64>,
    /// How much better ranked contexts are compressed less, 0 for all alike [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true,
        requires = "reference", help_heading = REFERENCE)]
    dynamic_context_compression_ratio: Option<f64>,
    /// Tokens that are scored and cut at a time [default: 200]
    #[arg(long, value_name = "TOKENS", requires = "reference", help_heading = REFERENCE)]
    iterative_size: Option<usize>,
    /// Keep double line breaks
    #[arg(long, requires = "reference", help_heading = REFERENCE)]
    keep_split: bool,
    /// Let --structured drop contexts that hold a segment marked as uncompressed
    #[arg(long, requires_all = ["structured", "reference"], help_heading = REFERENCE)]
    no_strict_preserve_uncompressed: bool,

    /// How many contexts are kept before words are dropped [default: half-way to the budget]
    #[arg(long, value_name = "N", requires = "llmlingua2", help_heading = LLMLINGUA2)]
    target_context: Option<i64>,
    /// Which share of the contexts is kept before words are dropped [default: half-way to the budget]
    #[arg(long, value_name = "SHARE", value_parser = share, requires = "llmlingua2", help_heading = LLMLINGUA2)]
    context_level_rate: Option<f64>,
    /// How the probabilities of a word's tokens become one [default: mean]
    #[arg(long, value_name = "HOW", value_enum, requires = "llmlingua2", help_heading = LLMLINGUA2)]
    token_to_word: Option<TokenToWord>,
    /// Keep the words whose probability is above this, from 0 to 1, instead of a share of them
    #[arg(long, value_name = "P", value_parser = share, requires = "llmlingua2",
        conflicts_with_all = ["rate", "target_token"], help_heading = LLMLINGUA2)]
    probability_threshold: Option<f64>,
    /// Of kept strings (--force-token) that come to stand side by side keep one
    #[arg(long, requires = "llmlingua2", help_heading = LLMLINGUA2)]
    drop_consecutive: bool,
    /// Tokens on either side of a chunk of a long text that are read with it [default: 0]
    #[arg(long, value_name = "TOKENS", requires = "llmlingua2", help_heading = LLMLINGUA2)]
    overlap: Option<usize>,
    /// Keep the contexts that answer the question best, not those whose words are likeliest to be kept
    #[arg(long, requires_all = ["llmlingua2", "question"],
        conflicts_with = "no_context_level_filter", help_heading = LLMLINGUA2)]
    rank_by_question: bool,
    /// A token after which a text of more than 510 tokens may be cut; may be repeated [default: `.` and a
    /// line break]
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true,
        requires = "llmlingua2", help_heading = LLMLINGUA2)]
    chunk_end_token: Vec<String>,
}

const BUDGET: &str = "Budget";
const EXACT: &str = "Exact budget";
const RANKING: &str = "Ranking";
const LEVELS: &str = "Levels";
const REFERENCE: &str = "Only with --reference";
const LLMLINGUA2: &str = "Only with --llmlingua2";

/// What `--as` names: the form of all contexts, or a conversation in place of contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AsKind {
    Contexts(ContentKind),
    Chat,
}

impl ValueEnum for AsKind {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: LazyLock<Vec<AsKind>> = LazyLock::new(|| {
            let contexts = ContentKind::value_variants().iter();
            contexts
                .map(|&kind| AsKind::Contexts(kind))
                .chain([AsKind::Chat])
                .collect()
        });
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            AsKind::Contexts(kind) => kind.to_possible_value(),
            AsKind::Chat => Some(PossibleValue::new("chat")),
        }
    }
}

impl Flags {
    /// Whether the file is a conversation.
    pub fn is_chat(&self) -> bool {
        self.as_kind == Some(AsKind::Chat)
    }

    /// What the library is asked for; what was not given has its default there. With `trace` every
    /// token is scored.
    pub fn budget_and_mode(self, trace: bool) -> (Budget, Mode) {
        let budget = match (self.target_token, self.rate) {
            (Some(tokens), _) => Budget::Tokens(tokens),
            (None, Some(rate)) => Budget::Rate(rate),
            (None, None) => Budget::default(),
        };
        let mode = if self.reference {
            self.llmlingua().into()
        } else if self.llmlingua2 {
            self.llmlingua2().into()
        } else {
            self.exact().with_trace(trace).into()
        };
        (budget, mode)
    }

    fn exact(self) -> Exact {
        let mut o = Exact::default();
        set(&mut o.granularity, self.granularity);
        set(&mut o.count, self.count);
        set(&mut o.effort, self.effort);
        o.enough = self.enough;
        o.ranker = self.ranker;
        o.rank_method = self.rank_method;
        o.reorder = self.reorder_context;
        o.keep_question = !self.no_concate_question;
        set(&mut o.force_contexts, self.force_context_ids);
        o.force_tokens = self.force_token;
        o.force_digits = self.force_digits;
        o.as_kind = match self.as_kind {
            Some(AsKind::Contexts(kind)) => Some(kind),
            Some(AsKind::Chat) | None => None,
        };
        o.mark = self.mark;
        o.dedupe = !self.no_dedupe;
        o.fill = self.fill;
        set(&mut o.omitted_items, self.omitted_items);
        set(&mut o.keep_first_sentence, self.keep_first_sentence);
        set(&mut o.keep_last_sentence, self.keep_last_sentence);
        set(&mut o.keep_sentence_number, self.keep_sentence_number);
        set(&mut o.high_priority_bonus, self.high_priority_bonus);
        o.per_context = self.no_context_level_filter;
        o
    }

    fn llmlingua2(self) -> LlmLingua2 {
        // As `compress_prompt` hands it on.
        let filter = !self.no_context_level_filter;
        let mut o = LlmLingua2::default().with_use_context_level_filter(filter);
        set(&mut o.target_context, self.target_context);
        set(&mut o.context_level_rate, self.context_level_rate);
        let ids = self.force_context_ids.unwrap_or_default();
        o.force_context_ids = ids.into_iter().map(|id| id as i64).collect();
        set(&mut o.token_to_word, self.token_to_word);
        o.force_tokens = self.force_token;
        o.force_reserve_digit = self.force_digits;
        o.drop_consecutive = self.drop_consecutive;
        o.probability_threshold = self.probability_threshold;
        set(&mut o.overlap, self.overlap);
        o.rank_by_question = self.rank_by_question;
        if !self.chunk_end_token.is_empty() {
            o.chunk_end_tokens = self.chunk_end_token;
        }
        o
    }

    fn llmlingua(self) -> LlmLingua {
        let mut o = LlmLingua::default();
        set(&mut o.iterative_size, self.iterative_size);
        set(&mut o.force_context_ids, self.force_context_ids);
        o.force_context_number = self.force_context_number;
        o.use_context_level_filter = !self.no_context_level_filter;
        o.use_sentence_level_filter = self.sentence_level_filter;
        o.use_token_level_filter = !self.no_token_level_filter;
        o.keep_split = self.keep_split;
        set(&mut o.keep_first_sentence, self.keep_first_sentence);
        set(&mut o.keep_last_sentence, self.keep_last_sentence);
        set(&mut o.keep_sentence_number, self.keep_sentence_number);
        set(&mut o.high_priority_bonus, self.high_priority_bonus);
        set(&mut o.context_budget, self.context_budget);
        set(&mut o.token_budget_ratio, self.token_budget_ratio);
        set(&mut o.condition_in_question, self.condition_in_question);
        o.condition_compare = self.condition_compare;
        set(&mut o.reorder_context, self.reorder_context);
        set(
            &mut o.dynamic_context_compression_ratio,
            self.dynamic_context_compression_ratio,
        );
        o.add_instruction = self.add_instruction;
        set(&mut o.rank_method, self.rank_method);
        o.concate_question = !self.no_concate_question;
        o.strict_preserve_uncompressed = !self.no_strict_preserve_uncompressed;
        o
    }
}

/// Sets an option that was given.
fn set<T>(option: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *option = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Precision;
    use crate::prefix::{Dtype, KRope, KeepBy, Method};
    use crate::train::schedule::Schedule;
    use clap::{Parser, ValueEnum};
    use serde::Serialize;

    #[derive(Parser)]
    struct Line {
        #[arg(long)]
        structured: bool,
        #[command(flatten)]
        flags: Flags,
    }

    fn asked(arguments: &[&str]) -> (Budget, Mode) {
        let words = std::iter::once("prefold").chain(arguments.iter().copied());
        let line = Line::try_parse_from(words).unwrap();
        line.flags.budget_and_mode(false)
    }

    #[test]
    fn nothing_given_means_the_librarys_defaults() {
        assert_eq!(asked(&[]), (Budget::default(), Mode::default()));
        let llmlingua = LlmLingua::default().into();
        assert_eq!(asked(&["--reference"]), (Budget::default(), llmlingua));
    }

    #[test]
    fn every_flag_reaches_its_option() {
        let all = asked(&[
            "--rate=0.25",
            "--reference",
            "--rank-method=longllmlingua",
            "--condition-in-question=after_condition",
            "--condition-compare",
            "--add-instruction",
            "--reorder-context=two_stage",
            "--no-context-level-filter",
            "--sentence-level-filter",
            "--no-token-level-filter",
            "--force-context-ids=0,2",
            "--force-context-number=3",
            "--context-budget=*1.5",
            "--keep-first-sentence=1",
            "--keep-last-sentence=2",
            "--keep-sentence-number=4",
            "--high-priority-bonus=50",
            "--token-budget-ratio=1.1",
            "--dynamic-context-compression-ratio=0.3",
            "--iterative-size=100",
            "--keep-split",
            "--no-concate-question",
            "--no-strict-preserve-uncompressed",
            "--structured",
        ]);
        let want = LlmLingua::default()
            .with_iterative_size(100)
            .with_force_context_ids(vec![0, 2])
            .with_force_context_number(Some(3))
            .with_use_context_level_filter(false)
            .with_use_sentence_level_filter(true)
            .with_use_token_level_filter(false)
            .with_keep_split(true)
            .with_keep_first_sentence(1)
            .with_keep_last_sentence(2)
            .with_keep_sentence_number(4)
            .with_high_priority_bonus(50.0)
            .with_context_budget("*1.5".into())
            .with_token_budget_ratio(1.1)
            .with_condition_in_question(Condition::AfterCondition)
            .with_condition_compare(true)
            .with_reorder_context(Reorder::TwoStage)
            .with_dynamic_context_compression_ratio(0.3)
            .with_add_instruction(true)
            .with_rank_method(RankMethod::Longllmlingua)
            .with_concate_question(false)
            .with_strict_preserve_uncompressed(false);
        assert_eq!(all, (Budget::Rate(0.25), want.into()));
        let exact = asked(&[
            "--target-token=90",
            "--granularity=token",
            "--count=scorer",
            "--force-token=\n",
            "--force-token=-",
            "--force-digits",
            "--rank-method=bm25",
            "--reorder-context=reverse",
            "--no-context-level-filter",
            "--force-context-ids=0,2",
            "--keep-first-sentence=1",
            "--keep-last-sentence=2",
            "--keep-sentence-number=4",
            "--high-priority-bonus=50",
            "--no-concate-question",
            "--as=csv",
            "--mark=[…]",
            "--no-dedupe",
            "--fill",
            "--omitted-items=count",
        ]);
        let want = Exact::default()
            .with_as_kind(Some(ContentKind::Csv))
            .with_mark(Some("[…]".into()))
            .with_dedupe(false)
            .with_fill(true)
            .with_omitted_items(Omission::Count)
            .with_granularity(Granularity::Token)
            .with_count(Count::Scorer)
            .with_force_tokens(vec!["\n".into(), "-".into()])
            .with_force_digits(true)
            .with_rank_method(Some(RankMethod::Bm25))
            .with_reorder(Some(Reorder::Reverse))
            .with_per_context(true)
            .with_force_contexts(vec![0, 2])
            .with_keep_first_sentence(1)
            .with_keep_last_sentence(2)
            .with_keep_sentence_number(4)
            .with_high_priority_bonus(50.0)
            .with_keep_question(false);
        assert_eq!(exact, (Budget::Tokens(90), want.into()));
        let classified = asked(&[
            "--llmlingua2",
            "--no-context-level-filter",
            "--force-context-ids=0,2",
            "--target-context=3",
            "--context-level-rate=50%",
            "--token-to-word=first",
            "--force-token=?",
            "--force-digits",
            "--drop-consecutive",
            "--probability-threshold=0.4",
            "--overlap=64",
            "--chunk-end-token=!",
        ]);
        let want = LlmLingua2::default()
            .with_force_context_ids(vec![0, 2])
            .with_target_context(3)
            .with_context_level_rate(0.5)
            .with_token_to_word(TokenToWord::First)
            .with_force_tokens(vec!["?".into()])
            .with_force_reserve_digit(true)
            .with_drop_consecutive(true)
            .with_probability_threshold(Some(0.4))
            .with_overlap(64)
            .with_chunk_end_tokens(vec!["!".into()]);
        assert_eq!(classified, (Budget::default(), want.into()));
    }

    #[test]
    fn json_and_the_command_line_have_the_same_names() {
        fn check<T: ValueEnum + Serialize>() {
            for value in T::value_variants() {
                let flag = value.to_possible_value().expect("a name");
                assert_eq!(serde_json::to_value(value).unwrap(), flag.get_name());
            }
        }
        check::<Condition>();
        check::<ContentKind>();
        check::<Omission>();
        check::<Effort>();
        check::<Granularity>();
        check::<RankMethod>();
        check::<Reorder>();
        check::<Dtype>();
        check::<KRope>();
        check::<KeepBy>();
        check::<Method>();
        check::<Precision>();
        check::<Schedule>();
        for name in Count::NAMES {
            assert_eq!(whose(name).unwrap().name(), name);
            assert_eq!(serde_json::to_value(whose(name).unwrap()).unwrap(), name);
            assert_eq!(
                serde_json::from_value::<Count>(name.into()).unwrap().name(),
                name
            );
        }
        for (name, says) in [("gpt4", "o200k"), ("no/such.json", "no/such.json")] {
            let error = whose(name).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn reference_and_exact_options_exclude_each_other() {
        for flag in [
            "--granularity=token",
            "--count=scorer",
            "--force-token=x",
            "--force-digits",
            "--as=csv",
            "--mark=x",
            "--no-dedupe",
            "--fill",
            "--omitted-items=count",
        ] {
            assert!(Line::try_parse_from(["prefold", "--reference", flag]).is_err());
        }
        for flag in [
            "--condition-in-question=after",
            "--condition-compare",
            "--add-instruction",
            "--sentence-level-filter",
            "--no-token-level-filter",
            "--force-context-number=3",
            "--context-budget=*1.5",
            "--token-budget-ratio=1.1",
            "--dynamic-context-compression-ratio=0.3",
            "--iterative-size=100",
            "--keep-split",
            "--no-strict-preserve-uncompressed",
        ] {
            let line = |mode: &str| Line::try_parse_from(["prefold", "--structured", flag, mode]);
            assert!(line("--reference").is_ok(), "{flag}");
            let refused = line("--rate=0.5").err().unwrap().to_string();
            assert!(refused.contains("--reference"), "{refused}");
        }
    }
}
