//! Training of adapters over an engine's model.

#[cfg(feature = "train")]
use std::path::Path;

use super::Engine;
use serde_json::json;

use crate::control::{Call, Control};
use crate::error::Result;
use crate::kv_prefix::Method;
use crate::model::config::Config;
use crate::soft::Settings;
use crate::train::checkpoint::AdapterMetadata;
use crate::train::data::{self, Order, Reading, Task};
use crate::train::objective::{Gradient, LoraShape, Objective, Sample};
use crate::train::parameters::Parameters;
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
        // Rows of ids need none, and a row of text says that there is none.
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
        let dev = match &plan.dev {
            Some(path) => Call::current().under(control).enter(|| {
                data::read_all(
                    path,
                    &reading,
                    tokenizer,
                    plan.bad_rows,
                    plan.dev_rows,
                    &mut |line| watch(Event::Note(line)),
                )
            })?,
            None => Vec::new(),
        };
        let start = Start {
            config,
            card: AdapterMetadata {
                model: info.name.clone(),
                dropout: plan.dropout,
                settings,
            },
            parameters,
        };
        let data = Data {
            reading,
            order: Order {
                paths: plan.data.clone(),
                seed: plan.seed,
                buffer: plan.shuffle_buffer,
                bad_rows: plan.bad_rows,
            },
            tokenizer,
            dev: &dev,
        };
        self.run_on(&mut *source, start, data, &options, control, watch)
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
