//! Every CUDA kernel, executed by the CPU.

#[path = "../common/mod.rs"]
mod common;

#[path = "../ops/cases/mod.rs"]
mod cases;

mod device_parity;
mod kernel_models;
mod kernels;
mod kernels_bwd;
mod lora;
mod nll90;
mod operands;
mod planted;
mod planted_hopper;
mod prune;
mod table;

use common::oracle;
