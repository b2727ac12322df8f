//! What all requests share, and the compression of conversations.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::sync::Semaphore;

use super::batch::Batch;
use super::metrics::{Metrics, Question, Why, observe};
use super::options::{Mode, ServeOptions};
use super::sound::{is_json, protected, sound};
use super::store::{Frozen, Key, Store, hex, key};
use super::turns::Turns;
use super::upstream::Upstream;
use crate::control::{CancelToken, Control};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::files::read_bounded;
use crate::hard::messages::{self, MessagesOptions, MessagesResult, Task};
use crate::hard::{Compressed, ContentKind, Exact, RankMethod, Request};
use crate::text::counts::count_cl100k;

/// Why an original was passed through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Failure {
    Deadline,
    QueueFull,
    Model,
    BodyTooLarge,
    UnknownForm,
    Budget,
    Options,
    Encoding,
}

impl Failure {
    pub fn name(self) -> &'static str {
        match self {
            Failure::Deadline => "deadline",
            Failure::QueueFull => "queue_full",
            Failure::Model => "model",
            Failure::BodyTooLarge => "body_too_large",
            Failure::UnknownForm => "unknown_form",
            Failure::Budget => "budget",
            Failure::Options => "options",
            Failure::Encoding => "encoding",
        }
    }

    pub fn of(error: &Error) -> Self {
        match error {
            Error::Deadline => Failure::Deadline,
            Error::Budget { .. } => Failure::Budget,
            Error::Input { .. } => Failure::UnknownForm,
            _ => Failure::Model,
        }
    }
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Status {
    /// Some text was shortened for it.
    Compressed,
    /// All that was shortened was known.
    Cached,
    /// Nothing was to be shortened, or not by enough.
    Skipped,
    /// Something failed, and its original was passed through.
    PassedThrough,
    /// It was only measured.
    Audit,
    /// It was not looked at.
    Off,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Compressed => "compressed",
            Status::Cached => "cached",
            Status::Skipped => "skipped",
            Status::PassedThrough => "passed-through",
            Status::Audit => "audit",
            Status::Off => "off",
        }
    }
}

/// How a conversation is to be compressed.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub messages: MessagesOptions,
    pub mode: Mode,
    pub retrieve: bool,
    pub deadline: Instant,
    pub cancel: CancelToken,
}

/// A conversation after its compression.
#[derive(Debug, Clone)]
pub(super) struct Done {
    /// The new body; `None` where the original is passed on.
    pub body: Option<Bytes>,
    /// What was decided; `None` where the conversation was not read.
    pub result: Option<MessagesResult>,
    pub status: Status,
    pub failure: Option<Failure>,
    /// Names of the originals that markers stand for.
    pub hashes: Vec<String>,
    pub time: Duration,
}

impl Done {
    /// The original, which nothing was done to.
    pub fn untouched(status: Status, failure: Option<Failure>) -> Self {
        Done {
            body: None,
            result: None,
            status,
            failure,
            hashes: Vec::new(),
            time: Duration::ZERO,
        }
    }

    /// Tokens before and after.
    pub fn tokens(&self) -> Option<(usize, usize)> {
        let result = self.result.as_ref()?;
        Some((result.tokens_before, result.tokens_after))
    }
}

/// A prompt that waits to be shortened with others.
struct Waiting {
    request: Request,
    deadline: Instant,
    cancel: CancelToken,
}

/// What the texts of a conversation went through.
#[derive(Default)]
struct Notes {
    failure: Option<Failure>,
    computed: usize,
    hashes: Vec<String>,
    /// Whether the time was over before all texts were counted.
    uncounted: bool,
}

/// Bytes of a hash that name an original.
const NAME: usize = 12;
/// Share of the time left that the model may plan for; the rest is for tokenizing and other
/// requests.
const PLANNED: f64 = 0.7;
/// Compressions that share the model at a time on a CPU. Each holds a KV cache.
const LANES: usize = 8;
/// Bytes of a text that takes few forward passes and little memory.
const SHORT: usize = 8 << 10;

