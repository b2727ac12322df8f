// Negative log-likelihoods: LM head, log-softmax and gather in one.
//
//   out[i] = ln sum_v exp(x[i] · w[v]) - x[i] · w[target[i]]        x [rows, ld], w [vocab, ld]
//
// The logits never exist in memory: a block makes one tile of 128 rows by 128 ids after another
// (tile.cuh) and folds each into a running maximum and a running sum of powers of two, per thread and
// row. At the end the threads that share a row merge what they have by way of shared memory.
//
// The vocabulary is cut into `splits` shares, so that few rows fill a large device too: 200 rows are
// two tiles, and 66 shares of SmolLM2's 384 tiles make 132 blocks. A share costs 8 bytes a row in
// `parts`, which nll_merge adds up: at most 1 MB by the choice of `splits` in src/gpu/nll.rs.
//
// FLOP: 2 · rows · vocab · ld, plus one exponential per logit. Bytes: w once from memory where blocks of
// different rows run side by side on the same share (rows are the faster grid index); from L2 both
// operands in every step of every tile, 64 FLOP a byte. Bound on Hopper by L2: at the 25 to 31 bytes a
// cycle that an SM gets of it (published for the H100) 1600 to 2000 FLOP a cycle, where mma.sync is
// published at 2600 and wgmma at 4096. Where mma.sync is the native instruction (sm_80, 89, 120) by tensor
// cores. Below some 256 rows by reading w from memory.
//
// A tile's logits cost a maximum, a multiply-add, an exponential and a sum each: 16384 exponentials are
// 1024 cycles of an SM's special function units, hidden only as far as the second block of the SM
// multiplies meanwhile. Columns beyond the vocabulary and the target are looked for only in the tiles
// that can have them.
//
// sass nll_bf16: 225 a step, 682 a tile beside its steps, which is 5.3 per logit
#include "tile.cuh"

// A running log-sum-exp, in units of log2: `sum` counts in units of 2^max. No branches: what has seen
// nothing but -inf is (-inf, 0), and of it 2^(-inf - 0) is 0, where -inf - -inf would be NaN.
struct LogSum {
  float max, sum;

  // Adds COUNT logits. One exponential each: the conversion to log2 is in the multiply-add before it.
  template <int COUNT, class Logit> DEVICE void add(Logit logit) {
    float top = -INFINITE;
    UNROLL
    for (int j = 0; j < COUNT; j++) top = fmaxf(top, logit(j));
    top = fmaxf(max, top * LOG2_E);
    const float base = top > -INFINITE ? top : 0.0f;
    sum *= exp2_fast(max - base);
    UNROLL
    for (int j = 0; j < COUNT; j++) sum += exp2_fast(fmaf(logit(j), LOG2_E, -base));
    max = top;
  }
  DEVICE void merge(LogSum other) {
    const float top = fmaxf(max, other.max), base = top > -INFINITE ? top : 0.0f;
    sum = sum * exp2_fast(max - base) + other.sum * exp2_fast(other.max - base);
    max = top;
  }
};

// Merges what the threads that share a row know; the first thread of each row writes it.
template <int SHARERS, class Put>
DEVICE void merge_rows(const LogSum *partial, int rows, Put put) {
  for (int row = threadIdx.x; row < rows; row += blockDim.x) {
    LogSum all = {-INFINITE, 0.0f};
    for (int i = 0; i < SHARERS; i++) all.merge(partial[row * SHARERS + i]);
    put(row, all);
  }
}

