//! A call of the library from Python: without the interpreter's lock, ended by Ctrl-C, deadlines and
//! tokens, and with progress told on the caller's thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use prefold::{Control, Error, Progress, Result};
use pyo3::prelude::*;

use crate::{NativeError, native};

/// How often a call looks for signals.
const PULSE: Duration = Duration::from_millis(25);

/// Cancels calls from another thread.
#[pyclass(frozen)]
#[derive(Clone, Default)]
pub struct CancelToken(prefold::CancelToken);

#[pymethods]
impl CancelToken {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Ends every call that has this token.
    fn cancel(&self) {
        self.0.cancel();
    }
}

/// What a call sends to the thread that waits for it.
enum Event<R> {
    Progress(Progress),
    Done(Result<R>),
    Panicked,
}

/// Runs `work` on a thread of its own while this one looks for signals and tells of progress.
pub fn run<R: Send + 'static>(
    py: Python<'_>,
    deadline: Option<f64>,
    progress: Option<Py<PyAny>>,
    token: Option<CancelToken>,
    work: impl FnOnce(&Control) -> Result<R> + Send + 'static,
) -> PyResult<R> {
    let token = token.unwrap_or_default().0;
    let mut control = Control::default().with_cancel(token.clone());
    if let Some(seconds) = deadline {
        let timeout = Duration::try_from_secs_f64(seconds).map_err(|_| {
            let reason = format!("deadline {seconds}: expected seconds, 0 or more");
            NativeError::new_err(("InputError", reason))
        })?;
        control = control.with_timeout(timeout);
    }
    let (sender, events) = channel();
    if progress.is_some() {
        let told = std::sync::Mutex::new(sender.clone());
        control = control.with_progress(move |progress| {
            if let Ok(told) = told.lock() {
                let _ = told.send(Event::Progress(progress));
            }
        });
    }
    let thread = std::thread::Builder::new()
        .name("prefold-call".into())
        .spawn(move || {
            let done = catch_unwind(AssertUnwindSafe(|| work(&control)));
            let _ = sender.send(done.map_or(Event::Panicked, Event::Done));
        })
        .map_err(|error| NativeError::new_err(("PrefoldError", format!("thread: {error}"))))?;
    // Ends the call, waits for it, and raises what interrupted it.
    let interrupted = |error: PyErr| {
        token.cancel();
        py.detach(|| while !matches!(events.recv(), Ok(Event::Done(_) | Event::Panicked) | Err(_)) {});
        error
    };
    let done = loop {
        match py.detach(|| events.recv_timeout(PULSE)) {
            Ok(Event::Progress(step)) => {
                if let Some(callback) = &progress {
                    callback
                        .call1(py, (step.done, step.total))
                        .map_err(interrupted)?;
                }
            }
            Ok(Event::Done(done)) => break done,
            Ok(Event::Panicked) | Err(RecvTimeoutError::Disconnected) => {
                let message = "a bug in prefold: it panicked; please report the arguments";
                return Err(NativeError::new_err(("PrefoldError", message)));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        py.check_signals().map_err(interrupted)?;
    };
    let _ = py.detach(|| thread.join());
    done.map_err(native)
}

/// Tokens of a text in a vocabulary that is named.
pub fn count(text: &str, vocabulary: &str) -> Result<usize> {
    let count: prefold::Count = vocabulary.parse()?;
    match count {
        prefold::Count::Scorer => Err(Error::Unsupported {
            what: "count `scorer` without a model".into(),
            have: "cl100k, o200k, a tokenizer.json".into(),
        }),
        count => prefold::internal::text::Counter::new(&count)?.count(text),
    }
}
