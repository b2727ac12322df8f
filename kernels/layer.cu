// What stands between the products of a decoder layer. Everything here moves each byte once and is
// bound by memory; the residual is added by the product that makes it (gemm.cu). What a product may read next
// is also written as its left operand, in bf16, so that it need not be packed (gemm.cu): 2 bytes more an element
// instead of a launch, 4 bytes in and 2 out.
#include "arch/convert.cuh"
#include "dropout.cuh"

// The sum of `v` over the block, for all threads. `warps`: a word per warp. Two barriers.
DEVICE float block_sum(float v, float *warps) {
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0.0f;
  for (unsigned i = 0; i < blockDim.x / 32; i++) sum += warps[i];
  // The next sums are written when all threads have read these.
  __syncthreads();
  return sum;
}

// W neighbours of a row, read and written at once. Rows whose width is a multiple of 4 begin at multiples of 16
// bytes and go by fours, others one by one.
template <int W> struct alignas(4 * W) Piece {
  float v[W];
};
template <int W> DEVICE Piece<W> piece(const float *row, unsigned i) {
  return reinterpret_cast<const Piece<W> *>(row)[i];
}

// Piece number i of row `row` as bf16; rows are `width` up to a multiple of 8.
template <int W> DEVICE void put_packed(uint16_t *packed, unsigned row, unsigned width, unsigned i, const Piece<W> &v) {
  uint16_t *to = packed + static_cast<size_t>(row) * ((width + 7) / 8 * 8) + i * W;
  if constexpr (W == 4)
    *reinterpret_cast<FourBf16 *>(to) = {to_bf16x2(v.v[0], v.v[1]), to_bf16x2(v.v[2], v.v[3])};
  else to[0] = to_bf16(v.v[0]);
}
// What follows a row of `pieces` of them: zeros. Of `lanes` threads this is number `lane`.
template <int W>
DEVICE void fill_packed(uint16_t *packed, unsigned row, unsigned width, unsigned lane, unsigned lanes) {
  for (unsigned i = width / W + lane; i < (width + 7) / 8 * 8 / W; i += lanes)
    put_packed<W>(packed, row, width, i, {});
}

// out[i] = table[ids[i]] (+ out[i]). One block per row; 2 or 4 bytes in, 4 (or 8) out an element. `read(at)` gives
// W elements of the table from number `at` on.
template <int W, class Read> DEVICE void embed(const EmbedParams &p, Read read) {
  const unsigned row = blockIdx.x;
  const size_t from = static_cast<size_t>(p.ids[row]) * p.ld;
  auto out = reinterpret_cast<Piece<W> *>(p.out + static_cast<size_t>(row) * p.width);
  for (unsigned i = threadIdx.x; i < p.width / W; i += blockDim.x) {
    Piece<W> v = read(from + i * W);
    if (p.add) {
      const Piece<W> old = out[i];
      UNROLL
      for (int k = 0; k < W; k++) v.v[k] += old.v[k];
    }
    out[i] = v;
  }
}

template <int W> DEVICE void embed_f32(const EmbedParams &p) {
  auto table = static_cast<const float *>(p.table);
  embed<W>(p, [&](size_t at) { return *reinterpret_cast<const Piece<W> *>(table + at); });
}
template <int W> DEVICE void embed_bf16(const EmbedParams &p) {
  auto table = static_cast<const uint16_t *>(p.table);
  struct alignas(2 * W) Halves {
    uint16_t v[W];
  };
  embed<W>(p, [&](size_t at) {
    const Halves from = *reinterpret_cast<const Halves *>(table + at);
    Piece<W> out;
    UNROLL
    for (int k = 0; k < W; k++) out.v[k] = bf16_to_float(from.v[k]);
    return out;
  });
}

// Rows of the table begin at multiples of 16 bytes.
KERNEL(embed_f32, EmbedParams, 256) { p.width % 4 == 0 ? embed_f32<4>(p) : embed_f32<1>(p); }
KERNEL(embed_bf16, EmbedParams, 256) { p.width % 4 == 0 ? embed_bf16<4>(p) : embed_bf16<1>(p); }