// Grid: (tiles of rows, splits). Shared memory: see tiles(); at least SIZE · SHARERS · 8 bytes.
template <class T> DEVICE void nll_rows(const NllParams &p) {
  DYNAMIC_SHARED(shared);
  const int all = (p.vocab + T::SIZE - 1) / T::SIZE;
  const int share = (all + p.splits - 1) / p.splits;
  const int first = min_of<int>(blockIdx.y * share, all), last = min_of(first + share, all);
  const int top = blockIdx.x * T::SIZE, vocab = p.vocab, rows = p.rows;

  LogSum state[T::ROWS];
  int target[T::ROWS];
  UNROLL
  for (int i = 0; i < T::ROWS; i++) {
    state[i] = {-INFINITE, 0.0f};
    const int row = top + T::row(i);
    target[i] = row < rows ? static_cast<int>(p.target[row]) : -1;
  }
  const int ld = p.ld;
  const Operands of = {p.x, p.w, rows, vocab, ld, ld, ld};
  tiles<T>(of, blockIdx.x, first, last, shared, [&](int tile, T &sums) {
    const int start = tile * T::SIZE;
    // Only the last tile has columns beyond the vocabulary.
    if (start + T::SIZE > vocab) {
      UNROLL
      for (int i = 0; i < T::ROWS; i++) {
        UNROLL
        for (int j = 0; j < T::COLUMNS; j++)
          if (start + T::column(j) >= vocab) sums.at(i, j) = -INFINITE;
      }
    }
    UNROLL
    for (int i = 0; i < T::ROWS; i++) {
      // One tile of all has the row's target.
      const int at = target[i] - start;
      if (static_cast<unsigned>(at) < T::SIZE) {
        UNROLL
        for (int j = 0; j < T::COLUMNS; j++)
          if (at == T::column(j)) p.logit[top + T::row(i)] = sums.at(i, j);
      }
      state[i].template add<T::COLUMNS>([&](int j) { return sums.at(i, j); });
    }
  });
  // The last tile's operands have been read by all.
  __syncthreads();
  auto partial = reinterpret_cast<LogSum *>(shared);
  UNROLL
  for (int i = 0; i < T::ROWS; i++) partial[T::row(i) * T::SHARERS + T::sharer()] = state[i];
  __syncthreads();
  merge_rows<T::SHARERS>(partial, T::SIZE, [&](int row, LogSum all) {
    if (top + row < rows)
      p.parts[static_cast<size_t>(blockIdx.y) * rows + top + row] = {all.max, all.sum};
  });
}

KERNEL(nll_bf16, NllParams, TILE_THREADS_BF16) { nll_rows<Bf16>(p); }
KERNEL_BLOCKS(nll_f32, NllParams, TILE_THREADS_F32, 2) { nll_rows<F32>(p); }

// The same from logits that are there already. Grid: (rows, splits); shared memory: 8 bytes a
// thread. Reads 4 bytes a logit, once: bound by memory.
KERNEL(nll_logits, NllLogitsParams, 256) {
  DYNAMIC_SHARED(memory);
  const unsigned row = blockIdx.x;
  const unsigned share = (p.vocab + p.splits - 1) / p.splits;
  const unsigned first = min_of(blockIdx.y * share, p.vocab), last = min_of(first + share, p.vocab);
  const float *logits = p.logits + static_cast<size_t>(row) * p.ld;
  LogSum state = {-INFINITE, 0.0f};
  // Four loads under way at once.
  for (unsigned id = first + threadIdx.x; id < last; id += 4 * blockDim.x) {
    float v[4];
    UNROLL
    for (int j = 0; j < 4; j++) {
      const unsigned at = id + j * blockDim.x;
      v[j] = at < last ? logits[at] : -INFINITE;
    }
    state.add<4>([&](int j) { return v[j]; });
  }
  const unsigned target = p.target[row];
  if (blockIdx.y == 0 && threadIdx.x == 0) p.logit[row] = logits[target];
  auto partial = reinterpret_cast<LogSum *>(memory);
  partial[threadIdx.x] = state;
  __syncthreads();
  // Halving the number of threads that hold something.
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x].merge(partial[threadIdx.x + half]);
    __syncthreads();
  }
  if (threadIdx.x == 0)
    p.parts[static_cast<size_t>(blockIdx.y) * p.rows + row] = {partial[0].max, partial[0].sum};
}

