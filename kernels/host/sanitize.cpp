// Runs every kernel at small shapes, for the address and the thread sanitizer: no argument. Or one
// planted mistake, which they must find: `kernel which`. See tools/sanitize.sh.
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "library.cu"
#include "planted.cu"

extern "C" int prefold_launch(const char *, const void *, size_t, const unsigned *, unsigned, size_t, int,
                              int, uint64_t, char *, size_t);

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
    const unsigned grid[3] = {x, y, z};
    char report[512];
    if (prefold_launch(kernel, &params, sizeof params, grid, threads, shared, order, order % 2, 7, report,
                       sizeof report)) {
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

template <class T> void products(const char *gemm, const char *nll, const char *pack) {
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
  launch(gemm, 1, 2, 1, TILE_THREADS, shared,
         GemmParams{packed_x.data(), packed_w.data(), bias.data(), y.data(), rows, columns, ld, 1});
  const unsigned splits = 2;
  std::vector<NllPart> parts(splits * rows);
  auto logit = floats(rows), out = floats(rows);
  // Both tiles in one block too: copies then run on from one to the next.
  for (unsigned s = 1; s <= splits; s++)
    launch(nll, 1, s, 1, TILE_THREADS, shared,
           NllParams{packed_x.data(), packed_w.data(), target.data(), parts.data(), logit.data(), rows,
                     columns, ld, s});
  launch("nll_logits", rows, splits, 1, 256, 2048,
         NllLogitsParams{y.data(), target.data(), parts.data(), logit.data(), rows, columns, columns, splits});
  launch("nll_merge", 1, 1, 1, 256, 0, NllMergeParams{parts.data(), logit.data(), out.data(), rows, splits});
}

void selection() {
  auto scores = floats(400);
  for (size_t i = 0; i < scores.size(); i += 3) scores[i] = 0.5f;
  std::vector<uint32_t> ids(400), mask(400), kept_ids(400), kept_rows(400), kept(3);
  const std::vector<Segment> segments = {{0, 150, 40, -1.0f}, {150, 0, 3, -1.0f}, {150, 250, 0, 0.6f}};
  const unsigned cached = 200;
  launch("topk", 3, 1, 1, 64, sizeof(Shared) + 4 * cached,
         TopkParams{scores.data(), ids.data(), segments.data(), mask.data(), kept_ids.data(),
                    kept_rows.data(), kept.data(), cached, 0});
  auto x = floats(400 * 5), out = floats(400 * 5);
  launch("gather", 7, 1, 1, 32, 0, GatherParams{x.data(), kept_rows.data(), kept.data(), out.data(), 5, 1});
}

void layers() {
  const unsigned rows = 3, width = 37, heads = 3, kv_heads = 1, d = 8, all = heads + 2 * kv_heads;
  auto x = floats(rows * width), y = floats(rows * width), weight = floats(width), table = floats(5 * 40);
  std::vector<uint32_t> ids = {4, 0, 4};
  std::vector<uint16_t> table_bf16(5 * 40);
  launch("embed_f32", rows, 1, 1, 64, 0, EmbedParams{ids.data(), table.data(), x.data(), rows, width, 40, 1});
  launch("embed_bf16", rows, 1, 1, 64, 0,
         EmbedParams{ids.data(), table_bf16.data(), x.data(), rows, width, 40, 0});
  launch("norm_rows", rows, 1, 1, 64, 8,
         NormParams{x.data(), weight.data(), weight.data(), y.data(), width, 1, 1e-5f, 0});
  auto qkv = floats(rows * all * d), angles = floats(rows * d), k = floats((rows + 2) * d), v = k;
  launch("rotate", rows, 1, 1, 256, 0,
         RotateParams{qkv.data(), weight.data(), weight.data(), angles.data(), k.data(), v.data(), rows, heads,
                      kv_heads, d, 2, 1e-5f});
  auto gates = floats(rows * 2 * width);
  launch("swiglu", rows, 1, 1, 64, 0, ActivateParams{gates.data(), y.data(), rows, width});
  launch("gelu", rows, 1, 1, 64, 0, ActivateParams{x.data(), y.data(), rows, width});
}

void attention(const char *kernel, unsigned threads, unsigned d, size_t shared) {
  const unsigned heads = 2, kv_heads = 1, prefix = 140, rows = 9, splits = 2;
  auto qkv = floats(rows * (heads + 2 * kv_heads) * d);
  auto k = floats((prefix + rows) * kv_heads * d), v = k;
  auto out = floats(rows * heads * d), parts = floats(splits * rows * heads * (d + 2));
  // Two sequences.
  const std::vector<AttentionTile> tiles = {{0, 5, prefix, prefix}, {5, 4, prefix, prefix + 5}};
  for (unsigned s = 1; s <= splits; s++)
    launch(kernel, 2, kv_heads, s, threads, shared,
           AttentionParams{qkv.data(), k.data(), v.data(), tiles.data(), out.data(), parts.data(), rows, heads,
                           kv_heads, d, prefix, s, 100, 0.3f});
  launch("attention_merge", 3, 1, 1, 256, 0,
         AttentionMergeParams{parts.data(), out.data(), rows, heads, d, splits});
}

} // namespace

int main(int argc, char **argv) {
  if (argc == 3) {
    auto x = floats(256), y = floats(64);
    launch(argv[1], 1, 1, 1, 64, 1024, PlantedParams{x.data(), y.data(), static_cast<unsigned>(atoi(argv[2])), 0});
    return 0;
  }
  products<F32>("gemm_f32", "nll_f32", "pack_f32");
  products<Bf16>("gemm_bf16", "nll_bf16", "pack_bf16");
  selection();
  layers();
  attention("attention_f32_64", 256, 6, 3 * 32 * 7 * 4);
  attention("attention_f32_256", 256, 66, 3 * 32 * 67 * 4);
  attention("attention_bf16_32", 128, 20, 64 * 32 * 12);
  attention("attention_bf16_64", 128, 64, 64 * 64 * 12);
  attention("attention_bf16_128", 128, 72, 64 * 128 * 12);
  printf("%d launches of all kernels\n", launches);
}
