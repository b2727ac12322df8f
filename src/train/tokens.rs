//! Training of a token classifier for LLMLingua-2 (arXiv 2403.12968, section 3): a linear layer over an
//! encoder's last hidden states says of each token whether it is kept.
//!
//! The encoder stays as it is, so that each text is read once, and what is trained is one vector and a bias.
//! Everything is drawn from one seed and summed in a fixed order.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use half::f16;
use safetensors::tensor::View;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::adamw::{AdamW, Moments};
use super::folder::{check_new, new_folder, read_config};
use super::objective::Tensor;
use super::rows::{LONGEST_LINE, Lines, json_error};
use crate::control::Control;
use crate::error::{Error, Result};
use crate::hard::lexical::{Term, terms};
use crate::model::config::Family;
use crate::model::layout;
use crate::model::weights::Weights;
use crate::random::Random;

/// A text, word by word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// What white space separates.
    pub words: Vec<String>,
    /// Which of them are to be kept.
    pub kept: Vec<bool>,
}

/// A row as it stands in a file.
#[derive(Deserialize)]
struct Row {
    text: Option<String>,
    compressed: Option<String>,
    words: Option<Vec<String>>,
    labels: Option<Vec<u8>>,
    context: Option<String>,
    question: Option<String>,
    answers: Option<Vec<String>>,
}

/// What rows are, in words.
const FIELDS: &str =
    "`text` and `compressed`, `words` and `labels`, or `context`, `question` and `answers`";

/// Reads examples. Of rows with `text` and `compressed` those words are kept that the compressed text has, in
/// its order (as algorithm 1 of the paper does); `words` have `labels` of 0 and 1; of rows with `context`, `question` and `answers`
/// all that share a context are one text, whose words are kept that its questions and answers have.
///
/// # Errors
/// [`Error::Format`] that names the line of a row of another form; [`Error::Io`].
pub fn read(paths: &[PathBuf]) -> Result<Vec<Example>> {
    let mut lines = Lines::new(paths);
    let mut examples = Vec::new();
    // Of each context its place among the examples, and what is asked of it.
    let mut asked: HashMap<String, (usize, HashSet<Term>)> = HashMap::new();
    while let Some(line) = lines.next_line()? {
        let row = match line.bytes.len() <= LONGEST_LINE {
            true => serde_json::from_slice::<Row>(&line.bytes).map_err(|error| json_error(&error)),
            false => Err(format!("longer than {LONGEST_LINE} bytes")),
        };
        let example = row.and_then(|row| match row {
            Row {
                context: Some(context),
                question: Some(question),
                answers: Some(answers),
                ..
            } => {
                let place = examples.len();
                let (at, asked) = asked
                    .entry(context)
                    .or_insert_with_key(|_| (place, HashSet::new()));
                asked.extend(terms(&question));
                asked.extend(answers.iter().flat_map(|answer| terms(answer)));
                Ok((*at == place).then_some(Example {
                    words: Vec::new(),
                    kept: Vec::new(),
                }))
            }
            row => row.example().map(Some),
        });
        let example = example.map_err(|reason| {
            Error::format(&paths[line.file], format!("line {}: {reason}", line.number))
        })?;
        examples.extend(example);
    }
    for (context, (at, asked)) in asked {
        let words = split(&context);
        let kept = words
            .iter()
            .map(|word| terms(word).iter().any(|term| asked.contains(term)))
            .collect();
        examples[at] = Example { words, kept };
    }
    Ok(examples)
}

impl Row {
    fn example(self) -> Result<Example, String> {
        match (self.text, self.compressed, self.words, self.labels) {
            (Some(text), Some(compressed), ..) => {
                let words = split(&text);
                let kept = annotate(&words, &split(&compressed));
                Ok(Example { words, kept })
            }
            (_, _, Some(words), Some(labels)) if words.len() == labels.len() => Ok(Example {
                kept: labels.iter().map(|&label| label != 0).collect(),
                words,
            }),
            (_, _, Some(words), Some(labels)) => Err(format!(
                "{} `words`, but {} `labels`",
                words.len(),
                labels.len()
            )),
            _ => Err(format!("expected {FIELDS}")),
        }
    }
}

fn split(text: &str) -> Vec<String> {
    text.split_whitespace().map(String::from).collect()
}

/// Words of the text on either side of the last match in which the next one is looked for.
const WINDOW: usize = 150;

