//! Request batching: what several pieces of work ask of one model shares its forward passes.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::control::Call;
use crate::error::{Error, Result};
use crate::model::{PrunedTokens, Scorer, Session, TokenPruning};

/// Pieces of work at a time: each has a thread.
pub(crate) const MAX_WORKERS: usize = 16;

/// Does `work` for every item, in any order; gives the results in the items' order.
///
/// Where the model's device has a queue of its own, several run at a time, each with a scorer that waits
/// until all others wait too: then all that was asked is asked of the model together, so that it shares
/// forward passes. On a CPU, which is busy with one alone, it is one after the other.
///
/// What shares a pass depends on the work only, never on how threads run, so that results are the same
/// every time.
pub(crate) fn coalesce<T: Sync, R: Send>(
    model: &dyn Scorer,
    items: &[T],
    work: impl Fn(&dyn Scorer, &T) -> R + Sync,
) -> Vec<R> {
    if !model.prunes() || items.len() < 2 {
        return items.iter().map(|item| work(model, item)).collect();
    }
    items
        .chunks(MAX_WORKERS)
        .flat_map(|items| run_batch(model, items, &work))
        .collect()
}

fn run_batch<T: Sync, R: Send>(
    model: &dyn Scorer,
    items: &[T],
    work: &(impl Fn(&dyn Scorer, &T) -> R + Sync),
) -> Vec<R> {
    let coalescer = Coalescer {
        model,
        requests: Mutex::new(Requests {
            busy: items.len(),
            asked: BTreeMap::new(),
            answered: BTreeMap::new(),
            broken: false,
        }),
        answers: Condvar::new(),
    };
    let coalescer = &coalescer;
    // Threads of ours work for the call of the thread that waits for them.
    let call = &Call::current();
    thread::scope(|scope| {
        let at_work = items.iter().enumerate().map(|(worker, item)| {
            let worker = Worker { coalescer, worker };
            let spawned = thread::Builder::new()
                .spawn_scoped(scope, move || call.enter(|| work(&worker, item)));
            (spawned, item)
        });
        // All threads start before the first is waited for.
        let at_work: Vec<_> = at_work.collect();
        at_work
            .into_iter()
            .map(|(spawned, item)| match spawned {
                Ok(thread) => match thread.join() {
                    Ok(result) => result,
                    Err(panic) => std::panic::resume_unwind(panic),
                },
                // No thread could be started; its worker was dropped with the closure.
                Err(_) => work(model, item),
            })
            .collect()
    })
}

/// Collects what the workers ask until all of them wait, and asks the model once.
struct Coalescer<'m> {
    model: &'m dyn Scorer,
    requests: Mutex<Requests>,
    answers: Condvar,
}

struct Requests {
    /// Workers that do not wait for an answer.
    busy: usize,
    /// By worker.
    asked: BTreeMap<usize, Query>,
    answered: BTreeMap<usize, Result<Answer>>,
    /// A worker broke off, perhaps with the questions of all.
    broken: bool,
}

enum Query {
    Tails {
        sequences: Vec<(Vec<u32>, usize)>,
        estimate: bool,
    },
    Prune(Vec<Owned>),
}

/// A [`TokenPruning`] of its own.
struct Owned {
    ids: Vec<u32>,
    size: usize,
    end: usize,
    windows: Vec<Vec<(usize, f64)>>,
}

enum Answer {
    Tails(Vec<Vec<f32>>),
    Pruned(Vec<PrunedTokens>),
}

/// The scorer of one piece of work.
struct Worker<'t, 'm> {
    coalescer: &'t Coalescer<'m>,
    worker: usize,
}

