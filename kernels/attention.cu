// Causal attention of new queries over [compressed prefix | their own sequence], grouped-query.
//
//   out[row, head] = softmax over visible keys of (q · k / sqrt(head_dim)) · v
//
// A tile is a few positions of one sequence with all query heads of one key head: those share its keys,
// so a key read once serves `group` heads. Sequences of a batch are ragged; each has its tiles, and all
// share one launch. Position i of the keys lies in the cache at row i if it is below `prefix`, and in
// the sequence's own rows after that. When tiles are fewer than SMs the keys are cut into `splits`
// too, and attention_merge adds up what the splits found.
//
// FLOP: 4 · head_dim per query head and visible key. Bytes: 8 · head_dim per key and tile. With 64 query
// rows a tile that is 32 FLOP a byte: bound by L2 and, where few tiles run, by latency; by tensor cores
// only if the cache's f32 were halved.
#include "arch/copy.cuh"
#include "arch/mma.cuh"

// Cache row of the key at `position`.
DEVICE size_t cache_row(const AttentionParams &p, const AttentionTile &tile, int position) {
  return position < static_cast<int>(p.prefix) ? position : tile.own + (position - p.prefix);
}

// Which keys this block looks at, and who may see what.
struct Keys {
  int first, last; // of this split
  int position, window;

  DEVICE Keys(const AttentionParams &p, const AttentionTile &tile, int step) {
    position = tile.position;
    window = p.window ? static_cast<int>(p.window) : 0x7fffffff;
    const int end = tile.position + tile.count;
    const int start = most(0, position + 1 - window) / step * step;
    const int steps = (end - start + step - 1) / step, splits = p.splits;
    const int share = (steps + splits - 1) / splits;
    first = least(start + static_cast<int>(blockIdx.z) * share * step, end);
    last = least(first + share * step, end);
  }
  DEVICE bool sees(int offset, int key) const {
    const int own = position + offset;
    return key <= own && own - key < window && key < last;
  }
};

// Where a query row's result goes: `sums` in units of 2^max, in `parts` or, divided, in `out`.
struct Result {
  float *to;
  float scale;

  DEVICE Result(const AttentionParams &p, size_t row, size_t head, float max, float sum, bool writes) {
    if (p.splits == 1) {
      to = p.out + (row * p.heads + head) * p.head_dim;
      scale = 1.0f / sum;
    } else {
      const size_t all = static_cast<size_t>(blockIdx.z) * p.rows + row;
      to = p.parts + (all * p.heads + head) * (p.head_dim + 2);
      scale = 1.0f;
      if (writes) {
        to[p.head_dim] = max;
        to[p.head_dim + 1] = sum;
      }
    }
  }
};

// ---- tensor cores ------------------------------------------------------------------------------------

