//! LLMLingua-2 (arXiv 2403.12968), token for token: `compress_prompt` of Microsoft's `llmlingua` 0.2.2 with
//! `use_llmlingua2=True`. A token classifier says of each token how likely it is to be kept; words above a
//! percentile of their chunk stay.
//!
//! Its oddities are kept where they show in the result, and named where they are kept. Where it raises an
//! exception over a text (an empty one, one without a known word, `<|endoftext|>`), the text is compressed.

mod forced;
mod percentile;
mod words;

use crate::error::{Error, Result};
use crate::model::EncoderInput;
use crate::model::config::Family;
use crate::text::{Pieces, counts::count_cl100k};

use super::exact::rank::Ranker;
use super::options::{LlmLingua2, TokenToWord};
use super::request::{Budget, Request};
use super::result::{Compressed, KeptContext, Piece};
use forced::Forced;
use percentile::{Probability, percentile};
use words::{Words, regex_words};

/// Tokens that the reference's classifiers read at a time, special ones included.
const WINDOW: usize = 512;
/// Tokens that can be added for strings that must stay (`max_force_token`).
const ADDED: usize = 100;

/// A token classifier of two classes: all that LLMLingua-2 needs of a model.
pub(crate) trait TokenClassifier: Send + Sync {
    /// Its family, which says how its tokenizer marks words.
    fn family(&self) -> Family;

    /// Longest sequence, in tokens.
    fn max_positions(&self) -> usize;

    /// The probability of the second class, "keep", for each token of each sequence.
    ///
    /// # Errors
    /// [`Error::Input`] for a text longer than the model's positions; [`Error::Unsupported`] for a model
    /// without such a head; [`Error::Device`] if the device fails.
    fn keep_probabilities(&self, inputs: &[EncoderInput]) -> Result<Vec<Vec<f32>>>;
}

/// The pieces of a model's `tokenizer.json`, with the reference's `[NEW0]` to `[NEW99]` added.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::Format`] if it is not a tokenizer.
pub(crate) fn pieces(tokenizer: &std::path::Path) -> Result<Pieces> {
    let added: Vec<String> = (0..ADDED).map(added).collect();
    Pieces::from_file(tokenizer, &added)
}

fn added(i: usize) -> String {
    format!("[NEW{i}]")
}

/// The id of each piece.
fn ids(pieces: &Pieces) -> impl Fn(&str) -> u32 {
    let unknown = ["[UNK]", "<unk>"];
    let unknown = unknown.iter().find_map(|name| pieces.id(name));
    move |piece| match pieces.is_added(piece) {
        true => EncoderInput::MEAN,
        false => pieces.id(piece).or(unknown).unwrap_or(0),
    }
}

/// Words as they are read in chunks, to train a classifier on.
#[cfg(feature = "train")]
pub(crate) struct Reading {
    pub input: EncoderInput,
    /// The word of each token between the marks.
    pub words: Vec<usize>,
}

/// The chunks of a text that is given as words, of at most `window` tokens, the marks around each included.
///
/// # Errors
/// [`Error::Format`] for a tokenizer that does not work on this text.
#[cfg(feature = "train")]
pub(crate) fn readings(pieces: &Pieces, words: &[String], window: usize) -> Result<Vec<Reading>> {
    let id = ids(pieces);
    let room = window.clamp(3, WINDOW) - 2;
    let [first, last] = ["[CLS]", "[SEP]"].map(&id);
    let mut tokens: Vec<(u32, usize)> = Vec::new();
    for (word, text) in words.iter().enumerate() {
        tokens.extend(pieces.split(text)?.iter().map(|piece| (id(piece), word)));
    }
    let reading = |chunk: &[(u32, usize)]| {
        let (own, words): (Vec<u32>, Vec<usize>) = chunk.iter().copied().unzip();
        let ids = [&[first][..], &own, &[last]].concat();
        Reading {
            input: ids.into(),
            words,
        }
    };
    Ok(tokens.chunks(room).map(reading).collect())
}