impl Coalescer<'_> {
    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers all that was asked: in as few calls as possible, and where such a call fails one by one, so
    /// that each caller gets its own error only.
    fn serve(&self, asked: BTreeMap<usize, Query>) -> BTreeMap<usize, Result<Answer>> {
        let mut answers = BTreeMap::new();
        let mut kinds: [Vec<(usize, Query)>; 3] = Default::default();
        for (worker, ask) in asked {
            let kind = match ask {
                Query::Tails { estimate, .. } => usize::from(estimate),
                Query::Prune(_) => 2,
            };
            kinds[kind].push((worker, ask));
        }
        for asks in kinds {
            let all: Vec<&Query> = asks.iter().map(|(_, ask)| ask).collect();
            match self.ask(&all) {
                Ok(all) => {
                    answers.extend(asks.iter().map(|ask| ask.0).zip(all.into_iter().map(Ok)))
                }
                Err(error) if asks.len() == 1 => {
                    answers.insert(asks[0].0, Err(error));
                }
                Err(_) => answers.extend(asks.iter().map(|(worker, ask)| {
                    let own = self.ask(&[ask]).map(|mut answers| answers.remove(0));
                    (*worker, own)
                })),
            }
        }
        answers
    }

    /// The answers to questions of one kind.
    fn ask(&self, asks: &[&Query]) -> Result<Vec<Answer>> {
        let mut sequences: Vec<(&[u32], usize)> = Vec::new();
        let mut texts: Vec<TokenPruning<'_>> = Vec::new();
        let mut estimates = false;
        for ask in asks {
            match ask {
                Query::Tails {
                    sequences: own,
                    estimate,
                } => {
                    sequences.extend(own.iter().map(|(ids, from)| (ids.as_slice(), *from)));
                    estimates = *estimate;
                }
                Query::Prune(own) => texts.extend(own.iter().map(Owned::text)),
            }
        }
        let scores = match estimates {
            _ if sequences.is_empty() => Vec::new(),
            true => self.model.estimate_tails(&sequences)?,
            false => self.model.score_tails(&sequences)?,
        };
        let pruned = match texts.is_empty() {
            true => Vec::new(),
            false => self.model.prune(&texts)?,
        };
        let (mut scores, mut pruned) = (scores.into_iter(), pruned.into_iter());
        let answer = |ask: &&Query| match ask {
            Query::Tails { sequences, .. } => {
                Answer::Tails(scores.by_ref().take(sequences.len()).collect())
            }
            Query::Prune(texts) => Answer::Pruned(pruned.by_ref().take(texts.len()).collect()),
        };
        Ok(asks.iter().map(answer).collect())
    }
}

impl Owned {
    fn text(&self) -> TokenPruning<'_> {
        TokenPruning {
            ids: &self.ids,
            size: self.size,
            end: self.end,
            windows: &self.windows,
        }
    }
}

impl Worker<'_, '_> {
    /// Asks, and waits. The last one to come asks the model for all.
    fn ask(&self, ask: Query) -> Result<Answer> {
        let mut requests = self.coalescer.requests();
        requests.asked.insert(self.worker, ask);
        requests.busy -= 1;
        loop {
            if let Some(answer) = requests.answered.remove(&self.worker) {
                return answer;
            }
            if requests.busy == 0 && !requests.asked.is_empty() {
                // All others wait, so the lock may be held meanwhile.
                let asked = std::mem::take(&mut requests.asked);
                let answered = self.coalescer.serve(asked);
                // Busy from now on, not from when they wake up: a quick one waits for the others.
                requests.busy += answered.len();
                requests.answered.extend(answered);
                self.coalescer.answers.notify_all();
                continue;
            }
            if requests.broken {
                requests.busy += 1;
                return Err(Error::Device {
                    device: "scorer".into(),
                    reason: "the work on another prompt of the batch panicked; please report it"
                        .into(),
                });
            }
            let waited = self.coalescer.answers.wait(requests);
            requests = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn tails(&self, sequences: &[(&[u32], usize)], estimate: bool) -> Result<Vec<Vec<f32>>> {
        let sequences = sequences.iter().map(|(ids, from)| (ids.to_vec(), *from));
        let ask = Query::Tails {
            sequences: sequences.collect(),
            estimate,
        };
        match self.ask(ask)? {
            Answer::Tails(scores) => Ok(scores),
            Answer::Pruned(_) => unreachable!("an answer is of its question's kind"),
        }
    }
}

impl Drop for Worker<'_, '_> {
    fn drop(&mut self) {
        let mut requests = self.coalescer.requests();
        requests.busy = requests.busy.saturating_sub(1);
        requests.broken |= thread::panicking();
        drop(requests);
        // All others may wait for this one.
        self.coalescer.answers.notify_all();
    }
}

impl Scorer for Worker<'_, '_> {
    fn similarity(&self, question: &str, texts: &[&str]) -> Result<Vec<f64>> {
        self.coalescer.model.similarity(question, texts)
    }

    fn similarity_unit(&self) -> Option<f64> {
        self.coalescer.model.similarity_unit()
    }

    fn max_positions(&self) -> usize {
        self.coalescer.model.max_positions()
    }

    fn session(&self) -> Result<Box<dyn Session + '_>> {
        self.coalescer.model.session()
    }

    fn score_tails(&self, sequences: &[(&[u32], usize)]) -> Result<Vec<Vec<f32>>> {
        self.tails(sequences, false)
    }

    fn estimate_tails(&self, sequences: &[(&[u32], usize)]) -> Result<Vec<Vec<f32>>> {
        self.tails(sequences, true)
    }

    fn prunes(&self) -> bool {
        true
    }

    fn prune(&self, texts: &[TokenPruning<'_>]) -> Result<Vec<PrunedTokens>> {
        let texts = texts.iter().map(|text| Owned {
            ids: text.ids.to_vec(),
            size: text.size,
            end: text.end,
            windows: text.windows.to_vec(),
        });
        match self.ask(Query::Prune(texts.collect()))? {
            Answer::Pruned(pruned) => Ok(pruned),
            Answer::Tails(_) => unreachable!("an answer is of its question's kind"),
        }
    }
}
