// Runs every kernel at small shapes, for the address and the thread sanitizer: no argument. Or one
// planted mistake, which they must find: `kernel which`. See tools/sanitize.sh.
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "library.cu"
#include "planted.cu"

extern "C" int cuda_emulator_launch(const char *, const void *, size_t, const unsigned *, const unsigned *, unsigned,
                                    size_t, int, int, uint64_t, char *, size_t);
extern "C" int cuda_emulator_tensor_map(void *, int, unsigned, void *, const uint64_t *, const uint64_t *,
                                        const unsigned *, const unsigned *, int, int, int, int);

namespace {

// To the thread sanitizer every order is the same.
#if defined(__SANITIZE_THREAD__)
constexpr int ORDERS[] = {2};
#else
constexpr int ORDERS[] = {0, 1, 2};
#endif

int launches;

template <class P>
void launch(const char *kernel, unsigned x, unsigned y, unsigned z, unsigned threads, size_t shared,
            const P &params) {
  for (int order : ORDERS) {
    const unsigned grid[3] = {x, y, z}, cluster[3] = {1, 1, 1};
    char report[512];
    if (cuda_emulator_launch(kernel, &params, sizeof params, grid, cluster, threads, shared, order, order % 2, 7,
                             report, sizeof report)) {
      fprintf(stderr, "%s: %s\n", kernel, report);
      exit(1);
    }
    launches++;
  }
}

std::vector<float> floats(size_t count) {
  static uint32_t state = 1;
  std::vector<float> out(count);
  for (auto &v : out) {
    state = state * 1664525u + 1013904223u;
    v = static_cast<float>(state >> 8) / (1 << 23) - 1.0f;
  }
  return out;
}

template <class T>
void products(const char *gemm, const char *nll, const char *pack, const char *backward, const char *transpose) {
  // Several rounds of all stages, ragged in every direction.
  const unsigned rows = 5, width = T::STEP * 4 + 3, columns = T::SIZE + 9;
  const unsigned ld = (width + T::PER_COPY - 1) / T::PER_COPY * T::PER_COPY;
  using Element = typename T::Element;
  auto x = floats(rows * width), w = floats(columns * width), y = floats(rows * columns);
  auto bias = floats(columns);
  std::vector<Element> packed_x(rows * ld), packed_w(columns * ld);
  std::vector<uint32_t> target = {0, columns - 1, 3, 4, 5};
  launch(pack, rows, 1, 1, 256, 0, PackParams{x.data(), nullptr, packed_x.data(), rows, width, ld, width});
  launch(pack, columns, 1, 1, 256, 0,
         PackParams{w.data(), nullptr, packed_w.data(), columns, width, ld, width});
  const size_t shared = TILE_STAGES * 2 * T::SIZE * T::PITCH * sizeof(Element);
  launch(gemm, 1, 2, 1, T::THREADS, shared,
         GemmParams{packed_x.data(), packed_w.data(), bias.data(), y.data(), rows, columns, ld, ld, ld, 1});
  const unsigned splits = 2;
  std::vector<NllPart> parts(splits * rows);
  auto logit = floats(rows), out = floats(rows);
  // Both tiles in one block too: copies then run on from one to the next.
  for (unsigned s = 1; s <= splits; s++)
    launch(nll, 1, s, 1, T::THREADS, shared,
           NllParams{packed_x.data(), packed_w.data(), target.data(), parts.data(), logit.data(), rows,
                     columns, ld, s});
  launch("nll_logits", rows, splits, 1, 256, 2048,
         NllLogitsParams{y.data(), target.data(), parts.data(), logit.data(), rows, columns, columns, splits});
  launch("nll_merge", 1, 1, 1, 256, 0, NllMergeParams{parts.data(), logit.data(), out.data(), y.data(), rows, splits});

  // The last tile's share of the gradients, ragged too.
  const unsigned count = columns - T::SIZE, out_ld = (count + T::PER_COPY - 1) / T::PER_COPY * T::PER_COPY;
  std::vector<Element> gradients(rows * out_ld), turned(columns * T::PER_COPY);
  launch(backward, 1, 1, 1, T::THREADS, shared,
         NllBwdParams{packed_x.data(), packed_w.data(), target.data(), y.data(), gradients.data(), rows, columns,
                      ld, T::SIZE, count, out_ld});
  launch(transpose, 1, (columns + 31) / 32, 1, 256, 32 * 33 * 4,
         TransposeParams{y.data(), turned.data(), rows, columns, T::PER_COPY, columns});
  const std::vector<RowSum> sums = {{0, 0, 2, 0}, {1, 2, 3, 0}};
  const std::vector<uint32_t> order = {0, 4, 1, 2, 3};
  launch("scatter_add", 2, 1, 1, 64, 0,
         ScatterParams{x.data(), sums.data(), order.data(), w.data(), width, 0});
}

void selection() {
  // The last segment is longer than what the block has in registers.
  auto scores = floats(1400);
  for (size_t i = 0; i < scores.size(); i += 3) scores[i] = 0.5f;
  std::vector<uint32_t> ids(1400), mask(1400), kept_ids(1400), kept_rows(1400), kept(3);
  const std::vector<Segment> segments = {{0, 150, 40, -1.0f}, {150, 50, 3, -2.0f}, {200, 1200, 0, 0.6f}};
  launch("topk", 3, 1, 1, 64, sizeof(Shared),
         TopkParams{scores.data(), ids.data(), segments.data(), mask.data(), kept_ids.data(),
                    kept_rows.data(), kept.data()});
  auto x = floats(1400 * 5), out = floats(1400 * 5);
  launch("gather", 7, 1, 1, 32, 0, GatherParams{x.data(), kept_rows.data(), kept.data(), out.data(), 5, 1});
}

void pruning() {
  // Two texts, of which one has two runs in its window and more keys than a block has in registers, and the
  // other has no window left.
  const unsigned capacity = 600, rows = 60, tile = 7, tiles = (rows + tile - 1) / tile;
  std::vector<uint32_t> ids(2 * capacity), from(2 * capacity);
  auto loss = floats(2 * capacity), nll = floats(2 * capacity), fresh = floats(2 * rows);
  const std::vector<PruneRun> runs = {{0.5, 12, 0}, {0.3, 18, 1}, {1.0, 30, 1}};
  std::vector<uint32_t> inputs(2 * rows), targets = inputs, positions = inputs, places = inputs;
  std::vector<AttentionTile> staged(2 * tiles);
  auto run = [&](const float *scores) {
    for (unsigned i = 0; i < 2 * capacity; i++) ids[i] = i, from[i] = i % capacity;
    // Each order of the launch continues where the one before stopped.
    std::vector<PruneText> texts = {{590, scores ? 20u : 0, scores ? 80u : 590, 80, 0, 3, 30, 0},
                                   {200, 0, 0, 30, 3, 3, 30, 0}};
    launch("prune", 2, 1, 1, 64, sizeof(Shared),
           PruneParams{ids.data(), from.data(), loss.data(), nll.data(), scores, texts.data(), runs.data(),
                      inputs.data(), targets.data(), positions.data(), places.data(), staged.data(), capacity,
                      rows, tile, 0});
  };
  run(nullptr);
  run(fresh.data());
}

void layers() {
  const unsigned rows = 3, width = 37, heads = 3, kv_heads = 1, d = 8, all = heads + 2 * kv_heads;
  auto x = floats(rows * width), y = floats(rows * width), weight = floats(width), table = floats(5 * 40);
  std::vector<uint32_t> ids = {4, 0, 4};
  std::vector<uint16_t> table_bf16(5 * 40);
  launch("embed_f32", rows, 1, 1, 64, 0, EmbedParams{ids.data(), table.data(), x.data(), rows, width, 40, 1});
  launch("embed_f32", rows, 1, 1, 64, 0, EmbedParams{ids.data(), table.data(), x.data(), rows, 36, 40, 1});
  launch("embed_bf16", rows, 1, 1, 64, 0,
         EmbedParams{ids.data(), table_bf16.data(), x.data(), rows, width, 40, 0});
  launch("embed_bf16", rows, 1, 1, 64, 0,
         EmbedParams{ids.data(), table_bf16.data(), x.data(), rows, 36, 40, 0});
  std::vector<uint16_t> packed(rows * 40);
  // By fours too, and with more columns than registers hold.
  for (unsigned columns : {width, 36u}) {
    launch("norm_rows", 2, 1, 1, 64, 0,
           NormParams{x.data(), weight.data(), weight.data(), y.data(), packed.data(), rows, columns, 1, 1e-5f});
    launch("norm_wide", rows, 1, 1, 64, 8,
           NormParams{x.data(), weight.data(), nullptr, y.data(), packed.data(), rows, columns, 0, 1e-5f});
  }
  auto wide = floats(2 * 2052), wide_weight = floats(2052);
  launch("norm_rows", 1, 1, 1, 64, 0,
         NormParams{wide.data(), wide_weight.data(), nullptr, wide.data(), nullptr, 2, 2052, 1, 1e-5f});
  auto qkv = floats(rows * all * d), angles = floats(rows * d), k = floats((rows + 2) * d), v = k;
  for (unsigned interleaved : {0u, 1u})
    launch("rotate", rows, 1, 1, 256, 0,
           RotateParams{qkv.data(), weight.data(), weight.data(), angles.data(), k.data(), v.data(), nullptr, rows,
                        heads, kv_heads, d, 2, 1e-5f, interleaved, 0});
  const std::vector<uint32_t> places = {4, NOWHERE, 0};
  launch("rotate", rows, 1, 1, 256, 0,
         RotateParams{qkv.data(), nullptr, nullptr, angles.data(), k.data(), v.data(), places.data(), rows,
                      heads, kv_heads, d, 0, 1e-5f, 0, 0});
  auto gates = floats(rows * 2 * width);
  launch("swiglu", rows, 1, 1, 64, 0, ActivateParams{gates.data(), y.data(), packed.data(), rows, width});
  launch("swiglu", rows, 1, 1, 64, 0, ActivateParams{gates.data(), y.data(), packed.data(), rows, 36});
  launch("geglu", rows, 1, 1, 64, 0, ActivateParams{gates.data(), y.data(), packed.data(), rows, width});
  launch("geglu", rows, 1, 1, 64, 0, ActivateParams{gates.data(), y.data(), packed.data(), rows, 36});
  launch("gelu", rows, 1, 1, 64, 0, ActivateParams{x.data(), y.data(), packed.data(), rows, width});
  launch("gelu", rows, 1, 1, 64, 0, ActivateParams{x.data(), y.data(), packed.data(), rows, 36});
  launch("gelu_erf", rows, 1, 1, 64, 0, ActivateParams{x.data(), y.data(), packed.data(), rows, width});
  launch("gelu_erf", rows, 1, 1, 64, 0, ActivateParams{x.data(), y.data(), packed.data(), rows, 36});

  auto dy = floats(rows * 2 * width), dx = dy;
  launch("norm_rows_bwd", rows, 1, 1, 64, 8,
         NormBwdParams{x.data(), weight.data(), dy.data(), dx.data(), width, 1, 1e-5f, 0});
  auto dqkv = qkv;
  for (unsigned interleaved : {0u, 1u})
    launch("rotate_bwd", rows, 1, 1, 256, 0,
           RotateBwdParams{qkv.data(), weight.data(), weight.data(), angles.data(), k.data(), v.data(), dqkv.data(),
                           rows, heads, kv_heads, d, 2, 1e-5f, interleaved, 0});
  launch("swiglu_bwd", rows, 1, 1, 64, 0, ActivateBwdParams{gates.data(), dy.data(), dx.data(), rows, width});
  launch("gelu_bwd", rows, 1, 1, 64, 0, ActivateBwdParams{x.data(), dy.data(), dx.data(), rows, width});
  launch("dropout", 2, 1, 1, 64, 0, DropoutParams{x.data(), y.data(), rows * width, 1u << 30, 1, 2, 1.3f, 1});
  std::vector<uint16_t> turned(40 * 8);
  launch("transpose_bf16", 1, 2, 1, 256, 32 * 33 * 4, TransposeParams{table_bf16.data(), turned.data(), 5, 40, 8, 40});
}

template <class T> void low_rank(const char *update, const char *gradient) {
  using Element = typename T::Element;
  // Every stage several times over, in both products; ragged, and ranks of two spans in one 16 bytes.
  const unsigned rows = 35, width = T::STEP * 4 + 8, ranks = 70, outputs = 2 * LORA_TILE + 9;
  const unsigned low_ld = 72, ld = 72;
  auto x = floats(rows * width), y = floats(rows * outputs), low = floats(2 * rows * low_ld);
  std::vector<Element> a(ranks * width), b(outputs * ld);
  const size_t low_bytes = LORA_ROWS * T::PITCH * sizeof(Element);
  const size_t stages =
      LORA_STAGES * (LORA_ROWS * T::X_PITCH * 4 + LORA_TILE * T::PITCH * sizeof(Element));
  const size_t shared = stages + (72 + T::STEP - 1) / T::STEP * low_bytes;
  LoraParams params = {x.data(), a.data(), b.data(), y.data(), low.data(),
                       {{0, width, 0, 66, 0, 2 * LORA_TILE}, {8, 30, 66, 4, 2 * LORA_TILE, 9}, {}},
                       rows, width, width, ld, outputs, low_ld, 2, LORA_TILE, 0, 1, width, 1u << 30, 1, 2, 1.3f, 1.3f};
  launch(update, 2, 3, 1, LORA_THREADS, shared, params);
  // All spans to the same columns.
  params.to_first_span = 1;
  params.spans[1].first = 0;
  params.spans[1].count = params.spans[0].count;
  params.drops = 2;
  params.run = 2 * LORA_TILE;
  launch(update, 2, 1, 1, LORA_THREADS, shared, params);
  params.run = 0;
  launch(update, 2, 1, 1, LORA_THREADS, stages, params);

  auto da = floats(66 * width), db = floats(5 * 4);
  const unsigned many = 4 * LORA_ROWS + 3;
  auto narrow = floats(many * low_ld), wide = floats(many * width);
  const LoraBwdParams gradients = {
      {{narrow.data(), wide.data(), da.data(), 66, width, width, 0, width, 0, 1, 0},
       {narrow.data(), wide.data(), db.data(), 4, width, 4, 7, 5, 1, 0, 0}, {}, {}, {}, {}},
      many, low_ld, width, 1u << 30, 1, 2, 1.3f, 0};
  launch(gradient, (width + LORA_WIDE - 1) / LORA_WIDE, 2, 1, LORA_THREADS,
         LORA_STAGES * LORA_ROWS * (LORA_NARROW_PITCH + LORA_WIDE_PITCH) * 4, gradients);
}

void attention(const char *kernel, unsigned threads, unsigned d, size_t shared) {
  const unsigned heads = 2, kv_heads = 1, prefix = 140, rows = 9, splits = 2;
  auto qkv = floats(rows * (heads + 2 * kv_heads) * d);
  auto k = floats((prefix + rows) * kv_heads * d), v = k;
  auto out = floats(rows * heads * d), parts = floats(splits * rows * heads * (d + 2));
  std::vector<uint16_t> packed(rows * heads * d);
  // Two sequences.
  const std::vector<AttentionTile> tiles = {{0, 5, prefix, 0, prefix, prefix + 5},
                                            {5, 4, prefix, 0, prefix + 5, prefix + 4}};
  // Causal, and with some keys ahead.
  for (unsigned ahead : {0u, 2u})
    for (unsigned s = 1; s <= splits; s++)
      launch(kernel, 2 * kv_heads, 1, s, threads, shared,
             AttentionParams{qkv.data(), k.data(), v.data(), tiles.data(), out.data(), parts.data(), nullptr,
                             packed.data(), rows, heads, kv_heads, d, prefix, s, 100, 0.3f, ahead, 0});
  launch("attention_merge", 3, 1, 1, 256, 0,
         AttentionMergeParams{parts.data(), out.data(), nullptr, packed.data(), rows, heads, d, splits});
}

void attention_backward(const char *of_queries, const char *of_keys, unsigned d) {
  const unsigned heads = 2, kv_heads = 1, prefix = 36, rows = 20;
  auto qkv = floats(rows * (heads + 2 * kv_heads) * d), dqkv = qkv;
  auto k = floats((prefix + rows) * kv_heads * d), v = k, dk = k, dv = k;
  auto out = floats(rows * heads * d), dout = out, lse = floats(rows * heads), delta = lse;
  // Two sequences after one prefix.
  const std::vector<AttentionTile> tiles = {{0, 12, prefix, 0, prefix, prefix + 12},
                                            {12, 8, prefix, 0, prefix + 12, prefix + 8}};
  const std::vector<KeyTile> keys = {{0, 32, 0, 2}, {32, 4, 2, 2}, {36, 12, 4, 1}, {48, 8, 5, 1}};
  const std::vector<Visit> visits = {{0, 0, 12, 0},  {0, 12, 8, 0},  {32, 0, 12, 0},
                                     {32, 12, 8, 0}, {36, 0, 12, 0}, {36, 12, 8, 0}};
  launch("attention_delta", 5, 1, 1, 256, 0,
         AttentionDeltaParams{out.data(), dout.data(), delta.data(), rows * heads, d});
  const AttentionBwdParams params = {qkv.data(),  k.data(),    v.data(),  lse.data(),   delta.data(),
                                     dout.data(), dqkv.data(), dk.data(), dv.data(),    tiles.data(),
                                     keys.data(), visits.data(), heads,   kv_heads,     d,
                                     prefix,      1,           0,         0.3f,         0};
  const size_t shared = 4 * 32 * (d | 1) * 4;
  launch(of_queries, 2, kv_heads, 1, 256, shared, params);
  launch(of_keys, 4, kv_heads, 1, 256, shared + 2 * 32 * 33 * 4, params);
}

} // namespace

