//! The loop: draw, sum gradients, clip, step, log, evaluate, save.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Map, Value};

use super::adamw::{AdamW, Moments, clip};
use super::checkpoint::{self, AdapterMetadata, Found, State};
use super::data::{Order, Reading, Stream};
use super::log::{Line, Log};
use super::objective::{Gradient, Sample};
use super::parameters::Parameters;
use super::schedule::Schedule;
use crate::control::{self, Call, Control};
use crate::error::{Error, Result};
use crate::model::config::Config;
use crate::random::Random;
use crate::text::Tokenizer;

/// Where losses and gradients come from: an objective over a model.
pub trait Source {
    /// Sums over the targets of `batch`; `seed` decides what dropout drops.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Input`] for a batch that does not suit the parameters or the model;
    /// [`Error::Device`] if the device fails.
    fn gradient(
        &mut self,
        parameters: &Parameters,
        batch: &[Sample],
        seed: u64,
    ) -> Result<Gradient>;

    /// Sum of the nll of the targets of `batch` and their number, without dropout.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Input`] for a batch that does not suit the parameters or the model;
    /// [`Error::Device`] if the device fails.
    fn nll(&mut self, parameters: &Parameters, batch: &[Sample]) -> Result<(f64, usize)>;
}

/// How a run goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Steps in all, those before a resume included.
    pub steps: u64,
    /// Samples of one pass.
    pub batch: usize,
    /// Passes of one step.
    pub accumulate: usize,
    /// Full learning rate.
    pub lr: f64,
    /// Steps in which it rises.
    pub warmup: u64,
    /// What it does then.
    pub schedule: Schedule,
    /// The optimiser.
    pub adamw: AdamW,
    /// Greatest norm of a gradient.
    pub clip: Option<f64>,
    /// Decides dropout (and, in [`Order`], the rows' order).
    pub seed: u64,
    /// Steps from one evaluation to the next; 0: only after the last.
    pub eval_every: u64,
    /// Steps from one checkpoint to the next; 0: only after the last.
    pub save_every: u64,
    /// The run's folder.
    pub out: PathBuf,
    /// The log; `None` for none.
    pub log: Option<PathBuf>,
    /// Continues with the run in `out`, if there is one.
    pub resume: bool,
    /// What must be the same when a run is resumed, by the names of options.
    pub identity: Map<String, Value>,
}

impl Options {
    /// Checks what can be checked before anything is read.
    ///
    /// # Errors
    /// [`Error::Input`] that names the option.
    pub fn check(&self) -> Result<()> {
        let positive = |name: &str, value: usize| match value {
            0 => Err(Error::input(name, "expected at least 1")),
            _ => Ok(()),
        };
        positive("steps", usize::from(self.steps > 0))?;
        positive("batch", self.batch)?;
        positive("accumulate", self.accumulate)?;
        checkpoint::beside(&self.out)?;
        let whole = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
        if let Some(log) = &self.log
            && whole(log).starts_with(whole(&self.out))
        {
            let reason = "it lies in `out`, which is replaced with every checkpoint; put it beside";
            return Err(Error::input(format!("log {}", log.display()), reason));
        }
        let adamw = &self.adamw;
        for (name, value, min, below) in [
            ("lr", self.lr, f64::MIN_POSITIVE, f64::INFINITY),
            ("weight_decay", adamw.weight_decay, 0.0, f64::INFINITY),
            (
                "clip",
                self.clip.unwrap_or(1.0),
                f64::MIN_POSITIVE,
                f64::INFINITY,
            ),
            ("beta1", adamw.beta1, 0.0, 1.0),
            ("beta2", adamw.beta2, 0.0, 1.0),
            ("eps", adamw.eps, f64::MIN_POSITIVE, f64::INFINITY),
        ] {
            if !(min..below).contains(&value) {
                let range = match below.is_finite() {
                    true => format!("expected {min} to below {below}"),
                    false if min > 0.0 => "expected a positive number".into(),
                    false => "expected a number from 0 on".into(),
                };
                return Err(Error::input(format!("{name} {value}"), range));
            }
        }
        Ok(())
    }
}