// y = (x - mean) / sqrt(variance + eps) · weight + bias, the mean being 0 for RMSNorm. `lanes` threads have a row,
// of which this is number `lane`; `sum` adds up over them. The first HELD pieces of each, 640 columns of a warp
// where W is 4, are read once and stay in registers; the others are read again from the first-level cache. 4
// bytes in, 4 out an element.
template <int W, class Sum>
DEVICE void norm(const NormParams &p, unsigned row, unsigned lane, unsigned lanes, Sum sum) {
  constexpr int HELD = 5;
  const float *x = p.x + static_cast<size_t>(row) * p.width;
  auto y = reinterpret_cast<Piece<W> *>(p.y + static_cast<size_t>(row) * p.width);
  const unsigned pieces = p.width / W;
  Piece<W> held[HELD];
  UNROLL
  for (int j = 0; j < HELD; j++) {
    const unsigned i = lane + j * lanes;
    held[j] = i < pieces ? piece<W>(x, i) : Piece<W>{};
  }
  auto each = [&](auto use) {
    UNROLL
    for (int j = 0; j < HELD; j++)
      if (lane + j * lanes < pieces) use(lane + j * lanes, held[j]);
    for (unsigned i = lane + HELD * lanes; i < pieces; i += lanes) use(i, piece<W>(x, i));
  };
  float mean = 0.0f;
  if (p.layer) {
    float all = 0.0f;
    each([&](unsigned, const Piece<W> &from) {
      UNROLL
      for (int k = 0; k < W; k++) all += from.v[k];
    });
    mean = sum(all) / p.width;
  }
  float squares = 0.0f;
  each([&](unsigned, const Piece<W> &from) {
    UNROLL
    for (int k = 0; k < W; k++) squares += (from.v[k] - mean) * (from.v[k] - mean);
  });
  const float scale = 1.0f / sqrtf(sum(squares) / p.width + p.eps);
  each([&](unsigned i, const Piece<W> &from) {
    const Piece<W> weight = piece<W>(p.weight, i);
    const Piece<W> bias = p.bias ? piece<W>(p.bias, i) : Piece<W>{};
    Piece<W> out;
    UNROLL
    for (int k = 0; k < W; k++) out.v[k] = (from.v[k] - mean) * scale * weight.v[k] + bias.v[k];
    y[i] = out;
    if (p.packed) put_packed(p.packed, row, p.width, i, out);
  });
  if (p.packed) fill_packed<W>(p.packed, row, p.width, lane, lanes);
}

// A warp per row: no barrier, no shared memory. For rows of up to some thousand columns.
KERNEL_BLOCKS(norm_rows, NormParams, 128, 6) {
  const unsigned row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= p.rows) return;
  auto sum = [](float v) { return warp_sum(v); };
  if (p.width % 4 == 0) norm<4>(p, row, lane, 32, sum);
  else norm<1>(p, row, lane, 32, sum);
}

// A block per row, for wider ones. Shared memory: 4 bytes a warp.
KERNEL(norm_wide, NormParams, 256) {
  DYNAMIC_SHARED(memory);
  auto sum = [&](float v) { return block_sum(v, reinterpret_cast<float *>(memory)); };
  if (p.width % 4 == 0) norm<4>(p, blockIdx.x, threadIdx.x, blockDim.x, sum);
  else norm<1>(p, blockIdx.x, threadIdx.x, blockDim.x, sum);
}

