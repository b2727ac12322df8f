//! The launcher for CUDA devices, unchanged, on a stand-in for NVIDIA's driver (`crates/cuda-emulator`, whose README
//! says what it cannot show): whole models, recordings, failures, and mistakes that the stand-in must find.
//! Nothing here is a GPU.
#![cfg(feature = "cuda")]

#[path = "../common/mod.rs"]
mod common;

mod faults;
mod hopper;
mod misuse;
mod models;
mod place;
