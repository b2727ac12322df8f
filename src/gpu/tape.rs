//! What a thread has launched: a list that can be launched again.

use std::cell::RefCell;
use std::ops::Deref;

use super::launch::{Launch, Launcher};
use crate::error::Result;

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

/// A launcher whose copies and allocations make a recording unusable: a replay would not repeat them, and
/// memory might be freed by then.
pub(super) struct Watched<L>(pub L);

impl<L> Deref for Watched<L> {
    type Target = L;

    fn deref(&self) -> &L {
        &self.0
    }
}

impl<L: Launcher> Watched<L> {
    pub fn alloc(&self, bytes: usize, zeroed: bool) -> Result<L::Memory> {
        spoil();
        self.0.alloc(bytes, zeroed)
    }

    pub fn write(&self, memory: &mut L::Memory, at: usize, from: &[u8]) -> Result<()> {
        spoil();
        self.0.write(memory, at, from)
    }

    pub fn read(&self, memory: &L::Memory, at: usize, to: &mut [u8]) -> Result<()> {
        spoil();
        self.0.read(memory, at, to)
    }

    pub fn copy(
        &self,
        from: &L::Memory,
        from_at: usize,
        to: &mut L::Memory,
        to_at: usize,
        bytes: usize,
    ) -> Result<()> {
        spoil();
        self.0.copy(from, from_at, to, to_at, bytes)
    }
}

/// Says that this thread does something with the device that is not a launch.
fn spoil() {
    TAPE.with_borrow_mut(|tape| {
        if let Some(tape) = tape {
            tape.spoiled = true;
        }
    });
}