// With g = dy · weight and u = x - mean: dx += (g - [mean of g]) · scale - u · scale^3 · (mean of g · u),
// the bracket for LayerNorm only. Three passes over a row that stays in the first-level cache; 12 bytes
// in, 4 out an element. Shared memory: 4 bytes a warp.
KERNEL(norm_rows_bwd, NormBwdParams, 256) {
  DYNAMIC_SHARED(memory);
  auto warps = reinterpret_cast<float *>(memory);
  const float *x = p.x + static_cast<size_t>(blockIdx.x) * p.width;
  const float *dy = p.dy + static_cast<size_t>(blockIdx.x) * p.width;
  float *dx = p.dx + static_cast<size_t>(blockIdx.x) * p.width;
  float mean = 0.0f, pushed = 0.0f;
  if (p.layer) {
    float sum = 0.0f, gradients = 0.0f;
    for (unsigned i = threadIdx.x; i < p.width; i += blockDim.x) {
      sum += x[i];
      gradients += dy[i] * p.weight[i];
    }
    mean = block_sum(sum, warps) / p.width;
    pushed = block_sum(gradients, warps) / p.width;
  }
  float squares = 0.0f, along = 0.0f;
  for (unsigned i = threadIdx.x; i < p.width; i += blockDim.x) {
    const float u = x[i] - mean;
    squares += u * u;
    along += dy[i] * p.weight[i] * u;
  }
  const float scale = 1.0f / sqrtf(block_sum(squares, warps) / p.width + p.eps);
  const float pull = scale * scale * scale * (block_sum(along, warps) / p.width);
  for (unsigned i = threadIdx.x; i < p.width; i += blockDim.x)
    dx[i] += (dy[i] * p.weight[i] - pushed) * scale - (x[i] - mean) * pull;
}

// The two elements of a head that angle number i rotates.
struct RotaryPair {
  unsigned a, b;

  DEVICE RotaryPair(unsigned i, unsigned half, bool interleaved)
      : a(interleaved ? 2 * i : i), b(interleaved ? 2 * i + 1 : i + half) {}
};

// QK-norm, rotation and the append to the cache. One warp per row and head of q, k and v: a lane has
// the pairs i = lane, lane + 32 …, of halves of the head or of neighbours, so that the norm is one warp's
// sum and the rotation needs no other. How frequencies are stretched is in the angles. Rows x heads x
// head_dim x 4 bytes in, the same out, k and v twice.
KERNEL(rotate, RotateParams, 256) {
  const unsigned lane = threadIdx.x % 32, half = p.head_dim / 2;
  const unsigned heads = p.heads + 2 * p.kv_heads;
  const unsigned index = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  const unsigned row = index / heads, head = index % heads;
  if (row >= p.rows) return;
  float *x = p.qkv + static_cast<size_t>(index) * p.head_dim;
  const bool is_q = head < p.heads, is_v = head >= p.heads + p.kv_heads;
  const float *weight = is_q ? p.q_norm : p.k_norm;
  float *cache = nullptr;
  if (!is_q) {
    const unsigned to = head - p.heads - (is_v ? p.kv_heads : 0);
    const unsigned place = p.places ? p.places[row] : p.at + row;
    if (place != NOWHERE)
      cache = (is_v ? p.v : p.k) + (static_cast<size_t>(place) * p.kv_heads + to) * p.head_dim;
  }
  float scale = 1.0f;
  if (!is_v && weight) {
    float squares = 0.0f;
    for (unsigned i = lane; i < p.head_dim; i += 32) squares += x[i] * x[i];
    scale = 1.0f / sqrtf(warp_sum(squares) / p.head_dim + p.eps);
    // The lanes' elements for the sum are not those for the rotation.
    __syncwarp();
  }
  for (unsigned i = lane; i < half; i += 32) {
    const RotaryPair at(i, half, p.interleaved);
    float a = x[at.a], b = x[at.b];
    if (!is_v) {
      if (weight) {
        a *= scale * weight[at.a];
        b *= scale * weight[at.b];
      }
      if (p.angles) {
        const float *angles = p.angles + static_cast<size_t>(row) * p.head_dim;
        const float c = angles[i], s = angles[half + i], old = a;
        a = a * c - b * s;
        b = b * c + old * s;
      }
      x[at.a] = a;
      x[at.b] = b;
    }
    if (cache) {
      cache[at.a] = a;
      cache[at.b] = b;
    }
  }
}

