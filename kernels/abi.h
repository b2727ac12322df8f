// The launch ABI: one Params struct per kernel, and nothing else passes between Rust and a kernel.
//
// A kernel takes its struct by value. Addresses are device addresses; Rust sees them as u64. Fields
// stand in falling size and every struct's size is a multiple of 8, so that structs have no padding and
// the mirrors in src/gpu/abi.rs are plain data. After a change: `make abi`.
//
// Matrices are row-major. A "leading dimension" (ld) counts elements from one row to the next.
#pragma once
#include <stdint.h>

#if defined(ABI_MIRROR)
#define ADDRESS(type) uint64_t
#else
#define ADDRESS(type) type *
#endif

// As the device wants tensor maps. Elsewhere they are copied, from what is aligned to 8 bytes alone.
#if defined(__CUDACC__)
#define ALIGNED_64 __align__(64)
#else
#define ALIGNED_64
#endif

#ifdef __cplusplus
extern "C" {
#endif

/// Rows of a tile of a product, of x and of w alike, where elements are bf16.
#define TILE_BF16 128
/// The same where they are f32.
#define TILE_F32 64
/// Inner dimension of a tile; operands are padded with zeros to a multiple of 16 bytes only.
#define TILE_K_BF16 32
#define TILE_K_F32 16
/// Stages of the pipeline of copies.
#define TILE_STAGES 3
/// Threads of a block that makes tiles.
#define TILE_THREADS_BF16 128
#define TILE_THREADS_F32 256
/// f32 words of shared memory from one row of a f32 tile to the next.
#define TILE_PITCH_F32 20

/// pack_f32, pack_bf16: out[i] = x[index ? index[i] : i], as f32 or bf16, each row filled up with zeros.
typedef struct PackParams {
  ADDRESS(const float) x;         ///< [.., width]
  ADDRESS(const uint32_t) index;  ///< [rows], or null
  ADDRESS(void) out;              ///< [rows, ld]
  uint32_t rows, width, ld, stride; ///< stride: elements from one row of x to the next
} PackParams;

/// transpose_f32, transpose_to_bf16 (from f32), transpose_bf16: out[c, r] = x[r, c], each row of out filled up with zeros.
typedef struct TransposeParams {
  ADDRESS(const void) x;
  ADDRESS(void) out;              ///< [columns, ld]
  uint32_t rows, columns, ld, stride; ///< stride: elements from one row of x to the next
} TransposeParams;

/// gemm_f32, gemm_bf16: y = x · wᵀ (+ bias) (+ y), of the first `inner` elements of their rows.
typedef struct GemmParams {
  ADDRESS(const void) x;     ///< [rows, x_ld]
  ADDRESS(const void) w;     ///< [outputs, w_ld]
  ADDRESS(const float) bias; ///< [outputs], or null
  ADDRESS(float) y;          ///< [rows, outputs]
  uint32_t rows, outputs, inner, x_ld, w_ld, add;
} GemmParams;

/// What one block found out about one row from its share of the vocabulary, in units of log2.
typedef struct NllPart {
  float max; ///< of logit · log2(e); -inf if it saw none
  float sum; ///< of 2^(logit · log2(e) - max)
} NllPart;

/// nll_f32, nll_bf16: parts of the log-sum-exp of x · wᵀ, and the targets' logits.
typedef struct NllParams {
  ADDRESS(const void) x;          ///< [rows, ld]
  ADDRESS(const void) w;          ///< [vocab, ld]
  ADDRESS(const uint32_t) target; ///< [rows], each below vocab
  ADDRESS(NllPart) parts;         ///< [splits, rows]
  ADDRESS(float) logit;           ///< [rows]
  uint32_t rows, vocab, ld, splits;
} NllParams;

/// What a device's tensor memory accelerator knows of a matrix: a CUtensorMap, made by the launcher.
typedef struct ALIGNED_64 TensorMap {
  uint64_t words[16];
} TensorMap;

/// nll90 (sm_90 alone): rows and ids of a tile, and inner dimension of a stage.
#define NLL90_ROWS 128
#define NLL90_IDS 256
#define NLL90_K 64
#define NLL90_STAGES 4
#define NLL90_THREADS 384
/// Blocks of a cluster: on as many tiles of rows and the same ids.
#define NLL90_CLUSTER 2
/// Bytes of shared memory of a block: the stages, two barriers of 8 bytes for each, and one more.
#define NLL90_SHARED (NLL90_STAGES * ((NLL90_ROWS + NLL90_IDS) * NLL90_K * 2 + 16) + 8)

/// nll90: as nll_bf16, of ranges of ids of `share` tiles. Both maps: boxes of NLL90_K columns and 128 rows.
typedef struct Nll90Params {
  TensorMap x;                    ///< [rows, ld] of bf16
  TensorMap w;                    ///< [vocab, ld]
  ADDRESS(const uint32_t) target; ///< [rows], each below vocab
  ADDRESS(NllPart) parts;         ///< [ranges, rows]
  ADDRESS(float) logit;           ///< [rows]
  uint32_t rows, vocab, ld, share;
  uint32_t unused[6];             ///< up to a multiple of 64 bytes, as the maps are aligned
} Nll90Params;

/// nll_logits: the same from given logits.
typedef struct NllLogitsParams {
  ADDRESS(const float) logits;    ///< [rows, ld]
  ADDRESS(const uint32_t) target; ///< [rows], each below vocab
  ADDRESS(NllPart) parts;         ///< [splits, rows]
  ADDRESS(float) logit;           ///< [rows]
  uint32_t rows, vocab, ld, splits;
} NllLogitsParams;

/// nll_merge: out[row] = ln of the sum over all parts - the target's logit.
typedef struct NllMergeParams {
  ADDRESS(const NllPart) parts; ///< [splits, rows]
  ADDRESS(const float) logit;   ///< [rows]
  ADDRESS(float) out;           ///< [rows]
  ADDRESS(float) lse;           ///< [rows]: the logarithm alone, in units of log2; or null
  uint32_t rows, splits;
} NllMergeParams;

/// nll_bwd_f32, nll_bwd_bf16: softmax less one at the target, for ids `first..first + count`.
typedef struct NllBwdParams {
  ADDRESS(const void) x;          ///< [rows, ld]
  ADDRESS(const void) w;          ///< [vocab, ld]
  ADDRESS(const uint32_t) target; ///< [rows]
  ADDRESS(const float) lse;       ///< [rows], in units of log2
  ADDRESS(void) out;              ///< [rows, out_ld], zeros from `count` on
  uint32_t rows, vocab, ld, first, count, out_ld; ///< first: a multiple of the tile's width
} NllBwdParams;

/// Rows of a gradient that go to one row of another.
typedef struct RowSum {
  uint32_t to;
  uint32_t first, count; ///< order[first..first + count]
  uint32_t unused;
} RowSum;

/// scatter_add: out[to] += sum of x[order[i]], one block column per entry.
typedef struct ScatterParams {
  ADDRESS(const float) x;
  ADDRESS(const RowSum) sums; ///< [grid.x]
  ADDRESS(const uint32_t) order;
  ADDRESS(float) out;
  uint32_t width, unused;
} ScatterParams;

/// A segment and what to keep of it.
typedef struct Segment {
  uint32_t first, len; ///< scores[first..first + len]
  uint32_t count;      ///< the `count` largest are kept, of equals the lowest index; or
  float quantile;      ///< if not negative, 0 to 1: those above it, as numpy interpolates linearly;
                       ///< if below -1: those larger than the one of rank `count`, 0 being the largest
} Segment;

/// topk: one block per segment.
typedef struct TopkParams {
  ADDRESS(const float) scores;
  ADDRESS(const uint32_t) ids;     ///< as scores
  ADDRESS(const Segment) segments; ///< [grid]
  ADDRESS(uint32_t) mask;          ///< as scores: 1 for kept, 0 for dropped
  ADDRESS(uint32_t) kept_ids;      ///< as scores: a segment's kept ids, in order, from `first` on
  ADDRESS(uint32_t) kept_rows;     ///< as scores: the same of their indices
  ADDRESS(uint32_t) kept;          ///< [grid]: how many
} TopkParams;

/// gather: out[to + i] = x[rows[i]] for i < *count: kept rows of a KV cache, moved together.
typedef struct GatherParams {
  ADDRESS(const float) x;
  ADDRESS(const uint32_t) rows;
  ADDRESS(const uint32_t) count;
  ADDRESS(float) out;
  uint32_t width; ///< of a row
  uint32_t to;
} GatherParams;

/// The place of a row that is not to be kept.
#define NOWHERE 0xffffffffu

/// embed_f32, embed_bf16: out[i] = table[ids[i]] (+ out[i]).
typedef struct EmbedParams {
  ADDRESS(const uint32_t) ids;
  ADDRESS(const void) table; ///< [.., ld]
  ADDRESS(float) out;        ///< [rows, width]
  uint32_t rows, width, ld, add;
} EmbedParams;

/// norm_rows, norm_wide: RMSNorm or LayerNorm, a warp or a block per row.
typedef struct NormParams {
  ADDRESS(const float) x;      ///< [rows, width]
  ADDRESS(const float) weight; ///< [width]
  ADDRESS(const float) bias;   ///< [width], or null
  ADDRESS(float) y;            ///< [rows, width]
  ADDRESS(uint16_t) packed;    ///< [rows, width up to a multiple of 8]: y in bf16, then zeros; or null
  uint32_t rows, width;
  uint32_t layer; ///< take off the mean
  float eps;
} NormParams;

/// rotate: QK-norm, rotary positions and the append to the cache, one warp per head.
typedef struct RotateParams {
  ADDRESS(float) qkv;          ///< [rows, heads + 2·kv_heads, head_dim]
  ADDRESS(const float) q_norm; ///< [head_dim], or null
  ADDRESS(const float) k_norm; ///< [head_dim], or null
  ADDRESS(const float) angles; ///< [rows, 2, head_dim/2]: cosines, then sines; or null
  ADDRESS(float) k;            ///< [.., kv_heads, head_dim], from row `at` on
  ADDRESS(float) v;            ///< the same
  ADDRESS(const uint32_t) places; ///< [rows]: the cache row of each, NOWHERE for none; or null: from `at` on
  uint32_t rows, heads, kv_heads, head_dim, at;
  float eps;
  uint32_t interleaved; ///< pairs (2i, 2i + 1); otherwise (i, i + head_dim/2)
  uint32_t unused;
} RotateParams;

/// swiglu, geglu: y = silu(gate) · up or gelu(gate) · up, rows of x being [gate, up]; gelu, gelu_erf:
/// y = gelu(x), width elements a row.
typedef struct ActivateParams {
  ADDRESS(const float) x;
  ADDRESS(float) y;
  ADDRESS(uint16_t) packed; ///< [rows, width up to a multiple of 8]: y in bf16, then zeros; or null
  uint32_t rows, width;
} ActivateParams;

/// norm_rows_bwd: dx += the gradient of a norm's input, one block per row.
typedef struct NormBwdParams {
  ADDRESS(const float) x;      ///< [grid, width]
  ADDRESS(const float) weight; ///< [width]
  ADDRESS(const float) dy;     ///< [grid, width]
  ADDRESS(float) dx;           ///< [grid, width]
  uint32_t width, layer;
  float eps;
  uint32_t unused;
} NormBwdParams;

/// rotate_bwd: what rotate does, backwards, one warp per head.
typedef struct RotateBwdParams {
  ADDRESS(const float) qkv;    ///< as it was before; read with norms only
  ADDRESS(const float) q_norm; ///< [head_dim], or null
  ADDRESS(const float) k_norm; ///< [head_dim], or null
  ADDRESS(const float) angles; ///< [rows, 2, head_dim/2], or null
  ADDRESS(const float) dk;     ///< [.., kv_heads, head_dim], from row `at` on
  ADDRESS(const float) dv;     ///< the same
  ADDRESS(float) dqkv;         ///< [rows, heads + 2·kv_heads, head_dim]; that of q comes in
  uint32_t rows, heads, kv_heads, head_dim, at;
  float eps;
  uint32_t interleaved; ///< as in RotateParams
  uint32_t unused;
} RotateBwdParams;

/// swiglu_bwd, gelu_bwd.
typedef struct ActivateBwdParams {
  ADDRESS(const float) x;
  ADDRESS(const float) dy;
  ADDRESS(float) dx;
  uint32_t rows, width;
} ActivateBwdParams;

/// dropout: y = x · scale (+ y) where the hash of the index is not below the threshold, 0 (+ y) elsewhere.
typedef struct DropoutParams {
  ADDRESS(const float) x;
  ADDRESS(float) y;
  uint32_t len, threshold, seed_low, seed_high;
  float scale;
  uint32_t add;
} DropoutParams;

/// Projections that one launch of lora_* serves.
#define LORA_SPANS 3
/// Rows that a block has, and rows of a step of lora_bwd_*.
#define LORA_ROWS 32
/// Rows of a tile of factors: ranks in the first product, outputs in the second.
#define LORA_TILE 128
/// Inner dimension of a step.
#define LORA_STEP_BF16 64
#define LORA_STEP_F32 32
/// Stages of the pipeline of copies.
#define LORA_STAGES 3
#define LORA_THREADS 128
/// Elements from one row to the next in shared memory: of x, and of factors and of what lies between.
#define LORA_X_PITCH_BF16 72
#define LORA_X_PITCH_F32 36
#define LORA_PITCH_BF16 64
#define LORA_PITCH_F32 36
/// Columns of a tile of lora_bwd_*.
#define LORA_WIDE 64
/// f32 words from one row to the next of what it multiplies.
#define LORA_NARROW_PITCH 132
#define LORA_WIDE_PITCH 68

/// What a projection adds up, by which ranks, and where it goes.
typedef struct LoraSpan {
  uint32_t from, width;  ///< columns of x: the first and how many
  uint32_t rank, ranks;  ///< rows of a, columns of b; at most LORA_TILE
  uint32_t first, count; ///< rows of b, columns of y
} LoraSpan;

/// lora_f32, lora_bf16: y += scale · (x · aᵀ) · bᵀ, span by span.
typedef struct LoraParams {
  ADDRESS(const float) x; ///< [rows, x_ld], x_ld a multiple of 4
  ADDRESS(const void) a;  ///< [.., a_ld]
  ADDRESS(const void) b;  ///< [.., b_ld]
  ADDRESS(float) y;       ///< [rows, y_ld]
  ADDRESS(float) low;     ///< [spans, rows, low_ld]: kept · x · aᵀ, or null
  LoraSpan spans[LORA_SPANS];
  uint32_t rows, x_ld, a_ld, b_ld, y_ld, low_ld;
  uint32_t count;    ///< of the spans
  uint32_t run;      ///< columns of y that a block makes; 0: it ends with `low`
  uint32_t to_first_span; ///< all spans go to the columns of the first; otherwise each has blocks of its own
  uint32_t drops;    ///< 0: nothing; 1: elements of x; 2: elements of what y gets
  uint32_t width;    ///< of what elements are dropped of: element (i, j) has the index i · width + j
  uint32_t threshold, seed_low, seed_high;
  float scale, kept;
} LoraParams;

/// A gradient of a factor: narrowᵀ · wide, of [ranks, count].
typedef struct LoraGradient {
  ADDRESS(const float) narrow; ///< [rows, narrow_ld]
  ADDRESS(const float) wide;   ///< [rows, wide_ld], wide_ld a multiple of 4
  ADDRESS(float) out;          ///< [ranks, out_ld], or across [count, out_ld]
  uint32_t ranks;              ///< at most LORA_TILE
  uint32_t wide_ld, out_ld;
  uint32_t first, count; ///< columns of wide
  uint32_t across, drops, unused;
} LoraGradient;

/// lora_bwd_f32, lora_bwd_bf16: gradients of the factors, of up to LORA_SPANS pairs.
typedef struct LoraBwdParams {
  LoraGradient gradients[2 * LORA_SPANS]; ///< [grid.y]
  uint32_t rows, narrow_ld;
  uint32_t width; ///< as in LoraParams
  uint32_t threshold, seed_low, seed_high;
  float scale;    ///< of what is not dropped
  uint32_t unused;
} LoraBwdParams;

/// A run of queries of one sequence that a block works on.
typedef struct AttentionTile {
  uint32_t row;      ///< of qkv, of the first position
  uint32_t count;    ///< positions
  uint32_t position; ///< of the first: keys before it
  uint32_t from;     ///< cache row of the first key of the sequence's prefix
  uint32_t own;      ///< cache row of the sequence's own first key, whose position is `prefix`
  uint32_t end;      ///< keys of the sequence, its prefix among them
} AttentionTile;

/// attention_f32_*, attention_bf16_*: a block per (tile, key head, split). With one split the result
/// goes to `out`, with more to `parts`.
typedef struct AttentionParams {
  ADDRESS(const float) qkv;           ///< [.., heads + 2·kv_heads, head_dim]
  ADDRESS(const float) k;             ///< [.., kv_heads, head_dim]
  ADDRESS(const float) v;             ///< the same
  ADDRESS(const AttentionTile) tiles; ///< [grid.x / kv_heads]
  ADDRESS(float) out;                 ///< [.., heads, head_dim]
  ADDRESS(float) parts;               ///< [splits, rows, heads, head_dim + 2]: sums, max in log2, sum
  ADDRESS(float) lse;                 ///< [rows, heads]: ln of the sum of exponentials; or null
  ADDRESS(uint16_t) packed;           ///< as out: the same in bf16; or null
  uint32_t rows, heads, kv_heads, head_dim;
  uint32_t prefix, splits;
  uint32_t window; ///< keys that a query sees up to itself, itself included; 0: all
  float scale;     ///< log2(e) / sqrt(head_dim)
  uint32_t ahead;  ///< keys after itself that a query sees, below 2^30; 0: causal
  uint32_t unused;
} AttentionParams;

/// attention_merge: one warp per (row, head).
typedef struct AttentionMergeParams {
  ADDRESS(const float) parts;
  ADDRESS(float) out;
  ADDRESS(float) lse;       ///< [rows, heads], or null
  ADDRESS(uint16_t) packed; ///< as out: the same in bf16; or null
  uint32_t rows, heads, head_dim, splits;
} AttentionMergeParams;

/// Neighbouring rows of the cache, and who sees them.
typedef struct KeyTile {
  uint32_t row, count;
  uint32_t first_visit, visits;
} KeyTile;

/// A sequence that sees the rows of a KeyTile.
typedef struct Visit {
  uint32_t position; ///< of the tile's first key in it
  uint32_t row;      ///< of qkv, of its first query, whose position is `prefix`
  uint32_t queries;
  uint32_t unused;
} Visit;

/// attention_delta: delta = dout · out, one warp per (row, head).
typedef struct AttentionDeltaParams {
  ADDRESS(const float) out;
  ADDRESS(const float) dout;
  ADDRESS(float) delta; ///< [rows · heads]
  uint32_t rows;        ///< times heads
  uint32_t head_dim;
} AttentionDeltaParams;

/// attention_bwd_q_*: a block per (tile, key head); attention_bwd_kv_*: one per (key tile, key head).
typedef struct AttentionBwdParams {
  ADDRESS(const float) qkv; ///< [.., heads + 2·kv_heads, head_dim]
  ADDRESS(const float) k;   ///< [.., kv_heads, head_dim]
  ADDRESS(const float) v;
  ADDRESS(const float) lse;   ///< [rows, heads]
  ADDRESS(const float) delta; ///< [rows, heads]
  ADDRESS(const float) dout;  ///< [rows, heads, head_dim]
  ADDRESS(float) dqkv;        ///< as qkv: the places of q are written
  ADDRESS(float) dk;          ///< as k: added to
  ADDRESS(float) dv;
  ADDRESS(const AttentionTile) tiles;
  ADDRESS(const KeyTile) keys;
  ADDRESS(const Visit) visits;
  uint32_t heads, kv_heads, head_dim, prefix, splits;
  uint32_t window;
  float scale; ///< log2(e) / sqrt(head_dim)
  uint32_t ahead; ///< 0: gradients are of causal attention
} AttentionBwdParams;

/// A text that loses tokens window by window.
typedef struct PruneText {
  uint32_t left; ///< tokens
  uint32_t past; ///< of them in the cache
  uint32_t read; ///< tokens that the last pass ended at
  uint32_t end;  ///< where the next window's last run could end; `size` before it the window begins
  uint32_t run;  ///< of the next window
  uint32_t runs; ///< where they end
  uint32_t size; ///< tokens of a window
  uint32_t unused;
} PruneText;

/// Tokens of a window that are judged together.
typedef struct PruneRun {
  double ratio;    ///< the rank of the threshold as a share of all that is left; 1: all stay
  uint32_t tokens;
  uint32_t last;   ///< of its window
} PruneRun;

/// prune: one block per text.
typedef struct PruneParams {
  ADDRESS(uint32_t) ids;         ///< [grid, capacity]: what is left
  ADDRESS(uint32_t) from;        ///< [grid, capacity]: where each stood at first
  ADDRESS(float) loss;           ///< [grid, capacity]: nll of the token after each
  ADDRESS(float) nll;            ///< [grid, capacity]: last nll of each token, by where it stood at first
  ADDRESS(const float) fresh;    ///< [grid, rows]: nll of what was staged; or null: `loss` has them all
  ADDRESS(PruneText) texts;       ///< [grid]
  ADDRESS(const PruneRun) runs;
  ADDRESS(uint32_t) inputs;      ///< [grid, rows]: ids to read next, 0 after the last
  ADDRESS(uint32_t) targets;     ///< [grid, rows]: the id after each, 0 for none
  ADDRESS(uint32_t) positions;   ///< [grid, rows]
  ADDRESS(uint32_t) places;      ///< [grid, rows]: cache rows, NOWHERE after the last
  ADDRESS(AttentionTile) tiles;  ///< [grid, rows / tile, rounded up]
  uint32_t capacity, rows;
  uint32_t tile;   ///< positions of a tile of attention
  uint32_t unused;
} PruneParams;

#ifdef __cplusplus
}
#endif
