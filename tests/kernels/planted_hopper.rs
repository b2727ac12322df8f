//! Mistakes in the protocol of `nll90`, planted in its own text: each must be found by the CPU that executes it, in
//! the schedules that can show it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytemuck::{Pod, Zeroable};
use prefold::Error;
use prefold::gpu::{self, Boxed, Kernel, Launch, LaunchConfig, Launcher, Operand};

use crate::cases::floats;
use crate::common::emu::{Emu, found};
use crate::planted::{EARLY, LATE};

/// Where a mistake shows.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Shows {
    /// In no schedule: it is none.
    Nowhere,
    /// In every schedule.
    Always,
    /// In every one where copies and matmuls are late, and in none where they are early.
    Late,
    /// In one at least.
    Somewhere,
}

struct Fault {
    name: &'static str,
    /// What stands once in the kernel, and what stands there instead.
    edits: &'static [(&'static str, &'static str)],
    shows: Shows,
    /// Each report has one of these.
    says: &'static [&'static str],
}

const WRONG: &str = "a wrong result";
const DEADLOCK: &str = "deadlock: ";
const ENDED: &str = "an arrival at a barrier of a block that has ended";
const UNWAITED: &str = "a warp ends with matmuls that nothing waited for";

const FAULTS: &[Fault] = &[
    Fault {
        name: "none",
        edits: &[],
        shows: Shows::Nowhere,
        says: &[],
    },
    Fault {
        name: "a stage is empty when half of its warps have released it",
        edits: &[("8 * NLL90_CLUSTER", "8")],
        shows: Shows::Always,
        says: &[DEADLOCK, "more arrivals at a barrier than it counts", ENDED],
    },
    Fault {
        name: "the first stages are waited for as if they were full",
        edits: &[("stage = 0, parity = 1;", "stage = 0, parity = 0;")],
        shows: Shows::Always,
        says: &[DEADLOCK],
    },
    Fault {
        name: "fewer bytes are expected than come",
        edits: &[(
            "barrier_expect(bar, STAGE)",
            "barrier_expect(bar, STAGE - W_BYTES / 2)",
        )],
        shows: Shows::Always,
        says: &[DEADLOCK, "a copy to a block that has ended", WRONG],
    },
    Fault {
        name: "more bytes are expected than come",
        edits: &[(
            "barrier_expect(bar, STAGE)",
            "barrier_expect(bar, STAGE + 16)",
        )],
        shows: Shows::Always,
        says: &[DEADLOCK],
    },
    Fault {
        name: "more bytes are expected than a barrier counts",
        edits: &[("barrier_expect(bar, STAGE)", "barrier_expect(bar, 1 << 20)")],
        shows: Shows::Always,
        says: &["more bytes are expected at a barrier than it can count"],
    },
    Fault {
        name: "a stage is released before its matmuls are done",
        edits: &[
            ("matmul_commit();", "matmul_commit();\nrelease(stage);"),
            ("          release(before);\n        }", "        }"),
            ("      release(before);\n\n", "\n"),
        ],
        shows: Shows::Late,
        says: &[WRONG],
    },
    Fault {
        name: "a step does not wait for the matmuls of the one before",
        edits: &[("matmul_wait<1>();", "")],
        shows: Shows::Late,
        says: &[WRONG],
    },
    Fault {
        name: "a tile does not wait for its matmuls",
        edits: &[("matmul_wait_all(d);", "")],
        shows: Shows::Always,
        says: &[UNWAITED],
    },
    Fault {
        name: "matmuls begin without a fence of the accumulators",
        edits: &[("matmul_fence();", "")],
        shows: Shows::Always,
        says: &["a matmul whose accumulators lack a fence (wgmma.fence)"],
    },
    Fault {
        name: "matmuls are not committed",
        edits: &[("matmul_commit();", "")],
        shows: Shows::Always,
        says: &[UNWAITED],
    },
    Fault {
        name: "accumulators are written while matmuls are under way",
        edits: &[("matmul_commit();", "matmul_commit();\nd[5] = 0.0f;")],
        shows: Shows::Always,
        says: &["accumulators were written while a matmul was under way"],
    },
    Fault {
        name: "a block leaves while the other still arrives at its barriers",
        edits: &[(
            "for (int i = 0; i < STAGES; i++) {\n        barrier_wait",
            "for (int i = 0; i < 0; i++) {\n        barrier_wait",
        )],
        shows: Shows::Somewhere,
        says: &[ENDED],
    },
    Fault {
        name: "barriers are not published",
        edits: &[("barrier_init_done();", "")],
        shows: Shows::Always,
        says: &["did not publish (fence.mbarrier_init)"],
    },
    Fault {
        name: "the blocks do not meet after making barriers",
        edits: &[("  cluster_sync();\n", "")],
        shows: Shows::Somewhere,
        says: &["a barrier that was not made"],
    },
    Fault {
        name: "a stage is released to one block alone",
        edits: &[("if (lane < NLL90_CLUSTER)", "if (lane < 1)")],
        shows: Shows::Always,
        says: &[DEADLOCK],
    },
    Fault {
        name: "half of the weights are sent to one block alone",
        edits: &[("copy_box_to(BOTH,", "copy_box_to(1 << rank,")],
        shows: Shows::Always,
        says: &[DEADLOCK],
    },
    Fault {
        name: "a box begins between two patterns of the swizzle",
        edits: &[(
            "stages + stage * STAGE, w",
            "stages + stage * STAGE + 512, w",
        )],
        shows: Shows::Always,
        says: &["to an address that is no multiple of 1024"],
    },
    Fault {
        name: "the descriptor advances by other than 16 columns",
        edits: &[("b + 2 * i", "b + 4 * i")],
        shows: Shows::Always,
        says: &[WRONG, "a matmul reads beyond shared memory"],
    },
    Fault {
        name: "the other half of the rows",
        edits: &[("half * (X_BYTES / 2)", "(1 - half) * (X_BYTES / 2)")],
        shows: Shows::Always,
        says: &[WRONG],
    },
    Fault {
        name: "a tile adds to the sums of the one before",
        edits: &[("k + i > 0", "1")],
        shows: Shows::Always,
        says: &[WRONG],
    },
    Fault {
        name: "more registers are asked for than a block has",
        edits: &[("more_registers<232>", "more_registers<240>")],
        shows: Shows::Always,
        says: &["wait for a register of the block (setmaxnreg)"],
    },
    Fault {
        name: "a thread writes where copies land",
        edits: &[(
            "  cluster_sync();\n",
            "  shared[threadIdx.x] = 1;\n  cluster_sync();\n",
        )],
        shows: Shows::Always,
        says: &["a copy to what a thread wrote without a fence (fence.proxy.async)"],
    },
    Fault {
        name: "none: a thread writes there, and fences it",
        edits: &[(
            "  cluster_sync();\n",
            "  shared[threadIdx.x] = 1;\n  proxy_fence();\n  cluster_sync();\n",
        )],
        shows: Shows::Nowhere,
        says: &[],
    },
    Fault {
        name: "a thread writes what a matmul reads",
        edits: &[(
            "matmul_fence();",
            "shared[stage * STAGE + half * (X_BYTES / 2) + threadIdx.x % 128] = 1;\nmatmul_fence();",
        )],
        shows: Shows::Always,
        says: &["without a fence (fence.proxy.async)"],
    },
    Fault {
        name: "the second warpgroup waits for more warps than the first has",
        edits: &[("barrier_init(follow, 4)", "barrier_init(follow, 5)")],
        shows: Shows::Always,
        says: &[DEADLOCK],
    },
    Fault {
        name: "a barrier is overwritten",
        edits: &[(
            "  } else {\n    more",
            "  } else {\n    shared[STAGES * STAGE] = 1;\n    more",
        )],
        shows: Shows::Always,
        says: &["a barrier that was overwritten"],
    },
];