// A warp per row: a lane takes every 32nd part, and a fixed tree of shuffles adds up the lanes', so that
// the result depends on the number of splits alone. 8 bytes a part; with the parts in the second-level
// cache it is bound by the latency of splits / 32 loads. A row of nothing but -inf gives NaN, as
// log-softmax does.
KERNEL(nll_merge, NllMergeParams, 256) {
  const unsigned lane = threadIdx.x % 32, row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= p.rows) return;
  LogSum all = {-INFINITE, 0.0f};
  for (unsigned split = lane; split < p.splits; split += 32) {
    const NllPart part = p.parts[static_cast<size_t>(split) * p.rows + row];
    all.merge({part.max, part.sum});
  }
  UNROLL
  for (int offset = 16; offset > 0; offset >>= 1)
    all.merge({__shfl_xor_sync(FULL_WARP, all.max, offset), __shfl_xor_sync(FULL_WARP, all.sum, offset)});
  if (lane == 0) {
    const float lse = all.max + log2f(all.sum);
    p.out[row] = lse * LN_2 - p.logit[row];
    if (p.lse) p.lse[row] = lse;
  }
}

// ---- backward ----------------------------------------------------------------------------------------

//   dlogits[i, v] = exp(logit[i, v] - lse[i]) - (v == target[i])        dx[i] = dlogits[i] · w
//
// The logits are made once more, tile by tile, for a few thousand ids at a time; what they become is the
// left operand of the product with w turned round (gemm.cu or cublasLt), which adds up over those runs
// of ids. So dlogits never exist whole: src/gpu/nll.rs lets them have some megabytes. Grid: (tiles of
// rows, tiles of ids). FLOP: 2 · ld per logit here and as many in the product; 2 or 4 bytes out a logit,
// which at ld 576 is 576 FLOP a byte: bound by tensor cores, and at few rows by reading w.
template <class T> DEVICE void nll_gradient(const NllBwdParams &p) {
  DYNAMIC_SHARED(shared);
  constexpr int PAIR = sizeof(typename T::Element) == 2 ? 2 : 1;
  const int top = blockIdx.x * T::SIZE, rows = p.rows, ld = p.ld;
  const int tile = p.first / T::SIZE + blockIdx.y;
  const Operands of = {p.x, p.w, rows, static_cast<int>(p.vocab), ld, ld, ld};
  tiles<T>(of, blockIdx.x, tile, tile + 1, shared, [&](int, T &sums) {
    auto gradient = [&](int i, int j, float lse, unsigned target) {
      const unsigned id = tile * T::SIZE + T::column(j);
      const float v = exp2_fast(sums.at(i, j) * LOG2_E - lse) - (id == target ? 1.0f : 0.0f);
      return id - p.first < p.count ? v : 0.0f;
    };
    UNROLL
    for (int i = 0; i < T::ROWS; i++) {
      const int row = top + T::row(i);
      if (row >= rows) continue;
      const unsigned target = p.target[row];
      const float lse = p.lse[row];
      auto out = static_cast<typename T::Element *>(p.out) + static_cast<size_t>(row) * p.out_ld;
      UNROLL
      for (int j = 0; j < T::COLUMNS; j += PAIR) {
        const unsigned to = tile * T::SIZE + T::column(j) - p.first;
        if (to >= p.out_ld) continue;
        // Neighbouring columns as one word; out_ld is even.
        if constexpr (PAIR == 2)
          *reinterpret_cast<unsigned *>(out + to) =
              to_bf16x2(gradient(i, j, lse, target), gradient(i, j + 1, lse, target));
        else out[to] = gradient(i, j, lse, target);
      }
    }
  });
}

KERNEL(nll_bwd_bf16, NllBwdParams, TILE_THREADS_BF16) { nll_gradient<Bf16>(p); }
KERNEL(nll_bwd_f32, NllBwdParams, TILE_THREADS_F32) { nll_gradient<F32>(p); }
