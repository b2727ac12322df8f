//! Training of adapters over an engine's model.

#[cfg(feature = "train")]
use std::path::Path;

use super::Engine;
use serde_json::json;

use crate::control::{Call, Control};
use crate::error::{Error, Result};
use crate::kv_prefix::{Method, Origin};
use crate::model::config::Config;
use crate::soft::{self, Settings};
use crate::train::checkpoint::{AdapterMetadata, Found, PREFIX_TASK, PrefixMetadata};
use crate::train::data::{self, Order, Reading, Task};
use crate::train::objective::{Gradient, LoraShape, Objective, Sample};
use crate::train::parameters::{Parameters, check_prefix_model};
use crate::train::plan::Settled;
use crate::train::run::{self, Data, Event, Options, Source, Start, Summary};
#[cfg(feature = "train")]
use crate::train::tokens;
use crate::train::{self, Begin, MemoryStart, Plan};

/// Trains adapters: see [`Engine::training`].
#[derive(Debug, Clone, Copy)]
pub struct Training<'e> {
    pub(super) engine: &'e Engine,
}

impl<'e> Training<'e> {
    /// Makes an untrained adapter: A as PEFT draws it, B zero, and so many memory embeddings.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for a shape that the model does not have.
    #[doc(hidden)]
    pub fn new_adapter(
        &self,
        lora: LoraShape,
        memory_tokens: usize,
        start: MemoryStart,
        seed: u64,
    ) -> Result<Parameters> {
        let runtime = &self.engine.runtime;
        self.engine.call(&Control::default(), || {
            runtime.new_adapter(lora, memory_tokens, start, seed)
        })
    }

