//! How a long call is watched and ended: deadlines, cancellation, progress.
//!
//! A call's control, and the threads of its engine, belong to the call and not to what it calls: they are
//! set once, in [`Call::enter`], and every layer of a forward pass finds them in [`step`]. The scorers
//! and models in between know nothing of them.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rayon::ThreadPool;

use crate::error::{Error, Result};

/// Cancels calls from another thread. Clones share one state.
///
/// ```
/// use prefold::{CancelToken, Control};
///
/// let token = CancelToken::default();
/// let control = Control::default().with_cancel(token.clone());
/// // From any thread: calls that have `control` return `Error::Cancelled`.
/// token.cancel();
/// assert!(token.is_cancelled());
/// # let _ = control;
/// ```
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Cancels every call that has this token, now and later.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`CancelToken::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl From<Arc<AtomicBool>> for CancelToken {
    /// A token that is cancelled by setting a flag, as signal handlers do.
    fn from(flag: Arc<AtomicBool>) -> Self {
        CancelToken(flag)
    }
}

/// How far a call has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Tokens that went through the model in this stage.
    pub done: usize,
    /// Tokens of this stage. A call may have several, as ranking contexts and then pruning tokens.
    pub total: usize,
}

/// Called with the progress, on a thread of the call.
type Watch = Arc<dyn Fn(Progress) + Send + Sync>;

/// Deadline, cancellation and progress of a call. The default has none of them.
///
/// It is checked at least once per layer of a forward pass. A call that is ended returns
/// [`Error::Cancelled`] or [`Error::Deadline`] and leaves the engine as it was.
///
/// ```
/// use std::time::Duration;
/// use prefold::Control;
///
/// let control = Control::default()
///     .with_timeout(Duration::from_secs(5))
///     .with_progress(|progress| eprintln!("{} of {} tokens", progress.done, progress.total));
/// # let _ = control;
/// ```
#[derive(Clone, Default)]
pub struct Control {
    deadline: Option<Instant>,
    cancel: Option<CancelToken>,
    progress: Option<Watch>,
}

impl Control {
    /// Ends calls at a point in time.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Ends calls so long after now. A time that cannot be reached sets no deadline.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.deadline = Instant::now().checked_add(timeout);
        self
    }

    /// Ends calls when a token is cancelled.
    #[must_use]
    pub fn with_cancel(mut self, token: CancelToken) -> Self {
        self.cancel = Some(token);
        self
    }

    /// Reports progress, on a thread of the call, which waits meanwhile.
    #[must_use]
    pub fn with_progress(mut self, watch: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(watch));
        self
    }

    /// Refuses to continue where the call is cancelled or late.
    ///
    /// # Errors
    /// [`Error::Cancelled`] and [`Error::Deadline`].
    pub fn check(&self) -> Result<()> {
        if self.cancel.as_ref().is_some_and(CancelToken::is_cancelled) {
            return Err(Error::Cancelled);
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Error::Deadline),
            _ => Ok(()),
        }
    }
}

#[cfg(feature = "train")]
impl Control {
    /// The same for a part of the work, whose progress is not the whole's.
    pub(crate) fn of_part(&self) -> Control {
        Control {
            progress: None,
            ..self.clone()
        }
    }

    /// Reports progress outside a call.
    pub(crate) fn report(&self, done: usize, total: usize) {
        if let Some(watch) = &self.progress {
            watch(Progress { done, total });
        }
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("deadline", &self.deadline)
            .field("cancel", &self.cancel)
            .field("progress", &self.progress.is_some())
            .finish()
    }
}

/// A call in progress: its control, and the threads that compute for it.
#[derive(Clone, Default)]
pub(crate) struct Call(Option<Arc<Inner>>);

struct Inner {
    control: Control,
    threads: Option<Arc<ThreadPool>>,
}

thread_local! {
    static CURRENT: RefCell<Call> = RefCell::default();
}

impl Call {
    /// A call on these threads; rayon's own without any.
    pub fn new(control: &Control, threads: Option<Arc<ThreadPool>>) -> Self {
        let control = control.clone();
        Call(Some(Arc::new(Inner { control, threads })))
    }

