//! Model files, the decoder, KV prefixes, and files that are not what they say.

#[path = "../common/mod.rs"]
mod common;

mod encoders;
mod hostile_files;
mod icae;
mod icae_public;
mod models;
mod prefix;
mod pruned;
mod quants;
mod weights;
