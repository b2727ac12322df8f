// Between two passes of texts that lose tokens window by window (LLMLingua, algorithm 2): everything
// that depends on scores, so that the host need not know them to launch what follows.
//
// One block per text. It takes in the nll of what was just read; judges the window's runs one after the
// other, each against a threshold over all that is left of the text (radix select, select.cuh); drops what
// falls below it, together and in order; and stages the next pass: ids, targets, positions, places in
// the cache, tiles of attention. What is kept of a window is read again, now without what was dropped, in
// front of the next one. So a pass has at most a window's rows more than are new, whatever was kept:
// grids are made for that bound, the rows of a text begin at its front, and those that are too many stand
// at its end, where no other row sees them; they have no tile and no place in the cache.
//
// A token is judged by the nll of the token after it, as in the reference, and the last one by the first
// nll of all. Bytes: some 40 per token, most of it in the second-level cache; bound by latency: some ten
// barriers a run and one for every 8192 tokens that move. Shared memory: sizeof(Shared) bytes.
#include "select.cuh"

// The key that a token of `n` scores must exceed.
DEVICE unsigned threshold(const float *scores, Shared *shared, unsigned n, double ratio) {
  if (n == 0 || ratio == 1.0) return key_of(-INFINITE);
  const double at = n * ratio;
  const unsigned count = at >= n ? n : at >= 1.0 ? static_cast<unsigned>(at) : 1;
  unsigned above;
  return select(SegmentKeys(scores, n), shared, count - 1, above);
}

KERNEL_BLOCKS(prune, PruneParams, 1024, 1) {
  DYNAMIC_SHARED(memory);
  auto shared = reinterpret_cast<Shared *>(memory);
  const size_t first = static_cast<size_t>(blockIdx.x) * p.capacity;
  const size_t first_row = static_cast<size_t>(blockIdx.x) * p.rows;
  unsigned *const ids = p.ids + first, *const from = p.from + first;
  float *const loss = p.loss + first, *const nll = p.nll + first;
  const unsigned lane = threadIdx.x % 32;
  PruneText text = p.texts[blockIdx.x];
  // All have read it before it is written.
  __syncthreads();

  if (text.run < text.runs) {
    for (unsigned at = text.past + threadIdx.x; at + 1 < text.read; at += blockDim.x) {
      if (p.fresh) loss[at] = p.fresh[first_row + at - text.past];
      nll[from[at + 1]] = loss[at];
    }
    // A token that has moved up to the front has the nll of its place.
    if (threadIdx.x == 0 && text.past > 0) nll[from[text.past]] = loss[text.past - 1];
    __syncthreads();
    unsigned end = text.end;
    for (bool last = false; !last; text.run++) {
      const PruneRun run = p.runs[text.run];
      last = run.last;
      const unsigned n = text.left - min_of(text.left, 1u);
      const unsigned begin = end - text.size, stop = begin + run.tokens;
      const unsigned limit = threshold(loss, shared, n, run.ratio);
      const bool last_stays = n > 0 && loss[0] > 0.0f;
      // All have read the first nll before it may move, and what they counted.
      __syncthreads();
      // After the window all stay, and move up by what was dropped.
      unsigned dropped = 0, turn = 0;
      for (unsigned base = begin; base < text.left && (base < stop || dropped > 0); base += HELD * blockDim.x) {
        unsigned id[HELD], place[HELD], stay[HELD], count = 0;
        float score[HELD];
        UNROLL
        for (int j = 0; j < HELD; j++) {
          const unsigned i = item(base, j);
          const bool here = i < text.left;
          id[j] = here ? ids[i] : 0;
          place[j] = here ? from[i] : 0;
          score[j] = i < n ? loss[i] : 0.0f;
          stay[j] = __ballot_sync(FULL_WARP, here && (i >= stop || (i < n ? key_of(score[j]) > limit : last_stays)));
          count += __popc(stay[j]);
        }
        unsigned total;
        // The barrier in it stands between this round's reads and its writes, which reach no later round's.
        unsigned to = base - dropped + before(count, shared->sums[turn], total);
        turn ^= 1;
        UNROLL
        for (int j = 0; j < HELD; j++) {
          if (stay[j] >> lane & 1) {
            const unsigned at = to + __popc(stay[j] & ((1u << lane) - 1));
            ids[at] = id[j];
            from[at] = place[j];
            if (item(base, j) < n) loss[at] = score[j];
          }
          to += __popc(stay[j]);
        }
        dropped += min_of(HELD * blockDim.x, text.left - base) - total;
      }
      __syncthreads();
      text.left -= dropped;
      end = stop - dropped + text.size;
    }
    // The first pass is of the whole text, and nothing of it stays in the cache.
    text.past = p.fresh ? text.end - text.size : 0;
    text.read = text.end = end;
    if (threadIdx.x == 0) p.texts[blockIdx.x] = text;
  }

  const unsigned rows = text.run < text.runs ? min_of(text.read - text.past, p.rows) : 0;
  for (unsigned row = threadIdx.x; row < p.rows; row += blockDim.x) {
    const bool here = row < rows;
    const unsigned at = text.past + row;
    p.inputs[first_row + row] = here ? ids[at] : 0;
    p.targets[first_row + row] = row + 1 < rows ? ids[at + 1] : 0;
    p.positions[first_row + row] = here ? at : 0;
    p.places[first_row + row] = here ? static_cast<unsigned>(first) + at : NOWHERE;
  }
  const unsigned tiles = (p.rows + p.tile - 1) / p.tile;
  for (unsigned i = threadIdx.x; i < tiles; i += blockDim.x) {
    const unsigned row = i * p.tile, count = row < rows ? min_of(p.tile, rows - row) : 0;
    // A row of the cache is a position here, counted from the text's first.
    const unsigned position = count ? text.past + row : 0;
    p.tiles[blockIdx.x * tiles + i] = {static_cast<unsigned>(first_row) + row, count, position, 0,
                                       static_cast<unsigned>(first), position + count};
  }
}
