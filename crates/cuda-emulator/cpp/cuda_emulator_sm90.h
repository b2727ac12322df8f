// What sm_90 adds, for kernels compiled by a host compiler: see hopper.inc. Kernels wrap these functions beside
// their PTX; launches are in clusters of two blocks or more.
#pragma once
#include "cuda_emulator.h"

// A kernel in clusters of so many blocks, compiled for so many registers a thread.
#define KERNEL_CLUSTER(name, Params, threads, blocks, registers)                             \
  static void name(const Params &p);                                                         \
  static const host::Registered registered_##name(                                           \
      #name, sizeof(Params), threads,                                                        \
      [](const void *params) { name(*static_cast<const Params *>(params)); }, blocks, registers); \
  static void name(const Params &p)
#define SWIZZLED_SHARED(name) unsigned char *const name = host::shared_memory()

namespace host {

// Where a block's dynamic shared memory begins among its shared addresses: the system has the first of them.
constexpr unsigned SHARED_BASE = 1024;

unsigned shared_address(const void *at);
unsigned cluster_rank();
void cluster_barrier(const char *file, int line);

void mbarrier_init(unsigned barrier, unsigned count, const char *file, int line);
void mbarrier_publish();
void mbarrier_expect(unsigned barrier, unsigned bytes, const char *file, int line);
// At the barrier of that block of the cluster.
void mbarrier_arrive(unsigned barrier, unsigned rank, const char *file, int line);
void mbarrier_wait(unsigned barrier, unsigned parity, const char *file, int line);

// A box of a matrix to the same shared address of every block in `mask`, and its bytes to their barriers.
void tensor_copy(unsigned to, const void *map, int column, int row, unsigned barrier, unsigned mask,
                 const char *file, int line);
// What a thread wrote to shared memory is seen by copies and matmuls that start after.
void proxy_fence();

void wgmma_fence(const char *file, int line);
void wgmma(float *sums, unsigned columns, uint64_t a, uint64_t b, bool accumulate, const char *file, int line);
void wgmma_commit(const char *file, int line);
void wgmma_wait(unsigned left, const char *file, int line);

void set_registers(unsigned count, bool more, const char *file, int line);

} // namespace host