    /// The call that this thread works for.
    pub fn current() -> Self {
        CURRENT.with(|current| current.borrow().clone())
    }

    /// Does `work` for this call, on the caller's thread.
    pub fn enter<R>(&self, work: impl FnOnce() -> R) -> R {
        /// Puts back what was there, after a panic too.
        struct Before(Call);
        impl Drop for Before {
            fn drop(&mut self) {
                let before = std::mem::take(&mut self.0);
                CURRENT.with(|current| current.replace(before));
            }
        }
        let _before = Before(CURRENT.with(|current| current.replace(self.clone())));
        work()
    }

    /// The same on other threads.
    pub fn on(&self, threads: Arc<ThreadPool>) -> Self {
        let control = self.0.as_ref().map(|inner| inner.control.clone());
        Call::new(&control.unwrap_or_default(), Some(threads))
    }

    /// The same under another control.
    pub fn under(&self, control: &Control) -> Self {
        let threads = self.0.as_ref().and_then(|inner| inner.threads.clone());
        Call::new(control, threads)
    }

    fn check(&self) -> Result<()> {
        match &self.0 {
            Some(inner) => inner.control.check(),
            None => Ok(()),
        }
    }

    /// Does `work` on the threads of this call.
    fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match self.0.as_ref().and_then(|inner| inner.threads.as_ref()) {
            Some(threads) => threads.install(|| self.enter(work)),
            None => work(),
        }
    }
}

/// Refuses to continue where the current call is cancelled or late.
pub(crate) fn check() -> Result<()> {
    Call::current().check()
}

/// Does a short piece of work, as a layer, on the threads of the current call, unless that is to end.
///
/// A thread that waits for its share may do that of another call: pieces must be short, so that no call
/// waits for all of another.
pub(crate) fn step<R: Send>(work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    let call = Call::current();
    call.check()?;
    call.install(work)
}

/// Does `work` on the threads of the current call.
pub(crate) fn compute<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    Call::current().install(work)
}

/// Reports the progress of the current call.
pub(crate) fn report(done: usize, total: usize) {
    if let Some(inner) = Call::current().0
        && let Some(watch) = &inner.control.progress
    {
        watch(Progress { done, total });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_runs_on_the_calls_threads_and_sees_its_control() {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(3)
            .thread_name(|_| "own".into())
            .build()
            .unwrap();
        let token = CancelToken::default();
        let control = Control::default().with_cancel(token.clone());
        let call = Call::new(&control, Some(Arc::new(threads)));
        call.enter(|| {
            let seen = step(|| {
                assert_eq!(std::thread::current().name(), Some("own"));
                // Steps may contain others.
                step(|| Ok(rayon::current_num_threads()))
            });
            assert_eq!(seen.unwrap(), 3);
            let inner = step(|| {
                token.cancel();
                check()
            });
            assert!(matches!(inner, Err(Error::Cancelled)));
            assert!(matches!(step(|| Ok(())), Err(Error::Cancelled)));
        });
        // Outside of the call nothing is left of it.
        assert!(check().is_ok() && step(|| Ok(())).is_ok());
    }

    #[test]
    fn a_deadline_ends_a_call_and_an_unreachable_one_does_not() {
        let late = Control::default().with_timeout(Duration::ZERO);
        assert!(matches!(late.check(), Err(Error::Deadline)));
        let never = Control::default().with_timeout(Duration::MAX);
        assert!(never.check().is_ok());
    }

    #[test]
    fn progress_reaches_its_watcher_and_calls_nest() {
        use std::sync::Mutex;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let to = seen.clone();
        let control =
            Control::default().with_progress(move |p| to.lock().unwrap().push((p.done, p.total)));
        Call::new(&control, None).enter(|| {
            report(1, 2);
            Call::new(&Control::default(), None).enter(|| report(7, 7));
            report(2, 2);
        });
        report(9, 9);
        assert_eq!(*seen.lock().unwrap(), [(1, 2), (2, 2)]);
    }
}
