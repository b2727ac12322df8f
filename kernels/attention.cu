// Attention of new queries over [compressed prefix | their own sequence], grouped-query: causal, or with keys
// after the query too (`ahead`), as encoders see them.
//
//   out[row, head] = softmax over visible keys of (q · k / sqrt(head_dim)) · v
//
// A tile is a few positions of one sequence with all query heads of one key head: those share its keys,
// so a key read once serves `group` heads. Sequences of a batch are ragged; each has its tiles, and all
// share one launch. The first `prefix` positions of the keys lie in the cache from row `from` on (0 where
// all share them), the others in the sequence's own rows. When tiles are fewer than SMs the keys are cut into `splits`
// too, and attention_merge adds up what the splits found.
//
// FLOP: 4 · head_dim per query head and visible key. Bytes: 8 · head_dim per key and tile. With 128 query rows a
// tile (64 where heads are wider than 64) that is 64 FLOP a byte of L2. Of a tile of 64 keys with heads of 64 an
// SM has to do: 32 KB from L2 (1050 to 1300 cycles at the 25 to 31 bytes a cycle published for the H100); 144 KB
// through shared memory, of which the raw copy is 32 and its rounding to bf16 48 (1152 cycles at 128 bytes); 797
// instructions of each of four warps, one a cycle and scheduler (797 cycles); 2.1 MFLOP by mma.sync (807 cycles at
// the 2600 FLOP a cycle published for Hopper). Bound by L2 and shared memory, and where few tiles run by latency.
//
// sass attention_bf16_32: 575 a tile of 64 keys
// sass attention_bf16_64: 797 a tile of 64 keys
// sass attention_bf16_128: 887 a tile of 64 keys
#include "arch/copy.cuh"
#include "arch/mma.cuh"

// Cache row of the key at `position`.
template <class P> DEVICE size_t cache_row(const P &p, const AttentionTile &tile, int position) {
  return position < static_cast<int>(p.prefix) ? tile.from + position : tile.own + (position - p.prefix);
}

// Which keys this block looks at, and who may see what.
struct Keys {
  int first, last; // of this split
  int position, window, ahead;

  template <class P> DEVICE Keys(const P &p, const AttentionTile &tile, int step) {
    position = tile.position;
    window = p.window ? static_cast<int>(p.window) : 0x7fffffff;
    ahead = p.ahead;
    const int end = min_of(static_cast<int>(tile.position + tile.count) + ahead, static_cast<int>(tile.end));
    const int start = max_of(0, position + 1 - window) / step * step;
    const int steps = (end - start + step - 1) / step, splits = p.splits;
    const int share = (steps + splits - 1) / splits;
    first = min_of(start + static_cast<int>(blockIdx.z) * share * step, end);
    last = min_of(first + share * step, end);
  }
  DEVICE bool sees(int offset, int key) const {
    const int own = position + offset;
    return key - own <= ahead && own - key < window && key < last;
  }
  // Whether each of `count` positions sees each of `keys` keys from `start` on.
  DEVICE bool all_see(int count, int start, int keys) const {
    return start + keys <= last && start + keys - 1 - position <= ahead && position + count - 1 - start < window;
  }
};

// Where a query row's result goes: `sums` in units of 2^max, in `parts` or, divided, in `out` and in the operand.
struct Result {
  float *to;
  uint16_t *packed = nullptr;
  float scale;

