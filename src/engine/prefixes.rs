//! KV prefixes of an engine's model.

use std::ops::ControlFlow;
use std::path::Path;

use super::Engine;
use crate::control::Control;
use crate::error::Result;
use crate::prefix::KvPrefix;
use crate::soft::{
    Adapter, Completion, EncodeOptions, Generated, PrefillOptions, Query, Sampling, Source,
};

/// Makes KV prefixes, and text after them: see [`Engine::prefixes`].
///
/// ```no_run
/// use prefold::prefix::{PrefillOptions, Source};
/// use prefold::Engine;
///
/// let engine = Engine::open("SmolLM2-135M-Instruct-Q4_1.gguf")?;
/// let text = "A long document.";
/// let source = Source::text(text, engine.tokenize(text, true, false)?);
/// let prefix = engine.prefixes().prefill(&source, &PrefillOptions::default())?;
/// println!("{} tokens", prefix.shape().tokens);
/// # Ok::<(), prefold::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Prefixes<'e> {
    pub(super) engine: &'e Engine,
    pub(super) control: Control,
}

impl Prefixes<'_> {
    /// Sets what the calls of this handle are done under.
    pub fn with(mut self, control: &Control) -> Self {
        self.control = control.clone();
        self
    }

    /// Reads an encoder's adapter from a folder in PEFT's layout.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) and [`Error::Format`](crate::Error::Format) for files that cannot
    /// be read or belong to another model.
    pub fn adapter(&self, folder: &Path) -> Result<Adapter> {
        self.engine.runtime.adapter(folder)
    }

    /// Encodes a text as the K and V of a few memory tokens.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for an empty text or ids outside the vocabulary;
    /// [`Error::Cancelled`](crate::Error::Cancelled) or [`Error::Deadline`](crate::Error::Deadline) where
    /// `control` ends it.
    pub fn encode(
        &self,
        adapter: &Adapter,
        source: &Source,
        options: &EncodeOptions,
    ) -> Result<KvPrefix> {
        let made = self.encode_many(adapter, std::slice::from_ref(source), options)?;
        made.into_iter()
            .next()
            .ok_or_else(|| crate::Error::input("text", "none was given"))
    }

    /// Encodes several texts, whose pieces share forward passes: [`Prefixes::encode`] of each, in order.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for an empty text or ids outside the vocabulary, in any of the
    /// texts; [`Error::Cancelled`](crate::Error::Cancelled) or [`Error::Deadline`](crate::Error::Deadline)
    /// where `control` ends it.
    pub fn encode_many(
        &self,
        adapter: &Adapter,
        sources: &[Source],
        options: &EncodeOptions,
    ) -> Result<Vec<KvPrefix>> {
        let runtime = &self.engine.runtime;
        self.engine
            .call(&self.control, || runtime.encode(adapter, sources, options))
    }

    /// The [`KvPrefix::content_id`] of what [`Prefixes::encode`] makes of a text, without making it.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for an empty text and for options outside their ranges.
    pub fn encoded_id(
        &self,
        adapter: &Adapter,
        source: &Source,
        options: &EncodeOptions,
    ) -> Result<String> {
        self.engine.runtime.encoded_id(adapter, source, options)
    }

    /// Prefills a text: its K and V by the model itself, whole or pruned.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for an empty text, ids outside the vocabulary, a text longer
    /// than the model's context, or a share outside its range; [`Error::Cancelled`](crate::Error::Cancelled)
    /// or [`Error::Deadline`](crate::Error::Deadline) where `control` ends it.
    pub fn prefill(&self, source: &Source, options: &PrefillOptions) -> Result<KvPrefix> {
        let mut each = self.prefill_each(source, std::slice::from_ref(options))?;
        Ok(each.remove(0))
    }

    /// The same for each of `options`, in their order, with one forward pass, and one more where
    /// [`KeepBy::Llmlingua`](crate::prefix::KeepBy::Llmlingua) scores the tokens.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for an empty text, ids outside the vocabulary, a text longer
    /// than the model's context, or a share outside its range; [`Error::Cancelled`](crate::Error::Cancelled)
    /// or [`Error::Deadline`](crate::Error::Deadline) where `control` ends it.
    pub fn prefill_each(
        &self,
        source: &Source,
        options: &[PrefillOptions],
    ) -> Result<Vec<KvPrefix>> {
        let runtime = &self.engine.runtime;
        self.engine
            .call(&self.control, || runtime.prefill(source, options))
    }

    /// Generates text after a prefix and a prompt; `each` gets every id as it comes and may stop.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for an empty prompt, options outside their ranges, ids outside
    /// the vocabulary, or more tokens than the model has positions, or for a prefix of another model, naming
    /// both; [`Error::Cancelled`](crate::Error::Cancelled) or [`Error::Deadline`](crate::Error::Deadline)
    /// where `control` ends it.
    pub fn generate(
        &self,
        prefix: Option<&KvPrefix>,
        prompt: &[u32],
        options: &Sampling,
        each: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let runtime = &self.engine.runtime;
        self.engine.call(&self.control, || {
            runtime.generate(prefix, prompt, options, each)
        })
    }

    /// Scores given continuations and generates the model's own ones, with one prefill for each prompt;
    /// `each` gets every id with the place of its query.
    ///
    /// # Errors
    /// For any of the queries: [`Error::Input`](crate::Error::Input) for an empty prompt, options outside
    /// their ranges, ids outside the vocabulary, or more tokens than the model has positions, or for a prefix
    /// of another model, naming both; [`Error::Cancelled`](crate::Error::Cancelled) or
    /// [`Error::Deadline`](crate::Error::Deadline) where `control` ends it.
    pub fn answer(
        &self,
        queries: &[Query<'_>],
        options: &Sampling,
        each: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
    ) -> Result<Vec<Completion>> {
        let runtime = &self.engine.runtime;
        self.engine
            .call(&self.control, || runtime.answer(queries, options, each))
    }
}
