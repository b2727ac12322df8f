//! Turns on the model: compressions in progress take them one forward pass at a time, first come,
//! first served, so that none waits for all of another.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Gives turns to compressions, `capacity` at a time.
pub(super) struct Turns {
    capacity: usize,
    state: Mutex<State>,
    change: Condvar,
}

#[derive(Default)]
struct State {
    running: usize,
    waiting: VecDeque<u64>,
    next: u64,
}

impl Turns {
    pub fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Turns {
            capacity: capacity.max(1),
            state: Mutex::default(),
            change: Condvar::new(),
        })
    }

    /// Takes part from now on; returns with the first turn, or at the deadline without one.
    pub fn join(self: &Arc<Self>, deadline: Instant) -> Arc<Turn> {
        let turn = Turn {
            turns: self.clone(),
            deadline,
            held: Mutex::new(false),
        };
        *turn.held() = self.wait(deadline);
        Arc::new(turn)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn; false at the deadline.
    fn wait(&self, deadline: Instant) -> bool {
        let mut state = self.state();
        let ticket = state.next;
        state.next += 1;
        state.waiting.push_back(ticket);
        loop {
            if state.running < self.capacity && state.waiting.front() == Some(&ticket) {
                state.waiting.pop_front();
                state.running += 1;
                // The next one may have a turn too.
                self.change.notify_all();
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.waiting.retain(|&other| other != ticket);
                self.change.notify_all();
                return false;
            }
            let waited = self.change.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn release(&self) {
        self.state().running -= 1;
        self.change.notify_all();
    }
}

/// A compression that takes turns; dropping it gives up the place.
pub(super) struct Turn {
    turns: Arc<Turns>,
    deadline: Instant,
    held: Mutex<bool>,
}

impl Turn {
    /// Lets those who wait go first, if any do: called between two forward passes.
    pub fn pass(&self) {
        let mut held = self.held();
        if *held && !self.turns.state().waiting.is_empty() {
            self.turns.release();
            *held = self.turns.wait(self.deadline);
        }
    }

    fn held(&self) -> MutexGuard<'_, bool> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if *self.held() {
            self.turns.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn a_short_one_waits_for_one_pass_of_a_long_one() {
        let turns = Turns::new(1);
        let passes = Arc::new(AtomicUsize::new(0));
        let long = turns.join(soon());
        let short = {
            let (turns, passes) = (turns.clone(), passes.clone());
            thread::spawn(move || {
                let _turn = turns.join(soon());
                passes.load(Ordering::SeqCst)
            })
        };
        while turns.state().waiting.is_empty() {
            thread::yield_now();
        }
        for _ in 0..100 {
            passes.fetch_add(1, Ordering::SeqCst);
            long.pass();
        }
        assert_eq!(short.join().unwrap(), 1);
    }

    #[test]
    fn never_more_at_a_time_than_fit_and_none_is_forgotten() {
        for capacity in [1, 3] {
            let turns = Turns::new(capacity);
            let (now, max) = (AtomicUsize::new(0), AtomicUsize::new(0));
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        let turn = turns.join(soon());
                        for _ in 0..50 {
                            let running = now.fetch_add(1, Ordering::SeqCst) + 1;
                            max.fetch_max(running, Ordering::SeqCst);
                            thread::yield_now();
                            now.fetch_sub(1, Ordering::SeqCst);
                            turn.pass();
                        }
                    });
                }
            });
            assert!(max.load(Ordering::SeqCst) <= capacity);
            assert!(turns.state().waiting.is_empty() && turns.state().running == 0);
        }
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let turns = Turns::new(1);
        let held = turns.join(soon());
        let late = turns.join(Instant::now() + Duration::from_millis(20));
        assert!(!*late.held());
        drop(late);
        drop(held);
        assert!(*turns.join(soon()).held());
    }
}
