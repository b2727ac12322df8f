// Plain products with bias and residual, where cublasLt is not: on the host, and as its check.
//
//   y[rows, outputs] = x · wᵀ + bias (+ y)          x [rows, inner], w [outputs, inner], f32 sums
//
// A block makes one tile (tile.cuh). Grid: (tiles of rows, tiles of outputs): blocks that share w run
// side by side. pack_* makes the operand x: gathers rows, converts, and fills rows up to `ld`. turn_*
// makes operands of what runs the other way: gradients are products too, dx = dy · (wᵀ)ᵀ with w transposed
// once, and dw = dyᵀ · (xᵀ)ᵀ with both transposed on the way into the operand.
#include "tile.cuh"

template <class T> DEVICE void gemm(const GemmParams &p) {
  DYNAMIC_SHARED(shared);
  const int tile = blockIdx.y;
  const Operands of = {p.x,
                       p.w,
                       static_cast<int>(p.rows),
                       static_cast<int>(p.outputs),
                       static_cast<int>(p.inner),
                       static_cast<int>(p.x_ld),
                       static_cast<int>(p.w_ld)};
  tiles<T>(of, blockIdx.x, tile, tile + 1, shared, [&](int, T &sums) {
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

KERNEL(gemm_bf16, GemmParams, TILE_THREADS_BF16) { gemm<Bf16>(p); }
KERNEL(gemm_f32, GemmParams, TILE_THREADS_F32) { gemm<F32>(p); }

// Grid: (rows, shares of a row). Reads 4 bytes and writes 2 or 4 an element: bound by memory.
KERNEL(pack_f32, PackParams, 256) {
  const unsigned row = blockIdx.x, from = p.index ? p.index[row] : row;
  auto out = static_cast<float *>(p.out) + static_cast<size_t>(row) * p.ld;
  const float *x = p.x + static_cast<size_t>(from) * p.stride;
  for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < p.ld; i += gridDim.y * blockDim.x)
    out[i] = i < p.width ? x[i] : 0.0f;
}

// Four elements a thread, 16 bytes in where rows begin at multiples of that, 8 bytes out; ld is a multiple
// of 8.
KERNEL(pack_bf16, PackParams, 256) {
  const unsigned row = blockIdx.x, from = p.index ? p.index[row] : row;
  auto out = reinterpret_cast<FourBf16 *>(static_cast<uint16_t *>(p.out) + static_cast<size_t>(row) * p.ld);
  const float *x = p.x + static_cast<size_t>(from) * p.stride;
  const bool whole = (p.width | p.stride) % 4 == 0;
  for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < p.ld / 4; i += gridDim.y * blockDim.x) {
    Float4 v = {};
    if (whole && 4 * i < p.width) v = reinterpret_cast<const Float4 *>(x)[i];
    if (!whole) {
      v.x = 4 * i < p.width ? x[4 * i] : 0.0f;
      v.y = 4 * i + 1 < p.width ? x[4 * i + 1] : 0.0f;
      v.z = 4 * i + 2 < p.width ? x[4 * i + 2] : 0.0f;
      v.w = 4 * i + 3 < p.width ? x[4 * i + 3] : 0.0f;
    }
    out[i] = {to_bf16x2(v.x, v.y), to_bf16x2(v.z, v.w)};
  }
}

// Grid: (squares of 32 along a row of out, along its columns). Through shared memory, so that both sides
// are read and written in rows; 33 words a row, so that a column of it lies in all banks. Each element is
// read and written once: bound by memory. Shared memory: 32 · 33 · 4 bytes.
template <class In, class Out, class Read, class Write>
DEVICE void transpose(const TransposeParams &p, Read read, Write write) {
  DYNAMIC_SHARED(memory);
  auto square = reinterpret_cast<float *>(memory);
  const unsigned x = threadIdx.x % 32, first_row = blockIdx.x * 32, first_column = blockIdx.y * 32;
  for (unsigned y = threadIdx.x / 32; y < 32; y += blockDim.x / 32) {
    const unsigned row = first_row + y, column = first_column + x;
    const bool in = row < p.rows && column < p.columns;
    square[y * 33 + x] =
        in ? read(static_cast<const In *>(p.x)[static_cast<size_t>(row) * p.stride + column]) : 0.0f;
  }
  __syncthreads();
  for (unsigned y = threadIdx.x / 32; y < 32; y += blockDim.x / 32) {
    const unsigned row = first_row + x, column = first_column + y;
    if (row < p.ld && column < p.columns)
      static_cast<Out *>(p.out)[static_cast<size_t>(column) * p.ld + row] = write(square[x * 33 + y]);
  }
}

KERNEL(transpose_f32, TransposeParams, 256) {
  transpose<float, float>(p, [](float v) { return v; }, [](float v) { return v; });
}
KERNEL(transpose_to_bf16, TransposeParams, 256) {
  transpose<float, uint16_t>(p, [](float v) { return v; }, [](float v) { return to_bf16(v); });
}
KERNEL(transpose_bf16, TransposeParams, 256) {
  transpose<uint16_t, uint16_t>(
      p, [](uint16_t v) { return bf16_to_float(v); }, [](float v) { return to_bf16(v); });
}

// out[to] += sum of x[order[i]]: gradients of rows that several took part in, in a fixed order. Grid:
// (entries, shares of a row). Bound by memory.
KERNEL(scatter_add, ScatterParams, 256) {
  const RowSum sum = p.sums[blockIdx.x];
  float *out = p.out + static_cast<size_t>(sum.to) * p.width;
  for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < p.width; i += gridDim.y * blockDim.x) {
    float v = out[i];
    for (unsigned k = 0; k < sum.count; k++)
      v += p.x[static_cast<size_t>(p.order[sum.first + k]) * p.width + i];
    out[i] = v;
  }
}
