// Plain products with bias and residual, where cublasLt is not: on the host, and as its check.
//
//   y[rows, outputs] = x · wᵀ + bias (+ y)          x [rows, ld], w [outputs, ld], f32 sums
//
// A block makes one tile (tile.cuh). Grid: (tiles of rows, tiles of outputs): blocks that share w run
// side by side. pack_* makes the operand x: gathers rows, converts, and fills rows up to `ld`.
#include "tile.cuh"

template <class T> DEVICE void gemm(const GemmParams &p) {
  DYNAMIC_SHARED(shared);
  const int tile = blockIdx.y;
  tiles<T>(p.x, p.w, p.rows, p.outputs, p.ld, blockIdx.x, tile, tile + 1, shared, [&](int, T &sums) {
    UNROLL
    for (int i = 0; i < T::ROWS; i++) {
      const unsigned row = blockIdx.x * T::SIZE + T::row(i);
      UNROLL
      for (int j = 0; j < T::COLUMNS; j++) {
        const unsigned column = tile * T::SIZE + T::column(j);
        if (row < p.rows && column < p.outputs) {
          float *y = p.y + static_cast<size_t>(row) * p.outputs + column;
          float v = sums.at(i, j);
          if (p.bias) v += p.bias[column];
          if (p.add) v += *y;
          *y = v;
        }
      }
    }
  });
}

KERNEL(gemm_bf16, GemmParams, TILE_THREADS) { gemm<Bf16>(p); }
KERNEL(gemm_f32, GemmParams, TILE_THREADS) { gemm<F32>(p); }

// Grid: (rows, shares of a row). Reads 4 bytes and writes 2 or 4 an element: bound by memory.
KERNEL(pack_f32, PackParams, 256) {
  const unsigned row = blockIdx.x, from = p.index ? p.index[row] : row;
  auto out = static_cast<float *>(p.out) + static_cast<size_t>(row) * p.ld;
  const float *x = p.x + static_cast<size_t>(from) * p.stride;
  for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < p.ld; i += gridDim.y * blockDim.x)
    out[i] = i < p.width ? x[i] : 0.0f;
}

// Two elements a thread, written as one word; ld is even.
KERNEL(pack_bf16, PackParams, 256) {
  const unsigned row = blockIdx.x, from = p.index ? p.index[row] : row;
  auto out = static_cast<uint32_t *>(p.out) + static_cast<size_t>(row) * (p.ld / 2);
  const float *x = p.x + static_cast<size_t>(from) * p.stride;
  for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < p.ld / 2; i += gridDim.y * blockDim.x) {
    const float low = 2 * i < p.width ? x[2 * i] : 0.0f;
    const float high = 2 * i + 1 < p.width ? x[2 * i + 1] : 0.0f;
    out[i] = to_bf16x2(low, high);
  }
}