/// Kernels of the twins alone. `box_bytes`: a box as it lies in shared memory, of column 64 and row 120 on, of which
/// the second block has its own. `matmul_bytes`: columns 48 to 63 of operands that threads wrote, by descriptors
/// that are spelled out.
const TWINS: &str = r"
KERNEL_CLUSTER(box_bytes, Nll90Params, 32, 2, 0) {
  SWIZZLED_SHARED(shared);
  const unsigned to = shared_address(shared), bar = to + 128 * 128;
  if (threadIdx.x == 0) {
    barrier_init(bar, 1);
    barrier_init_done();
    barrier_expect(bar, 128 * 128);
    copy_box(to, &p.x, 64, 120 - 120 * static_cast<int>(cluster_rank()), bar);
  }
  cluster_sync();
  barrier_wait(bar, 0);
  auto out = reinterpret_cast<unsigned char *>(p.logit) + cluster_rank() * 128 * 128;
  for (unsigned i = threadIdx.x; i < 128 * 128; i += 32) out[i] = shared[i];
}
KERNEL_CLUSTER(matmul_bytes, Nll90Params, 128, 2, 0) {
  SWIZZLED_SHARED(shared);
  const uint64_t to = shared_address(shared);
  auto put = [&](unsigned base, unsigned row, unsigned column, float v) {
    const uint16_t bits = to_bf16(v);
    memcpy(shared + base + row * 128 + ((column / 8) ^ (row % 8)) * 16 + column % 8 * 2, &bits, 2);
  };
  for (unsigned column = 0; column < 64; column++) {
    for (unsigned row = threadIdx.x; row < 64; row += 128) put(0, row, column, float((row * 7 + column * 3) % 13) - 6);
    for (unsigned row = threadIdx.x; row < 256; row += 128)
      put(8192, row, column, float((row * 5 + column * 11) % 17) - 8);
  }
  proxy_fence();
  __syncthreads();
  float d[128];
  for (float &v : d) v = 1000.0f;
  matmul_fence();
  matmul_64x256x16(d, 0x4000004000010006 + (to >> 4), 0x4000004000010006 + ((to + 8192) >> 4), 1);
  matmul_commit();
  matmul_wait_all(d);
  const unsigned warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (unsigned i = 0; i < 128; i++)
    p.logit[(16 * warp + g + i / 2 % 2 * 8) * 256 + i / 4 * 8 + 2 * t + i % 2] = d[i];
}
";

