// A tile of x · wᵀ, x of [rows, inner] and w of [columns, inner], for the LM head (nll.cu) and for plain
// products (gemm.cu).
//
// bf16: 128 x 128 per block of four warps on tensor cores, 64 x 64 per warp: 128 sums a thread, two blocks
// an SM. A larger share of a warp means fewer bytes from shared memory: for 16 of the inner dimension four
// warps read 16 KB, and 8 KB come in, 192 cycles at 128 bytes each; eight warps of 32 x 64 would read
// 24 KB. On Hopper mma.sync takes about 203 cycles for the same (63 % of wgmma's rate, as published), so
// that neither has much to spare; what comes from L2 bounds both (nll.cu). Per step of 32 a block copies
// 16 KB and does 1 MFLOP (64 FLOP per byte from L2). Rows of 64 bytes lie in shared memory
// with their 16-byte pieces exchanged by bits 1 and 2 of the row number, which makes ldmatrix free of bank
// conflicts.
// f32: 64 x 64 by FMA, 4 x 4 per thread, rows 80 bytes apart, which spreads a quarter warp's 16-byte
// loads over all banks. It is there to be exact, not to be fast.
//
// Three stages of asynchronous copies run ahead of the arithmetic. They do not stop at the end of a
// tile: a block that makes one tile after another (nll) copies for the next while it finishes this.
#pragma once
#include "arch/copy.cuh"
#include "arch/mma.cuh"

struct Bf16 {
  static constexpr int SIZE = TILE_BF16, STEP = TILE_K_BF16, PITCH = TILE_K_BF16;
  static constexpr int PER_COPY = 8; // elements in 16 bytes
  using Element = uint16_t;
  // Rows and columns of the tile that a thread has, and threads that share a row.
  static constexpr int ROWS = 8, COLUMNS = 16, SHARERS = 8, THREADS = TILE_THREADS_BF16;
  float sums[4][8][4];

