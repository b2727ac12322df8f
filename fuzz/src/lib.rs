//! The targets of `tests/fuzz` for libFuzzer.

#[path = "../../tests/common/gguf.rs"]
#[allow(dead_code)]
mod gguf;
#[path = "../../tests/fuzz/targets.rs"]
mod targets;

/// Runs a target on an input.
pub fn run(name: &str, data: &[u8]) {
    let target = targets::TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = target.expect("the name is one of the table's");
    target(data);
}