  DEVICE Result(const AttentionParams &p, size_t row, size_t head, float max, float sum, bool writes) {
    if (p.splits == 1) {
      const size_t at = (row * p.heads + head) * p.head_dim;
      to = p.out + at;
      if (p.packed) packed = p.packed + at;
      scale = 1.0f / sum;
      if (writes && p.lse) p.lse[row * p.heads + head] = (max + log2f(sum)) * LN_2;
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
  DEVICE void put(int column, float v) const {
    to[column] = v * scale;
    if (packed) packed[column] = to_bf16(v * scale);
  }
  // Of an even column and the next.
  DEVICE void put(int column, float a, float b) const {
    *reinterpret_cast<Float2 *>(to + column) = {a * scale, b * scale};
    if (packed) *reinterpret_cast<unsigned *>(packed + column) = to_bf16x2(a * scale, b * scale);
  }
};

// The tile and key head of a block. Tiles of all key heads stand on one side of the grid, the last first: the later
// a causal tile, the more keys it has, and what is long must not begin last.
struct Place {
  int tile, kv;
  DEVICE Place(const AttentionParams &p) {
    const unsigned index = gridDim.x - 1 - blockIdx.x;
    tile = index / p.kv_heads;
    kv = index % p.kv_heads;
  }
};

// ---- tensor cores ------------------------------------------------------------------------------------

constexpr int ATTENTION_THREADS = 128;

// Four warps of M times 16 query rows, 64 keys at a time, as in FlashAttention-2: scores stay in registers and
// are, packed to bf16, the left operand of the second product. What a warp loads of K and V serves all its rows.
// Keys and values come as f32 by asynchronous copies into a buffer of their own while the tile before is worked
// on, and are then rounded into the operands. D: head_dim, or more (filled up with zeros).
//
// Shared memory: 64 · D · (2·4 raw + 2·2 operands) bytes; the queries pass through the operands.
template <int D, int M> DEVICE void attention_mma(const AttentionParams &p) {
  DYNAMIC_SHARED(memory);
  constexpr int KEYS = 64, PIECES = D / 8, QUERIES = 64 * M;
  auto raw = reinterpret_cast<float *>(memory); // K, then V
  auto operands = reinterpret_cast<uint16_t *>(raw + 2 * KEYS * D);
  uint16_t *const k_tile = operands, *const v_tile = operands + KEYS * D;
  // Rows of 128 bytes and more would all begin at the same bank.
  auto swizzled = [](int row, int piece) {
    return PIECES >= 8 ? piece ^ (row & 7) : piece ^ (row >> 1 & 3);
  };
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const Place place(p);
  const AttentionTile tile = p.tiles[place.tile];
  const int kv = place.kv, group = p.heads / p.kv_heads, queries = tile.count * group;
  const int d = p.head_dim, stride = (p.heads + 2 * p.kv_heads) * d;
  const Keys keys(p, tile, KEYS);

  // A thread moves the same four columns of every SUBS-th row. The strides are constants and not
  // blockDim.x, so that these loops unroll and their offsets in shared memory become immediates.
  constexpr int ROW = D / 4, SUBS = ATTENTION_THREADS / ROW;
  const int sub = threadIdx.x / ROW, column = threadIdx.x % ROW * 4;
  const bool has_column = column < d;
  // In bytes: one multiplication to an address.
  const unsigned key_bytes = p.kv_heads * d * sizeof(float);
  const unsigned char *const k_from = reinterpret_cast<const unsigned char *>(p.k + (has_column ? kv * d + column : 0));
  const unsigned char *const v_from = reinterpret_cast<const unsigned char *>(p.v + (has_column ? kv * d + column : 0));
  // f32: what lies outside becomes zero.
  auto copy = [&](int start) {
    UNROLL
    for (int i = 0; i < KEYS / SUBS; i++) {
      const int row = i * SUBS + sub, key = start + row;
      const bool in = key < keys.last && has_column;
      const size_t from = static_cast<size_t>(in ? cache_row(p, tile, key) : 0) * key_bytes;
      copy_async_16(raw + row * D + column, k_from + from, in ? 16 : 0);
      copy_async_16(raw + (KEYS + row) * D + column, v_from + from, in ? 16 : 0);
    }
    copy_commit();
  };
  copy(keys.first);

  // The position of a query row, counted from the tile's first: row / group, exact for up to 128 of both.
  const unsigned reciprocal = 65536 / group + 1;
  auto position = [&](int row) { return static_cast<int>(row * reciprocal >> 16); };

  // Queries: rounded with the scale in them, by way of shared memory into registers.
  UNROLL
  for (int i = 0; i < QUERIES / SUBS; i++) {
    const int row = i * SUBS + sub;
    Float4 v = {};
    if (row < queries && has_column) {
      const int at = position(row);
      v = *reinterpret_cast<const Float4 *>(p.qkv + static_cast<size_t>(tile.row + at) * stride +
                                            (kv * group + row - at * group) * d + column);
    }
    *reinterpret_cast<FourBf16 *>(operands + row * D + swizzled(row, column / 8) * 8 + column % 8) = {
        to_bf16x2(v.x * p.scale, v.y * p.scale), to_bf16x2(v.z * p.scale, v.w * p.scale)};
  }
  __syncthreads();
  unsigned q[M][D / 16][4];
  UNROLL
  for (int m = 0; m < M; m++) {
    UNROLL
    for (int k = 0; k < D / 16; k++) {
      const int row = (warp * M + m) * 16 + lane % 16;
      load_matrix_x4(q[m][k], operands + row * D + swizzled(row, k * 2 + lane / 16) * 8);
    }
  }

  // Of two rows to each m: g and g + 8 of its 16.
  float out[M][D / 8][4] = {};
  float max[M][2], sum[M][2] = {};
  UNROLL
  for (int m = 0; m < M; m++) max[m][0] = max[m][1] = -INFINITE;
  // Derived where it is wanted: registers are full.
  auto query = [&](int m, int i) { return (warp * M + m) * 16 + i * 8 + g; };

  for (int start = keys.first; start < keys.last; start += KEYS) {
    copy_wait<0>();
    // All copies are there; all have read the operands of before.
    __syncthreads();
    UNROLL
    for (int i = 0; i < 2 * KEYS / SUBS; i++) {
      const int row = i * SUBS + sub;
      const Float4 v = *reinterpret_cast<const Float4 *>(raw + row * D + column);
      *reinterpret_cast<FourBf16 *>(operands + row * D + swizzled(row, column / 8) * 8 + column % 8) =
          {to_bf16x2(v.x, v.y), to_bf16x2(v.z, v.w)};
    }
    __syncthreads();
    if (start + KEYS < keys.last) copy(start + KEYS);

    float scores[M][KEYS / 8][4] = {};
    UNROLL
    for (int k = 0; k < D / 16; k++) {
      UNROLL
      for (int j = 0; j < KEYS / 16; j++) {
        unsigned b[4];
        const int row = j * 16 + lane / 16 * 8 + lane % 8;
        load_matrix_x4(b, k_tile + row * D + swizzled(row, k * 2 + lane / 8 % 2) * 8);
        UNROLL
        for (int m = 0; m < M; m++) {
          mma_bf16(scores[m][2 * j], q[m][k], b[0], b[1]);
          mma_bf16(scores[m][2 * j + 1], q[m][k], b[2], b[3]);
        }
      }
    }
    // Most tiles of keys are seen whole.
    if (!keys.all_see(tile.count, start, KEYS)) {
      UNROLL
      for (int m = 0; m < M; m++) {
        UNROLL
        for (int j = 0; j < KEYS / 8; j++) {
          UNROLL
          for (int i = 0; i < 4; i++)
            if (!keys.sees(position(query(m, i / 2)), start + j * 8 + 2 * t + i % 2)) scores[m][j][i] = -INFINITE;
        }
      }
    }
    unsigned weights[M][KEYS / 16][4];
    UNROLL
    for (int m = 0; m < M; m++) {
      float top[2] = {max[m][0], max[m][1]};
      UNROLL
      for (int j = 0; j < KEYS / 8; j++) {
        UNROLL
        for (int i = 0; i < 4; i++) top[i / 2] = fmaxf(top[i / 2], scores[m][j][i]);
      }
      float base[2];
      UNROLL
      for (int i = 0; i < 2; i++) {
        top[i] = fmaxf(top[i], __shfl_xor_sync(FULL_WARP, top[i], 1));
        top[i] = fmaxf(top[i], __shfl_xor_sync(FULL_WARP, top[i], 2));
        // A row that has seen no key yet: anything but -inf, which would make inf - inf.
        base[i] = top[i] > -INFINITE ? top[i] : 0.0f;
        const float scale = exp2_fast(max[m][i] - base[i]);
        sum[m][i] *= scale;
        UNROLL
        for (int j = 0; j < D / 8; j++) {
          out[m][j][2 * i] *= scale;
          out[m][j][2 * i + 1] *= scale;
        }
        max[m][i] = top[i];
      }
      UNROLL
      for (int j = 0; j < KEYS / 8; j++) {
        UNROLL
        for (int i = 0; i < 4; i++) {
          scores[m][j][i] = exp2_fast(scores[m][j][i] - base[i / 2]);
          sum[m][i / 2] += scores[m][j][i];
        }
        weights[m][j / 2][j % 2 * 2] = to_bf16x2(scores[m][j][0], scores[m][j][1]);
        weights[m][j / 2][j % 2 * 2 + 1] = to_bf16x2(scores[m][j][2], scores[m][j][3]);
      }
    }
    UNROLL
    for (int k = 0; k < KEYS / 16; k++) {
      UNROLL
      for (int j = 0; j < D / 16; j++) {
        unsigned b[4];
        const int row = k * 16 + lane / 8 % 2 * 8 + lane % 8;
        load_matrix_x4_transposed(b, v_tile + row * D + swizzled(row, j * 2 + lane / 16) * 8);
        UNROLL
        for (int m = 0; m < M; m++) {
          mma_bf16(out[m][2 * j], weights[m][k], b[0], b[1]);
          mma_bf16(out[m][2 * j + 1], weights[m][k], b[2], b[3]);
        }
      }
    }
  }
  UNROLL
  for (int m = 0; m < M; m++) {
    UNROLL
    for (int i = 0; i < 2; i++) {
      sum[m][i] += __shfl_xor_sync(FULL_WARP, sum[m][i], 1);
      sum[m][i] += __shfl_xor_sync(FULL_WARP, sum[m][i], 2);
      const int row = query(m, i), at = position(row);
      if (row < queries) {
        const Result result(p, tile.row + at, kv * group + row - at * group, max[m][i], sum[m][i], t == 0);
        UNROLL
        for (int j = 0; j < D / 8; j++) {
          const int column = j * 8 + 2 * t;
          if (column < d) result.put(column, out[m][j][2 * i], out[m][j][2 * i + 1]);
        }
      }
    }
  }
}

KERNEL_BLOCKS(attention_bf16_32, AttentionParams, ATTENTION_THREADS, 2) { attention_mma<32, 2>(p); }
KERNEL_BLOCKS(attention_bf16_64, AttentionParams, ATTENTION_THREADS, 2) { attention_mma<64, 2>(p); }
KERNEL_BLOCKS(attention_bf16_128, AttentionParams, ATTENTION_THREADS, 2) { attention_mma<128, 1>(p); }

// ---- f32 ---------------------------------------------------------------------------------------------

// Keys and values of positions `start` up to `last` of a tile's sequence, for this block's key head: 32
// rows, of which those that are not there become zeros.
template <class P>
DEVICE void load_keys(const P &p, const AttentionTile &tile, int kv, int start, int last, float *k_tile,
                      float *v_tile, int pitch) {
  const int d = p.head_dim;
  for (int i = threadIdx.x; i < 32 * d; i += blockDim.x) {
    const int row = i / d, column = i % d;
    float k = 0.0f, v = 0.0f;
    if (start + row < last) {
      const size_t at = (cache_row(p, tile, start + row) * p.kv_heads + kv) * d + column;
      k = p.k[at];
      v = p.v[at];
    }
    k_tile[row * pitch + column] = k;
    v_tile[row * pitch + column] = v;
  }
}

// sums[r] += what 32 rows are, weighted: a lane has the weights of its row, and of the sums the columns
// lane, lane + 32 …
template <int ROWS, int CHUNKS>
DEVICE void add_weighted(float (&sums)[ROWS][CHUNKS], const float (&weights)[ROWS], const float *rows, int d,
                         int pitch) {
  const int lane = threadIdx.x % 32;
  for (int row = 0; row < 32; row++) {
    float weight[ROWS];
    UNROLL
    for (int r = 0; r < ROWS; r++) weight[r] = __shfl_sync(FULL_WARP, weights[r], row);
    UNROLL
    for (int c = 0; c < CHUNKS; c++) {
      const int column = c * 32 + lane;
      if (column < d) {
        const float v = rows[row * pitch + column];
        UNROLL
        for (int r = 0; r < ROWS; r++) sums[r][c] += weight[r] * v;
      }
    }
  }
}

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
  const Place place(p);
  const AttentionTile tile = p.tiles[place.tile];
  const int kv = place.kv, group = p.heads / p.kv_heads, queries = tile.count * group;
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
    load_keys(p, tile, kv, start, keys.last, k_tile, v_tile, pitch);
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
      const float top = max_of(max[r], warp_max(scores[r])), base = top > -INFINITE ? top : 0.0f;
      const float scale = exp2_fast(max[r] - base);
      scores[r] = exp2_fast(scores[r] - base);
      sum[r] = sum[r] * scale + scores[r];
      max[r] = top;
      UNROLL
      for (int c = 0; c < CHUNKS; c++) out[r][c] *= scale;
    }
    add_weighted(out, scores, v_tile, d, pitch);
  }
  UNROLL
  for (int r = 0; r < ROWS; r++) {
    const float total = warp_sum(sum[r]);
    const int row = warp * ROWS + r;
    if (row < queries) {
      const Result result(p, tile.row + row / group, kv * group + row % group, max[r], total, lane == 0);
      UNROLL
      for (int c = 0; c < CHUNKS; c++)
        if (c * 32 + lane < d) result.put(c * 32 + lane, out[r][c]);
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
  for (unsigned split = 0; split < p.splits; split++) max = max_of(max, parts[split * stride + p.head_dim]);
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
    if (p.packed) p.packed[index * p.head_dim + column] = to_bf16(v / sum);
  }
  if (lane == 0 && p.lse) p.lse[index] = (max + log2f(sum)) * LN_2;
}