/// The kernel's name with a fault.
fn kernel(fault: usize) -> &'static str {
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();
    &NAMES.get_or_init(|| (0..FAULTS.len()).map(|i| format!("nll90_{i}")).collect())[fault]
}

/// All of them as one library; none without a C++ compiler.
fn library() -> Option<PathBuf> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> Option<PathBuf> {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    if crate::common::carried().is_some() {
        crate::common::say("skipped: mistakes in nll90, whose text was not carried along");
        return None;
    }
    let text = std::fs::read_to_string(kernels.join("nll90.cu")).unwrap();
    // What a fault leaves unused is no reason to stop.
    let mut all = String::from("#pragma GCC diagnostic ignored \"-Wunused-variable\"\n");
    all.push_str("#pragma GCC diagnostic ignored \"-Wunused-but-set-variable\"\n");
    all.push_str("#include \"arch/convert.cuh\"\n#include \"arch/hopper.cuh\"\n");
    all.push_str(TWINS);
    for (i, fault) in FAULTS.iter().enumerate() {
        let mut text = text.replace(
            "KERNEL_CLUSTER(nll90,",
            &format!("KERNEL_CLUSTER({},", kernel(i)),
        );
        for (from, to) in fault.edits {
            assert_eq!(text.matches(from).count(), 1, "{}: {from:?}", fault.name);
            text = text.replacen(from, to, 1);
        }
        let lines = text.lines().filter(|line| !line.starts_with("#include"));
        all.extend(lines.flat_map(|line| [line, "\n"]));
    }
    let out = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let unit = out.join("planted-nll90.cu");
    std::fs::write(&unit, all).unwrap();
    let include = [kernels.clone(), kernels.join("arch")];
    found(cuda_emulator::compile(&unit, &include, out))
}

/// As in `kernels/abi.h`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: [u64; 16],
    w: [u64; 16],
    target: u64,
    parts: u64,
    logit: u64,
    rows: u32,
    vocab: u32,
    ld: u32,
    share: u32,
    unused: [u32; 6],
}

// Both blocks have rows; more steps than stages, three tiles of ids in two ranges.
const ROWS: usize = 140;
const WIDTH: usize = 328;
const VOCAB: usize = 600;
const RANGES: usize = 2;

struct Operands {
    x: Vec<half::bf16>,
    w: Vec<half::bf16>,
    target: Vec<u32>,
    nll: Vec<f64>,
}