// The same backwards: the gradients of q come in their place, those of k and v from the cache's; they are
// rotated back and, where there is a norm, taken through it as norm_rows_bwd does. A lane has the same
// pairs as in rotate, so that it reads only what it wrote itself.
KERNEL(rotate_bwd, RotateBwdParams, 256) {
  const unsigned lane = threadIdx.x % 32, half = p.head_dim / 2;
  const unsigned heads = p.heads + 2 * p.kv_heads;
  const unsigned index = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  const unsigned row = index / heads, head = index % heads;
  if (row >= p.rows) return;
  float *dx = p.dqkv + static_cast<size_t>(index) * p.head_dim;
  const bool is_q = head < p.heads, is_v = head >= p.heads + p.kv_heads;
  const float *weight = is_v ? nullptr : is_q ? p.q_norm : p.k_norm;
  const float *from = dx;
  if (!is_q) {
    const unsigned of = head - p.heads - (is_v ? p.kv_heads : 0);
    from = (is_v ? p.dv : p.dk) + (static_cast<size_t>(p.at + row) * p.kv_heads + of) * p.head_dim;
  }
  const float *x = weight ? p.qkv + static_cast<size_t>(index) * p.head_dim : nullptr;
  float squares = 0.0f, along = 0.0f;
  for (unsigned i = lane; i < half; i += 32) {
    const RotaryPair at(i, half, p.interleaved);
    float a = from[at.a], b = from[at.b];
    if (!is_v && p.angles) {
      const float *angles = p.angles + static_cast<size_t>(row) * p.head_dim;
      const float c = angles[i], s = angles[half + i], old = a;
      a = a * c + b * s;
      b = b * c - old * s;
    }
    dx[at.a] = a;
    dx[at.b] = b;
    if (weight) {
      squares += x[at.a] * x[at.a] + x[at.b] * x[at.b];
      along += a * weight[at.a] * x[at.a] + b * weight[at.b] * x[at.b];
    }
  }
  if (!weight) return;
  const float scale = 1.0f / sqrtf(warp_sum(squares) / p.head_dim + p.eps);
  const float pull = scale * scale * scale * (warp_sum(along) / p.head_dim);
  for (unsigned i = lane; i < half; i += 32) {
    const RotaryPair at(i, half, p.interleaved);
    dx[at.a] = dx[at.a] * weight[at.a] * scale - x[at.a] * pull;
    dx[at.b] = dx[at.b] * weight[at.b] * scale - x[at.b] * pull;
  }
}

DEVICE float sigmoid(float v) { return 1.0f / (1.0f + exp2_fast(-LOG2_E * v)); }

// y = f(gate) · up, or f(x), of rows. Grid: (rows, shares of a row).
template <int W, class F> DEVICE void gated(const ActivateParams &p, F f) {
  const float *gate = p.x + static_cast<size_t>(blockIdx.x) * 2 * p.width, *up = gate + p.width;
  auto y = reinterpret_cast<Piece<W> *>(p.y + static_cast<size_t>(blockIdx.x) * p.width);
  for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < p.width / W; i += gridDim.y * blockDim.x) {
    const Piece<W> a = piece<W>(gate, i), b = piece<W>(up, i);
    Piece<W> out;
    UNROLL
    for (int k = 0; k < W; k++) out.v[k] = f(a.v[k]) * b.v[k];
    y[i] = out;
    if (p.packed) put_packed(p.packed, blockIdx.x, p.width, i, out);
  }
  if (p.packed && blockIdx.y == 0) fill_packed<W>(p.packed, blockIdx.x, p.width, threadIdx.x, blockDim.x);
}
template <int W, class F> DEVICE void activated(const ActivateParams &p, F f) {
  const float *x = p.x + static_cast<size_t>(blockIdx.x) * p.width;
  auto y = reinterpret_cast<Piece<W> *>(p.y + static_cast<size_t>(blockIdx.x) * p.width);
  for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < p.width / W; i += gridDim.y * blockDim.x) {
    const Piece<W> from = piece<W>(x, i);
    Piece<W> out;
    UNROLL
    for (int k = 0; k < W; k++) out.v[k] = f(from.v[k]);
    y[i] = out;
    if (p.packed) put_packed(p.packed, blockIdx.x, p.width, i, out);
  }
  if (p.packed && blockIdx.y == 0) fill_packed<W>(p.packed, blockIdx.x, p.width, threadIdx.x, blockDim.x);
}