// ---- backward ----------------------------------------------------------------------------------------

//   p = exp(q · k / sqrt(head_dim) - lse)     dp = dout · v     ds = p · (dp - dout · out)
//   dq = ds · k / sqrt(head_dim)     dk = dsᵀ · q / sqrt(head_dim)     dv = pᵀ · dout
//
// Two kernels, each of which owns what it writes, so that nothing is added atomically and a gradient is
// the same at every run. attention_bwd_q has the queries of a tile and goes over their keys, as the
// forward does. attention_bwd_kv has 32 rows of the cache and goes over all who see them: rows of a prefix
// that sequences share are seen by several, and gather from each in turn (`visits`). Scores are made in
// both, which costs 4 · head_dim FLOP per query head and visible key more than the 10 · head_dim there
// must be, and saves their way through memory.
//
// In f32 by FMA, eight warps: training's sequences are short, and its time goes into the products of the
// layers. 14 · head_dim FLOP per query head and key at 32 x 32 a tile, all from shared memory: bound by
// FMA and shared memory, 1 load per 2 FMA. Tensor cores would pay from some thousand keys on.
// Shared memory: 4 · 32 rows of head_dim + 1 f32, and for attention_bwd_kv 2 · 32 · 33 more.

// Row by row dout · out. One warp each; 8 · head_dim bytes in: bound by memory.
KERNEL(attention_delta, AttentionDeltaParams, 256) {
  const size_t index = static_cast<size_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (index >= p.rows) return;
  float sum = 0.0f;
  for (unsigned i = threadIdx.x % 32; i < p.head_dim; i += 32)
    sum += p.out[index * p.head_dim + i] * p.dout[index * p.head_dim + i];
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) p.delta[index] = sum;
}