/// What every step needs.
pub(crate) struct Classified<'a> {
    pub classifier: &'a dyn TokenClassifier,
    pub pieces: &'a Pieces,
    pub options: &'a LlmLingua2,
}

/// A part of a context that is read at a time.
struct Chunk {
    text: String,
    /// Pieces on either side that are read with it ([`LlmLingua2::overlap`]).
    around: [Vec<String>; 2],
}

/// A chunk's words and which of them stay.
struct Judged {
    words: Vec<String>,
    labels: Vec<bool>,
    text: String,
    /// Nothing of it was put to the vote.
    untouched: bool,
}

/// A share, and tokens where the budget says so.
fn rate_and_target(budget: Budget) -> (f64, Option<usize>) {
    match budget {
        Budget::Rate(rate) => (rate, None),
        Budget::Tokens(target) => (0.5, Some(target)),
    }
}

impl Classified<'_> {
    pub(crate) fn compress(&self, request: &Request) -> Result<Compressed> {
        if request.structured {
            return Err(Error::Unsupported {
                what: "tags in mode llmlingua2".into(),
                have: "untagged contexts; modes exact and llmlingua read tags".into(),
            });
        }
        let options = self.options;
        let forced = self.forced()?;
        let mut ends: Vec<&str> = options
            .chunk_end_tokens
            .iter()
            .map(String::as_str)
            .collect();
        for end in &options.chunk_end_tokens {
            let mapped = forced.map.iter().find(|(original, _)| original == end);
            ends.extend(mapped.map(|(_, added)| added.as_str()));
        }

        let contexts = &request.contexts;
        let before: usize = contexts.iter().map(|text| count_cl100k(text)).sum();
        let mut chunks = Vec::with_capacity(contexts.len());
        for context in contexts {
            let mut text = context.clone();
            for (original, added) in &forced.map {
                text = text.replace(original.as_str(), added);
            }
            chunks.push(self.chunks(&text, &ends)?);
        }
        let (mut rate, target) = rate_and_target(request.budget);

        let mut kept: Vec<usize> = (0..contexts.len()).collect();
        let mut dropped_words = Vec::new();
        if options.use_context_level_filter && contexts.len() != 1 {
            let (chosen, words) = self.choose(request, &chunks, &forced, before)?;
            let left: usize = chosen
                .iter()
                .flat_map(|&i| &chunks[i])
                .map(|chunk| count_cl100k(&chunk.text))
                .sum();
            if let Some(target) = target {
                rate = share(target, left)?;
            }
            (kept, dropped_words) = (chosen, words);
        } else if let Some(target) = target.filter(|&target| target > 0) {
            rate = share(target, before)?;
        }

        // What a threshold drops is not a share.
        let reduce = match options.probability_threshold {
            _ if !options.use_token_level_filter => 0.0,
            Some(_) => 1.0,
            None => (1.0 - rate).max(0.0),
        };
        let mut judged: Vec<Vec<Judged>> = Vec::with_capacity(kept.len());
        if reduce <= 0.0 {
            for &i in &kept {
                judged.push(
                    chunks[i]
                        .iter()
                        .map(|chunk| whole(&forced.restored(&chunk.text)))
                        .collect(),
                );
            }
        } else {
            let all: Vec<&Chunk> = kept.iter().flat_map(|&i| &chunks[i]).collect();
            let words = self.words(&all, &forced)?;
            let mut done = words
                .into_iter()
                .map(|words| self.judge(words, &forced, reduce))
                .collect::<Result<Vec<_>>>()?
                .into_iter();
            for &i in &kept {
                judged.push(done.by_ref().take(chunks[i].len()).collect());
            }
        }
        Ok(self.result(request, before, &kept, judged, dropped_words))
    }

    fn forced(&self) -> Result<Forced<'_>> {
        let strings = &self.options.force_tokens;
        if strings.len() > ADDED {
            return Err(Error::input(
                format!("force_tokens: {} strings", strings.len()),
                format!("at most {ADDED}"),
            ));
        }
        let mut map: Vec<(String, String)> = Vec::new();
        for (i, string) in strings.iter().enumerate() {
            if self.pieces.split(string)?.len() == 1 {
                continue;
            }
            // As in a Python dictionary the last of two alike counts, in the place of the first.
            match map.iter_mut().find(|(original, _)| original == string) {
                Some((_, token)) => *token = added(i),
                None => map.push((string.clone(), added(i))),
            }
        }
        Ok(Forced { strings, map })
    }

    /// Texts of up to 510 tokens, what is read around them included, cut after one of `ends` where there is one
    /// (`__chunk_context`).
    fn chunks(&self, text: &str, ends: &[&str]) -> Result<Vec<Chunk>> {
        let pieces = self.pieces.split(text)?;
        let all = self.window() - 2;
        // A short text has nothing around it. A classifier that reads a few tokens keeps most of them.
        let overlap = match pieces.len() > all {
            true => self.options.overlap.min(all / 4),
            false => 0,
        };
        // A chunk has one piece more than there is room for, as in the reference, whose own end it costs.
        let room = all - 2 * overlap - usize::from(overlap > 0);
        let mut chunks = Vec::new();
        let mut start = 0;
        while start < pieces.len() {
            let mut end = start + room;
            if end > pieces.len() - 1 {
                end = pieces.len() - 1;
            } else {
                let at_end = |&at: &usize| ends.contains(&pieces[at].as_str());
                end = (start + 1..=end).rev().find(at_end).unwrap_or(end);
            }
            let before = &pieces[start.saturating_sub(overlap)..start];
            let after = &pieces[end + 1..pieces.len().min(end + 1 + overlap)];
            chunks.push(Chunk {
                text: self.pieces.join(pieces[start..=end].to_vec())?,
                around: [before.to_vec(), after.to_vec()],
            });
            start = end + 1;
        }
        Ok(chunks)
    }

    fn window(&self) -> usize {
        WINDOW.min(self.classifier.max_positions()).max(3)
    }

    /// The words of chunks, judged.
    fn words(&self, chunks: &[&Chunk], forced: &Forced<'_>) -> Result<Vec<Words>> {
        let id = ids(self.pieces);
        let mut inputs = Vec::with_capacity(chunks.len());
        let mut names = Vec::with_capacity(chunks.len());
        let mut own = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let [before, after] = &chunk.around;
            // The reference puts BERT's marks around the text of every model: XLM-RoBERTa reads them as
            // unknown.
            let mut pieces = vec!["[CLS]".to_owned()];
            pieces.extend_from_slice(before);
            pieces.extend(self.pieces.split(&chunk.text)?);
            let end = pieces.len();
            pieces.extend_from_slice(after);
            pieces.push("[SEP]".to_owned());
            pieces.truncate(self.window());
            // A padding in the text is padding.
            let padded = pieces.iter().any(|piece| piece == "[PAD]");
            let seen = || {
                pieces
                    .iter()
                    .enumerate()
                    .filter(|(_, piece)| *piece != "[PAD]")
            };
            inputs.push(EncoderInput {
                ids: seen().map(|(_, piece)| id(piece)).collect(),
                positions: match padded {
                    true => seen().map(|(at, _)| at as u32).collect(),
                    false => Vec::new(),
                },
                ..EncoderInput::default()
            });
            names.push(
                seen()
                    .map(|(_, piece)| piece.clone())
                    .collect::<Vec<String>>(),
            );
            // With nothing around it the marks are part of a chunk, as in the reference; they make no words.
            let inner = match before.is_empty() && after.is_empty() {
                true => 0..pieces.len(),
                false => 1 + before.len()..end,
            };
            own.push(
                seen()
                    .map(|(at, _)| inner.contains(&at))
                    .collect::<Vec<bool>>(),
            );
        }
        let probabilities = self.classifier.keep_probabilities(&inputs)?;
        let rules = words::Rules {
            family: self.classifier.family(),
            pieces: self.pieces,
            forced,
            digits: self.options.force_reserve_digit,
        };
        Ok(names
            .into_iter()
            .zip(probabilities)
            .zip(own)
            .map(|((names, probabilities), own)| {
                let (names, probabilities): (Vec<String>, Vec<f32>) = names
                    .into_iter()
                    .zip(probabilities)
                    .zip(own)
                    .filter_map(|(piece, own)| own.then_some(piece))
                    .unzip();
                rules.merge(&names, &probabilities)
            })
            .collect())
    }

    /// The contexts that stay, and the words of all (`use_context_level_filter`).
    fn choose(
        &self,
        request: &Request,
        chunks: &[Vec<Chunk>],
        forced: &Forced<'_>,
        before: usize,
    ) -> Result<(Vec<usize>, Vec<Vec<String>>)> {
        let options = self.options;
        let (rate, target) = rate_and_target(request.budget);
        let given = |number: i64| usize::try_from(number).ok();
        let mut level_rate = options.context_level_rate.min(1.0);
        let mut level_target = given(options.context_level_target_token);
        if options.target_context <= 0
            && level_rate >= 1.0
            && options.context_level_target_token <= 0
        {
            match target {
                None if rate < 1.0 && options.use_token_level_filter => {
                    level_rate = (rate + 1.0) / 2.0;
                }
                None if rate < 1.0 => level_rate = rate,
                Some(target) if options.use_token_level_filter => level_target = Some(2 * target),
                Some(target) => level_target = Some(target),
                None => {}
            }
        }
        if let Some(count) = given(options.target_context) {
            level_rate = (count as f64 / chunks.len().max(1) as f64).min(1.0);
        }
        if let Some(target) = level_target {
            level_rate = share(target, before)?;
        }
        let (mut scores, mut words) = (Vec::new(), Vec::new());
        if options.rank_by_question {
            let contexts: Vec<&str> = request.contexts.iter().map(String::as_str).collect();
            let worth = Ranker::shipped().rank(&request.question, &contexts);
            scores = worth.into_iter().map(Probability::Double).collect();
        }
        // Words are shown of dropped contexts too.
        if !options.rank_by_question || options.return_word_label {
            let all: Vec<&Chunk> = chunks.iter().flatten().collect();
            let mut judged = self.words(&all, forced)?.into_iter();
            for chunks in chunks {
                let own: Vec<Words> = judged.by_ref().take(chunks.len()).collect();
                if !options.rank_by_question {
                    let means: Vec<f32> = own
                        .iter()
                        .flat_map(|words| words.plain(options.token_to_word))
                        .collect();
                    // A text without a known word has no score; it goes first.
                    let sum = means.iter().fold(0.0f32, |sum, mean| sum + mean);
                    scores.push(Probability::Single(match means.len() {
                        0 => 0.0,
                        n => sum / n as f32,
                    }));
                }
                let shown = own.iter().flat_map(|words| words.texts.iter());
                words.push(shown.map(|word| self.bare(word)).collect());
            }
        }
        if scores.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let threshold = percentile(&scores, (100.0 * (1.0 - level_rate)) as i64)?;
        let chosen = (0..scores.len())
            .filter(|&i| {
                scores[i].value() >= threshold || options.force_context_ids.contains(&(i as i64))
            })
            .collect();
        Ok((chosen, words))
    }

    /// A word without the mark of its beginning.
    fn bare(&self, word: &str) -> String {
        match self.classifier.family() {
            Family::XlmRoberta => word.trim_start_matches('\u{2581}').to_owned(),
            _ => word.to_owned(),
        }
    }

    /// Which words of a chunk stay (`__compress`).
    fn judge(&self, words: Words, forced: &Forced<'_>, reduce: f64) -> Result<Judged> {
        let options = self.options;
        let mut worth = words.worth(options.token_to_word);
        let texts = words.texts;
        if texts.is_empty() {
            return Ok(Judged {
                words: texts,
                labels: Vec::new(),
                text: String::new(),
                untouched: false,
            });
        }
        if options.drop_consecutive {
            let threshold = match options.probability_threshold {
                Some(threshold) => threshold,
                None => percentile(&worth, (100.0 * reduce) as i64)?,
            };
            let mut between = false;
            let mut last: Option<&String> = None;
            for (word, worth) in texts.iter().zip(&mut worth) {
                if !forced.has(word) {
                    between |= worth.value() > threshold;
                    continue;
                }
                if between {
                    between = false;
                } else if last == Some(word) {
                    *worth = Probability::Double(0.0);
                }
                last = Some(word);
            }
        }
        let mut by_token = Vec::new();
        for (word, worth) in texts.iter().zip(&worth) {
            by_token.extend(std::iter::repeat_n(*worth, count_cl100k(word)));
        }
        let threshold = match options.probability_threshold {
            Some(threshold) => threshold,
            None if by_token.is_empty() => f64::INFINITY,
            None => percentile(&by_token, (100.0 * reduce + 1.0) as i64)?,
        };
        let mut kept: Vec<String> = Vec::new();
        let mut labels = Vec::with_capacity(texts.len());
        for (word, worth) in texts.iter().zip(&worth) {
            let worth = worth.value();
            let keep = worth > threshold || threshold == 1.0 && worth == threshold;
            let again = options.drop_consecutive && forced.has(word) && kept.last() == Some(word);
            labels.push(keep && !again);
            if keep && !again {
                kept.push(word.clone());
            }
        }
        Ok(Judged {
            text: self.pieces.join(kept)?,
            words: texts.iter().map(|word| self.bare(word)).collect(),
            labels,
            untouched: false,
        })
    }

    fn result(
        &self,
        request: &Request,
        before: usize,
        kept: &[usize],
        judged: Vec<Vec<Judged>>,
        dropped_words: Vec<Vec<String>>,
    ) -> Compressed {
        let texts: Vec<String> = judged
            .iter()
            .map(|chunks| chunks.iter().map(|chunk| chunk.text.as_str()).collect())
            .collect();
        let after = texts.iter().map(|text| count_cl100k(text)).sum();
        let mut result = Compressed::counted(texts.join("\n\n"), [before, after]);
        let mut labels: Vec<(String, bool)> = Vec::new();
        let mut own = kept.iter().zip(judged.iter().zip(&texts)).peekable();
        let mut pieces = Vec::new();
        for (index, given) in request.contexts.iter().enumerate() {
            let next = own.next_if(|(kept, _)| **kept == index);
            if index > 0 {
                pieces.push(piece("\n\n", next.is_some()));
            }
            let Some((_, (chunks, text))) = next else {
                let words = dropped_words.get(index).into_iter().flatten();
                labels.extend(words.map(|word| (word.clone(), false)));
                pieces.push(piece(given, false));
                continue;
            };
            let words = || {
                chunks
                    .iter()
                    .flat_map(|chunk| chunk.words.iter().zip(chunk.labels.iter().copied()))
            };
            labels.extend(words().map(|(word, label)| (word.clone(), label)));
            let spans = match chunks.iter().all(|chunk| chunk.untouched) {
                true => vec![0..given.len()],
                false => words::spans(given, words()),
            };
            let mut done = 0;
            for span in &spans {
                pieces.push(piece(&given[done..span.start], false));
                pieces.push(piece(&given[span.clone()], true));
                done = span.end;
            }
            pieces.push(piece(&given[done..], false));
            result.contexts.push(KeptContext {
                index,
                text: text.clone(),
                tokens: count_cl100k(text),
                spans,
            });
        }
        pieces.retain(|piece| !piece.text.is_empty());
        result.pieces = pieces;
        result.by_context = Some(texts);
        if self.options.return_word_label {
            let (word_sep, label_sep) = (&self.options.word_sep, &self.options.label_sep);
            let lines = labels
                .iter()
                .map(|(word, label)| format!("{word}{label_sep}{}", u8::from(*label)));
            result.word_labels = Some(lines.collect::<Vec<_>>().join(word_sep));
        }
        result
    }
}

