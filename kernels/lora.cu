// The low-rank update of projections, y += s · (x · aᵀ) · bᵀ, and its gradients.
//
//   x [rows, inputs] f32, a [ranks, inputs], b [outputs, ranks], y [rows, outputs] f32, ranks 1 to 128
//
// One kernel: what lies between the two products never leaves the multiprocessor. Projections that read
// the same x (q, k and v; gate and up) share a launch: their a's stand one above the other, their b's on
// the diagonal of one matrix, and a `span` says which ranks and which outputs belong together, so that
// the zeros beside the diagonal are not multiplied.
//
// A block of four warps has 32 rows. First product: 64 of the inputs at a time (32 in f32), x as it is,
// in f32, and a; by three stages of asynchronous copies. In bf16 a warp takes every fourth 16 of the inputs
// (or every second, and half of the ranks, where these are more than 64), so that each element of x is
// rounded, and perhaps dropped, by one warp (two) on its way from shared memory into an operand; what the
// warps have is added up at the end, always in the same order. The sums, scaled, become the left operand
// of the second product, in shared memory. Second product: 128 outputs at a time, b by the same stages; y
// is read before a tile's sums and they continue from it. Rows of x lie 72 words apart: the eight rows that a
// half warp reads begin 8 banks apart. Tiles of factors have rows of 128 bytes, their 16-byte pieces
// exchanged by the row's last three bits, so that ldmatrix meets no bank twice.
//
// FLOP: 2 · ranks · (inputs + outputs) a row. Bytes a row: 4 · inputs in, 8 · outputs in and out, and
// the factors, 2 · ranks · (inputs + outputs) for every 32 rows, from L2. At rank 64 that is 32 FLOP a
// byte of rows: bound by memory, by y above all. Few rows make few blocks: the outputs are then cut into
// runs (src/gpu/lora.rs), each of which makes the first product anew. That costs (128 + 2 · ranks) ·
// inputs bytes from L2 a block: little at 576 inputs, at 4096 and 200 rows more than all the rest; there
// two products by the library, which can cut the inner dimension, may be as fast (the bench has both).
//
// Backward, three launches for up to three projections:
//   low = x · aᵀ                                  lora with run 0, which ends there
//   dlow = dy · b, dx += drop(dlow · a)           lora with the factors exchanged
//   da = dlowᵀ · drop(x), db = dyᵀ · low          lora_bwd
// One kernel for all would not pay: da and db add up over the rows, dlow over the outputs, and a block that
// has some rows of dlow would have to add its [ranks, inputs] to all other blocks', in no fixed order.
#include "arch/copy.cuh"
#include "arch/mma.cuh"
#include "dropout.cuh"

// Runs `copy(i)`, which only starts copies, some steps ahead of `work(i)`. All threads call it; when it
// returns, all are done with the stages.
template <class Copy, class Work> DEVICE void lora_pipeline(int steps, Copy copy, Work work) {
  UNROLL
  for (int i = 0; i < LORA_STAGES - 1; i++) {
    if (i < steps) copy(i);
    // Empty groups too, so that the wait below always counts alike.
    copy_commit();
  }
  for (int i = 0; i < steps; i++) {
    copy_wait<LORA_STAGES - 2>();
    // All copies for this step are there, and all are done with the stage of the step before.
    __syncthreads();
    if (i + LORA_STAGES - 1 < steps) copy(i + LORA_STAGES - 1);
    copy_commit();
    work(i);
  }
  __syncthreads();
}

struct LoraBf16 {
  using Element = uint16_t;
  static constexpr int STEP = LORA_STEP_BF16, PER_COPY = 8;
  static constexpr int X_PITCH = LORA_X_PITCH_BF16, PITCH = LORA_PITCH_BF16;
  static constexpr int WARPS = LORA_THREADS / 32;
  // [16 rows][8 columns]: of 64 ranks in the first product, of 32 outputs in the second.
  using Down = float[2][8][4];
  using Up = float[2][4][4];

  DEVICE static int swizzled(int row, int piece) { return piece ^ (row & 7); }
  DEVICE static Element converted(float v) { return to_bf16(v); }
  DEVICE static int place(int row, int column) {
    return row * PITCH + swizzled(row, column / 8) * 8 + column % 8;
  }