// Four warps of 16 query rows, 64 keys at a time, as in FlashAttention-2: scores stay in registers and
// are, packed to bf16, the left operand of the second product. Keys and values come as f32 by
// asynchronous copies into a buffer of their own while the tile before is worked on, and are then
// rounded into the operands. D: head_dim, or more (filled up with zeros).
//
// Shared memory: 64 · D · (2·4 raw + 2·2 operands) bytes; the queries pass through the operand of K.
template <int D> DEVICE void attention_mma(const AttentionParams &p) {
  DYNAMIC_SHARED(memory);
  constexpr int KEYS = 64, PIECES = D / 8;
  auto raw = reinterpret_cast<float *>(memory); // K, then V
  auto operands = reinterpret_cast<uint16_t *>(raw + 2 * KEYS * D);
  uint16_t *const k_tile = operands, *const v_tile = operands + KEYS * D;
  // Rows of 128 bytes and more would all begin at the same bank.
  auto swizzled = [](int row, int piece) {
    return PIECES >= 8 ? piece ^ (row & 7) : piece ^ (row >> 1 & 3);
  };
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const AttentionTile tile = p.tiles[blockIdx.x];
  const int kv = blockIdx.y, group = p.heads / p.kv_heads, queries = tile.count * group;
  const int d = p.head_dim, stride = (p.heads + 2 * p.kv_heads) * d;
  const Keys keys(p, tile, KEYS);

  // Pieces of four elements, f32: what lies outside becomes zero.
  auto copy = [&](int start) {
    for (int i = threadIdx.x; i < 2 * KEYS * D / 4; i += blockDim.x) {
      const int which = i / (KEYS * D / 4), row = i / (D / 4) % KEYS, column = i % (D / 4) * 4;
      const int key = start + row;
      const bool in = key < keys.last && column < d;
      const float *cache = which ? p.v : p.k;
      const size_t from = in ? (cache_row(p, tile, key) * p.kv_heads + kv) * d + column : 0;
      copy_async_16(raw + (which * KEYS + row) * D + column, cache + from, in ? 16 : 0);
    }
    copy_commit();
  };
  copy(keys.first);

  // Queries: rounded with the scale in them, by way of shared memory into registers.
  for (int i = threadIdx.x; i < 64 * D / 2; i += blockDim.x) {
    const int row = i / (D / 2), column = i % (D / 2) * 2;
    float low = 0.0f, high = 0.0f;
    if (row < queries && column < d) {
      const float *q = p.qkv + static_cast<size_t>(tile.row + row / group) * stride +
                       (kv * group + row % group) * d + column;
      low = q[0] * p.scale;
      high = q[1] * p.scale;
    }
    const int at = row * D + swizzled(row, column / 8) * 8 + column % 8;
    *reinterpret_cast<unsigned *>(k_tile + at) = to_bf16x2(low, high);
  }
  __syncthreads();
  unsigned q[D / 16][4];
  UNROLL
  for (int k = 0; k < D / 16; k++) {
    const int row = warp * 16 + lane % 16;
    load_matrix_x4(q[k], k_tile + row * D + swizzled(row, k * 2 + lane / 16) * 8);
  }

  float out[D / 8][4] = {};
  float max[2] = {-INFINITE, -INFINITE}, sum[2] = {0.0f, 0.0f};
  int offset[2];
  UNROLL
  for (int i = 0; i < 2; i++) offset[i] = (warp * 16 + i * 8 + g) / group;

  for (int start = keys.first; start < keys.last; start += KEYS) {
    copy_wait<0>();
    // All copies are there; all have read the operands of before.
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * KEYS * D / 4; i += blockDim.x) {
      const int row = i / (D / 4), column = i % (D / 4) * 4;
      const Float4 v = *reinterpret_cast<const Float4 *>(raw + row * D + column);
      auto to = reinterpret_cast<unsigned *>(operands + row * D + swizzled(row, column / 8) * 8 + column % 8);
      to[0] = to_bf16x2(v.x, v.y);
      to[1] = to_bf16x2(v.z, v.w);
    }
    __syncthreads();
    if (start + KEYS < keys.last) copy(start + KEYS);

    float scores[KEYS / 8][4] = {};
    UNROLL
    for (int k = 0; k < D / 16; k++) {
      UNROLL
      for (int j = 0; j < KEYS / 16; j++) {
        unsigned b[4];
        const int row = j * 16 + lane / 16 * 8 + lane % 8;
        load_matrix_x4(b, k_tile + row * D + swizzled(row, k * 2 + lane / 8 % 2) * 8);
        mma_bf16(scores[2 * j], q[k], b[0], b[1]);
        mma_bf16(scores[2 * j + 1], q[k], b[2], b[3]);
      }
    }
    float top[2] = {max[0], max[1]};
    UNROLL
    for (int j = 0; j < KEYS / 8; j++) {
      UNROLL
      for (int i = 0; i < 4; i++) {
        if (!keys.sees(offset[i / 2], start + j * 8 + 2 * t + i % 2)) scores[j][i] = -INFINITE;
        top[i / 2] = most(top[i / 2], scores[j][i]);
      }
    }
    float base[2];
    UNROLL
    for (int i = 0; i < 2; i++) {
      top[i] = most(top[i], __shfl_xor_sync(FULL_WARP, top[i], 1));
      top[i] = most(top[i], __shfl_xor_sync(FULL_WARP, top[i], 2));
      // A row that has seen no key yet: anything but -inf, which would make inf - inf.
      base[i] = top[i] > -INFINITE ? top[i] : 0.0f;
      const float scale = exp2_fast(max[i] - base[i]);
      sum[i] *= scale;
      UNROLL
      for (int j = 0; j < D / 8; j++) {
        out[j][2 * i] *= scale;
        out[j][2 * i + 1] *= scale;
      }
      max[i] = top[i];
    }
    unsigned weights[KEYS / 16][4];
    UNROLL
    for (int j = 0; j < KEYS / 8; j++) {
      UNROLL
      for (int i = 0; i < 4; i++) {
        scores[j][i] = exp2_fast(scores[j][i] - base[i / 2]);
        sum[i / 2] += scores[j][i];
      }
      weights[j / 2][j % 2 * 2] = to_bf16x2(scores[j][0], scores[j][1]);
      weights[j / 2][j % 2 * 2 + 1] = to_bf16x2(scores[j][2], scores[j][3]);
    }
    UNROLL
    for (int k = 0; k < KEYS / 16; k++) {
      UNROLL
      for (int j = 0; j < D / 16; j++) {
        unsigned b[4];
        const int row = k * 16 + lane / 8 % 2 * 8 + lane % 8;
        load_matrix_x4_transposed(b, v_tile + row * D + swizzled(row, j * 2 + lane / 16) * 8);
        mma_bf16(out[2 * j], weights[k], b[0], b[1]);
        mma_bf16(out[2 * j + 1], weights[k], b[2], b[3]);
      }
    }
  }
  UNROLL
  for (int i = 0; i < 2; i++) {
    sum[i] += __shfl_xor_sync(FULL_WARP, sum[i], 1);
    sum[i] += __shfl_xor_sync(FULL_WARP, sum[i], 2);
    const int row = warp * 16 + i * 8 + g;
    if (row < queries) {
      const Result result(p, tile.row + row / group, kv * group + row % group, max[i], sum[i], t == 0);
      UNROLL
      for (int j = 0; j < D / 8; j++) {
        const int column = j * 8 + 2 * t;
        if (column < d) {
          result.to[column] = out[j][2 * i] * result.scale;
          result.to[column + 1] = out[j][2 * i + 1] * result.scale;
        }
      }
    }
  }
}

