// Negative log-likelihoods on Hopper: what nll_bf16 computes (nll.cu), by TMA and wgmma.
//
//   parts[range][row] = (max, sum) of the logits x[row] · w[v] of the range's ids, in units of log2
//   logit[row] = x[row] · w[target[row]]                        x [rows, ld], w [vocab, ld], bf16
//
// A block makes one tile of 128 rows by 256 ids after another and folds each into a running maximum and sum per
// thread and row. Two blocks are a cluster: on neighbouring tiles of rows, and the same ids. Each copies its own 128
// rows of x and half of the 256 rows of w, which it sends to both: per step of 64 a block takes 32 KB from L2 for
// 48 KB in shared memory, 128 FLOP a byte, twice what nll_bf16 has.
//
// Roles. Warpgroup 0: one thread starts copies into a ring of four stages. Warpgroups 1 and 2: 64 rows each, four
// wgmma of 64 x 256 x 16 a stage, and what becomes of the logits, in registers: 128 sums a thread. A stage is full
// when its 48 KB are there (one arrival, and bytes), and empty when the eight warps of both blocks have multiplied
// it (16 arrivals): the block's copies of w go to both. A stage is released one step late, when the matmuls of the
// next one have been issued and those of its own are done, so that the tensor cores never wait for a release.
//
// Grid: (2 · pairs of row tiles, ranges). Deterministic: a thread's sums are in the order of the ids, the four
// threads of a row merge in the order of their lanes, and nll_merge merges ranges in their order.
//
// FLOP: 2 · rows · vocab · ld, plus one exponential per logit. Bound by tensor cores: a step is 2^22 FLOP of a block,
// 1024 cycles at 4096 a cycle. The 32768 exponentials of a tile are 2048 cycles of an SM's special function units,
// 22 % of a tile's matmuls at ld 576 and 3 % at 4096. So that one warpgroup multiplies while the other is at its
// exponentials, the second begins LEAD steps after the first: a warpgroup alone needs 512 cycles a step, so that the
// first has done its 1024 cycles of exponentials when the second comes to its own. Of the ring two stages are left for
// copies ahead.
// Below some 256 rows bound by reading w from memory.
//
// Registers: 168 a thread at the launch, 384 · 168 = 64512 of 65536, of which the copying warpgroup gives 128 a
// thread to the others: 128 · 40 + 256 · 232.
//
// sass nll90: 55 a step, 564 a tile beside its steps, which is 4.4 per logit
#include "arch/convert.cuh"
#include "arch/hopper.cuh"

// Images for other architectures do not have it, so that a launcher finds out.
#if HOPPER

