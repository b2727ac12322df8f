//! JSON texts: shortened so that what is left is JSON, spliced from the bytes of the original.
//!
//! String values are shortened by whole sentences, array items and object members are dropped; names,
//! numbers, `true`, `false`, `null` and the structure around what stays are copied as they are.

mod render;
mod select;
pub(crate) mod tree;
mod units;

pub use render::Omission;
pub(crate) use render::{Rendered, Selection, render};
pub(crate) use select::{Group, Order, Worth, select};
pub(crate) use tree::Tree;
pub(crate) use units::Outline;

#[cfg(test)]
mod tests;