/// What all requests share.
pub(super) struct App {
    pub engine: Engine,
    pub options: ServeOptions,
    pub store: Store,
    pub metrics: Arc<Metrics>,
    pub registry: Registry,
    pub upstream: Option<Upstream>,
    /// SHA-256 of the token that clients must send.
    pub token: Option<[u8; 32]>,
    pub draining: AtomicBool,
    slots: Arc<Semaphore>,
    lanes: Arc<Turns>,
    turns: Arc<Turns>,
    /// On a device that does several at a time.
    batch: Option<Batch<Waiting, Result<Compressed>>>,
    /// Tokens per second without and with a question, as the bits of an f64.
    speeds: [AtomicU64; 2],
}

impl App {
    pub fn new(
        engine: Engine,
        options: ServeOptions,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Self> {
        let metrics = Arc::new(Metrics::default());
        let info = engine.info();
        let registry = metrics.registry(&info.name, &info.fingerprint, &info.device);
        let token = match &options.token_file {
            Some(path) => Some(read_token(path)?),
            None => None,
        };
        let app = App {
            store: Store::new(&options, runtime, metrics.clone())?,
            upstream: options.upstream.as_deref().map(Upstream::new).transpose()?,
            token,
            draining: AtomicBool::new(false),
            slots: Arc::new(Semaphore::new(options.queue)),
            lanes: Turns::new(LANES.max(engine.at_a_time())),
            turns: Turns::new(engine.at_a_time()),
            batch: (engine.at_a_time() > 1).then(|| Batch::new(engine.at_a_time())),
            speeds: Default::default(),
            engine,
            options,
            metrics,
            registry,
        };
        crate::text::prepare_cl100k();
        app.measure_speed()?;
        Ok(app)
    }

    /// Shortens a text once with and once without a question: the deadlines of the first requests
    /// depend on how long that takes.
    fn measure_speed(&self) -> Result<()> {
        let text: String = (0..40)
            .map(|i| format!("In year {i} the keepers of the old light wrote down every ship. "))
            .collect();
        for question in ["", "Who wrote down the ships?"] {
            let exact = Exact::default().with_keep_question(false);
            let request = Request::new([text.as_str()])
                .with_question(question)
                .with_mode(exact);
            let start = Instant::now();
            let read = self.engine.compress(&request)?.tokens_before;
            self.set_speed(
                question,
                read as f64 / start.elapsed().as_secs_f64().max(1e-6),
            );
        }
        Ok(())
    }

    fn set_speed(&self, question: &str, tokens_per_second: f64) {
        let which = usize::from(!question.is_empty());
        let question = ["without", "with"][which];
        self.metrics
            .speed
            .get_or_create(&Question { question })
            .set(tokens_per_second.round());
        self.speeds[which].store(tokens_per_second.to_bits(), Ordering::Relaxed);
    }

    fn speed(&self, question: &str) -> f64 {
        let which = usize::from(!question.is_empty());
        f64::from_bits(self.speeds[which].load(Ordering::Relaxed))
    }

    /// Tokens of a text.
    pub fn count(&self, text: &str) -> Result<usize> {
        self.store.count(text, |text| Ok(count_cl100k(text)))
    }

    /// Tokens of a text, counted while there is time. Afterwards a bound of them, so that all that is sent
    /// as it is can be remembered as such.
    fn count_in_time(&self, text: &str, job: &Job, notes: &RefCell<Notes>) -> Result<usize> {
        let control = Control::default()
            .with_deadline(job.deadline)
            .with_cancel(job.cancel.clone());
        let counted = self.store.count(text, |text| {
            let mut tokens = 0;
            for piece in pieces(text) {
                control.check()?;
                tokens += count_cl100k(piece);
            }
            Ok(tokens)
        });
        match counted {
            Err(Error::Deadline) => {
                let mut notes = notes.borrow_mut();
                notes.uncounted = true;
                notes.failure.get_or_insert(Failure::Deadline);
                Ok(text.len())
            }
            counted => counted,
        }
    }

    /// Counts a failure.
    pub fn failed(&self, failure: Failure) {
        let reason = failure.name();
        self.metrics
            .passthrough
            .get_or_create(&Why { reason })
            .inc();
    }

    /// Compresses a conversation on a thread for blocking work. When the caller is dropped, the
    /// work ends at the next layer.
    pub async fn conversation(self: &Arc<Self>, body: Bytes, job: Job) -> Done {
        let app = self.clone();
        let _guard = CancelOnDrop(job.cancel.clone());
        let start = Instant::now();
        let work = move || app.conversation_now(&body, &job);
        let mut done = match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            Err(_) => Done::untouched(Status::PassedThrough, Some(Failure::Model)),
        };
        done.time = start.elapsed();
        observe(&self.metrics.compress_seconds, done.time);
        if let Some(failure) = done.failure {
            self.failed(failure);
        }
        if let Some((before, after)) = done.tokens() {
            self.metrics.count_tokens(before, after);
        }
        done
    }