// Up to 32 query rows of a key head, from row `row` of qkv on: q with the scale in it, dout, and for each
// of a warp's rows what it is compared with. Rows that are not there are zeros, and so is their ds.
struct Queries {
  float *q, *dout;
  int group, kv, pitch;

  template <class P> DEVICE void load(const P &p, size_t row, int queries) const {
    const int d = p.head_dim, stride = (p.heads + 2 * p.kv_heads) * d;
    for (int i = threadIdx.x; i < 32 * d; i += blockDim.x) {
      const int query = i / d, column = i % d;
      float a = 0.0f, b = 0.0f;
      if (query < queries) {
        const size_t at = row + query / group, head = kv * group + query % group;
        a = p.qkv[at * stride + head * d + column] * p.scale;
        b = p.dout[(at * p.heads + head) * d + column];
      }
      q[query * pitch + column] = a;
      dout[query * pitch + column] = b;
    }
  }
  template <class P> DEVICE size_t index(const P &p, size_t row, int query) const {
    return (row + query / group) * p.heads + kv * group + query % group;
  }
};

// For four query rows of this warp and this lane's key: q · k and dout · v.
template <int ROWS>
DEVICE void two_products(const Queries &queries, const float *k, const float *v, int d, float (&s)[ROWS],
                         float (&dp)[ROWS]) {
  const int first = threadIdx.x / 32 * ROWS, lane = threadIdx.x % 32;
  UNROLL
  for (int r = 0; r < ROWS; r++) s[r] = dp[r] = 0.0f;
  for (int column = 0; column < d; column++) {
    const float a = k[lane * queries.pitch + column], b = v[lane * queries.pitch + column];
    UNROLL
    for (int r = 0; r < ROWS; r++) {
      s[r] += queries.q[(first + r) * queries.pitch + column] * a;
      dp[r] += queries.dout[(first + r) * queries.pitch + column] * b;
    }
  }
}