/// Which words of a text a compressed form of it has: each of its words is looked for after the last match, then
/// before it, by its letters alone (arXiv 2403.12968, algorithm 1).
fn annotate(words: &[String], compressed: &[String]) -> Vec<bool> {
    let bare = |word: &String| -> String {
        let lower = word.to_lowercase();
        match lower.trim_matches(|c: char| !c.is_alphanumeric()) {
            "" => lower,
            inner => inner.to_owned(),
        }
    };
    let text: Vec<String> = words.iter().map(bare).collect();
    let mut kept = vec![false; words.len()];
    let mut next = 0;
    for word in compressed.iter().map(bare) {
        let free = |&at: &usize| !kept[at] && text[at] == word;
        let after = (next..words.len().min(next + WINDOW)).find(free);
        let found = after.or_else(|| (next.saturating_sub(WINDOW)..next).rev().find(free));
        if let Some(at) = found {
            kept[at] = true;
            next = at + 1;
        }
    }
    kept
}

/// What training does.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Most tokens that are trained on; further texts are left out. Each takes two bytes for each of the
    /// encoder's hidden dimensions.
    pub tokens: usize,
    /// Of so many texts one is held back, to measure on; 0: none.
    pub hold_out: usize,
    /// Passes over the tokens.
    pub epochs: usize,
    /// Tokens of a step.
    pub batch: usize,
    /// Learning rate of the first step; it falls to zero.
    pub lr: f64,
    /// Decay of AdamW.
    pub weight_decay: f64,
    /// All draws come from it.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            tokens: 400_000,
            hold_out: 10,
            epochs: 10,
            batch: 512,
            lr: 1e-2,
            weight_decay: 0.01,
            seed: 1,
        }
    }
}

impl Options {
    /// Refuses values outside their range.
    ///
    /// # Errors
    /// [`Error::Input`] naming the option, its value and the range.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [
            ("tokens", self.tokens),
            ("epochs", self.epochs),
            ("batch", self.batch),
        ] {
            if value == 0 {
                return Err(Error::input(format!("{name} 0"), "expected 1 or more"));
            }
        }
        for (name, value) in [("lr", self.lr), ("weight_decay", self.weight_decay)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::input(
                    format!("{name} {value}"),
                    "expected a finite number, 0 or more",
                ));
            }
        }
        Ok(())
    }
}

/// How well the classifier tells the held back texts' words apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct HeldOut {
    /// Texts.
    pub texts: usize,
    /// Tokens of them.
    pub tokens: usize,
    /// Share of the tokens that are to be kept.
    pub kept: f64,
    /// Mean loss of a token in nats.
    pub loss: f64,
    /// The chance that a token to be kept has a higher probability than one to be dropped; 0.5 is guessing.
    pub auc: f64,
}

/// What training found.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Texts that were trained on.
    pub texts: usize,
    /// Tokens of them.
    pub tokens: usize,
    /// Texts that were left out: there were enough tokens.
    pub left_out: usize,
    /// Share of the tokens that are to be kept.
    pub kept: f64,
    /// Mean loss of a token in the last pass, in nats.
    pub loss: f64,
    /// `None`: nothing was held back.
    pub held_out: Option<HeldOut>,
}

/// Hidden states of tokens in 16 bits, and which are to be kept.
struct Tokens {
    width: usize,
    states: Vec<f16>,
    kept: Vec<bool>,
    texts: usize,
}

impl Tokens {
    fn new(width: usize) -> Self {
        Tokens {
            width,
            states: Vec::new(),
            kept: Vec::new(),
            texts: 0,
        }
    }

    fn add(&mut self, kept: &[bool], words: &[usize], states: &[f32]) {
        self.kept.extend(words.iter().map(|&word| kept[word]));
        self.states.extend(states.iter().map(|&x| f16::from_f32(x)));
    }

    fn share(&self) -> f64 {
        let kept = self.kept.iter().filter(|&&kept| kept).count();
        kept as f64 / self.kept.len().max(1) as f64
    }

    fn score(&self, token: usize, weights: &[f32], bias: f32) -> f64 {
        let own = &self.states[token * self.width..(token + 1) * self.width];
        let products = own.iter().zip(weights);
        f64::from(bias)
            + products
                .map(|(x, &w)| f64::from(x.to_f32() * w))
                .sum::<f64>()
    }
}

/// Of each chunk in which a text is read the word of each token and its last hidden state, `[tokens, hidden]`.
pub(crate) type WordStates = Vec<(Vec<usize>, Vec<f32>)>;

/// Words that the encoder reads at a time.
const PART: usize = 4096;

