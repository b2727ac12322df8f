//! Training of adapters over an engine's model.

use super::Engine;
use crate::control::{Call, Control};
use crate::error::Result;
use crate::train::objective::{Gradient, LoraShape, Objective, Sample};
use crate::train::parameters::Parameters;
use crate::train::run::{self, Data, Event, Options, Source, Start, Summary};
use crate::train::{self, MemoryStart, Plan};

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
        plan.run(self.engine, control, watch)
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