/// What a run tells while it works.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// It continues after a step.
    Resumed(u64),
    /// There was nothing to resume.
    Fresh,
    /// A row was passed over.
    Skipped(&'a str),
    /// Something that the caller should know, in one line.
    Note(&'a str),
    /// A step is done.
    Step(&'a Line),
    /// The dev rows are being measured: so many are done, of so many.
    Evaluating(usize, usize),
    /// A checkpoint of a step stands.
    Saved(u64),
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Steps taken, those before a resume included.
    pub step: u64,
    /// It was told to stop.
    pub stopped: bool,
    /// Loss of the last step, if this call took any.
    pub loss: Option<f64>,
    /// Dev loss after the last step, if it was measured.
    pub dev_loss: Option<f64>,
    /// Tokens that went through the model, in all.
    pub tokens: u64,
    /// Time that the steps took, in all.
    pub seconds: f64,
}

/// The data of a run.
pub struct Data<'a> {
    /// How rows are read.
    pub reading: Reading,
    /// In which order.
    pub order: Order,
    /// For rows of text.
    pub tokenizer: Option<&'a Tokenizer>,
    /// The dev rows.
    pub dev: &'a [Sample],
}

/// What a run begins with, and what its folder says of it.
pub struct Start<'a> {
    /// Shapes of the model.
    pub config: &'a Config,
    /// The adapter that is trained, unless a run is resumed.
    pub parameters: Parameters,
    /// What its own files say.
    pub card: AdapterMetadata,
}

