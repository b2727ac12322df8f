// Token selection: the k largest scores of each segment, or those above a percentile; the mask; the
// kept ids and their indices, together and in order. Scores stay on the device, and so does the choice.
//
// One block per segment, any number of segments in a launch. Radix select (select.cuh) finds the k-th
// largest. Then one pass in the order of the indices marks and moves: whatever is larger than the k-th is
// kept, and of its equals the first ones, so that the lowest index wins a tie and the result is the same
// on every machine.
//
// Up to 8192 scores stay in registers, eight a thread; of longer segments the others are read again, five or six
// times in all. Bytes: 4 in, 4 to 12 out per score; up to 4 shared atomics per score. Below some ten thousand scores
// it is bound by latency: two dependent reads of memory and six barriers. A far longer segment is bound by the
// one SM that has it.
#include "select.cuh"

// Shared memory: sizeof(Shared) bytes.
KERNEL(topk, TopkParams, 1024) {
  DYNAMIC_SHARED(memory);
  auto shared = reinterpret_cast<Shared *>(memory);
  const Segment segment = p.segments[blockIdx.x];
  const unsigned n = segment.len, lane = threadIdx.x % 32;
  const SegmentKeys keys(p.scores + segment.first, n);

  // Keep what is larger than `limit`, and the first `equals` of those that equal it.
  unsigned limit = ~0u, equals = 0;
  const bool percentile = segment.quantile >= 0.0f, beyond = segment.quantile < -1.0f;
  const unsigned count = min_of(segment.count, n);
  if (n > 0 && (percentile || beyond || count > 0)) {
    // The percentile lies between the order statistics on both sides; ranks count from the largest. What
    // equals it is dropped.
    const double at = percentile ? static_cast<double>(segment.quantile) * (n - 1) : 0.0;
    const unsigned lower = min_of(static_cast<unsigned>(at), n - 1);
    const unsigned rank = percentile ? n - 1 - lower : beyond ? min_of(count, n - 1) : count - 1;
    unsigned above;
    limit = select(keys, shared, rank, above);
    if (percentile) {
      unsigned high = limit;
      if (rank > 0 && rank == above) {
        // The next larger one: the least of those above.
        high = ~0u;
        keys.each([&](unsigned key) { high = key > limit ? min_of(high, key) : high; });
        UNROLL
        for (int offset = 16; offset > 0; offset >>= 1) high = min_of(high, __shfl_xor_sync(FULL_WARP, high, offset));
        // The other sums are for the first round below.
        unsigned *const sums = shared->sums[1];
        if (lane == 0) sums[threadIdx.x / 32] = high;
        __syncthreads();
        for (unsigned i = 0; i < blockDim.x / 32; i++) high = min_of(high, sums[i]);
      }
      const double a = value_of(limit), b = value_of(high);
      limit = key_of(static_cast<float>(a + (b - a) * (at - lower)));
    } else if (!beyond) {
      equals = count - above;
    }
  }

  unsigned larger = 0, equal = 0, turn = 0;
  auto mark = [&](unsigned base, const unsigned (&of)[HELD]) {
    unsigned is_larger[HELD], is_equal[HELD], ids[HELD], counts = 0;
    UNROLL
    for (int j = 0; j < HELD; j++) {
      const unsigned i = item(base, j);
      is_larger[j] = __ballot_sync(FULL_WARP, i < n && of[j] > limit);
      is_equal[j] = __ballot_sync(FULL_WARP, i < n && of[j] == limit);
      // Both in one word: a block has at most 8192 of them.
      counts += __popc(is_larger[j]) << 16 | __popc(is_equal[j]);
      ids[j] = i < n ? p.ids[segment.first + i] : 0;
    }
    unsigned total;
    const unsigned sums = before(counts, shared->sums[turn], total);
    turn ^= 1;
    const unsigned earlier = (1u << lane) - 1;
    unsigned larger_before = larger + (sums >> 16), equal_before = equal + (sums & 0xffffu);
    UNROLL
    for (int j = 0; j < HELD; j++) {
      const unsigned i = item(base, j), at = segment.first + i;
      const unsigned same = equal_before + __popc(is_equal[j] & earlier);
      const bool keep = (is_larger[j] >> lane & 1) || ((is_equal[j] >> lane & 1) && same < equals);
      const unsigned to = segment.first + larger_before + __popc(is_larger[j] & earlier) + min_of(same, equals);
      if (i < n) p.mask[at] = keep ? 1 : 0;
      if (keep) {
        p.kept_ids[to] = ids[j];
        p.kept_rows[to] = at;
      }
      larger_before += __popc(is_larger[j]);
      equal_before += __popc(is_equal[j]);
    }
    larger += total >> 16;
    equal += total & 0xffffu;
  };
  mark(0, keys.held);
  for (unsigned base = HELD * blockDim.x; base < n; base += HELD * blockDim.x) {
    unsigned of[HELD];
    keys.read(base, of);
    mark(base, of);
  }
  if (threadIdx.x == 0) p.kept[blockIdx.x] = larger + min_of(equal, equals);
}

// Kept rows of a KV cache, moved together into another buffer; how many is known to the device only.
// Grid: any; a block takes every gridDim.x-th row.
KERNEL(gather, GatherParams, 256) {
  const unsigned count = *p.count;
  for (unsigned i = blockIdx.x; i < count; i += gridDim.x) {
    const float *from = p.x + static_cast<size_t>(p.rows[i]) * p.width;
    float *to = p.out + (static_cast<size_t>(p.to) + i) * p.width;
    for (unsigned k = threadIdx.x; k < p.width; k += blockDim.x) to[k] = from[k];
  }
}