    /// The same on this thread.
    pub fn conversation_now(&self, body: &Bytes, job: &Job) -> Done {
        let notes = RefCell::new(Notes::default());
        let count = |text: &str| self.count_in_time(text, job, &notes);
        let shorten = |tasks: &[Task]| self.shorten_texts(tasks, job, &notes);
        // Before a cache marker only what was frozen when it was first sent is put in.
        let frozen = |tasks: &[Task]| self.known_texts(tasks, job, &notes);
        let result = messages::compress_frozen(body, &job.messages, &count, &shorten, &frozen);
        let notes = notes.into_inner();
        let failure = match &result {
            Err(Error::Cancelled) => {
                self.metrics.cancelled.inc();
                None
            }
            _ if notes.uncounted => notes.failure,
            Err(error) => Some(Failure::of(error)),
            Ok(_) => notes.failure,
        };
        let changed = result
            .as_ref()
            .is_ok_and(|r| r.tokens_after < r.tokens_before);
        let status = match job.mode {
            _ if failure.is_some() => Status::PassedThrough,
            Mode::Audit => Status::Audit,
            _ if !changed => Status::Skipped,
            _ if notes.computed == 0 => Status::Cached,
            _ => Status::Compressed,
        };
        let result = result.ok().filter(|_| !notes.uncounted);
        let body = match (&result, job.mode) {
            (Some(result), Mode::Compress) if changed => Some(Bytes::from(result.body.clone())),
            _ => None,
        };
        Done {
            body,
            result,
            status,
            failure,
            hashes: notes.hashes,
            time: Duration::ZERO,
        }
    }

    /// The key of a text's result: the same text becomes the same bytes in every conversation,
    /// whatever is asked there.
    fn key(&self, task: &Task, job: &Job) -> Key {
        let flags = [
            job.mode == Mode::Audit,
            job.retrieve,
            self.options.compress_code,
        ]
        .map(u8::from);
        let share = match task.rate {
            Some(rate) => format!("rate {rate}"),
            None => format!("tokens {}", task.target),
        };
        key(&[
            b"result-1",
            self.engine.info().fingerprint.as_bytes(),
            &flags,
            share.as_bytes(),
            task.text.as_bytes(),
        ])
    }

    /// What texts became when they were first seen. A text that was not seen stays as it is from
    /// now on.
    fn known_texts(
        &self,
        tasks: &[Task],
        job: &Job,
        notes: &RefCell<Notes>,
    ) -> Vec<Option<String>> {
        let keys: Vec<Key> = tasks.iter().map(|task| self.key(task, job)).collect();
        let found = self.store.get(&keys);
        let mut texts = Vec::with_capacity(tasks.len());
        for ((task, key), frozen) in tasks.iter().zip(keys).zip(found) {
            let frozen = match frozen {
                Some(frozen) => frozen,
                None => self.store.put(key, Frozen::AsIs),
            };
            texts.push(match frozen {
                Frozen::AsIs => None,
                Frozen::Text(text) => {
                    self.note_original(task, &text, job, notes);
                    Some(text.to_string())
                }
            });
        }
        texts
    }