[[maybe_unused]] void likelihoods_on_hopper() {
  // More steps than stages, two tiles of ids in one range, and the second block with fewer rows than a tile.
  const unsigned rows = 130, ld = 328, vocab = 300;
  const auto numbers = floats((rows + vocab) * ld);
  std::vector<uint16_t> x(rows * ld), w(vocab * ld);
  for (size_t i = 0; i < numbers.size(); i++) (i < x.size() ? x[i] : w[i - x.size()]) = to_bf16(numbers[i]);
  std::vector<uint32_t> target(rows, vocab - 1);
  std::vector<NllPart> parts(rows);
  std::vector<float> logit(rows);
  Nll90Params params{{}, {}, target.data(), parts.data(), logit.data(), rows, vocab, ld, 2, {}};
  auto map = [&](std::vector<uint16_t> &of) {
    alignas(64) TensorMap made;
    const uint64_t sides[2] = {ld, of.size() / ld}, strides[1] = {ld * 2};
    const unsigned box[2] = {NLL90_K, NLL90_ROWS}, steps[2] = {1, 1};
    if (cuda_emulator_tensor_map(&made, 9, 2, of.data(), sides, strides, box, steps, 0, 3, 3, 0)) exit(1);
    return made;
  };
  params.x = map(x);
  params.w = map(w);
  const unsigned grid[3] = {2, 1, 1}, cluster[3] = {NLL90_CLUSTER, 1, 1};
  for (int order : ORDERS) {
    char report[512];
    if (cuda_emulator_launch("nll90", &params, sizeof params, grid, cluster, NLL90_THREADS, NLL90_SHARED, order,
                             order % 2, 7, report, sizeof report)) {
      fprintf(stderr, "nll90: %s\n", report);
      exit(1);
    }
    launches++;
  }
}

