//! Calls that Python's threads are in, ended before the interpreter is.
//!
//! A thread that asks for the interpreter's lock while Python ends is stopped by `pthread_exit` (before
//! Python 3.14), which unwinds what is on its stack. That must not be a call of ours: the unwinder that a library
//! was linked with need not be the one that `pthread_exit` takes. So `atexit` cancels all calls and waits
//! for them, and none begins after it.

use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use prefold::CancelToken;
use pyo3::marker::Ungil;
use pyo3::prelude::*;

/// How long the interpreter waits for calls to end; each looks at its token once per layer of a model.
const LONGEST: Duration = Duration::from_secs(10);
/// How often it looks.
const PULSE: Duration = Duration::from_millis(2);

struct Calls {
    /// Python ends: no call begins.
    ending: bool,
    running: Vec<Call>,
    last: u64,
}

struct Call {
    number: u64,
    /// A fork copies the calls of threads that the child does not have.
    process: u32,
    token: CancelToken,
}

static CALLS: Mutex<Calls> = Mutex::new(Calls {
    ending: false,
    running: Vec::new(),
    last: 0,
});

fn calls() -> MutexGuard<'static, Calls> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call that is under way.
pub struct Running(u64);

impl Running {
    /// Begins a call, unless Python ends.
    pub fn begin(token: &CancelToken) -> Option<Running> {
        let mut calls = calls();
        if calls.ending {
            return None;
        }
        calls.last += 1;
        let number = calls.last;
        calls.running.push(Call {
            number,
            process: process::id(),
            token: token.clone(),
        });
        Some(Running(number))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        calls().running.retain(|call| call.number != self.0);
    }
}

/// Does something short without the interpreter's lock; with it, while Python ends.
pub fn released<T: Ungil + Send>(py: Python<'_>, work: impl FnOnce() -> T + Ungil + Send) -> T {
    match Running::begin(&CancelToken::default()) {
        Some(running) => {
            let done = py.detach(work);
            drop(running);
            done
        }
        None => work(),
    }
}

/// Cancels all calls and waits for them; called by `atexit`.
#[pyfunction]
pub fn end_calls(py: Python<'_>) {
    let begun = Instant::now();
    while begun.elapsed() < LONGEST {
        let left = match CALLS.try_lock() {
            Ok(calls) => Some(cancelled(calls)),
            Err(TryLockError::Poisoned(calls)) => Some(cancelled(calls.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        };
        if left == Some(0) {
            return;
        }
        py.detach(|| thread::sleep(PULSE));
    }
}

/// Cancels this process's calls; gives their number.
fn cancelled(mut calls: MutexGuard<'_, Calls>) -> usize {
    calls.ending = true;
    let own = process::id();
    let own = calls.running.iter().filter(|call| call.process == own);
    own.inspect(|call| call.token.cancel()).count()
}
