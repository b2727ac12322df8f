//! What was written down before anything was measured, for an H200: seconds from a model of its clocks, tensor
//! cores, caches and memory by published numbers. Printed beside what is measured, so that a wrong model shows.

/// Model, op, detail, rows; from and to, in microseconds.
const EXPECTED: [(&str, &str, &str, usize, [f64; 2]); 11] = [
    // Tensor cores at 90 to 95 % (kernels/nll90.cu), at 200 rows with the weights from memory; with the packing before
    // and the merge after.
    ("smollm2", "nll", "", 200, [22.0, 28.0]),
    ("smollm2", "nll", "", 2000, [165.0, 180.0]),
    ("llama3-8b", "nll", "", 2000, [2600.0, 2800.0]),
    ("llama3-8b", "nll", "", 8192, [10_700.0, 11_500.0]),
    // L2 gives both operands in every step (kernels/nll.cu).
    ("smollm2", "nll (mma.sync)", "", 200, [40.0, 52.0]),
    ("smollm2", "nll (mma.sync)", "", 2000, [260.0, 340.0]),
    ("llama3-8b", "nll (mma.sync)", "", 2000, [4800.0, 6100.0]),
    (
        "llama3-8b",
        "nll (mma.sync)",
        "",
        8192,
        [19_200.0, 24_500.0],
    ),
    // From an even load of all multiprocessors to that of the one with the longest tile.
    ("smollm2", "attention", "prefill", 2000, [14.0, 28.0]),
    ("smollm2", "attention", "on 10x keys", 200, [6.0, 11.0]),
    ("smollm2", "topk", "1 segment", 2000, [3.0, 5.5]),
];

/// Seconds, from and to, if any were written down.
pub fn expected(model: &str, op: &str, detail: &str, rows: usize) -> Option<[f64; 2]> {
    EXPECTED
        .iter()
        .find(|e| (e.0, e.1, e.2, e.3) == (model, op, detail, rows))
        .map(|e| e.4.map(|micros| micros * 1e-6))
}