/// Trains until `steps` are done or `control` ends it, whereupon the last whole step is saved.
///
/// # Errors
/// [`Error::Input`] for options that cannot be, a folder that is something else, a run that was made with
/// other options, or a loss that is not a number; [`Error::Io`] and [`Error::Format`] for rows and files;
/// [`Error::Device`] if the device fails.
pub fn run(
    source: &mut dyn Source,
    start: Start<'_>,
    data: Data<'_>,
    options: &Options,
    control: &Control,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Summary> {
    let call = Call::current().under(control);
    call.enter(|| steps(source, start, data, options, watch))
}

fn steps(
    source: &mut dyn Source,
    start: Start<'_>,
    data: Data<'_>,
    options: &Options,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Summary> {
    options.check()?;
    let Start {
        config,
        mut parameters,
        card,
    } = start;
    let out = &options.out;
    let mut moments = Moments::new(&parameters.tensors);
    let mut state = State::new(options.identity.clone());
    match check_out(out, options.resume)? {
        Found::Run if options.resume => {
            state = checkpoint::read_state(out)?;
            same_options(out, &state.options, &options.identity)?;
            (parameters, moments) = checkpoint::read(out, config, &state)?;
            watch(Event::Resumed(state.step));
        }
        _ => {
            if options.resume {
                watch(Event::Fresh);
            }
            // What cannot be written is better known now than after an hour.
            checkpoint::write(out, &parameters, &moments, &card, &state)?;
        }
    }
    let mut log = match &options.log {
        Some(path) => Some(Log::open(path, state.step)?),
        None => None,
    };
    let stream = Stream::open(data.order, data.reading, data.tokenizer, state.position);
    let Some(mut stream) = unless_ended(stream)? else {
        return Ok(Summary {
            step: state.step,
            stopped: true,
            loss: None,
            dev_loss: None,
            tokens: state.tokens,
            seconds: state.seconds,
        });
    };
    let mut saved = state.step;
    let (mut loss, mut dev_loss) = (None, None);
    let stopped = || control::check().is_err();
    'steps: while state.step < options.steps && !stopped() {
        let clock = Instant::now();
        let step = state.step + 1;
        let mut sum: Option<Gradient> = None;
        for pass in 0..options.accumulate {
            if stopped() {
                // The step is taken again when the run is resumed.
                break 'steps;
            }
            let batch = (0..options.batch)
                .map(|_| stream.next(&mut |line| watch(Event::Skipped(line))))
                .collect::<Result<Vec<Sample>>>();
            // One that was not whole when the run was ended is drawn again.
            let batch = unless_ended(batch);
            if batch.is_err() && saved != state.step {
                // Rows can be mended, or passed over, and the run resumed.
                save(&log, options, &parameters, &moments, &card, &state)?;
            }
            let Some(batch) = batch? else { break 'steps };
            let seed = Random::of(options.seed, &[step, pass as u64]).next();
            // A pass that was ended is taken again with its step.
            match unless_ended(source.gradient(&parameters, &batch, seed))? {
                Some(gradient) => add(&mut sum, gradient)?,
                None => break 'steps,
            }
        }
        let Some(sum) = sum else { break };
        let (mean, tokens) = (sum.mean(), sum.tokens as u64);
        let mut gradients = sum.means(&parameters.tensors)?;
        let grad_norm = clip(&mut gradients, options.clip);
        if !(mean.is_finite() && grad_norm.is_finite()) {
            let reason = format!(
                "step {step} has a loss of {mean} and a gradient of norm {grad_norm}; a lower one \
                 may help (the last checkpoint is of step {saved})"
            );
            return Err(Error::input(format!("lr {}", options.lr), reason));
        }
        let share = options.schedule.share(step, options.warmup, options.steps);
        let lr = options.lr * share;
        let adamw = &options.adamw;
        control::compute(|| adamw.step(&mut parameters.tensors, &gradients, &mut moments, lr))?;
        let seconds = clock.elapsed().as_secs_f64();
        state.step = step;
        state.position = stream.position();
        state.tokens += tokens;
        state.seconds += seconds;
        loss = Some(mean);
        let last = step == options.steps;
        let due = options.eval_every > 0 && step.is_multiple_of(options.eval_every);
        dev_loss = match (due || last) && !data.dev.is_empty() {
            true => evaluate(source, &parameters, data.dev, options.batch, watch)?,
            false => None,
        };
        let line = Line {
            step,
            loss: mean,
            grad_norm,
            lr,
            tokens,
            seconds,
            dev_loss,
        };
        if let Some(log) = &mut log {
            log.push(&line)?;
        }
        watch(Event::Step(&line));
        if options.save_every > 0 && step.is_multiple_of(options.save_every) {
            save(&log, options, &parameters, &moments, &card, &state)?;
            saved = step;
            watch(Event::Saved(step));
        }
    }
    if saved != state.step {
        save(&log, options, &parameters, &moments, &card, &state)?;
        watch(Event::Saved(state.step));
    }
    Ok(Summary {
        step: state.step,
        stopped: state.step < options.steps,
        loss,
        dev_loss,
        tokens: state.tokens,
        seconds: state.seconds,
    })
}

/// What is in a run's folder, where a run can begin there or be continued.
///
/// # Errors
/// [`Error::Input`] for a folder that is something else, or a run that is not to be resumed; [`Error::Io`]
/// and [`Error::Format`] for its state.
pub(crate) fn check_out(out: &Path, resume: bool) -> Result<Found> {
    let refuse = |reason: &str| Err(Error::input(format!("out {}", out.display()), reason));
    match checkpoint::look(out)? {
        Found::Other => refuse("it is there and no run of training; name another folder"),
        Found::Run if !resume && checkpoint::read_state(out)?.step > 0 => {
            refuse("a run is there; `resume` continues it, or name another folder")
        }
        found => Ok(found),
    }
}

/// The log first: a checkpoint must never be ahead of it.
fn save(
    log: &Option<Log>,
    options: &Options,
    parameters: &Parameters,
    moments: &Moments,
    card: &AdapterMetadata,
    state: &State,
) -> Result<()> {
    if let Some(log) = log {
        log.sync()?;
    }
    checkpoint::write(&options.out, parameters, moments, card, state)
}

/// Adds one pass to the sums of a step.
fn add(sum: &mut Option<Gradient>, more: Gradient) -> Result<()> {
    let Some(sum) = sum else {
        *sum = Some(more);
        return Ok(());
    };
    sum.nll += more.nll;
    sum.targets += more.targets;
    sum.tokens += more.tokens;
    if sum.gradients.len() != more.gradients.len() {
        return Err(Error::Shape {
            op: "accumulated gradients",
            want: format!("{} tensors", sum.gradients.len()),
            got: more.gradients.len().to_string(),
        });
    }
    for (sum, more) in sum.gradients.iter_mut().zip(more.gradients) {
        if sum.values.is_empty() {
            sum.values = more.values;
            continue;
        }
        let values = sum.values.iter_mut().zip(&more.values);
        values.for_each(|(sum, more)| *sum += more);
    }
    Ok(())
}

/// Mean nll of the dev rows; `None` where it was told to stop.
fn evaluate(
    source: &mut dyn Source,
    parameters: &Parameters,
    dev: &[Sample],
    batch: usize,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Option<f64>> {
    let (mut nll, mut targets, mut done) = (0.0, 0, 0);
    for samples in dev.chunks(batch) {
        let Some((more, count)) = unless_ended(source.nll(parameters, samples))? else {
            return Ok(None);
        };
        nll += more;
        targets += count;
        done += samples.len();
        watch(Event::Evaluating(done, dev.len()));
    }
    Ok(Some(nll / targets.max(1) as f64))
}

/// `None` for a result that is missing because the call was to end.
fn unless_ended<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(Error::Cancelled | Error::Deadline) => Ok(None),
        other => other.map(Some),
    }
}

/// Refuses to resume a run with other options, and names the first.
fn same_options(
    out: &std::path::Path,
    was: &Map<String, Value>,
    is: &Map<String, Value>,
) -> Result<()> {
    let keys = was.keys().chain(is.keys());
    for key in keys {
        let [was, is] = [was, is].map(|map| map.get(key).filter(|value| !value.is_null()));
        if was != is {
            let what = key.replace('-', "_");
            let said = |value: Option<&Value>, none: &str| match value {
                Some(value) => value.to_string(),
                None => none.to_owned(),
            };
            let (is, was) = (said(is, "not given"), said(was, "none"));
            let reason = format!(
                "{is}, but the run in {} has {was}; resume it with the same, or name another folder",
                out.display()
            );
            return Err(Error::input(what, reason));
        }
    }
    Ok(())
}