    /// Shortens the texts of a conversation: known ones as they became, others by the model while
    /// its time lasts. What fails stays as it is, now and later.
    fn shorten_texts(
        &self,
        tasks: &[Task],
        job: &Job,
        notes: &RefCell<Notes>,
    ) -> Vec<Result<String>> {
        let keys: Vec<Key> = tasks.iter().map(|task| self.key(task, job)).collect();
        let mut found = self.store.get(&keys);
        let missing: Vec<usize> = (0..tasks.len()).filter(|&i| found[i].is_none()).collect();
        let slot = match missing.is_empty() {
            true => None,
            false => Some(Slot::take(self)),
        };
        for i in missing {
            // The same text may stand twice in a conversation.
            if let Some(twin) = (0..i).find(|&j| keys[j] == keys[i]) {
                found[i] = found[twin].clone();
                continue;
            }
            let failed = notes.borrow().failure;
            let shortened = match (&slot, failed) {
                (Some(Err(failure)), _) => Err(*failure),
                (_, Some(Failure::Deadline)) => Err(Failure::Deadline),
                _ => match self.shorten_text(&tasks[i], job) {
                    Ok(frozen) => Ok(frozen),
                    // The client has gone: nothing was sent, so nothing is decided.
                    Err(Error::Cancelled) => {
                        return tasks.iter().map(|_| Err(Error::Cancelled)).collect();
                    }
                    Err(error) => Err(Failure::of(&error)),
                },
            };
            let mut notes = notes.borrow_mut();
            let frozen = match shortened {
                Ok(frozen) => {
                    notes.computed += 1;
                    frozen
                }
                Err(failure) => {
                    notes.failure.get_or_insert(failure);
                    Frozen::AsIs
                }
            };
            found[i] = Some(self.store.put(keys[i], frozen));
        }
        let texts = tasks.iter().zip(found).map(|(task, frozen)| match frozen {
            Some(Frozen::Text(text)) => {
                self.note_original(task, &text, job, notes);
                Ok(text.to_string())
            }
            _ => Ok(task.text.clone()),
        });
        texts.collect()
    }

    /// Keeps the original of a text with a marker.
    fn note_original(&self, task: &Task, text: &str, job: &Job, notes: &RefCell<Notes>) {
        if job.retrieve {
            let name = original_name(&task.text);
            if text.contains(&name) {
                self.store.put_original(&name, &task.text);
                notes.borrow_mut().hashes.push(name);
            }
        }
    }

    /// Shortens a text by the model.
    fn shorten_text(&self, task: &Task, job: &Job) -> Result<Frozen> {
        let code = || !is_json(&task.text) && ContentKind::of(&task.text) == ContentKind::Code;
        if protected(&task.text) || (!self.options.compress_code && code()) {
            return Ok(Frozen::AsIs);
        }
        let marker = (job.retrieve && !is_json(&task.text)).then(|| {
            let name = original_name(&task.text);
            format!("[shortened by prefold; the original: retrieve hash={name}]")
        });
        let mut target = task.target;
        if let Some(marker) = &marker {
            target = target.saturating_sub(self.count(marker)? + 2);
        }
        let tokens = self.count(&task.text)?;
        let left = job.deadline.saturating_duration_since(Instant::now());
        let allowed = (self.speed(&task.question) * left.as_secs_f64() * PLANNED) as usize;
        let exact = Exact::default().with_keep_question(false);
        let request = |text: &str, tokens: usize, exact: Exact| {
            Request::new([text])
                .with_question(task.question.clone())
                .with_tokens(tokens)
                .with_mode(exact)
        };
        let mut text = task.text.clone();
        // Positions of markers are bytes of the original, which a text that was cut first does not
        // have.
        let mut gap = None;
        if tokens > allowed {
            self.metrics.lexical_cuts.inc();
            let by_words = exact.clone().with_rank_method(Some(RankMethod::Bm25));
            let request = request(&text, allowed.max(target), by_words);
            text = self.call(&request, job.deadline, &job.cancel)?.text;
        }
        let short = match tokens > allowed && allowed <= target {
            true => text,
            false => {
                let start = Instant::now();
                let read = self.count(&text)?;
                let compressed =
                    self.call(&request(&text, target, exact), job.deadline, &job.cancel)?;
                let speed = read as f64 / start.elapsed().as_secs_f64().max(1e-6);
                let before = self.speed(&task.question);
                self.set_speed(&task.question, 0.7 * before + 0.3 * speed);
                if text.len() == task.text.len() {
                    gap = largest_gap(&compressed, &text);
                }
                compressed.text
            }
        };
        if !sound(&task.text, &short) {
            return Ok(Frozen::AsIs);
        }
        Ok(Frozen::Text(match marker {
            None => short.into(),
            Some(marker) => {
                let at = gap.unwrap_or(short.len());
                let (head, tail) = short.split_at(at);
                format!("{}\n{marker}\n{}", head.trim_end(), tail.trim_start())
                    .trim_end()
                    .into()
            }
        }))
    }