int main(int argc, char **argv) {
  if (argc == 3) {
    auto x = floats(256), y = floats(64);
    launch(argv[1], 1, 1, 1, 64, 1024, PlantedParams{x.data(), y.data(), static_cast<unsigned>(atoi(argv[2])), 0});
    return 0;
  }
  products<F32>("gemm_f32", "nll_f32", "pack_f32", "nll_bwd_f32", "transpose_f32");
  products<Bf16>("gemm_bf16", "nll_bf16", "pack_bf16", "nll_bwd_bf16", "transpose_to_bf16");
  // Its threads share nothing but what copies write and matmuls read, which hopper.inc watches: to the thread
  // sanitizer only the twins' own lists would be shared.
#if !defined(__SANITIZE_THREAD__)
  likelihoods_on_hopper();
#endif
  selection();
  pruning();
  layers();
  low_rank<LoraF32>("lora_f32", "lora_bwd_f32");
  low_rank<LoraBf16>("lora_bf16", "lora_bwd_bf16");
  attention("attention_f32_64", 256, 6, 3 * 32 * 7 * 4);
  attention("attention_f32_256", 256, 66, 3 * 32 * 67 * 4);
  attention("attention_bf16_32", 128, 20, 64 * 32 * 12);
  attention("attention_bf16_64", 128, 64, 64 * 64 * 12);
  attention("attention_bf16_128", 128, 72, 64 * 128 * 12);
  attention_backward("attention_bwd_q_64", "attention_bwd_kv_64", 6);
  attention_backward("attention_bwd_q_128", "attention_bwd_kv_128", 66);
  printf("%d launches of all kernels\n", launches);
}
