// The only place that asks "nvcc or host C++?".
//
// For nvcc a kernel is what CUDA knows. For a host compiler the same text is an ordinary function
// whose threads are fibers: threadIdx, barriers, warp collectives and atomics come from
// cuda_emulator.h. Differences of language are hidden by the macros below.
#pragma once
#include "abi.h"

#if defined(__CUDACC__)

// KERNEL(name, Params, threads) { body; `p` is the Params }
#define KERNEL(name, Params, threads) \
  extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Params p)
// The same where so many blocks of it shall fit a multiprocessor: a cap on registers, and leave to use them.
#define KERNEL_BLOCKS(name, Params, threads, blocks) \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params p)
#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
// Dynamic shared memory, the only kind here: its size is the launch's and a host can bound it exactly.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
// Where a collective was called: known to nvcc's tools anyway.
#define WHERE

constexpr unsigned FULL_WARP = 0xffffffffu;
DEVICE unsigned bits_of(float v) { return __float_as_uint(v); }
DEVICE float float_of(unsigned v) { return __uint_as_float(v); }

#else

#include "cuda_emulator.h"

#endif

// Both.
#define INFINITE (float_of(0x7f800000u))
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

struct alignas(16) Float4 {
  float x, y, z, w;
};
struct alignas(8) Float2 {
  float x, y;
};

template <class T> DEVICE T min_of(T a, T b) { return b < a ? b : a; }
template <class T> DEVICE T max_of(T a, T b) { return a < b ? b : a; }

DEVICE float warp_sum(float v) {
  UNROLL
  for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(FULL_WARP, v, offset);
  return v;
}

DEVICE float warp_max(float v) {
  UNROLL
  for (int offset = 16; offset > 0; offset >>= 1) v = max_of(v, __shfl_xor_sync(FULL_WARP, v, offset));
  return v;
}
