//! What a thread has launched: a list that can be launched again.

use std::cell::RefCell;

use super::launch::Launch;

thread_local! {
    static TAPE: RefCell<Option<Tape>> = const { RefCell::new(None) };
}

/// Launches, in order.
struct Tape {
    launches: Vec<Launch>,
    /// Something else was done as well, which the list does not tell.
    spoiled: bool,
}

/// Writes down what this thread launches while it does `work`. No list if that did more than launch.
pub(super) fn taped<T>(work: impl FnOnce() -> T) -> (T, Option<Vec<Launch>>) {
    let fresh = Tape {
        launches: Vec::new(),
        spoiled: false,
    };
    let outer = TAPE.replace(Some(fresh));
    let done = work();
    let tape = TAPE.replace(outer);
    let launches = tape.filter(|tape| !tape.spoiled).map(|tape| tape.launches);
    (done, launches)
}

/// Writes a launch down, if that is wanted.
pub(super) fn note(launch: Launch) {
    TAPE.with_borrow_mut(|tape| {
        if let Some(tape) = tape {
            tape.launches.push(launch);
        }
    });
}

/// Says that this thread does something with the device that is not a launch: launchers do, of whatever would
/// not be done by a replay, and of memory that might be gone by then.
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub(super) fn spoil() {
    TAPE.with_borrow_mut(|tape| {
        if let Some(tape) = tape {
            tape.spoiled = true;
        }
    });
}
