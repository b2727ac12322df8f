// y[i] = x[63 - i] by way of shared memory, and the same with faults that must be found.
#if defined(__CUDACC__)
#define KERNEL(name, Params, threads) \
  extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Params p)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#else
#include "cuda_emulator.h"
#endif

struct ReverseParams {
  const float *x; // [64]
  float *y;       // [64]
  unsigned fault, unused;
};

enum { RIGHT, NO_BARRIER, DIVERGENT_BARRIER, PAST_THE_END };

KERNEL(reverse, ReverseParams, 64) {
  DYNAMIC_SHARED(memory);
  float *const row = reinterpret_cast<float *>(memory);
  const unsigned i = threadIdx.x;
  row[i] = p.x[i];
  if (p.fault == DIVERGENT_BARRIER ? i < 40 : p.fault != NO_BARRIER) __syncthreads();
  p.y[p.fault == PAST_THE_END ? i + 1 : i] = row[63 - i];
}