KERNEL(attention_bf16_32, AttentionParams, 128) { attention_mma<32>(p); }
KERNEL(attention_bf16_64, AttentionParams, 128) { attention_mma<64>(p); }
KERNEL(attention_bf16_128, AttentionParams, 128) { attention_mma<128>(p); }

// ---- f32 ---------------------------------------------------------------------------------------------

// Exact, for checks and for models that must be: eight warps of four query rows, 32 keys at a time. For
// scores a lane has a key, for the second product it has columns lane, lane + 32 … of the result.
// Shared memory: (2 · 32 keys + 32 queries) rows of head_dim + 1 f32, so that lanes at different rows
// use different banks.
template <int CHUNKS> DEVICE void attention_fma(const AttentionParams &p) {
  DYNAMIC_SHARED(memory);
  constexpr int ROWS = 4, QUERIES = 32, KEYS = 32;
  const int d = p.head_dim, pitch = d | 1;
  auto k_tile = reinterpret_cast<float *>(memory);
  float *const v_tile = k_tile + KEYS * pitch, *const q_tile = v_tile + KEYS * pitch;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const AttentionTile tile = p.tiles[blockIdx.x];
  const int kv = blockIdx.y, group = p.heads / p.kv_heads, queries = tile.count * group;
  const int stride = (p.heads + 2 * p.kv_heads) * d;
  const Keys keys(p, tile, KEYS);

  for (int i = threadIdx.x; i < QUERIES * d; i += blockDim.x) {
    const int row = i / d, column = i % d;
    float v = 0.0f;
    if (row < queries)
      v = p.qkv[static_cast<size_t>(tile.row + row / group) * stride + (kv * group + row % group) * d + column];
    q_tile[row * pitch + column] = v * p.scale;
  }
  float out[ROWS][CHUNKS] = {}, max[ROWS], sum[ROWS] = {};
  UNROLL
  for (int r = 0; r < ROWS; r++) max[r] = -INFINITE;

  for (int start = keys.first; start < keys.last; start += KEYS) {
    // All are done with the tile of before.
    __syncthreads();
    for (int i = threadIdx.x; i < KEYS * d; i += blockDim.x) {
      const int row = i / d, column = i % d;
      float k = 0.0f, v = 0.0f;
      if (start + row < keys.last) {
        const size_t at = (cache_row(p, tile, start + row) * p.kv_heads + kv) * d + column;
        k = p.k[at];
        v = p.v[at];
      }
      k_tile[row * pitch + column] = k;
      v_tile[row * pitch + column] = v;
    }
    __syncthreads();
    float scores[ROWS] = {};
    for (int column = 0; column < d; column++) {
      const float k = k_tile[lane * pitch + column];
      UNROLL
      for (int r = 0; r < ROWS; r++) scores[r] += q_tile[(warp * ROWS + r) * pitch + column] * k;
    }
    UNROLL
    for (int r = 0; r < ROWS; r++) {
      if (!keys.sees((warp * ROWS + r) / group, start + lane)) scores[r] = -INFINITE;
      const float top = most(max[r], warp_max(scores[r])), base = top > -INFINITE ? top : 0.0f;
      const float scale = exp2_fast(max[r] - base);
      scores[r] = exp2_fast(scores[r] - base);
      sum[r] = sum[r] * scale + scores[r];
      max[r] = top;
      UNROLL
      for (int c = 0; c < CHUNKS; c++) out[r][c] *= scale;
    }
    for (int key = 0; key < KEYS; key++) {
      float weight[ROWS];
      UNROLL
      for (int r = 0; r < ROWS; r++) weight[r] = __shfl_sync(FULL_WARP, scores[r], key);
      UNROLL
      for (int c = 0; c < CHUNKS; c++) {
        const int column = c * 32 + lane;
        if (column < d) {
          const float v = v_tile[key * pitch + column];
          UNROLL
          for (int r = 0; r < ROWS; r++) out[r][c] += weight[r] * v;
        }
      }
    }
  }
  UNROLL
  for (int r = 0; r < ROWS; r++) {
    const float total = warp_sum(sum[r]);
    const int row = warp * ROWS + r;
    if (row < queries) {
      const Result result(p, tile.row + row / group, kv * group + row % group, max[r], total, lane == 0);
      UNROLL
      for (int c = 0; c < CHUNKS; c++)
        if (c * 32 + lane < d) result.to[c * 32 + lane] = out[r][c] * result.scale;
    }
  }
}