    /// Losses and gradients of an objective, for adapters of `lora`'s shape. Of the activations as many
    /// are kept as fit into so many bytes; the others are computed again, layer by layer.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for a shape that the model does not have.
    #[doc(hidden)]
    pub fn source(
        &self,
        lora: LoraShape,
        objective: Objective,
        activations: usize,
    ) -> Result<Box<dyn train::run::Source + 'e>> {
        let runtime = &self.engine.runtime;
        Ok(Box::new(OnThreads {
            engine: self.engine,
            source: runtime.source(lora, objective, activations)?,
        }))
    }

    /// Trains by a plan until its steps are done or `control` ends it, whereupon the last whole step is
    /// saved. `watch` gets what happens meanwhile.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for a plan that cannot be ([`Plan::check`]) or does not suit
    /// the model, a folder that is not a run or a run of another plan, or a loss that is not finite;
    /// [`Error::Io`](crate::Error::Io) and [`Error::Format`](crate::Error::Format) for rows and files.
    pub fn run(
        &self,
        plan: &Plan,
        control: &Control,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Summary> {
        plan.check()?;
        let engine = self.engine;
        let (config, info) = (engine.config(), engine.info());
        let given = match &plan.begin {
            Begin::Adapter(folder) => Settings::open(folder)?,
            Begin::New { .. } => None,
        };
        plan.check_given(given.as_ref())?;
        let parameters = self.parameters(plan, plan.method(given.as_ref()), config)?;
        let settled = plan.settle(config, &parameters, given.as_ref())?;
        let Settled {
            objective,
            max_text_tokens,
            room,
        } = settled;
        let reading = Reading {
            task: plan.task,
            max_text_tokens,
            question: plan.question_template.clone(),
            answer: plan.answer_template.clone(),
            vocab: config.vocab,
            room,
        };
        // Texts are read as long as they are, and the decoder continues after the memory tokens: what an
        // adapter from elsewhere was trained with beside that ends here.
        let settings = (plan.task != Task::Align).then(|| Settings {
            method: objective.method,
            max_text_tokens: Some(max_text_tokens),
            model: Some(info.fingerprint.clone()),
            nested: objective.nested,
            memory_tokens: (objective.method == Method::Pooled).then_some(objective.vectors),
            ..Settings::default()
        });
        let mut options = plan.options();
        options.identity = plan.identity(
            &info.fingerprint,
            json!(info.precision),
            &objective,
            &parameters,
            max_text_tokens,
        )?;
        let mut source = self.source(parameters.lora.clone(), objective, plan.activation_bytes)?;
        // Rows of ids need none, and a row of text reports that the tokenizer is missing.
        let tokenizer = engine.tokenizer().ok();
        let own = Settings::default();
        if let (Begin::Adapter(folder), Some(given)) = (&plan.begin, &given)
            && (given.pad_to, given.next_position) != (own.pad_to, own.next_position)
        {
            watch(Event::Note(&format!(
                "{} was trained with padded texts or positions of its own; it continues without",
                folder.display()
            )));
        }
        let dev = self.dev(plan, &reading, control, watch)?;
        let start = Start {
            config,
            card: AdapterMetadata {
                model: info.name.clone(),
                dropout: plan.dropout,
                settings,
                prefix: None,
            },
            parameters,
        };
        let data = Data {
            reading,
            order: order(plan),
            tokenizer,
            dev: &dev,
        };
        self.run_on(&mut *source, start, data, &options, control, watch)
    }

    /// Trains `rows` rows of K and V for one text, `corpus`, from questions and answers about it
    /// (arXiv 2506.06266): the K and V that the model has for the corpus' first tokens are the beginning,
    /// and what is trained; the model stays as it is. Rows of the plan's data have a question and an answer,
    /// as those of [`Task::Align`], which is the plan's task; [`Training::questions`] makes some. The run's
    /// folder holds `prefix.safetensors`, a prefix at any time. What the plan says of an adapter, dropout
    /// and weight decay is ignored.
    ///
    /// # Errors
    /// [`Error::Input`] for another task, a plan that does not suit the model, or rows that are fewer than 2,
    /// more than the corpus has tokens, or leave the model no room; [`Error::Io`] and [`Error::Format`] for
    /// rows and files; [`Error::Cancelled`] or [`Error::Deadline`] where `control` ends it.
    pub fn prefix(
        &self,
        corpus: &soft::Source,
        rows: usize,
        plan: &Plan,
        control: &Control,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Summary> {
        self.check_prefix(corpus, rows, plan)?;
        let engine = self.engine;
        let (config, info) = (engine.config(), engine.info());
        let first = soft::Source {
            ids: corpus.ids[..rows].to_vec(),
            sha256: corpus.sha256.clone(),
        };
        let prefixes = engine.prefixes().with(control);
        let begin = prefixes.prefill(&first, &soft::PrefillOptions::default())?;
        let parameters = Parameters::of_prefix(&begin)?;
        let objective = Objective {
            dropout: 0.0,
            ..plan.settle(config, &parameters, None)?.objective
        };
        let reading = Reading {
            task: plan.task,
            max_text_tokens: rows,
            question: plan.question_template.clone(),
            answer: plan.answer_template.clone(),
            vocab: config.vocab,
            room: config.max_positions - rows,
        };
        let mut options = plan.options();
        options.adamw.weight_decay = 0.0;
        options.identity = plan.identity(
            &info.fingerprint,
            json!(info.precision),
            &objective,
            &parameters,
            rows,
        )?;
        for unused in [
            "rank",
            "alpha",
            "targets",
            "method",
            "dropout",
            "weight-decay",
            "memory-tokens",
            "max-text-tokens",
        ] {
            options.identity.remove(unused);
        }
        let identity = [
            ("task", json!(PREFIX_TASK)),
            ("tokens", json!(rows)),
            ("corpus", json!(corpus.sha256)),
        ];
        let own = identity.map(|(name, value)| (name.to_owned(), value));
        options.identity.extend(own);
        if let Some(study) = &plan.study {
            options.identity.extend(study.identity());
        }
        let runtime = &engine.runtime;
        let mut source = OnThreads {
            engine,
            source: runtime.prefix_source(objective, plan.activation_bytes)?,
        };
        let tokenizer = engine.tokenizer().ok();
        let dev = self.dev(plan, &reading, control, watch)?;
        let origin = Origin {
            method: Method::Trained,
            source_tokens: corpus.ids.len(),
            ..begin.origin().clone()
        };
        let start = Start {
            config,
            card: AdapterMetadata {
                model: info.name.clone(),
                dropout: 0.0,
                settings: None,
                prefix: Some(PrefixMetadata {
                    origin,
                    rope: begin.rope().cloned(),
                    kv_heads: config.kv_heads,
                }),
            },
            parameters,
        };
        let data = Data {
            reading,
            order: order(plan),
            tokenizer,
            dev: &dev,
        };
        self.run_on(&mut source, start, data, &options, control, watch)
    }

    /// Refuses what [`Training::prefix`] would refuse only after the questions were written, which takes the
    /// longest. Says whether a run in the plan's folder is resumed.
    pub(crate) fn check_prefix(
        &self,
        corpus: &soft::Source,
        rows: usize,
        plan: &Plan,
    ) -> Result<bool> {
        plan.check()?;
        if plan.task != Task::Align {
            let what = format!("task {}", plan.task.name());
            return Err(Error::input(what, "expected questions and answers: align"));
        }
        let (config, tokens) = (self.engine.config(), corpus.ids.len());
        check_prefix_model(config)?;
        if tokens == 0 {
            return Err(Error::input("corpus", "it has no tokens"));
        }
        let max = tokens.min(config.max_positions.saturating_sub(2));
        if !(2..=max).contains(&rows) {
            let reason = format!(
                "expected 2 to {max}: the corpus has {tokens} tokens, the model {} positions",
                config.max_positions
            );
            return Err(Error::input(format!("tokens {rows}"), reason));
        }
        if let Some(dev) = &plan.dev {
            std::fs::metadata(dev).map_err(Error::io(dev))?;
        }
        let found = run::check_out(&plan.out, plan.resume)?;
        Ok(plan.resume && found == Found::Run)
    }

    /// The rows that the loss is measured on.
    fn dev(
        &self,
        plan: &Plan,
        reading: &Reading,
        control: &Control,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<Sample>> {
        let Some(path) = &plan.dev else {
            return Ok(Vec::new());
        };
        // Rows of ids need none, and a row of text reports that the tokenizer is missing.
        let tokenizer = self.engine.tokenizer().ok();
        let mut skipped = |line: &str| watch(Event::Note(line));
        Call::current().under(control).enter(|| {
            data::read_all(
                path,
                reading,
                tokenizer,
                plan.bad_rows,
                plan.dev_rows,
                &mut skipped,
            )
        })
    }

    fn parameters(&self, plan: &Plan, method: Method, config: &Config) -> Result<Parameters> {
        let with_memory = plan.task != Task::Align && method != Method::Pooled;
        match &plan.begin {
            Begin::Adapter(folder) => Parameters::open(folder, config, with_memory),
            Begin::New {
                lora,
                memory_tokens,
                start,
            } => {
                let memory_tokens = if with_memory { *memory_tokens } else { 0 };
                self.new_adapter(lora.clone(), memory_tokens, *start, plan.seed)
            }
        }
    }

    /// Trains a classifier of words on the last hidden states of an encoder, whose weights are at `model`, and makes
    /// the Hugging Face folder `out` of both: a model for token classification that LLMLingua-2 reads. Progress is
    /// in texts.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for options outside their range, a folder that is there already, or where
    /// no text is left, or all or none of its words are to be kept; [`Error::Unsupported`](crate::Error::Unsupported)
    /// for a model that is not a BERT or XLM-RoBERTa in a Hugging Face folder;
    /// [`Error::Cancelled`](crate::Error::Cancelled); [`Error::Io`](crate::Error::Io).
    #[cfg(feature = "train")]
    pub fn classifier(
        &self,
        model: &Path,
        out: &Path,
        examples: &[tokens::Example],
        options: &tokens::Options,
        control: &Control,
    ) -> Result<tokens::Summary> {
        let (engine, part) = (self.engine, control.of_part());
        let mut states =
            |words: &[String]| engine.call(&part, || engine.runtime.word_states(words));
        let width = engine.config().hidden;
        tokens::train(width, &mut states, model, out, examples, options, control)
    }

    /// The loop of [`Training::run`].
    pub(crate) fn run_on(
        &self,
        source: &mut dyn Source,
        start: Start<'_>,
        data: Data<'_>,
        options: &Options,
        control: &Control,
        watch: &mut dyn FnMut(Event<'_>),
    ) -> Result<Summary> {
        self.engine.call(control, || {
            run::run(source, start, data, options, control, watch)
        })
    }
}

/// In which order a plan's rows are drawn.
fn order(plan: &Plan) -> Order {
    Order {
        paths: plan.data.clone(),
        seed: plan.seed,
        buffer: plan.shuffle_buffer,
        bad_rows: plan.bad_rows,
    }
}

/// A source that computes on an engine's threads, whichever thread calls it.
struct OnThreads<'e> {
    engine: &'e Engine,
    source: Box<dyn Source + Send + 'e>,
}

impl OnThreads<'_> {
    fn call(&self) -> Call {
        Call::current().on(self.engine.threads.clone())
    }
}

impl Source for OnThreads<'_> {
    fn gradient(
        &mut self,
        parameters: &Parameters,
        batch: &[Sample],
        seed: u64,
    ) -> Result<Gradient> {
        let call = self.call();
        call.enter(|| self.source.gradient(parameters, batch, seed))
    }

    fn nll(&mut self, parameters: &Parameters, batch: &[Sample]) -> Result<(f64, usize)> {
        let call = self.call();
        call.enter(|| self.source.nll(parameters, batch))
    }
}
