//! Texts beyond a model's context: what is read of them, and that nothing is read twice as one.

use crate::common;

use crate::common::tiny;
use prefold::model::config::Family;
use prefold::{Device, Engine};

/// A model of 24 positions.
fn engine(family: Family) -> (common::TempDir, Box<dyn Engine>) {
    let folder = tiny::folder(&tiny::config(family), &tiny::tensors(family));
    let engine = prefold::open(folder.path(), Device::Cpu).unwrap();
    (folder, engine)
}

fn ids(count: usize) -> Vec<u32> {
    (0..count)
        .map(|i| (i * i + 7) as u32 % tiny::VOCAB as u32)
        .collect()
}

#[test]
fn every_token_is_scored_once_by_a_window_that_knows_half_a_context() {
    for family in tiny::FAMILIES {
        let (_folder, engine) = engine(family);
        let half = tiny::POSITIONS / 2;
        for count in [0, 1, 2, 23, 24, 25, 36, 37, 77] {
            let ids = ids(count);
            let nll = engine.score(&ids).unwrap();
            assert_eq!(nll.len(), count.saturating_sub(1));
            for at in 1..count {
                // The first window that holds it.
                let start = match at < tiny::POSITIONS {
                    true => 0,
                    false => (at - tiny::POSITIONS) / half * half + half,
                };
                assert!(start == 0 || at - start >= half);
                let alone = engine.score_tail(&ids[start..=at], at - start).unwrap();
                assert_eq!(alone.len(), 1);
                let off = (alone[0] - nll[at - 1]).abs();
                assert!(
                    off < 1e-5,
                    "{count} ids, {at}: {} and {}",
                    alone[0],
                    nll[at - 1]
                );
            }
        }
    }
}

#[test]
fn ids_outside_the_vocabulary_are_refused_in_any_window() {
    let (_folder, engine) = engine(Family::Llama);
    let mut ids = ids(70);
    ids[66] = tiny::VOCAB as u32;
    let error = engine.score(&ids).unwrap_err();
    assert!(error.to_string().contains("40"), "{error}");
}