    /// Shortens a prompt, in turns with others or, where the device does several at a time,
    /// together with those that wait.
    pub fn call(
        &self,
        request: &Request,
        deadline: Instant,
        cancel: &CancelToken,
    ) -> Result<Compressed> {
        if let Some(batch) = &self.batch {
            let waiting = Waiting {
                request: request.clone(),
                deadline,
                cancel: cancel.clone(),
            };
            return match batch.run(waiting, |waiting| self.compress_batch(waiting)) {
                Some(result) => result,
                None => Err(self.panicked()),
            };
        }
        let bytes: usize = request.contexts.iter().map(String::len).sum();
        self.in_turns(bytes <= SHORT, deadline, cancel, |control| {
            self.engine.compress_with(request, control)
        })
    }

    /// Shortens several prompts together. They end when the last of them is late, or all are
    /// cancelled.
    fn compress_batch(&self, waiting: Vec<Waiting>) -> Vec<Result<Compressed>> {
        let latest = waiting.iter().map(|one| one.deadline).max();
        let requests: Vec<Request> = waiting.iter().map(|one| one.request.clone()).collect();
        let cancels: Vec<CancelToken> = waiting.into_iter().map(|one| one.cancel).collect();
        let cancel = CancelToken::default();
        let all = cancel.clone();
        let control = Control::default()
            .with_deadline(latest.unwrap_or_else(Instant::now))
            .with_cancel(cancel)
            .with_progress(move |_| {
                if cancels.iter().all(CancelToken::is_cancelled) {
                    all.cancel();
                }
            });
        self.engine.compress_many(&requests, &control)
    }

    fn panicked(&self) -> Error {
        Error::Device {
            device: self.engine.info().device.clone(),
            reason: "the compression panicked; please report it".into(),
        }
    }

    /// Does `work` with the model in turns with others, whose number is bounded where they are not
    /// `short`. A panic is an error of this request alone.
    pub fn in_turns<T>(
        &self,
        short: bool,
        deadline: Instant,
        cancel: &CancelToken,
        work: impl FnOnce(&Control) -> Result<T>,
    ) -> Result<T> {
        let _lane = (!short).then(|| self.lanes.join(deadline));
        let turn = self.turns.join(deadline);
        let control = Control::default()
            .with_deadline(deadline)
            .with_cancel(cancel.clone())
            .with_progress(move |_| turn.pass());
        control.check()?;
        match catch_unwind(AssertUnwindSafe(|| work(&control))) {
            Ok(result) => result,
            Err(_) => Err(self.panicked()),
        }
    }

    /// Does `work` with the model on a thread for blocking work, in the queue.
    pub async fn queued<T: Send + 'static>(
        self: &Arc<Self>,
        deadline: Duration,
        work: impl FnOnce(&App, &Control) -> Result<T> + Send + 'static,
    ) -> Result<T, Refused> {
        let app = self.clone();
        let cancel = CancelToken::default();
        let _guard = CancelOnDrop(cancel.clone());
        let start = Instant::now();
        let deadline = start + deadline;
        let work = move || {
            let _slot = Slot::take(&app).map_err(Refused::Failed)?;
            app.in_turns(false, deadline, &cancel, |control| work(&app, control))
                .map_err(|error| match error {
                    Error::Input { .. } | Error::Budget { .. } | Error::Unsupported { .. } => {
                        Refused::Input(error.to_string())
                    }
                    error => Refused::Failed(Failure::of(&error)),
                })
        };
        let done = tokio::task::spawn_blocking(work).await;
        observe(&self.metrics.compress_seconds, start.elapsed());
        match done {
            Ok(done) => done,
            Err(_) => Err(Refused::Failed(Failure::Model)),
        }
    }

    /// The state of all counters, as text.
    pub fn metrics_text(&self) -> String {
        self.metrics.cache_bytes.set(self.store.bytes() as i64);
        super::metrics::encode(&self.registry)
    }
}