/// Trains a classifier on the hidden states of an encoder, `width` wide, whose weights are at `model`, and makes the Hugging
/// Face folder `out` of both: a model for token classification that LLMLingua-2 reads. Progress is
/// in texts.
///
/// # Errors
/// [`Error::Input`] for options outside their range, a folder that is there already, or where no text is
/// left, or all or none of its words are to be kept; [`Error::Unsupported`] for a model that is not a BERT or
/// XLM-RoBERTa in a Hugging Face folder; [`Error::Cancelled`]; [`Error::Io`].
pub(crate) fn train(
    width: usize,
    states: &mut dyn FnMut(&[String]) -> Result<WordStates>,
    model: &Path,
    out: &Path,
    examples: &[Example],
    options: &Options,
    control: &Control,
) -> Result<Summary> {
    options.check()?;
    check_new(out)?;
    let held = |i: usize| options.hold_out > 0 && i % options.hold_out == options.hold_out - 1;
    let [mut train, mut held_out] = [Tokens::new(width), Tokens::new(width)];
    let mut read = 0;
    while read < examples.len() && train.kept.len() < options.tokens {
        let example = &examples[read];
        let to = match held(read) {
            true => &mut held_out,
            false => &mut train,
        };
        to.texts += usize::from(!example.words.is_empty());
        // A text of any length: states of a part of it are in memory at a time.
        for (words, kept) in example.words.chunks(PART).zip(example.kept.chunks(PART)) {
            if to.kept.len() >= options.tokens {
                break;
            }
            for (words, states) in states(words)? {
                to.add(kept, &words, &states);
            }
        }
        read += 1;
        control.report(read, examples.len());
    }
    if !(train.kept.contains(&true) && train.kept.contains(&false)) {
        return Err(Error::input(
            format!("{} texts", train.texts),
            "expected words to keep and words to drop; give more rows",
        ));
    }
    let (weights, bias, loss) = fit(&train, options, control)?;
    write(model, out, &weights, bias)?;
    Ok(Summary {
        texts: train.texts,
        tokens: train.kept.len(),
        left_out: examples.len() - read,
        kept: train.share(),
        loss,
        held_out: (!held_out.kept.is_empty()).then(|| measure(&held_out, &weights, bias)),
    })
}

/// Logistic regression: weights, bias, and the mean loss of the last pass.
fn fit(tokens: &Tokens, options: &Options, control: &Control) -> Result<(Vec<f32>, f32, f64)> {
    let tensor = |name: &str, width: usize| Tensor {
        name: name.into(),
        shape: [1, width],
        values: vec![0.0; width],
    };
    let mut parameters = vec![tensor("weight", tokens.width), tensor("bias", 1)];
    let mut moments = Moments::new(&parameters);
    let optimiser = AdamW {
        weight_decay: options.weight_decay,
        ..AdamW::default()
    };
    let mut random = Random::of(options.seed, &[3]);
    let mut order: Vec<usize> = (0..tokens.kept.len()).collect();
    let steps = options.epochs * order.len().div_ceil(options.batch);
    let (mut step, mut last) = (0, 0.0);
    for _ in 0..options.epochs {
        random.shuffle(&mut order);
        last = 0.0;
        for batch in order.chunks(options.batch) {
            control.check()?;
            let (mut by_weight, mut by_bias) = (vec![0.0f32; tokens.width], 0.0f32);
            for &token in batch {
                let score = tokens.score(token, &parameters[0].values, parameters[1].values[0]);
                let kept = tokens.kept[token];
                last += loss(score, kept);
                let by = (sigmoid(score) - f64::from(kept)) as f32 / batch.len() as f32;
                let own = &tokens.states[token * tokens.width..(token + 1) * tokens.width];
                by_weight
                    .iter_mut()
                    .zip(own)
                    .for_each(|(sum, x)| *sum += by * x.to_f32());
                by_bias += by;
            }
            let lr = options.lr * (1.0 - step as f64 / steps as f64);
            step += 1;
            optimiser.step(
                &mut parameters,
                &[by_weight, vec![by_bias]],
                &mut moments,
                lr,
            )?;
        }
    }
    let bias = parameters[1].values[0];
    let weights = parameters.swap_remove(0).values;
    Ok((weights, bias, last / order.len() as f64))
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// The cross-entropy of a token.
fn loss(score: f64, kept: bool) -> f64 {
    let against = if kept { -score } else { score };
    f64::max(against, 0.0) + libm::log1p(libm::exp(-against.abs()))
}

fn measure(tokens: &Tokens, weights: &[f32], bias: f32) -> HeldOut {
    let scored: Vec<(f64, bool)> = (0..tokens.kept.len())
        .map(|token| (tokens.score(token, weights, bias), tokens.kept[token]))
        .collect();
    let total: f64 = scored.iter().map(|&(score, kept)| loss(score, kept)).sum();
    HeldOut {
        texts: tokens.texts,
        tokens: scored.len(),
        kept: tokens.share(),
        loss: total / scored.len() as f64,
        auc: auc(scored),
    }
}

/// The chance that what is to be kept scores higher than what is not; equal scores count half.
fn auc(mut scored: Vec<(f64, bool)>) -> f64 {
    scored.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut below, mut pairs) = (0.0, 0.0);
    for equal in scored.chunk_by(|a, b| a.0 == b.0) {
        let kept = equal.iter().filter(|(_, kept)| *kept).count() as f64;
        let dropped = equal.len() as f64 - kept;
        pairs += kept * (below + dropped / 2.0);
        below += dropped;
    }
    let kept = scored.len() as f64 - below;
    match kept * below > 0.0 {
        true => pairs / (kept * below),
        false => 0.5,
    }
}