fn operands() -> Operands {
    let of = |count, scale, seed| -> Vec<half::bf16> {
        let numbers = floats(count, scale, seed);
        numbers.into_iter().map(half::bf16::from_f32).collect()
    };
    let (x, w) = (of(ROWS * WIDTH, 1.0, 1), of(VOCAB * WIDTH, 0.3, 2));
    let target: Vec<u32> = (0..ROWS).map(|i| (i * 7919 % VOCAB) as u32).collect();
    let row = |(x, &target): (&[half::bf16], &u32)| {
        let dot = |w: &[half::bf16]| -> f64 {
            x.iter().zip(w).map(|(x, w)| x.to_f64() * w.to_f64()).sum()
        };
        let logits: Vec<f64> = w.chunks_exact(WIDTH).map(dot).collect();
        logits.iter().map(|l| l.exp()).sum::<f64>().ln() - logits[target as usize]
    };
    let nll = x.chunks_exact(WIDTH).zip(&target).map(row).collect();
    Operands { x, w, target, nll }
}

fn run(emu: &Emu, kernel: &'static str, of: &Operands) -> Result<Vec<f64>, Error> {
    let upload = |bytes: &[u8]| {
        let mut memory = emu.alloc(bytes.len(), false)?;
        emu.write(&mut memory, 0, bytes)?;
        Ok::<_, Error>(memory)
    };
    let x = upload(bytemuck::cast_slice(&of.x))?;
    let w = upload(bytemuck::cast_slice(&of.w))?;
    let target = upload(bytemuck::cast_slice(&of.target))?;
    let parts = emu.alloc(RANGES * ROWS * 8, false)?;
    let logit = emu.alloc(ROWS * 4, false)?;
    let map = |memory, rows| {
        let (at, ld) = (emu.address(memory), WIDTH);
        let boxed = Boxed {
            matrix: Operand { at, ld },
            rows,
            columns: WIDTH,
            size: [128, 64],
        };
        emu.box_map(&boxed).expect("a matrix for boxes")
    };
    let params = Params {
        x: map(&x, ROWS),
        w: map(&w, VOCAB),
        target: emu.address(&target),
        parts: emu.address(&parts),
        logit: emu.address(&logit),
        rows: ROWS as u32,
        vocab: VOCAB as u32,
        ld: WIDTH as u32,
        share: 2,
        unused: [0; 6],
    };
    let config = LaunchConfig {
        cluster: [2, 1, 1],
        ..LaunchConfig::new([2, RANGES, 1], 384).shared(4 * (48 << 10) + 72)
    };
    let launch = Launch::Kernel(Kernel {
        name: kernel,
        config,
        params: gpu::Params::new(bytemuck::bytes_of(&params)),
    });
    // SAFETY: as the kernel demands, but for the mistakes, which stay within its own memory.
    unsafe { emu.submit(launch)? };
    let (mut sums, mut logits) = (vec![0f32; RANGES * ROWS * 2], vec![0f32; ROWS]);
    emu.read(&parts, 0, bytemuck::cast_slice_mut(&mut sums))?;
    emu.read(&logit, 0, bytemuck::cast_slice_mut(&mut logits))?;
    let row = |i: usize| {
        let part = |range: usize| &sums[(range * ROWS + i) * 2..][..2];
        let sum: f64 = (0..RANGES)
            .map(|range| f64::from(part(range)[1]) * f64::from(part(range)[0]).exp2())
            .sum();
        sum.ln() - f64::from(logits[i])
    };
    Ok((0..ROWS).map(row).collect())
}

