//! A call of the library from Python: without the interpreter's lock, ended by Ctrl-C, deadlines and
//! tokens, with progress reported on the caller's thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use prefold::{Control, Error, Progress, Result};
use pyo3::prelude::*;

use crate::ending::Running;
use crate::{NativeError, native};

/// How often a call looks for signals.
const PULSE: Duration = Duration::from_millis(25);

/// Cancels calls from another thread.
#[pyclass(frozen, from_py_object)]
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

/// What ends a call early, and who is told of its progress.
#[derive(Default)]
pub struct Watch {
    deadline: Option<f64>,
    progress: Option<Py<PyAny>>,
    token: Option<CancelToken>,
}

impl Watch {
    pub fn new(
        deadline: Option<f64>,
        progress: Option<Py<PyAny>>,
        token: Option<CancelToken>,
    ) -> Self {
        Watch {
            deadline,
            progress,
            token,
        }
    }
}

/// A message to the thread that waits for a call.
enum Event<R> {
    Progress(Progress),
    Done(Result<R>),
    Panicked,
}

/// Runs `work` on a thread of its own while this one looks for signals and reports progress.
pub fn run<R: Send + 'static>(
    py: Python<'_>,
    watch: Watch,
    work: impl FnOnce(&Control) -> Result<R> + Send + 'static,
) -> PyResult<R> {
    let token = watch.token.unwrap_or_default().0;
    let _running = Running::begin(&token).ok_or_else(|| native(Error::Cancelled))?;
    let mut control = Control::default().with_cancel(token.clone());
    if let Some(seconds) = watch.deadline {
        let timeout = Duration::try_from_secs_f64(seconds).map_err(|_| {
            native(Error::Input {
                what: format!("deadline {seconds}"),
                reason: "expected seconds, 0 or more".into(),
            })
        })?;
        control = control.with_timeout(timeout);
    }
    let (sender, events) = channel();
    if watch.progress.is_some() {
        let reports = Mutex::new(sender.clone());
        control = control.with_progress(move |progress| {
            if let Ok(reports) = reports.lock() {
                let _ = reports.send(Event::Progress(progress));
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
    // Only this thread waits: a channel's end may be shared by none.
    let events = Mutex::new(events);
    let next = || match events.lock() {
        Ok(events) => events.recv_timeout(PULSE),
        Err(_) => Err(RecvTimeoutError::Disconnected),
    };
    // Ends the call, waits for it, and raises what interrupted it.
    let interrupted = |error: PyErr| {
        token.cancel();
        py.detach(|| {
            while matches!(
                next(),
                Ok(Event::Progress(_)) | Err(RecvTimeoutError::Timeout)
            ) {}
        });
        error
    };
    let done = loop {
        match py.detach(next) {
            Ok(Event::Progress(step)) => {
                if let Some(callback) = &watch.progress {
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
    // The result is there: what is left of the thread takes no time.
    let _ = thread.join();
    done.map_err(native)
}