// BERT's gelu: x/2 · (1 + erf(x / sqrt(2))), from the complement, so that the negative tail is precise.
DEVICE float by_erf(float v) { return 0.5f * v * erfcf(-0.7071067812f * v); }

KERNEL(swiglu, ActivateParams, 256) {
  auto silu = [](float v) { return v * sigmoid(v); };
  p.width % 4 == 0 ? gated<4>(p, silu) : gated<1>(p, silu);
}

KERNEL(geglu, ActivateParams, 256) {
  auto gelu = [](float v) { return by_erf(v); };
  p.width % 4 == 0 ? gated<4>(p, gelu) : gated<1>(p, gelu);
}

// GPT-2's gelu: x/2 · (1 + tanh(z)) is x · sigmoid(2z), z = sqrt(2/pi) · (x + 0.044715 x^3).
KERNEL(gelu, ActivateParams, 256) {
  auto by_tanh = [](float v) { return v * sigmoid(1.5957691216f * v * (1.0f + 0.044715f * v * v)); };
  p.width % 4 == 0 ? activated<4>(p, by_tanh) : activated<1>(p, by_tanh);
}

KERNEL(gelu_erf, ActivateParams, 256) {
  auto gelu = [](float v) { return by_erf(v); };
  p.width % 4 == 0 ? activated<4>(p, gelu) : activated<1>(p, gelu);
}

// With s the sigmoid of the gate: dgate = dy · up · s · (1 + gate · (1 - s)), dup = dy · gate · s. Grid as
// swiglu; 12 bytes in, 8 out.
KERNEL(swiglu_bwd, ActivateBwdParams, 256) {
  const size_t at = static_cast<size_t>(blockIdx.x) * 2 * p.width;
  const float *gate = p.x + at, *dy = p.dy + static_cast<size_t>(blockIdx.x) * p.width;
  float *dgate = p.dx + at;
  for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < p.width; i += gridDim.y * blockDim.x) {
    const float g = gate[i], s = sigmoid(g), common = dy[i] * s;
    dgate[i] = common * gate[p.width + i] * (1.0f + g * (1.0f - s));
    dgate[p.width + i] = common * g;
  }
}

// Of x · sigmoid(w(x)): sigmoid · (1 + x · (1 - sigmoid) · w').
KERNEL(gelu_bwd, ActivateBwdParams, 256) {
  const size_t at = static_cast<size_t>(blockIdx.x) * p.width;
  const float *x = p.x + at, *dy = p.dy + at;
  float *dx = p.dx + at;
  for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < p.width; i += gridDim.y * blockDim.x) {
    const float v = x[i], square = v * v;
    const float s = sigmoid(1.5957691216f * v * (1.0f + 0.044715f * square));
    const float slope = 1.5957691216f * (1.0f + 3.0f * 0.044715f * square);
    dx[i] = dy[i] * s * (1.0f + v * (1.0f - s) * slope);
  }
}

// Reads 4 bytes and writes 4 (or reads 4 more) an element: bound by memory.
KERNEL(dropout, DropoutParams, 256) {
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < p.len; i += gridDim.x * blockDim.x) {
    const float v = keeps(p, i) ? p.x[i] * p.scale : 0.0f;
    p.y[i] = p.add ? p.y[i] + v : v;
  }
}
