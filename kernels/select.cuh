// The k-th largest of many scores by radix select, for kernels that choose (topk.cu, prune.cu).
//
// Floats become integers of the same order; three passes of 11, 11 and 10 bits count digits in shared
// memory and find, from the highest digit down, the one that the k-th largest has. -0 equals 0, and NaN is
// less than all others. Keys stay in shared memory as far as they fit; the others are read again.
#pragma once
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
  // The next sums are written when all threads have read these.
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