KERNEL(attention_f32_64, AttentionParams, 256) { attention_fma<2>(p); }
KERNEL(attention_f32_256, AttentionParams, 256) { attention_fma<8>(p); }

// Adds up the splits of a row and head. One warp each; 4 · splits · head_dim bytes in: bound by memory.
KERNEL(attention_merge, AttentionMergeParams, 256) {
  const size_t index = static_cast<size_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  const size_t rows = static_cast<size_t>(p.rows) * p.heads;
  if (index >= rows) return;
  const unsigned lane = threadIdx.x % 32, width = p.head_dim + 2;
  const float *parts = p.parts + index * width;
  const size_t stride = rows * width;
  float max = -INFINITE, sum = 0.0f;
  for (unsigned split = 0; split < p.splits; split++) max = most(max, parts[split * stride + p.head_dim]);
  for (unsigned split = 0; split < p.splits; split++) {
    const float *part = parts + split * stride;
    sum += part[p.head_dim + 1] * exp2_fast(part[p.head_dim] - max);
  }
  for (unsigned column = lane; column < p.head_dim; column += 32) {
    float v = 0.0f;
    for (unsigned split = 0; split < p.splits; split++) {
      const float *part = parts + split * stride;
      v += part[column] * exp2_fast(part[p.head_dim] - max);
    }
    p.out[index * p.head_dim + column] = v / sum;
  }
}
