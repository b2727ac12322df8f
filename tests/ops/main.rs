//! The CPU ops and their gradients beside naive oracles.

#[path = "../common/mod.rs"]
mod common;

mod cases;
mod estimates;
mod gradients;
mod instruction_sets;
mod model_gradients;
mod ops;
mod table;

use common::oracle;
