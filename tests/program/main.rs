//! The program and the C ABI, called from outside.

#[path = "../common/mod.rs"]
mod common;

#[cfg(unix)]
mod architecture;
mod build_script;
mod c_abi;
mod cli;
mod docs;
mod encode_many;
mod eval;
mod hub;
#[cfg(target_os = "linux")]
mod kill_sweep;
mod nested;
mod prefixes;
mod refused_files;
mod soft_cli;
mod train_cli;
mod train_prefix;
mod train_tokens;