  DEVICE static int swizzled(int row, int piece) { return piece ^ (row >> 1 & 3); }
  DEVICE static int row(int i) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    return warp % 2 * 64 + i / 2 * 16 + i % 2 * 8 + lane / 4;
  }
  DEVICE static int column(int j) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    return warp / 2 * 64 + j / 2 * 8 + lane % 4 * 2 + j % 2;
  }
  DEVICE static int sharer() { return threadIdx.x / 64 * 4 + threadIdx.x % 4; }
  DEVICE float &at(int i, int j) { return sums[i / 2][j / 2][i % 2 * 2 + j % 2]; }

  DEVICE void step(const Element *x, const Element *w) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    UNROLL
    for (int k = 0; k < STEP / 16; k++) {
      unsigned a[4][4];
      UNROLL
      for (int i = 0; i < 4; i++) {
        const int r = warp % 2 * 64 + i * 16 + lane % 16;
        load_matrix_x4(a[i], x + r * PITCH + swizzled(r, k * 2 + lane / 16) * 8);
      }
      UNROLL
      for (int j = 0; j < 4; j++) {
        // Two groups of eight columns: both halves of k for the first, then for the second.
        unsigned b[4];
        const int r = warp / 2 * 64 + j * 16 + lane / 16 * 8 + lane % 8;
        load_matrix_x4(b, w + r * PITCH + swizzled(r, k * 2 + lane / 8 % 2) * 8);
        UNROLL
        for (int i = 0; i < 4; i++) {
          mma_bf16(sums[i][2 * j], a[i], b[0], b[1]);
          mma_bf16(sums[i][2 * j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }
};

struct F32 {
  static constexpr int SIZE = TILE_F32, STEP = TILE_K_F32, PITCH = TILE_PITCH_F32;
  static constexpr int PER_COPY = 4;
  using Element = float;
  static constexpr int ROWS = 4, COLUMNS = 4, SHARERS = 16, THREADS = TILE_THREADS_F32;
  float sums[4][4];

  DEVICE static int swizzled(int, int piece) { return piece; }
  DEVICE static int row(int i) { return threadIdx.x / 16 + 16 * i; }
  DEVICE static int column(int j) { return threadIdx.x % 16 + 16 * j; }
  DEVICE static int sharer() { return threadIdx.x % 16; }
  DEVICE float &at(int i, int j) { return sums[i][j]; }

  DEVICE void step(const Element *x, const Element *w) {
    UNROLL
    for (int k = 0; k < STEP; k += 4) {
      Float4 a[4], b[4];
      UNROLL
      for (int i = 0; i < 4; i++) a[i] = *reinterpret_cast<const Float4 *>(x + row(i) * PITCH + k);
      UNROLL
      for (int j = 0; j < 4; j++) b[j] = *reinterpret_cast<const Float4 *>(w + column(j) * PITCH + k);
      UNROLL
      for (int i = 0; i < 4; i++) {
        UNROLL
        for (int j = 0; j < 4; j++) {
          sums[i][j] += a[i].x * b[j].x;
          sums[i][j] += a[i].y * b[j].y;
          sums[i][j] += a[i].z * b[j].z;
          sums[i][j] += a[i].w * b[j].w;
        }
      }
    }
  }
};

// The first `inner` elements of rows; a multiple of 16 bytes, as both leading dimensions are.
struct Operands {
  const void *x, *w;
  int rows, columns, inner, x_ld, w_ld;
};

// The tiles (row_tile, first..last) one after another; `finish(tile, sums)` after each. All threads
// call it. Shared memory: TILE_STAGES x 2 x SIZE x PITCH elements, free again after a barrier.
template <class T, class Finish>
DEVICE void tiles(Operands of, int row_tile, int first, int last, unsigned char *shared, Finish finish) {
  using Element = typename T::Element;
  constexpr int OPERAND = T::SIZE * T::PITCH;
  constexpr int PIECES = T::STEP / T::PER_COPY;
  auto stages = reinterpret_cast<Element *>(shared);
  const int steps = (of.inner + T::STEP - 1) / T::STEP;
  const int total = (last - first) * steps;

  // Where the next copy stands.
  int next = 0, next_tile = first, next_k = 0;
  auto copy = [&] {
    if (next < total) {
      Element *stage = stages + next % TILE_STAGES * 2 * OPERAND;
      UNROLL
      for (int i = 0; i < T::SIZE * PIECES / T::THREADS; i++) {
        const int index = i * T::THREADS + threadIdx.x;
        const int row = index / PIECES, piece = index % PIECES;
        const int k = next_k + piece * T::PER_COPY;
        const int to = row * T::PITCH + T::swizzled(row, piece) * T::PER_COPY;
        const int x_row = row_tile * T::SIZE + row, w_row = next_tile * T::SIZE + row;
        // What lies outside is read from the beginning, zero bytes of it.
        const bool x_in = k < of.inner && x_row < of.rows, w_in = k < of.inner && w_row < of.columns;
        const size_t x_at = x_in ? static_cast<size_t>(x_row) * of.x_ld + k : 0;
        const size_t w_at = w_in ? static_cast<size_t>(w_row) * of.w_ld + k : 0;
        copy_async_16(stage + to, static_cast<const Element *>(of.x) + x_at, x_in ? 16 : 0);
        copy_async_16(stage + OPERAND + to, static_cast<const Element *>(of.w) + w_at, w_in ? 16 : 0);
      }
      next++;
      next_k += T::STEP;
      if (next_k >= of.inner) {
        next_k = 0;
        next_tile++;
      }
    }
    // Empty groups too, so that the wait below always counts alike.
    copy_commit();
  };
  UNROLL
  for (int i = 0; i < TILE_STAGES - 1; i++) copy();

  int done = 0;
  for (int tile = first; tile < last; tile++) {
    T sums = {};
    for (int k = 0; k < steps; k++) {
      copy_wait<TILE_STAGES - 2>();
      // All threads' copies for this step are there, and all are done with the step before, whose
      // stage the next copy overwrites.
      __syncthreads();
      copy();
      const Element *stage = stages + done % TILE_STAGES * 2 * OPERAND;
      sums.step(stage, stage + OPERAND);
      done++;
    }
    finish(tile, sums);
  }
}