#[test]
fn every_mistake_is_found() {
    let Some(library) = library() else { return };
    let of = operands();
    let mut missed = Vec::new();
    for (i, fault) in FAULTS.iter().enumerate() {
        let found = |schedule| {
            // SAFETY: made by `library`.
            let emu = unsafe { Emu::open(&library, schedule) }.hopper();
            match run(&emu, kernel(i), &of) {
                Ok(got) if got.iter().zip(&of.nll).all(|(a, b)| (a - b).abs() < 1e-3) => None,
                Ok(_) => Some(WRONG.to_owned()),
                Err(error) => Some(error.to_string()),
            }
        };
        let (early, late) = (EARLY.map(found), LATE.map(found));
        let all = early.iter().chain(&late);
        let shown = match fault.shows {
            Shows::Nowhere => all.clone().all(Option::is_none),
            Shows::Always => all.clone().all(Option::is_some),
            Shows::Late => early.iter().all(Option::is_none) && late.iter().all(Option::is_some),
            Shows::Somewhere => all.clone().any(Option::is_some),
        };
        let said = all
            .flatten()
            .all(|report| fault.says.iter().any(|words| report.contains(words)));
        if !shown || !said {
            missed.push(format!(
                "{} ({:?}): {early:?}, {late:?}",
                fault.name, fault.shows
            ));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// Runs a kernel of [`TWINS`] with a matrix to copy from; what it leaves.
fn twin(
    library: &Path,
    kernel: &'static str,
    [rows, columns, ld]: [usize; 3],
    x: &[half::bf16],
    shared: usize,
    out: &mut [u8],
) {
    for schedule in EARLY.into_iter().chain(LATE) {
        // SAFETY: made by `library`.
        let emu = unsafe { Emu::open(library, schedule) }.hopper();
        let mut memory = emu.alloc(size_of_val(x), false).unwrap();
        emu.write(&mut memory, 0, bytemuck::cast_slice(x)).unwrap();
        let to = emu.alloc(out.len(), false).unwrap();
        let at = emu.address(&memory);
        let boxed = Boxed {
            matrix: Operand { at, ld },
            rows,
            columns,
            size: [128, 64],
        };
        let params = Params {
            x: emu.box_map(&boxed).unwrap(),
            logit: emu.address(&to),
            ..Params::zeroed()
        };
        let config = LaunchConfig {
            cluster: [2, 1, 1],
            ..LaunchConfig::new([2, 1, 1], if kernel == "box_bytes" { 32 } else { 128 })
                .shared(shared)
        };
        let launch = Launch::Kernel(Kernel {
            name: kernel,
            config,
            params: gpu::Params::new(bytemuck::bytes_of(&params)),
        });
        // SAFETY: they write what `out` has room for.
        unsafe { emu.submit(launch) }.unwrap();
        let mut got = vec![0; out.len()];
        emu.read(&to, 0, &mut got).unwrap();
        if schedule == EARLY[0] {
            out.copy_from_slice(&got);
        }
        assert!(*out == *got, "{kernel}, {schedule:?}");
    }
}

/// Rows of 128 bytes whose 16-byte pieces are exchanged by the row, and zeros outside of the matrix.
#[test]
fn a_box_lies_swizzled_with_zeros_beyond_the_matrix() {
    let Some(library) = library() else { return };
    // The box of the first block ends beyond the rows, and both beyond the columns.
    let [rows, columns, ld] = [200, 100, 104];
    let of = |row: usize, column: usize| half::bf16::from_f32((row + column * 256) as f32);
    let x: Vec<half::bf16> = (0..rows * ld).map(|i| of(i / ld, i % ld)).collect();
    let mut out = vec![0; 2 * 128 * 128];
    twin(
        &library,
        "box_bytes",
        [rows, columns, ld],
        &x,
        128 * 128 + 8,
        &mut out,
    );
    let (first, second) = out.split_at(128 * 128);
    for (block, top) in [(first, 120), (second, 0)] {
        for row in 0..128 {
            for column in 0..64 {
                let at = row * 128 + ((column / 8) ^ (row % 8)) * 16 + column % 8 * 2;
                let got = half::bf16::from_le_bytes([block[at], block[at + 1]]);
                let inside = top + row < rows && 64 + column < columns;
                let want = if inside {
                    of(top + row, 64 + column)
                } else {
                    half::bf16::ZERO
                };
                assert_eq!(
                    got, want,
                    "row {row}, column {column} of a box from row {top} on"
                );
            }
        }
    }
}

/// By descriptors as other libraries have them, and operands and sums where the instruction's description has them.
#[test]
fn a_warpgroup_multiplies_what_its_descriptors_say() {
    let Some(library) = library() else { return };
    let x = [half::bf16::ZERO; 128];
    let mut out = vec![0; 64 * 256 * 4];
    twin(
        &library,
        "matmul_bytes",
        [1, 64, 64],
        &x,
        8192 + 32_768,
        &mut out,
    );
    for row in 0..64usize {
        for column in 0..256usize {
            let a = |k: usize| ((row * 7 + k * 3) % 13) as f32 - 6.0;
            let b = |k: usize| ((column * 5 + k * 11) % 17) as f32 - 8.0;
            let want = 1000.0 + (48..64).map(|k| a(k) * b(k)).sum::<f32>();
            let at = (row * 256 + column) * 4;
            let got = f32::from_le_bytes(out[at..at + 4].try_into().unwrap());
            assert_eq!(got, want, "row {row}, column {column}");
        }
    }
}