/// A tensor of the folder.
struct Written {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl View for Written {
    fn dtype(&self) -> safetensors::Dtype {
        safetensors::Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        bytemuck::cast_slice(&self.values).into()
    }

    fn data_len(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }
}

/// Writes the encoder with the classifier on top, as transformers names it.
fn write(model: &Path, out: &Path, weights: &[f32], bias: f32) -> Result<()> {
    let encoder = Weights::open(model)?;
    let name = match encoder.config().family {
        Family::XlmRoberta => "XLMRobertaForTokenClassification",
        _ => "BertForTokenClassification",
    };
    let mut config = read_config(model)?;
    config["architectures"] = json!([name]);
    config["id2label"] = json!({ "0": "drop", "1": "keep" });
    config["label2id"] = json!({ "drop": 0, "keep": 1 });
    let mut tensors = BTreeMap::new();
    for name in encoder.names() {
        // Neither an earlier head nor what transformers leaves out of a model for token classification.
        if !layout::is_head(name) && !name.contains(".pooler.") {
            let view = encoder.get(name)?;
            let values = view.to_f32()?;
            let shape = view.shape;
            tensors.insert(name, Written { shape, values });
        }
    }
    // Such a model has a score for each of two classes; their difference counts.
    let half = |by: f32| weights.iter().map(move |w| w * by);
    let weight = Written {
        shape: vec![2, weights.len()],
        values: half(-0.5).chain(half(0.5)).collect(),
    };
    let bias = Written {
        shape: vec![2],
        values: vec![-0.5 * bias, 0.5 * bias],
    };
    tensors.extend([("classifier.weight", weight), ("classifier.bias", bias)]);
    new_folder(out, |folder| {
        folder.write("config.json", format!("{config:#}\n").as_bytes())?;
        folder.tensors(tensors)?;
        folder.companions(model)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        split(text)
    }

    #[test]
    fn words_of_a_compressed_text_are_found_in_order() {
        let text = words("The mayor, said Ann, opened the new bridge; the mayor was glad.");
        let kept = annotate(&text, &words("mayor opened bridge. mayor glad. missing"));
        let found: Vec<&str> = text
            .iter()
            .zip(&kept)
            .filter_map(|(word, &kept)| kept.then_some(word.as_str()))
            .collect();
        assert_eq!(found, ["mayor,", "opened", "bridge;", "mayor", "glad."]);
        // What stands before the last match is found too, and no word twice.
        assert_eq!(
            annotate(&words("a b c a"), &words("c a b a a")),
            [true, true, true, true]
        );
        assert!(annotate(&[], &words("x")).is_empty());
    }

    #[test]
    fn a_higher_score_for_what_is_kept_is_better_than_guessing() {
        assert_eq!(auc(vec![(2.0, true), (1.0, false), (0.0, false)]), 1.0);
        assert_eq!(auc(vec![(1.0, true), (1.0, false)]), 0.5);
        assert_eq!(auc(vec![(0.0, true), (1.0, false)]), 0.0);
        assert_eq!(auc(vec![(0.0, true)]), 0.5);
        // Six pairs, of which one is wrong and one equal.
        let scored = vec![
            (0.1, false),
            (0.2, true),
            (0.3, false),
            (0.5, true),
            (0.5, false),
        ];
        assert!((auc(scored) - 3.5 / 6.0).abs() < 1e-12);
    }

    #[test]
    fn the_loss_is_the_cross_entropy() {
        assert!((loss(0.0, true) - std::f64::consts::LN_2).abs() < 1e-12);
        assert!((loss(3.0, true) + libm::log(sigmoid(3.0))).abs() < 1e-12);
        assert!((loss(3.0, false) + libm::log(1.0 - sigmoid(3.0))).abs() < 1e-12);
    }
}
