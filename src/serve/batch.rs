//! Requests that wait at the same time, done together: on a GPU they share forward passes.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Collects items from threads and lets one of these do what waits.
pub(super) struct Batch<T, R> {
    max: usize,
    state: Mutex<State<T, R>>,
    change: Condvar,
}

struct State<T, R> {
    waiting: Vec<(T, Arc<Mutex<Option<R>>>)>,
    /// Whether a thread works for others.
    busy: bool,
}

impl<T, R> Batch<T, R> {
    /// Does up to `most` items at a time.
    pub fn new(max: usize) -> Self {
        Batch {
            max: max.max(1),
            state: Mutex::new(State {
                waiting: Vec::new(),
                busy: false,
            }),
            change: Condvar::new(),
        }
    }

    /// Does an item, with those that wait meanwhile: `work` gives a result for each, in their
    /// order. `None` where it gave fewer, or panicked.
    pub fn run(&self, item: T, work: impl Fn(Vec<T>) -> Vec<R>) -> Option<R> {
        let place = Arc::new(Mutex::new(None));
        let mut state = self.state();
        state.waiting.push((item, place.clone()));
        loop {
            let done = lock(&place).take();
            // A place that only this thread still knows was given up.
            if done.is_some() || (Arc::strong_count(&place) == 1) {
                return done;
            }
            if state.busy {
                state = self
                    .change
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.busy = true;
            let count = state.waiting.len().min(self.max);
            let (items, places): (Vec<T>, Vec<_>) = state.waiting.drain(..count).unzip();
            drop(state);
            let free = Free(self);
            for (place, result) in places.into_iter().zip(work(items)) {
                *lock(&place) = Some(result);
            }
            drop(free);
            state = self.state();
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock<R>(place: &Mutex<Option<R>>) -> MutexGuard<'_, Option<R>> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the next thread work, after a panic too.
struct Free<'a, T, R>(&'a Batch<T, R>);

impl<T, R> Drop for Free<'_, T, R> {
    fn drop(&mut self) {
        self.0.state().busy = false;
        self.0.change.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn items_that_wait_are_done_together_and_each_gets_its_own() {
        let batch = Batch::new(4);
        let sizes = Mutex::new(Vec::new());
        let all = Barrier::new(9);
        thread::scope(|scope| {
            for item in 0..9_u32 {
                let (batch, sizes, all) = (&batch, &sizes, &all);
                scope.spawn(move || {
                    all.wait();
                    let done = batch.run(item, |items| {
                        // Long enough that all others wait.
                        thread::sleep(Duration::from_millis(100));
                        sizes.lock().unwrap().push(items.len());
                        items.iter().map(|item| item * 10).collect()
                    });
                    assert_eq!(done, Some(item * 10));
                });
            }
        });
        let sizes = sizes.into_inner().unwrap();
        assert_eq!(sizes.iter().sum::<usize>(), 9);
        assert!(
            sizes.len() < 9 && sizes.iter().all(|&size| size <= 4),
            "{sizes:?}"
        );
    }

    #[test]
    fn a_panic_and_a_missing_result_stop_no_other() {
        let batch: Batch<u32, u32> = Batch::new(2);
        let panics = || batch.run(1, |_| panic!("planned"));
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
        assert_eq!(batch.run(2, |_| Vec::new()), None);
        assert_eq!(batch.run(3, |items| items), Some(3));
    }
}