  // `x(row, column)` gives two neighbours.
  template <class X> DEVICE static void down(Down &sums, int ranks, X x, const Element *w) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int halves = ranks > 64 ? 2 : 1, first = warp % halves * 64;
    for (int k = warp / halves; k < STEP / 16; k += WARPS / halves) {
      unsigned a[2][4];
      UNROLL
      for (int m = 0; m < 2; m++) {
        UNROLL
        for (int i = 0; i < 4; i++) {
          const Float2 pair = x(m * 16 + i % 2 * 8 + g, k * 16 + i / 2 * 8 + 2 * t);
          a[m][i] = to_bf16x2(pair.x, pair.y);
        }
      }
      UNROLL
      for (int j = 0; j < 4; j++) {
        if (first + j * 16 >= ranks) continue;
        unsigned b[4];
        const int r = first + j * 16 + lane / 16 * 8 + lane % 8;
        load_matrix_x4(b, w + r * PITCH + swizzled(r, k * 2 + lane / 8 % 2) * 8);
        UNROLL
        for (int m = 0; m < 2; m++) {
          mma_bf16(sums[m][2 * j], a[m], b[0], b[1]);
          mma_bf16(sums[m][2 * j + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // Adds up what the warps have, by way of `memory`, and calls put(row, rank, sum) for each.
  template <class Put> DEVICE static void deliver(const Down &sums, int ranks, float *memory, Put put) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int halves = ranks > 64 ? 2 : 1;
    float *const mine = memory + warp * LORA_ROWS * 64;
    UNROLL
    for (int m = 0; m < 2; m++) {
      UNROLL
      for (int j = 0; j < 8; j++) {
        UNROLL
        for (int i = 0; i < 4; i++)
          mine[(m * 16 + i / 2 * 8 + g) * 64 + j * 8 + 2 * t + i % 2] = sums[m][j][i];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < LORA_ROWS * ranks; i += blockDim.x) {
      const int row = i / ranks, rank = i % ranks;
      float sum = 0.0f;
      for (int other = rank / 64; other < WARPS; other += halves)
        sum += memory[(other * LORA_ROWS + row) * 64 + rank % 64];
      put(row, rank, sum);
    }
  }

  DEVICE static void up(Up &sums, const Element *low, const Element *w) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    UNROLL
    for (int k = 0; k < STEP / 16; k++) {
      unsigned a[2][4];
      UNROLL
      for (int m = 0; m < 2; m++) {
        const int r = m * 16 + lane % 16;
        load_matrix_x4(a[m], low + r * PITCH + swizzled(r, k * 2 + lane / 16) * 8);
      }
      UNROLL
      for (int j = 0; j < 2; j++) {
        unsigned b[4];
        const int r = warp * 32 + j * 16 + lane / 16 * 8 + lane % 8;
        load_matrix_x4(b, w + r * PITCH + swizzled(r, k * 2 + lane / 8 % 2) * 8);
        UNROLL
        for (int m = 0; m < 2; m++) {
          mma_bf16(sums[m][2 * j], a[m], b[0], b[1]);
          mma_bf16(sums[m][2 * j + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // For two neighbours of a tile of 32 rows and 128 columns each: visit(row, column, first, second).
  template <class Visit> DEVICE static void each(Up &sums, Visit visit) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    UNROLL
    for (int m = 0; m < 2; m++) {
      UNROLL
      for (int i = 0; i < 2; i++) {
        UNROLL
        for (int j = 0; j < 4; j++)
          visit(m * 16 + i * 8 + g, warp * 32 + j * 8 + 2 * t, sums[m][j][2 * i], sums[m][j][2 * i + 1]);
      }
    }
  }

  // Of a gradient: 32 ranks a warp, 64 columns.
  using Outer = float[2][8][4];

  DEVICE static void outer(Outer &sums, int ranks, const float *narrow, const float *wide) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    if (warp * 32 >= ranks) return;
    // Two rows of one column: rows are the inner dimension. Those of the four t lie 8 banks apart.
    auto pair = [&](const float *tile, int pitch, int row, int column) {
      return to_bf16x2(tile[row * pitch + column], tile[(row + 1) * pitch + column]);
    };
    UNROLL
    for (int k = 0; k < LORA_ROWS / 16; k++) {
      unsigned a[2][4];
      UNROLL
      for (int m = 0; m < 2; m++) {
        UNROLL
        for (int i = 0; i < 4; i++)
          a[m][i] = pair(narrow, LORA_NARROW_PITCH, k * 16 + i / 2 * 8 + 2 * t,
                         warp * 32 + m * 16 + i % 2 * 8 + g);
      }
      UNROLL
      for (int j = 0; j < 8; j++) {
        const unsigned b0 = pair(wide, LORA_WIDE_PITCH, k * 16 + 2 * t, j * 8 + g);
        const unsigned b1 = pair(wide, LORA_WIDE_PITCH, k * 16 + 8 + 2 * t, j * 8 + g);
        UNROLL
        for (int m = 0; m < 2; m++) mma_bf16(sums[m][j], a[m], b0, b1);
      }
    }
  }
  template <class Visit> DEVICE static void each_outer(const Outer &sums, Visit visit) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    UNROLL
    for (int m = 0; m < 2; m++) {
      UNROLL
      for (int j = 0; j < 8; j++) {
        UNROLL
        for (int i = 0; i < 4; i++)
          visit(warp * 32 + m * 16 + i / 2 * 8 + g, j * 8 + 2 * t + i % 2, sums[m][j][i]);
      }
    }
  }
};

// By FMA: there to be exact. A thread has 4 rows by 8 ranks or outputs, rows of factors 144 bytes apart.
struct LoraF32 {
  using Element = float;
  static constexpr int STEP = LORA_STEP_F32, PER_COPY = 4;
  static constexpr int X_PITCH = LORA_X_PITCH_F32, PITCH = LORA_PITCH_F32;
  using Down = float[4][8];
  using Up = float[4][8];

  DEVICE static int swizzled(int, int piece) { return piece; }
  DEVICE static Element converted(float v) { return v; }
  DEVICE static int place(int row, int column) { return row * PITCH + column; }
  DEVICE static int row(int i) { return threadIdx.x / 16 + 8 * i; }
  DEVICE static int column(int j) { return threadIdx.x % 16 + 16 * j; }

  template <class X> DEVICE static void product(float (&sums)[4][8], X x, const float *w) {
    for (int k = 0; k < STEP; k += 2) {
      Float2 a[4];
      UNROLL
      for (int i = 0; i < 4; i++) a[i] = x(row(i), k);
      UNROLL
      for (int j = 0; j < 8; j++) {
        const Float2 b = *reinterpret_cast<const Float2 *>(w + column(j) * PITCH + k);
        UNROLL
        for (int i = 0; i < 4; i++) {
          sums[i][j] += a[i].x * b.x;
          sums[i][j] += a[i].y * b.y;
        }
      }
    }
  }
  template <class X> DEVICE static void down(Down &sums, int, X x, const Element *w) { product(sums, x, w); }
  template <class Put> DEVICE static void deliver(const Down &sums, int ranks, float *, Put put) {
    UNROLL
    for (int i = 0; i < 4; i++) {
      UNROLL
      for (int j = 0; j < 8; j++)
        if (column(j) < ranks) put(row(i), column(j), sums[i][j]);
    }
  }
  DEVICE static void up(Up &sums, const Element *low, const Element *w) {
    product(sums, [&](int row, int k) { return *reinterpret_cast<const Float2 *>(low + row * PITCH + k); }, w);
  }
  // One at a time: neighbours are other threads'.
  template <class Visit> DEVICE static void each(Up &sums, Visit visit) {
    UNROLL
    for (int i = 0; i < 4; i++) {
      UNROLL
      for (int j = 0; j < 8; j++) visit(row(i), column(j), sums[i][j]);
    }
  }

  // 8 ranks by 8 columns a thread.
  using Outer = float[8][8];

  DEVICE static void outer(Outer &sums, int, const float *narrow, const float *wide) {
    for (int k = 0; k < LORA_ROWS; k++) {
      float a[8], b[8];
      UNROLL
      for (int i = 0; i < 8; i++) a[i] = narrow[k * LORA_NARROW_PITCH + threadIdx.x / 8 + 16 * i];
      UNROLL
      for (int j = 0; j < 8; j++) b[j] = wide[k * LORA_WIDE_PITCH + threadIdx.x % 8 + 8 * j];
      UNROLL
      for (int i = 0; i < 8; i++) {
        UNROLL
        for (int j = 0; j < 8; j++) sums[i][j] += a[i] * b[j];
      }
    }
  }
  template <class Visit> DEVICE static void each_outer(const Outer &sums, Visit visit) {
    UNROLL
    for (int i = 0; i < 8; i++) {
      UNROLL
      for (int j = 0; j < 8; j++) visit(threadIdx.x / 8 + 16 * i, threadIdx.x % 8 + 8 * j, sums[i][j]);
    }
  }
};

// A block's columns of y. Where elements are dropped, what y gets of them is not written.
template <int DROPS> struct LoraOutput {
  float *y;
  const LoraParams &p;
  int top, rows, last;
  bool paired;

  DEVICE LoraOutput(const LoraParams &p, int top, int first, int last)
      : y(p.y), p(p), top(top), rows(p.rows), last(last), paired((p.y_ld | first) % 2 == 0) {}

  DEVICE bool in(int row, int column) const { return top + row < rows && column < last; }
  DEVICE float *at(int row, int column) const { return y + static_cast<size_t>(top + row) * p.y_ld + column; }
  DEVICE bool takes(int row, int column) const {
    return in(row, column) && (DROPS != 2 || keeps(p, static_cast<unsigned>(top + row) * p.width + column));
  }
  DEVICE void load(int row, int column, float &v) const { v = in(row, column) ? *at(row, column) : 0.0f; }
  DEVICE void load(int row, int column, float &a, float &b) const {
    if (paired && in(row, column + 1)) {
      const Float2 v = *reinterpret_cast<const Float2 *>(at(row, column));
      a = v.x;
      b = v.y;
    } else {
      load(row, column, a);
      load(row, column + 1, b);
    }
  }
  DEVICE void store(int row, int column, float v) const {
    if (takes(row, column)) *at(row, column) = v;
  }
  DEVICE void store(int row, int column, float a, float b) const {
    if (paired && DROPS != 2 && in(row, column + 1)) {
      *reinterpret_cast<Float2 *>(at(row, column)) = {a, b};
    } else {
      store(row, column, a);
      store(row, column + 1, b);
    }
  }
};

// Grid: (tiles of rows, runs of the spans' outputs one after the other). Shared memory: the stages, and
// for every STEP ranks between the products LORA_ROWS · PITCH elements. DROPS: p.drops, so that a loop without
// dropout has nothing of it.
template <class T, int DROPS> DEVICE void lora(const LoraParams &p) {
  DYNAMIC_SHARED(memory);
  using Element = typename T::Element;
  constexpr int ROWS = LORA_ROWS, TILE = LORA_TILE, STEP = T::STEP, LOW = ROWS * T::PITCH;
  constexpr int X = ROWS * T::X_PITCH * 4, STAGE = X + TILE * T::PITCH * sizeof(Element);
  auto x_tile = [&](int step) { return reinterpret_cast<float *>(memory + step % LORA_STAGES * STAGE); };
  auto w_tile = [&](int step) { return reinterpret_cast<Element *>(memory + step % LORA_STAGES * STAGE + X); };
  auto low = reinterpret_cast<Element *>(memory + LORA_STAGES * STAGE);
  const int top = blockIdx.x * ROWS, rows = p.rows, run = p.run;

  // The spans that this block reads, and which of their runs it makes.
  int begin = 0, end = p.count, unit = blockIdx.y;
  if (!p.to_first_span) {
    for (; begin + 1 < end; begin++) {
      const int units = run ? (p.spans[begin].count + run - 1) / run : 1;
      if (unit < units) break;
      unit -= units;
    }
    end = begin + 1;
  }

  // TILE rows of a factor, STEP columns; columns begin at a multiple of 16 bytes.
  auto copy_factor = [&](int step, const void *w, size_t ld, int first, int last, int k, int k_end) {
    constexpr int PIECES = STEP / T::PER_COPY;
    UNROLL
    for (int n = 0; n < TILE * PIECES / LORA_THREADS; n++) {
      const int i = n * LORA_THREADS + threadIdx.x, row = i / PIECES;
      const int piece = i % PIECES, column = k + piece * T::PER_COPY;
      const bool in = first + row < last && column < k_end;
      const size_t from = in ? (first + row) * ld + column : 0;
      copy_async_16(w_tile(step) + row * T::PITCH + T::swizzled(row, piece) * T::PER_COPY,
                    static_cast<const Element *>(w) + from, in ? 16 : 0);
    }
  };

  // Where no span's ranks lie there are zeros: before the first, up to which b's columns are read from a
  // multiple of 16 bytes on, and after the last.
  const int base = p.spans[begin].rank / T::PER_COPY * T::PER_COPY;
  const int base_end = p.spans[end - 1].rank + p.spans[end - 1].ranks;
  const int chunks = (base_end - base + STEP - 1) / STEP;
  if (run)
    for (int i = threadIdx.x; i < chunks * LOW; i += LORA_THREADS) low[i] = 0;

  for (int s = begin; s < end; s++) {
    const LoraSpan span = p.spans[s];
    const int from = span.from / T::PER_COPY * T::PER_COPY, last = span.from + span.width;
    const int ranks = span.ranks;
    typename T::Down sums = {};
    lora_pipeline(
        (last - from + STEP - 1) / STEP,
        [&](int step) {
          const int k = from + step * STEP;
          UNROLL
          for (int n = 0; n < ROWS * STEP / 4 / LORA_THREADS; n++) {
            const int i = n * LORA_THREADS + threadIdx.x, row = i / (STEP / 4), column = i % (STEP / 4) * 4;
            const bool in = top + row < rows && k + column < last;
            const size_t at = in ? static_cast<size_t>(top + row) * p.x_ld + k + column : 0;
            copy_async_16(x_tile(step) + row * T::X_PITCH + column, p.x + at, in ? 16 : 0);
          }
          copy_factor(step, p.a, p.a_ld, span.rank, span.rank + ranks, k, last);
        },
        [&](int step) {
          const float *x = x_tile(step);
          const int k = from + step * STEP;
          auto pair = [&](int row, int column) {
            Float2 v = *reinterpret_cast<const Float2 *>(x + row * T::X_PITCH + column);
            if (DROPS == 1) {
              const unsigned index = static_cast<unsigned>(top + row) * p.width + k + column;
              if (!keeps(p, index)) v.x = 0.0f;
              if (!keeps(p, index + 1)) v.y = 0.0f;
            }
            return v;
          };
          T::down(sums, ranks, pair, w_tile(step));
        });
    T::deliver(sums, ranks, reinterpret_cast<float *>(memory), [&](int row, int rank, float v) {
      if (p.low && unit == 0 && top + row < rows)
        p.low[(static_cast<size_t>(s) * rows + top + row) * p.low_ld + rank] = v * p.kept;
      const int column = span.rank - base + rank;
      if (run) low[column / STEP * LOW + T::place(row, column % STEP)] = T::converted(v * p.scale);
    });
    // The stages are free again, and what lies between the products can be read.
    __syncthreads();
  }
  if (!run) return;

  const LoraSpan &out = p.spans[begin];
  const int first = out.first + unit * run, last = min_of<int>(first + run, out.first + out.count);
  const LoraOutput<DROPS> output(p, top, first, last);
  typename T::Up sums;
  lora_pipeline(
      (last - first + TILE - 1) / TILE * chunks,
      [&](int step) {
        const int tile = first + step / chunks * TILE;
        copy_factor(step, p.b, p.b_ld, tile, last, base + step % chunks * STEP, base_end);
      },
      [&](int step) {
        const int tile = first + step / chunks * TILE, chunk = step % chunks;
        if (chunk == 0)
          T::each(sums, [&](int row, int column, auto &...v) { output.load(row, tile + column, v...); });
        T::up(sums, low + chunk * LOW, w_tile(step));
        if (chunk + 1 == chunks)
          T::each(sums, [&](int row, int column, auto &...v) { output.store(row, tile + column, v...); });
      });
}

template <class T> DEVICE void lora_dropping(const LoraParams &p) {
  if (p.drops == 0) lora<T, 0>(p);
  else if (p.drops == 1) lora<T, 1>(p);
  else lora<T, 2>(p);
}

KERNEL(lora_bf16, LoraParams, LORA_THREADS) { lora_dropping<LoraBf16>(p); }
KERNEL(lora_f32, LoraParams, LORA_THREADS) { lora_dropping<LoraF32>(p); }

// ---- gradients of the factors ------------------------------------------------------------------------

//   out[rank, column] = sum over rows of narrow[row, rank] · wide[row, column]
//
// da has dlow for narrow and x for wide; db, which is written transposed, low and dy. A block has all ranks of
// a projection and 64 columns of wide, and goes over the rows, 32 at a time: each element of wide is read
// once, narrow once for every 64 columns. Rows are the inner dimension, of which a fragment wants
// neighbours: it takes them from f32 in shared memory, rounded on the way, so that nothing is transposed
// first. FLOP: 2 · ranks an element of wide; 4 bytes each, and as many for narrow at 64 ranks: bound by L2.
// Grid: (tiles of the widest gradient's columns, gradients). At 576 columns few blocks run, and the time
// is that of a walk over the rows.
template <class T> DEVICE void lora_gradient(const LoraBwdParams &p) {
  DYNAMIC_SHARED(memory);
  constexpr int ROWS = LORA_ROWS, NARROW = ROWS * LORA_NARROW_PITCH, STAGE = NARROW + ROWS * LORA_WIDE_PITCH;
  auto stages = reinterpret_cast<float *>(memory);
  const LoraGradient &of = p.gradients[blockIdx.y];
  const int rows = p.rows, ranks = of.ranks, last = of.first + of.count;
  const int start = of.first / 4 * 4 + blockIdx.x * LORA_WIDE;
  if (start >= last) return;
  auto copy = [&](int step, float *to, int pitch, const float *from, size_t ld, int first, int last) {
    // Pieces of four, of which a row of narrow has LORA_TILE / 4, one of wide LORA_WIDE / 4.
    const int pieces = pitch / 4 - 1;
    for (int i = threadIdx.x; i < ROWS * pieces; i += LORA_THREADS) {
      const int row = i / pieces, column = i % pieces * 4;
      const bool in = step * ROWS + row < rows && first + column < last;
      const size_t at = in ? static_cast<size_t>(step * ROWS + row) * ld + first + column : 0;
      copy_async_16(to + row * pitch + column, from + at, in ? 16 : 0);
    }
  };
  typename T::Outer sums = {};
  lora_pipeline(
      (rows + ROWS - 1) / ROWS,
      [&](int step) {
        float *stage = stages + step % LORA_STAGES * STAGE;
        copy(step, stage, LORA_NARROW_PITCH, of.narrow, p.narrow_ld, 0, ranks);
        copy(step, stage + NARROW, LORA_WIDE_PITCH, of.wide, of.wide_ld, start, last);
      },
      [&](int step) {
        float *stage = stages + step % LORA_STAGES * STAGE, *wide = stage + NARROW;
        if (of.drops) {
          for (int i = threadIdx.x; i < ROWS * LORA_WIDE; i += LORA_THREADS) {
            const int row = i / LORA_WIDE, column = i % LORA_WIDE;
            const unsigned index = static_cast<unsigned>(step * ROWS + row) * p.width + start + column;
            float &v = wide[row * LORA_WIDE_PITCH + column];
            v = keeps(p, index) ? v * p.scale : 0.0f;
          }
          __syncthreads();
        }
        T::outer(sums, ranks, stage, wide);
      });
  T::each_outer(sums, [&](int rank, int column, float v) {
    const int to = start + column - static_cast<int>(of.first);
    if (rank >= ranks || to < 0 || start + column >= last) return;
    of.out[of.across ? static_cast<size_t>(to) * of.out_ld + rank : static_cast<size_t>(rank) * of.out_ld + to] = v;
  });
}

KERNEL(lora_bwd_bf16, LoraBwdParams, LORA_THREADS) { lora_gradient<LoraBf16>(p); }
KERNEL(lora_bwd_f32, LoraBwdParams, LORA_THREADS) { lora_gradient<LoraF32>(p); }
