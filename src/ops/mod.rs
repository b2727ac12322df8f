//! One file per op: shape struct, trait, and the CPU's forward.