KERNEL_CLUSTER(nll90, Nll90Params, NLL90_THREADS, NLL90_CLUSTER, 168) {
  constexpr int ROWS = NLL90_ROWS, IDS = NLL90_IDS, K = NLL90_K, STAGES = NLL90_STAGES;
  constexpr unsigned X_BYTES = ROWS * K * 2, W_BYTES = IDS * K * 2, STAGE = X_BYTES + W_BYTES;
  constexpr unsigned short BOTH = 3;
  constexpr int LEAD = 2;
  SWIZZLED_SHARED(shared);
  const unsigned stages = shared_address(shared), full = stages + STAGES * STAGE, empty = full + STAGES * 8;
  const unsigned follow = empty + STAGES * 8;
  const unsigned rank = cluster_rank();
  // The same for a whole warp, as the compiler cannot know of threadIdx.
  const int group = __shfl_sync(FULL_WARP, static_cast<int>(threadIdx.x / 128), 0);
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, 8 * NLL90_CLUSTER);
    }
    barrier_init(follow, 4);
    barrier_init_done();
  }
  cluster_sync();

  const int rows = p.rows, vocab = p.vocab;
  const int steps = (p.ld + K - 1) / K, all = (vocab + IDS - 1) / IDS, share = p.share;
  const int first = min_of<int>(blockIdx.y * share, all), last = min_of(first + share, all);
  const int top = blockIdx.x * ROWS;

  if (group == 0) {
    fewer_registers<40>();
    if (threadIdx.x == 0) {
      // The stages are empty as if released once.
      unsigned stage = 0, parity = 1;
      for (int tile = first; tile < last; tile++) {
        ROLLED
        for (int k = 0; k < steps; k++) {
          barrier_wait(empty + 8 * stage, parity);
          const unsigned x = stages + stage * STAGE, w = x + X_BYTES + rank * (W_BYTES / 2), bar = full + 8 * stage;
          barrier_expect(bar, STAGE);
          copy_box(x, &p.x, k * K, top, bar);
          copy_box_to(BOTH, w, &p.w, k * K, tile * IDS + static_cast<int>(rank) * (IDS / 2), bar);
          if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
          }
        }
      }
      // The other block's warps arrive at this block's barriers to the end: it stays until all have.
      ROLLED
      for (int i = 0; i < STAGES; i++) {
        barrier_wait(empty + 8 * stage, parity);
        if (++stage == STAGES) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
  } else {
    more_registers<232>();
    const int half = group - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int own = top + half * 64 + warp * 16 + g;
    int target[2];
    float max[2] = {-INFINITE, -INFINITE}, sum[2] = {0.0f, 0.0f};
    UNROLL
    for (int i = 0; i < 2; i++) target[i] = own + 8 * i < rows ? static_cast<int>(p.target[own + 8 * i]) : -1;
    unsigned stage = 0, parity = 0;
    // Lane 0 at the first block's barrier, lane 1 at the second's: both wait for this warp.
    auto release = [&](unsigned of) {
      if (lane < NLL90_CLUSTER) barrier_arrive(empty + 8 * of, lane);
    };
    // The first warpgroup's step, of its first tile, in which it lets the second begin.
    const int lead = half == 0 ? min_of(LEAD, steps) - 1 : -1;
    if (half == 1 && first < last) barrier_wait(follow, 0);
    for (int tile = first; tile < last; tile++) {
      // The first matmul of a tile does not read them.
      float d[128];
      unsigned before = 0;
      ROLLED
      for (int k = 0; k < steps; k++) {
        barrier_wait(full + 8 * stage, parity);
        const unsigned x = stages + stage * STAGE;
        const uint64_t a = matrix_descriptor(x + half * (X_BYTES / 2)), b = matrix_descriptor(x + X_BYTES);
        matmul_fence();
        // 16 columns of bf16 further on: 32 bytes, in units of 16.
        UNROLL
        for (int i = 0; i < K / 16; i++) matmul_64x256x16(d, a + 2 * i, b + 2 * i, k + i > 0);
        matmul_commit();
        if (tile == first && k == lead && lane == 0) barrier_arrive(follow, rank);
        if (k > 0) {
          matmul_wait<1>();
          release(before);
        }
        before = stage;
        if (++stage == STAGES) {
          stage = 0;
          parity ^= 1;
        }
      }
      matmul_wait_all(d);
      release(before);

      const int start = tile * IDS;
      // Only the last tile has columns beyond the vocabulary: zeros, by TMA.
      if (start + IDS > vocab) {
        UNROLL
        for (int j = 0; j < 128; j++)
          if (start + j / 4 * 8 + 2 * t + j % 2 >= vocab) d[j] = -INFINITE;
      }
      UNROLL
      for (int i = 0; i < 2; i++) {
        auto logit = [&](int j) { return d[j / 2 * 4 + 2 * i + j % 2]; };
        // One tile of all has the row's target, and one of four threads.
        const int at = target[i] - start;
        if (static_cast<unsigned>(at) < IDS && at / 2 % 4 == t) {
          float found = 0.0f;
          UNROLL
          for (int j = 0; j < 64; j++)
            if (at == j / 2 * 8 + 2 * t + j % 2) found = logit(j);
          p.logit[own + 8 * i] = found;
        }
        // In four chains each, so that none waits for its last.
        float top4[4], sum4[4] = {};
        UNROLL
        for (int j = 0; j < 4; j++) top4[j] = logit(j);
        UNROLL
        for (int j = 4; j < 64; j++) top4[j % 4] = fmaxf(top4[j % 4], logit(j));
        const float top = fmaxf(fmaxf(top4[0], top4[1]), fmaxf(top4[2], top4[3]));
        const float raised = fmaxf(max[i], top * LOG2_E), base = raised > -INFINITE ? raised : 0.0f;
        sum4[0] = sum[i] * exp2_fast(max[i] - base);
        UNROLL
        for (int j = 0; j < 64; j++) sum4[j % 4] += exp2_fast(fmaf(logit(j), LOG2_E, -base));
        sum[i] = (sum4[0] + sum4[1]) + (sum4[2] + sum4[3]);
        max[i] = raised;
      }
    }
    UNROLL
    for (int i = 0; i < 2; i++) {
      UNROLL
      for (int offset = 1; offset < 4; offset *= 2) {
        const float other_max = __shfl_xor_sync(FULL_WARP, max[i], offset);
        const float other_sum = __shfl_xor_sync(FULL_WARP, sum[i], offset);
        const float both = fmaxf(max[i], other_max), base = both > -INFINITE ? both : 0.0f;
        sum[i] = sum[i] * exp2_fast(max[i] - base) + other_sum * exp2_fast(other_max - base);
        max[i] = both;
      }
      if (t == 0 && own + 8 * i < rows)
        p.parts[static_cast<size_t>(blockIdx.y) * rows + own + 8 * i] = {max[i], sum[i]};
    }
  }
}

#endif