template <int CHUNKS> DEVICE void attention_bwd_q(const AttentionBwdParams &p) {
  DYNAMIC_SHARED(memory);
  constexpr int ROWS = 4, KEYS = 32;
  const int d = p.head_dim, pitch = d | 1;
  auto k_tile = reinterpret_cast<float *>(memory);
  float *const v_tile = k_tile + KEYS * pitch;
  const int group = p.heads / p.kv_heads, kv = blockIdx.y;
  const Queries queries = {v_tile + KEYS * pitch, v_tile + 2 * KEYS * pitch, group, kv, pitch};
  const int first = threadIdx.x / 32 * ROWS, lane = threadIdx.x % 32;
  const AttentionTile tile = p.tiles[blockIdx.x];
  const int count = tile.count * group;
  const Keys keys(p, tile, KEYS);

  queries.load(p, tile.row, count);
  float lse[ROWS] = {}, delta[ROWS] = {}, dq[ROWS][CHUNKS] = {};
  UNROLL
  for (int r = 0; r < ROWS; r++) {
    if (first + r < count) {
      lse[r] = p.lse[queries.index(p, tile.row, first + r)] * LOG2_E;
      delta[r] = p.delta[queries.index(p, tile.row, first + r)];
    }
  }
  for (int start = keys.first; start < keys.last; start += KEYS) {
    // All are done with the tile of before.
    __syncthreads();
    load_keys(p, tile, kv, start, keys.last, k_tile, v_tile, pitch);
    __syncthreads();
    float s[ROWS], dp[ROWS];
    two_products(queries, k_tile, v_tile, d, s, dp);
    UNROLL
    for (int r = 0; r < ROWS; r++) {
      const bool sees = first + r < count && keys.sees((first + r) / group, start + lane);
      s[r] = sees ? exp2_fast(s[r] - lse[r]) * (dp[r] - delta[r]) : 0.0f;
    }
    add_weighted(dq, s, k_tile, d, pitch);
  }
  UNROLL
  for (int r = 0; r < ROWS; r++) {
    if (first + r < count) {
      const size_t row = tile.row + (first + r) / group, head = kv * group + (first + r) % group;
      float *to = p.dqkv + (row * (p.heads + 2 * p.kv_heads) + head) * d;
      UNROLL
      for (int c = 0; c < CHUNKS; c++)
        if (c * 32 + lane < d) to[c * 32 + lane] = dq[r][c] * (p.scale * LN_2);
    }
  }
}

