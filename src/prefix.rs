//! KV prefixes: keys and values that a host reads in place of a text.
//!
//! A [`KvPrefix`] is plain data in the host's memory and knows where it came from. [`mod@file`] is its own
//! format, [`store`] keeps such files for many machines, and each further module turns a prefix into
//! what one host reads.

pub use crate::kv_prefix::{
    Dtype, KRope, KvPrefix, Method, ModelId, Origin, Parts, Placeholder, Rope, RopeScaling, Shape,
    file, llama_cpp, store, transformers, vllm,
};
pub use crate::model::decoder::Input;
pub use crate::soft::{
    Adapter, Completion, EncodeOptions, Finish, Generated, KeepBy, PrefillOptions, Query, Sampling,
    Source,
};
