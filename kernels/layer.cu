// What stands between the products of a decoder layer. Everything here moves each byte once and is
// bound by memory; the residual is added by the product that makes it (gemm.cu).
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

// out[i] = table[ids[i]] (+ out[i]). One block per row; 2 or 4 bytes in, 4 (or 8) out an element.
template <class Read> DEVICE void embed(const EmbedParams &p, Read read) {
  const unsigned row = blockIdx.x;
  const size_t from = static_cast<size_t>(p.ids[row]) * p.ld;
  float *out = p.out + static_cast<size_t>(row) * p.width;
  for (unsigned i = threadIdx.x; i < p.width; i += blockDim.x) {
    const float v = read(from + i);
    out[i] = p.add ? out[i] + v : v;
  }
}

KERNEL(embed_f32, EmbedParams, 256) {
  embed(p, [&](size_t i) { return static_cast<const float *>(p.table)[i]; });
}
KERNEL(embed_bf16, EmbedParams, 256) {
  embed(p, [&](size_t i) { return bf16_to_float(static_cast<const uint16_t *>(p.table)[i]); });
}

// y = (x - mean) / sqrt(variance + eps) · weight + bias, the mean being 0 for RMSNorm. One block per
// row, which stays in the first-level cache between the passes. Shared memory: 4 bytes a warp.
KERNEL(norm_rows, NormParams, 256) {
  DYNAMIC_SHARED(memory);
  auto warps = reinterpret_cast<float *>(memory);
  const float *x = p.x + static_cast<size_t>(blockIdx.x) * p.width;
  float *y = p.y + static_cast<size_t>(blockIdx.x) * p.width;
  float mean = 0.0f;
  if (p.layer) {
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < p.width; i += blockDim.x) sum += x[i];
    mean = block_sum(sum, warps) / p.width;
  }
  float squares = 0.0f;
  for (unsigned i = threadIdx.x; i < p.width; i += blockDim.x) squares += (x[i] - mean) * (x[i] - mean);
  const float scale = 1.0f / sqrtf(block_sum(squares, warps) / p.width + p.eps);
  for (unsigned i = threadIdx.x; i < p.width; i += blockDim.x)
    y[i] = (x[i] - mean) * scale * p.weight[i] + (p.bias ? p.bias[i] : 0.0f);
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

// The two elements of a head that are turned together by angle number i.
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
// turned back and, where there is a norm, taken through it as norm_rows_bwd does. A lane has the same
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

// y = silu(gate) · up. Grid: (rows, shares of a row).
KERNEL(swiglu, ActivateParams, 256) {
  const float *gate = p.x + static_cast<size_t>(blockIdx.x) * 2 * p.width;
  float *y = p.y + static_cast<size_t>(blockIdx.x) * p.width;
  for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < p.width; i += gridDim.y * blockDim.x)
    y[i] = gate[i] * sigmoid(gate[i]) * gate[p.width + i];
}

// GPT-2's gelu: x/2 · (1 + tanh(z)) is x · sigmoid(2z), z = sqrt(2/pi) · (x + 0.044715 x^3).
KERNEL(gelu, ActivateParams, 256) {
  const float *x = p.x + static_cast<size_t>(blockIdx.x) * p.width;
  float *y = p.y + static_cast<size_t>(blockIdx.x) * p.width;
  for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < p.width; i += gridDim.y * blockDim.x) {
    const float v = x[i];
    y[i] = v * sigmoid(1.5957691216f * v * (1.0f + 0.044715f * v * v));
  }
}

// BERT's gelu: x/2 · (1 + erf(x / sqrt(2))), from the complement, so that the negative tail is precise.
DEVICE float gelu_erf(float v) { return 0.5f * v * erfcf(-0.7071067812f * v); }

KERNEL(gelu_erf, ActivateParams, 256) {
  const float *x = p.x + static_cast<size_t>(blockIdx.x) * p.width;
  float *y = p.y + static_cast<size_t>(blockIdx.x) * p.width;
  for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < p.width; i += gridDim.y * blockDim.x)
    y[i] = gelu_erf(x[i]);
}

// y = gelu_erf(gate) · up. Grid: (rows, shares of a row).
KERNEL(geglu, ActivateParams, 256) {
  const float *gate = p.x + static_cast<size_t>(blockIdx.x) * 2 * p.width;
  float *y = p.y + static_cast<size_t>(blockIdx.x) * p.width;
  for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < p.width; i += gridDim.y * blockDim.x)
    y[i] = gelu_erf(gate[i]) * gate[p.width + i];
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