KERNEL(attention_bwd_q_64, AttentionBwdParams, 256) { attention_bwd_q<2>(p); }
KERNEL(attention_bwd_q_128, AttentionBwdParams, 256) { attention_bwd_q<4>(p); }

template <int CHUNKS> DEVICE void attention_bwd_kv(const AttentionBwdParams &p) {
  DYNAMIC_SHARED(memory);
  constexpr int ROWS = 4, KEYS = 32, PITCH = 33;
  const int d = p.head_dim, pitch = d | 1;
  auto k_tile = reinterpret_cast<float *>(memory);
  float *const v_tile = k_tile + KEYS * pitch;
  const int group = p.heads / p.kv_heads, kv = blockIdx.y;
  const Queries queries = {v_tile + KEYS * pitch, v_tile + 2 * KEYS * pitch, group, kv, pitch};
  float *const weights = v_tile + 3 * KEYS * pitch, *const slopes = weights + 32 * PITCH;
  const int first = threadIdx.x / 32 * ROWS, lane = threadIdx.x % 32;
  const KeyTile tile = p.keys[blockIdx.x];
  const int positions = 32 / group, window = p.window ? static_cast<int>(p.window) : 0x7fffffff;

  for (int i = threadIdx.x; i < KEYS * d; i += blockDim.x) {
    const int row = i / d, column = i % d;
    const bool in = row < static_cast<int>(tile.count);
    const size_t at = in ? (static_cast<size_t>(tile.row + row) * p.kv_heads + kv) * d + column : 0;
    k_tile[row * pitch + column] = in ? p.k[at] : 0.0f;
    v_tile[row * pitch + column] = in ? p.v[at] : 0.0f;
  }
  // Of keys first..first + ROWS, columns lane, lane + 32 …
  float dk[ROWS][CHUNKS] = {}, dv[ROWS][CHUNKS] = {};
  for (unsigned i = 0; i < tile.visits; i++) {
    const Visit visit = p.visits[tile.first_visit + i];
    const int key = visit.position, prefix = p.prefix;
    // Queries from the first that sees the first key to the last that sees the last.
    const int begin = max_of(0, key - prefix);
    const int reach = window - 1 < 0x7fffffff - key - KEYS ? key + KEYS + window - 1 : 0x7fffffff;
    const int end = min_of(static_cast<int>(visit.queries), reach - prefix);
    for (int t = begin; t < end; t += positions) {
      const int count = min_of(positions, end - t) * group;
      // All are done with the queries of before.
      __syncthreads();
      queries.load(p, visit.row + t, count);
      __syncthreads();
      float s[ROWS], dp[ROWS];
      two_products(queries, k_tile, v_tile, d, s, dp);
      UNROLL
      for (int r = 0; r < ROWS; r++) {
        const int query = first + r, own = prefix + t + query / group;
        float weight = 0.0f, slope = 0.0f;
        if (query < count && lane < static_cast<int>(tile.count) && key + lane <= own &&
            own - key - lane < window) {
          const size_t at = queries.index(p, visit.row + t, query);
          weight = exp2_fast(s[r] - p.lse[at] * LOG2_E);
          slope = weight * (dp[r] - p.delta[at]);
        }
        weights[query * PITCH + lane] = weight;
        slopes[query * PITCH + lane] = slope;
      }
      __syncthreads();
      for (int query = 0; query < 32; query++) {
        float weight[ROWS], slope[ROWS];
        UNROLL
        for (int r = 0; r < ROWS; r++) {
          weight[r] = weights[query * PITCH + first + r];
          slope[r] = slopes[query * PITCH + first + r];
        }
        UNROLL
        for (int c = 0; c < CHUNKS; c++) {
          const int column = c * 32 + lane;
          if (column < d) {
            const float q = queries.q[query * pitch + column], o = queries.dout[query * pitch + column];
            UNROLL
            for (int r = 0; r < ROWS; r++) {
              dk[r][c] += slope[r] * q;
              dv[r][c] += weight[r] * o;
            }
          }
        }
      }
    }
  }
  UNROLL
  for (int r = 0; r < ROWS; r++) {
    if (first + r < static_cast<int>(tile.count)) {
      const size_t at = (static_cast<size_t>(tile.row + first + r) * p.kv_heads + kv) * d;
      UNROLL
      for (int c = 0; c < CHUNKS; c++) {
        const int column = c * 32 + lane;
        if (column < d) {
          // The scale is in q already, with log2(e).
          p.dk[at + column] += dk[r][c] * LN_2;
          p.dv[at + column] += dv[r][c];
        }
      }
    }
  }
}

KERNEL_BLOCKS(attention_bwd_kv_64, AttentionBwdParams, 256, 2) { attention_bwd_kv<2>(p); }
KERNEL_BLOCKS(attention_bwd_kv_128, AttentionBwdParams, 256, 2) { attention_bwd_kv<4>(p); }
