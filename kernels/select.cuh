// The k-th largest of many scores by radix select, for kernels that choose (topk.cu, prune.cu).
//
// Floats become integers of the same order; four passes of eight bits count digits in shared memory and find,
// from the highest digit down, the one that the k-th largest has. -0 equals 0, and NaN is less than all others.
//
// A thread has eight keys in registers; what a block's registers do not hold is read again in each pass. A pass
// has one barrier, between counting and reading the counts: each has counters of its own, zeroed beforehand, and
// every warp finds the digit for itself from all 256, eight a lane. Nothing else is shared, and the result does
// not depend on the order of the counting.
#pragma once
#include "compat.cuh"

constexpr int DIGITS = 256, PASSES = 4;
constexpr int HELD = 8; // keys of a thread

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
  unsigned digits[PASSES][DIGITS];
  unsigned sums[2][32]; // a word per warp; by turns
};

// Item number j of this thread, of HELD · blockDim.x items from `base` on: a warp has HELD rows of 32, so that
// it reads and writes whole rows and its ballots count them in order.
DEVICE unsigned item(unsigned base, int j) {
  return base + threadIdx.x / 32 * (HELD * 32) + j * 32 + threadIdx.x % 32;
}

// The keys of `n` scores, the first of them in registers.
struct SegmentKeys {
  const float *scores;
  unsigned n;
  unsigned held[HELD];

  DEVICE void read(unsigned base, unsigned (&keys)[HELD]) const {
    UNROLL
    for (int j = 0; j < HELD; j++) {
      const unsigned i = item(base, j);
      keys[j] = i < n ? key_of(scores[i]) : 0;
    }
  }
  DEVICE SegmentKeys(const float *scores, unsigned n) : scores(scores), n(n) { read(0, held); }

  template <class Use> DEVICE void each(Use use) const {
    UNROLL
    for (int j = 0; j < HELD; j++)
      if (item(0, j) < n) use(held[j]);
    for (unsigned base = HELD * blockDim.x; base < n; base += HELD * blockDim.x) {
      unsigned keys[HELD];
      read(base, keys);
      UNROLL
      for (int j = 0; j < HELD; j++)
        if (item(base, j) < n) use(keys[j]);
    }
  }
};

// The sum of `v` over the warps before this one, `v` being the same in all lanes; `total` over all. One barrier;
// `sums` was last read before an earlier one.
DEVICE unsigned before(unsigned v, unsigned *sums, unsigned &total) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) sums[warp] = v;
  __syncthreads();
  const unsigned own = lane < blockDim.x / 32 ? sums[lane] : 0;
  unsigned inclusive = own;
  UNROLL
  for (int offset = 1; offset < 32; offset *= 2) {
    const unsigned other = __shfl_up_sync(FULL_WARP, inclusive, offset);
    if (lane >= static_cast<unsigned>(offset)) inclusive += other;
  }
  total = __shfl_sync(FULL_WARP, inclusive, 31);
  return __shfl_sync(FULL_WARP, inclusive - own, warp);
}

// The key of rank `rank` (0: the largest) among all, and in `above` how many are larger. A barrier stands
// between two calls.
DEVICE unsigned select(const SegmentKeys &keys, Shared *shared, unsigned rank, unsigned &above) {
  const unsigned lane = threadIdx.x % 32;
  for (unsigned i = threadIdx.x; i < PASSES * DIGITS; i += blockDim.x) shared->digits[0][i] = 0;
  __syncthreads();
  unsigned prefix = 0, known = 0; // the digits found, and their bits
  above = 0;
  for (int pass = 0; pass < PASSES; pass++) {
    const int shift = 24 - 8 * pass;
    unsigned *const digits = shared->digits[pass];
    keys.each([&](unsigned key) {
      if ((key & known) == prefix) atomicAdd(&digits[key >> shift & (DIGITS - 1)], 1u);
    });
    __syncthreads();
    // A lane takes eight digits, the largest first.
    const unsigned top = DIGITS - 1 - 8 * lane;
    unsigned count[8], sum = 0;
    UNROLL
    for (int i = 0; i < 8; i++) sum += count[i] = digits[top - i];
    unsigned inclusive = sum;
    UNROLL
    for (int offset = 1; offset < 32; offset *= 2) {
      const unsigned other = __shfl_up_sync(FULL_WARP, inclusive, offset);
      if (lane >= static_cast<unsigned>(offset)) inclusive += other;
    }
    unsigned larger = above + inclusive - sum, digit = 0, at = 0;
    bool here = false;
    UNROLL
    for (int i = 0; i < 8; i++) {
      if (larger <= rank && rank < larger + count[i]) {
        here = true;
        digit = top - i;
        at = larger;
      }
      larger += count[i];
    }
    const int who = __ffs(__ballot_sync(FULL_WARP, here)) - 1;
    prefix |= __shfl_sync(FULL_WARP, digit, who) << shift;
    above = __shfl_sync(FULL_WARP, at, who);
    known |= (DIGITS - 1u) << shift;
  }
  return prefix;
}
