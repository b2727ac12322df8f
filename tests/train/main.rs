//! Training: golden gradients and trajectories, checkpoints, the loop.

#[path = "../common/mod.rs"]
mod common;

mod train_golden;
mod train_loop;
