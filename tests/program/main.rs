//! The program and the C ABI, called from outside.

#[path = "../common/mod.rs"]
mod common;

mod c_abi;
mod cli;
mod eval;
mod soft_cli;
mod train_cli;
