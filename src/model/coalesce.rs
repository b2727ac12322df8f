//! Several pieces of work that ask one model: what they ask meanwhile goes to it in one.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::control::Call;
use crate::error::{Error, Result};
use crate::model::{Scorer, Session, Thinned, Thinning};

/// Pieces of work at a time: each has a thread.
pub(crate) const SEATS: usize = 16;

/// Does `work` for every item, in any order; gives the results in the items' order.
///
/// Where the model's device has a queue of its own, several run at a time, each with a scorer that waits
/// until all others wait too: then all that was asked is asked of the model together, so that it shares
/// forward passes. On a CPU, which is busy with one alone, it is one after the other.
///
/// What shares a pass depends on the work only, never on how threads run, so that results are the same
/// every time.
pub(crate) fn together<T: Sync, R: Send>(
    model: &dyn Scorer,
    items: &[T],
    work: impl Fn(&dyn Scorer, &T) -> R + Sync,
) -> Vec<R> {
    if !model.thins() || items.len() < 2 {
        return items.iter().map(|item| work(model, item)).collect();
    }
    items
        .chunks(SEATS)
        .flat_map(|items| round(model, items, &work))
        .collect()
}

fn round<T: Sync, R: Send>(
    model: &dyn Scorer,
    items: &[T],
    work: &(impl Fn(&dyn Scorer, &T) -> R + Sync),
) -> Vec<R> {
    let table = Table {
        model,
        desk: Mutex::new(Desk {
            busy: items.len(),
            asked: BTreeMap::new(),
            answered: BTreeMap::new(),
            broken: false,
        }),
        answers: Condvar::new(),
    };
    let table = &table;
    // Threads of ours work for the call of the thread that waits for them.
    let call = &Call::current();
    thread::scope(|scope| {
        let at_work = items.iter().enumerate().map(|(seat, item)| {
            let seat = Seat { table, seat };
            let spawned = thread::Builder::new()
                .spawn_scoped(scope, move || call.enter(|| work(&seat, item)));
            (spawned, item)
        });
        // All sit down before anybody is waited for.
        let at_work: Vec<_> = at_work.collect();
        at_work
            .into_iter()
            .map(|(spawned, item)| match spawned {
                Ok(thread) => match thread.join() {
                    Ok(result) => result,
                    Err(panic) => std::panic::resume_unwind(panic),
                },
                // No thread to be had. Its seat was given back with the closure.
                Err(_) => work(model, item),
            })
            .collect()
    })
}

/// Where the work comes together.
struct Table<'m> {
    model: &'m dyn Scorer,
    desk: Mutex<Desk>,
    answers: Condvar,
}

struct Desk {
    /// Seats that do not wait for an answer.
    busy: usize,
    /// By seat.
    asked: BTreeMap<usize, Ask>,
    answered: BTreeMap<usize, Result<Answer>>,
    /// A worker broke off, perhaps with the questions of all.
    broken: bool,
}

enum Ask {
    Tails {
        sequences: Vec<(Vec<u32>, usize)>,
        estimate: bool,
    },
    Thin(Vec<Owned>),
}

/// A [`Thinning`] of its own.
struct Owned {
    ids: Vec<u32>,
    size: usize,
    end: usize,
    windows: Vec<Vec<(usize, f64)>>,
}

enum Answer {
    Tails(Vec<Vec<f32>>),
    Thin(Vec<Thinned>),
}

/// One piece of work's scorer.
struct Seat<'t, 'm> {
    table: &'t Table<'m>,
    seat: usize,
}

