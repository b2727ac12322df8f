// Token selection: the k largest scores of each segment, or those above a percentile; the mask; the
// kept ids and their indices, together and in order. Scores stay on the device, and so does the choice.
//
// One block per segment, any number of segments in a launch. Radix select (select.cuh) finds the k-th
// largest. Then one pass in the order of the indices marks and moves: whatever is larger than the k-th is
// kept, and of its equals the first ones, so that the lowest index wins a tie and the result is the same
// on every machine.
//
// SegmentKeys stay in shared memory if the segment fits (`cached` of them); longer ones are read again.
// Bytes: 4 in, 4 to 12 out per score; 3 shared atomics per score. Below some ten thousand scores it
// is bound by latency: about 25 barriers. -0 equals 0, and NaN is less than all others.
#include "select.cuh"

// Shared memory: sizeof(Shared) + 4 · cached bytes.
KERNEL(topk, TopkParams, 1024) {
  DYNAMIC_SHARED(memory);
  auto shared = reinterpret_cast<Shared *>(memory);
  const Segment segment = p.segments[blockIdx.x];
  const unsigned n = segment.len;
  const SegmentKeys keys = {p.scores + segment.first, shared, least(p.cached, n)};
  for (unsigned i = threadIdx.x; i < keys.cached; i += blockDim.x)
    shared->keys[i] = key_of(keys.scores[i]);
  __syncthreads();

  // Keep what is larger than `limit`, and the first `equals` of those that equal it.
  unsigned limit = 0, equals = 0;
  if (n == 0) {
    limit = ~0u;
  } else if (segment.quantile < -1.0f) {
    unsigned above;
    limit = select(keys, n, least(segment.count, n - 1), above);
  } else if (segment.quantile < 0.0f) {
    const unsigned count = least(segment.count, n);
    if (count == 0) {
      limit = ~0u;
    } else {
      unsigned above;
      limit = select(keys, n, count - 1, above);
      equals = count - above;
    }
  } else {
    // Between the order statistics on both sides; ranks count from the largest. What equals the
    // percentile is dropped.
    const double at = static_cast<double>(segment.quantile) * (n - 1);
    const unsigned lower = least(static_cast<unsigned>(at), n - 1), upper = least(lower + 1, n - 1);
    unsigned above;
    const unsigned low = select(keys, n, n - 1 - lower, above);
    const unsigned high = upper == lower ? low : select(keys, n, n - 1 - upper, above);
    const double a = value_of(low), b = value_of(high);
    limit = key_of(static_cast<float>(a + (b - a) * (at - lower)));
  }

  unsigned kept = 0, equal = 0;
  for (unsigned base = 0; base < n; base += blockDim.x) {
    const unsigned i = base + threadIdx.x;
    const unsigned key = i < n ? keys[i] : 0;
    const bool larger = i < n && key > limit, same = i < n && key == limit;
    // Both counts in one word: a block has at most 1024 threads.
    unsigned total;
    const unsigned sums = before((larger ? 1u << 16 : 0) | (same ? 1u : 0), shared, total);
    const unsigned same_before = equal + (sums & 0xffffu);
    const bool keep = larger || (same && same_before < equals);
    const unsigned to = kept + (sums >> 16) + least(same_before, equals) - least(equal, equals);
    if (i < n) {
      const unsigned at = segment.first + i;
      p.mask[at] = keep ? 1 : 0;
      if (keep) {
        p.kept_ids[segment.first + to] = p.ids[at];
        p.kept_rows[segment.first + to] = at;
      }
    }
    const unsigned taken = least(equal + (total & 0xffffu), equals) - least(equal, equals);
    kept += (total >> 16) + taken;
    equal += total & 0xffffu;
  }
  if (threadIdx.x == 0) p.kept[blockIdx.x] = kept;
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
