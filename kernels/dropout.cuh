// Which elements dropout drops: a function of their index, as in src/ops/layer.rs, so that no mask is
// stored and every device drops the same. There are fewer than 2^32 (`Dropout::check`).
#pragma once
#include "compat.cuh"

// A permutation of the 32-bit numbers that scatters neighbours (MurmurHash3's last step).
DEVICE unsigned mix(unsigned h) {
  h ^= h >> 16;
  h *= 0x85ebca6bu;
  h ^= h >> 13;
  h *= 0xc2b2ae35u;
  return h ^ h >> 16;
}

// Of any Params with a threshold and a seed.
template <class P> DEVICE bool keeps(const P &p, unsigned index) {
  return mix(mix(index ^ p.seed_low) ^ p.seed_high) >= p.threshold;
}