impl Table<'_> {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers all that was asked: in as few calls as possible, and where such a call fails one by one, so
    /// that each caller gets its own error only.
    fn serve(&self, asked: BTreeMap<usize, Ask>) -> BTreeMap<usize, Result<Answer>> {
        let mut answers = BTreeMap::new();
        let mut kinds: [Vec<(usize, Ask)>; 3] = Default::default();
        for (seat, ask) in asked {
            let kind = match ask {
                Ask::Tails { estimate, .. } => usize::from(estimate),
                Ask::Thin(_) => 2,
            };
            kinds[kind].push((seat, ask));
        }
        for asks in kinds {
            let all: Vec<&Ask> = asks.iter().map(|(_, ask)| ask).collect();
            match self.ask(&all) {
                Ok(all) => {
                    answers.extend(asks.iter().map(|ask| ask.0).zip(all.into_iter().map(Ok)))
                }
                Err(error) if asks.len() == 1 => {
                    answers.insert(asks[0].0, Err(error));
                }
                Err(_) => answers.extend(asks.iter().map(|(seat, ask)| {
                    let own = self.ask(&[ask]).map(|mut answers| answers.remove(0));
                    (*seat, own)
                })),
            }
        }
        answers
    }

    /// The answers to questions of one kind.
    fn ask(&self, asks: &[&Ask]) -> Result<Vec<Answer>> {
        let mut sequences: Vec<(&[u32], usize)> = Vec::new();
        let mut texts: Vec<Thinning<'_>> = Vec::new();
        let mut estimates = false;
        for ask in asks {
            match ask {
                Ask::Tails {
                    sequences: own,
                    estimate,
                } => {
                    sequences.extend(own.iter().map(|(ids, from)| (ids.as_slice(), *from)));
                    estimates = *estimate;
                }
                Ask::Thin(own) => texts.extend(own.iter().map(Owned::text)),
            }
        }
        let scores = match estimates {
            _ if sequences.is_empty() => Vec::new(),
            true => self.model.estimate_tails(&sequences)?,
            false => self.model.score_tails(&sequences)?,
        };
        let thinned = match texts.is_empty() {
            true => Vec::new(),
            false => self.model.thin(&texts)?,
        };
        let (mut scores, mut thinned) = (scores.into_iter(), thinned.into_iter());
        let answer = |ask: &&Ask| match ask {
            Ask::Tails { sequences, .. } => {
                Answer::Tails(scores.by_ref().take(sequences.len()).collect())
            }
            Ask::Thin(texts) => Answer::Thin(thinned.by_ref().take(texts.len()).collect()),
        };
        Ok(asks.iter().map(answer).collect())
    }
}

impl Owned {
    fn text(&self) -> Thinning<'_> {
        Thinning {
            ids: &self.ids,
            size: self.size,
            end: self.end,
            windows: &self.windows,
        }
    }
}

impl Seat<'_, '_> {
    /// Asks, and waits. The last one to come asks the model for all.
    fn ask(&self, ask: Ask) -> Result<Answer> {
        let mut desk = self.table.desk();
        desk.asked.insert(self.seat, ask);
        desk.busy -= 1;
        loop {
            if let Some(answer) = desk.answered.remove(&self.seat) {
                return answer;
            }
            if desk.busy == 0 && !desk.asked.is_empty() {
                // All others wait, so the lock may be held meanwhile.
                let asked = std::mem::take(&mut desk.asked);
                let answered = self.table.serve(asked);
                // Busy from now on, not from when they wake up: who is quick waits for the others.
                desk.busy += answered.len();
                desk.answered.extend(answered);
                self.table.answers.notify_all();
                continue;
            }
            if desk.broken {
                desk.busy += 1;
                return Err(Error::input("prompt", "the work on another one broke off"));
            }
            let waited = self.table.answers.wait(desk);
            desk = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn tails(&self, sequences: &[(&[u32], usize)], estimate: bool) -> Result<Vec<Vec<f32>>> {
        let sequences = sequences.iter().map(|(ids, from)| (ids.to_vec(), *from));
        let ask = Ask::Tails {
            sequences: sequences.collect(),
            estimate,
        };
        match self.ask(ask)? {
            Answer::Tails(scores) => Ok(scores),
            Answer::Thin(_) => unreachable!("an answer is of its question's kind"),
        }
    }
}

impl Drop for Seat<'_, '_> {
    fn drop(&mut self) {
        let mut desk = self.table.desk();
        desk.busy = desk.busy.saturating_sub(1);
        desk.broken |= thread::panicking();
        drop(desk);
        // All others may wait for this one.
        self.table.answers.notify_all();
    }
}

impl Scorer for Seat<'_, '_> {
    fn similarity(&self, question: &str, texts: &[&str]) -> Result<Vec<f64>> {
        self.table.model.similarity(question, texts)
    }

    fn similarity_unit(&self) -> Option<f64> {
        self.table.model.similarity_unit()
    }

    fn max_positions(&self) -> usize {
        self.table.model.max_positions()
    }

    fn session(&self) -> Result<Box<dyn Session + '_>> {
        self.table.model.session()
    }

    fn score_tails(&self, sequences: &[(&[u32], usize)]) -> Result<Vec<Vec<f32>>> {
        self.tails(sequences, false)
    }

    fn estimate_tails(&self, sequences: &[(&[u32], usize)]) -> Result<Vec<Vec<f32>>> {
        self.tails(sequences, true)
    }

    fn thins(&self) -> bool {
        true
    }

    fn thin(&self, texts: &[Thinning<'_>]) -> Result<Vec<Thinned>> {
        let texts = texts.iter().map(|text| Owned {
            ids: text.ids.to_vec(),
            size: text.size,
            end: text.end,
            windows: text.windows.to_vec(),
        });
        match self.ask(Ask::Thin(texts.collect()))? {
            Answer::Thin(thinned) => Ok(thinned),
            Answer::Tails(_) => unreachable!("an answer is of its question's kind"),
        }
    }
}
