// Mistakes, and the same without: tests that the runtime and the sanitizers find them.
//
// `which` picks one; 0 is always right. Blocks of 64 threads, 4 stages of 64 words of shared memory.
#include "../arch/copy.cuh"

typedef struct PlantedParams {
  const float *x; // [256]
  float *y;       // [64]
  unsigned which, unused;
} PlantedParams;

enum { RIGHT, DROPPED_BARRIER, PLAIN_INCREMENT, WEAK_WAIT, OUT_OF_BOUNDS, DIVERGENT_BARRIER, ABSENT_LANE,
       REUSED_STAGE, BEYOND_BUFFER };

// y[i] = x[63 - i], by way of shared memory.
KERNEL(planted_reverse, PlantedParams, 64) {
  DYNAMIC_SHARED(memory);
  auto words = reinterpret_cast<float *>(memory);
  const unsigned i = threadIdx.x;
  words[p.which == OUT_OF_BOUNDS ? i + 193 : i] = p.x[i];
  if (p.which != DROPPED_BARRIER && (p.which != DIVERGENT_BARRIER || i < 40)) __syncthreads();
  p.y[p.which == BEYOND_BUFFER ? i + 1 : i] = p.which == OUT_OF_BOUNDS ? 0.0f : words[63 - i];
}

// y[d] = how many threads count to d, of 4 counts each.
KERNEL(planted_histogram, PlantedParams, 64) {
  DYNAMIC_SHARED(memory);
  auto counts = reinterpret_cast<unsigned *>(memory);
  if (threadIdx.x < 4) counts[threadIdx.x] = 0;
  __syncthreads();
  for (unsigned i = 0; i < 4; i++) {
    if (p.which == PLAIN_INCREMENT) counts[(threadIdx.x + i) % 4] += 1;
    else atomicAdd(&counts[(threadIdx.x + i) % 4], 1u);
  }
  __syncthreads();
  if (threadIdx.x < 4) p.y[threadIdx.x] = static_cast<float>(counts[threadIdx.x]);
}

// y[i] = sum over four tiles of x, copied two tiles ahead into two stages.
KERNEL(planted_pipeline, PlantedParams, 64) {
  DYNAMIC_SHARED(memory);
  auto stages = reinterpret_cast<float *>(memory);
  auto copy = [&](unsigned tile) {
    if (tile < 4 && threadIdx.x < 16)
      copy_async_16(stages + tile % 2 * 64 + threadIdx.x * 4, p.x + tile * 64 + threadIdx.x * 4, 16);
    copy_commit();
  };
  copy(0);
  copy(1);
  float sum = 0.0f;
  for (unsigned tile = 0; tile < 4; tile++) {
    if (p.which == WEAK_WAIT) copy_wait<2>();
    else copy_wait<1>();
    __syncthreads();
    sum += stages[tile % 2 * 64 + 63 - threadIdx.x];
    // All have read the stage.
    if (p.which != REUSED_STAGE) __syncthreads();
    copy(tile + 2);
  }
  p.y[threadIdx.x] = sum;
}

// y[i] = x[i / 32 * 32], from the warp's first lane.
KERNEL(planted_shuffle, PlantedParams, 64) {
  const float v = p.x[threadIdx.x];
  if (p.which == ABSENT_LANE) {
    if (threadIdx.x % 32 >= 4) p.y[threadIdx.x] = __shfl_sync(0xfffffff0u, v, 0);
  } else {
    p.y[threadIdx.x] = __shfl_sync(FULL_WARP, v, 0);
  }
}