/// A chunk that stays as it is.
fn whole(text: &str) -> Judged {
    let words = regex_words(text);
    Judged {
        labels: vec![true; words.len()],
        words,
        text: text.to_owned(),
        untouched: true,
    }
}

fn piece(text: &str, kept: bool) -> Piece {
    Piece {
        text: text.to_owned(),
        kept,
        nll: None,
    }
}

/// `target` of `tokens`, at most all; a text without tokens has all of them.
fn share(target: usize, tokens: usize) -> Result<f64> {
    match target {
        0 => Err(Error::Budget {
            target: 0,
            reason: "LLMLingua-2 keeps a percentile of the words; ask for 1 token or more".into(),
        }),
        _ if tokens == 0 => Ok(1.0),
        _ => Ok((target as f64 / tokens as f64).min(1.0)),
    }
}

impl TokenToWord {
    /// The probability of a word by those of its tokens.
    fn of(self, tokens: &[Probability]) -> Probability {
        match self {
            TokenToWord::First => tokens.first().copied().unwrap_or(Probability::Single(0.0)),
            TokenToWord::Mean => Probability::mean(tokens),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;

    use super::*;

    /// Remembers what it was asked, and keeps everything.
    #[derive(Default)]
    struct Asked(Mutex<Vec<Vec<u32>>>);

    impl TokenClassifier for Asked {
        fn family(&self) -> Family {
            Family::Bert
        }

        fn max_positions(&self) -> usize {
            512
        }

        fn keep_probabilities(&self, inputs: &[EncoderInput]) -> Result<Vec<Vec<f32>>> {
            let ids = inputs.iter().map(|input| input.ids.clone());
            self.0.lock().unwrap().extend(ids);
            Ok(inputs
                .iter()
                .map(|input| vec![1.0; input.ids.len()])
                .collect())
        }
    }

    fn tokenizer_pieces() -> Pieces {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/encoders");
        pieces(&folder.join("mbert-tokens/tokenizer.json")).unwrap()
    }

    fn asked(options: &LlmLingua2, request: &Request) -> Vec<Vec<u32>> {
        let classifier = Asked::default();
        let classified = Classified {
            classifier: &classifier,
            pieces: &tokenizer_pieces(),
            options,
        };
        classified.compress(request).unwrap();
        classifier.0.into_inner().unwrap()
    }

    #[test]
    fn neighbours_of_a_chunk_are_read_with_it() {
        let options = LlmLingua2::default()
            .with_overlap(32)
            .with_probability_threshold(Some(0.5));
        let last = tokenizer_pieces().id("[SEP]").unwrap();
        // Cut at the ends of sentences, and where none is.
        for end in [". ", " "] {
            let text: String = (0..300)
                .map(|i| format!("item {i} is clear{end}"))
                .collect();
            let asked = asked(&options, &Request::new([text]));
            assert!(asked.len() > 3, "{}", asked.len());
            for ids in &asked {
                assert!(ids.len() <= WINDOW && ids.last() == Some(&last));
            }
            for (one, next) in asked.iter().zip(&asked[1..]) {
                // Between the marks: 32 pieces on either side of the border are read with both.
                let (one, next) = (&one[1..one.len() - 1], &next[1..next.len() - 1]);
                let shared = one.len().min(next.len()).min(64);
                assert_eq!(one[one.len() - shared..], next[..shared]);
            }
        }
    }

    #[test]
    fn what_a_question_drops_is_not_read() {
        let contexts = [
            "The council votes.",
            "The harbour is closed.",
            "Ada Roy built the lighthouse.",
        ];
        let options = LlmLingua2::default()
            .with_use_context_level_filter(true)
            .with_target_context(1)
            .with_rank_by_question(true);
        let request = Request::new(contexts).with_question("Who built the lighthouse?");
        assert_eq!(asked(&options, &request).len(), 1);
        let labels = options.clone().with_return_word_label(true);
        assert_eq!(asked(&labels, &request).len(), 4);
    }
}