/// Why a call gave no result.
#[derive(Debug)]
pub(super) enum Refused {
    /// The request makes no sense.
    Input(String),
    /// The server could not do it.
    Failed(Failure),
}

/// A text in pieces that are counted one by one. They begin at lines, where counts add up.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    const LONG: usize = 64 << 10;
    let mut rest = text;
    std::iter::from_fn(move || {
        let cut = match rest.len() {
            0 => return None,
            length if length <= LONG => length,
            _ => {
                let at = rest.floor_char_boundary(LONG);
                let begins = |line: usize| !rest[line..].starts_with(char::is_whitespace);
                let mut lines = rest[..at].rmatch_indices('\n').map(|(end, _)| end + 1);
                lines.find(|&line| begins(line)).unwrap_or(at)
            }
        };
        let (piece, after) = rest.split_at(cut);
        rest = after;
        Some(piece)
    })
}

/// Where in the shortened text the longest stretch was dropped, in bytes.
fn largest_gap(compressed: &Compressed, original: &str) -> Option<usize> {
    let [context] = compressed.contexts.as_slice() else {
        return None;
    };
    let mut gap = (0, None);
    let mut at = compressed.text.find(&context.text)?;
    let mut before = 0;
    for span in &context.spans {
        let kept = original.get(span.clone())?;
        let found = at + compressed.text.get(at..)?.find(kept)?;
        let dropped = span.start.saturating_sub(before);
        if dropped > gap.0 {
            gap = (dropped, Some(at));
        }
        at = found + kept.len();
        before = span.end;
    }
    if original.len() - before.min(original.len()) > gap.0 {
        return None;
    }
    gap.1
}

/// The name of an original.
pub(super) fn original_name(text: &str) -> String {
    hex(&key(&[b"original", text.as_bytes()])[..NAME])
}

/// A token takes a line.
const LONGEST_TOKEN: u64 = 64 << 10;

/// The hash of the token in a file.
fn read_token(path: &std::path::Path) -> Result<[u8; 32]> {
    let bytes = read_bounded(path, LONGEST_TOKEN)?;
    let text =
        std::str::from_utf8(&bytes).map_err(|_| Error::format(path, "the token is not UTF-8"))?;
    let token = text.trim();
    match token.len() {
        0..16 => Err(Error::format(
            path,
            "the token has fewer than 16 characters; put a longer one there",
        )),
        _ => Ok(hmac_sha256::Hash::hash(token.as_bytes())),
    }
}

/// A place in the queue.
struct Slot<'a> {
    app: &'a App,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl<'a> Slot<'a> {
    fn take(app: &'a App) -> Result<Self, Failure> {
        let permit = app.slots.clone().try_acquire_owned();
        let permit = permit.map_err(|_| Failure::QueueFull)?;
        app.metrics.queue_depth.inc();
        Ok(Slot {
            app,
            _permit: permit,
        })
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.app.metrics.queue_depth.dec();
    }
}

/// Ends work whose result is not wanted any more.
struct CancelOnDrop(CancelToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_counted_in_pieces() {
        let line = "The keeper's lamp, no. 1858: 46 m high?!\n";
        let spaced = "Line\n    indented\n\n\n   and so on  \n";
        for text in [line.repeat(5000), spaced.repeat(6000), line.repeat(2)] {
            assert_eq!(pieces(&text).collect::<String>(), text);
            let sum: usize = pieces(&text).map(count_cl100k).sum();
            assert_eq!(sum, count_cl100k(&text));
        }
        let unbroken = "\u{1f9ed}x".repeat(40_000);
        assert_eq!(pieces(&unbroken).collect::<String>(), unbroken);
        assert!(pieces(&unbroken).count() > 2 && pieces("").count() == 0);
    }
}
