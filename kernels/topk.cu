// Token selection: the k largest scores of each segment, or those above a percentile; the mask; the
// kept ids and their indices, together and in order. Scores stay on the device, and so does the choice.
//
// One block per segment, any number of segments in a launch. Radix select: floats become integers of
// the same order; three passes of 11, 11 and 10 bits count digits in shared memory and find, from the
// highest digit down, the one that the k-th largest has. Then one pass in the order of the indices
// marks and moves: whatever is larger than the k-th is kept, and of its equals the first ones, so that
// the lowest index wins a tie and the result is the same on every machine.
//
// SegmentKeys stay in shared memory if the segment fits (`cached` of them); longer ones are read again.
// Bytes: 4 in, 4 to 12 out per score; 3 shared atomics per score. Below some ten thousand scores it
// is bound by latency: about 25 barriers. -0 equals 0, and NaN is less than all others.
#include "compat.cuh"

constexpr int DIGITS = 2048;

DEVICE unsigned key_of(float v) {
  if (v != v) return 0;
  const unsigned bits = bits_of(v + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

DEVICE float value_of(unsigned key) {
  if (key == 0) return float_of(0x7fc00000u);
  return float_of(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

struct Shared {
  unsigned digits[DIGITS];
  unsigned warps[32];
  unsigned prefix, rank;
  unsigned keys[1]; // `cached`
};

struct SegmentKeys {
  const float *scores;
  Shared *shared;
  unsigned cached;
  DEVICE unsigned operator[](unsigned i) const {
    return i < cached ? shared->keys[i] : key_of(scores[i]);
  }
};

// The sum of `v` over all threads before this one; `total` over all. Two barriers.
DEVICE unsigned before(unsigned v, Shared *shared, unsigned &total) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned inclusive = v;
  UNROLL
  for (int offset = 1; offset < 32; offset *= 2) {
    const unsigned other = __shfl_up_sync(FULL_WARP, inclusive, offset);
    if (lane >= static_cast<unsigned>(offset)) inclusive += other;
  }
  if (lane == 31) shared->warps[warp] = inclusive;
  __syncthreads();
  unsigned sum = 0;
  total = 0;
  for (unsigned i = 0; i < blockDim.x / 32; i++) {
    if (i == warp) sum = total;
    total += shared->warps[i];
  }
  // Nobody writes the next sums before all have read these.
  __syncthreads();
  return sum + inclusive - v;
}

// The key of rank `rank` (0: the largest) among n, and in `above` how many are larger.
DEVICE unsigned select(SegmentKeys keys, unsigned n, unsigned rank, unsigned &above) {
  Shared *shared = keys.shared;
  unsigned prefix = 0, known = 0; // the digits found, and their bits
  above = 0;
  for (int shift = 21; shift >= 0; shift = shift == 21 ? 10 : shift - 10) {
    const unsigned bits = shift == 0 ? 10 : 11, size = 1u << bits;
    for (unsigned i = threadIdx.x; i < size; i += blockDim.x) shared->digits[i] = 0;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
      const unsigned key = keys[i];
      if ((key & known) == prefix) atomicAdd(&shared->digits[key >> shift & (size - 1)], 1u);
    }
    __syncthreads();
    // Each thread takes a run of digits, the largest first.
    const unsigned run = (size + blockDim.x - 1) / blockDim.x;
    const unsigned start = least(threadIdx.x * run, size), end = least(start + run, size);
    unsigned count = 0, total;
    for (unsigned i = start; i < end; i++) count += shared->digits[size - 1 - i];
    unsigned larger = above + before(count, shared, total);
    for (unsigned i = start; i < end; i++) {
      const unsigned here = shared->digits[size - 1 - i];
      if (larger <= rank && rank < larger + here) {
        shared->prefix = prefix | (size - 1 - i) << shift;
        shared->rank = larger;
      }
      larger += here;
    }
    __syncthreads();
    prefix = shared->prefix;
    above = shared->rank;
    known |= (size - 1) << shift;
  }
  __syncthreads();
  return prefix;
}

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
