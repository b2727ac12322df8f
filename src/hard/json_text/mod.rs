//! JSON texts as byte ranges: what is not touched is copied, what is kept stays JSON.

pub(crate) mod render;
pub(crate) mod tree;

pub use render::Omission;
pub(crate) use tree::Tree;
