// CUDA's threads as fibers, for kernels compiled by a host compiler. See runtime.cpp.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define DEVICE inline
#define UNROLL
#define __restrict__ __restrict
#define KERNEL(name, Params, threads)                                                        \
  static void name(const Params &p);                                                         \
  static const host::Registered registered_##name(                                           \
      #name, sizeof(Params), threads,                                                        \
      [](const void *params) { name(*static_cast<const Params *>(params)); });               \
  static void name(const Params &p)
#define KERNEL_BLOCKS(name, Params, threads, blocks) KERNEL(name, Params, threads)
#define DYNAMIC_SHARED(name) unsigned char *const name = host::shared_memory()
#define WHERE , const char *file = __builtin_FILE(), int line = __builtin_LINE()

constexpr unsigned FULL_WARP = 0xffffffffu;

inline unsigned bits_of(float v) {
  unsigned bits;
  memcpy(&bits, &v, sizeof bits);
  return bits;
}
inline float float_of(unsigned bits) {
  float v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

namespace host {

struct Index {
  unsigned x, y, z;
};

// Reads what lanes hand each other in registers: no race, though the thread sanitizer would say so.
#define QUIET __attribute__((no_sanitize("thread")))

// A kernel by its name.
struct Registered {
  const char *name;
  size_t params;
  unsigned threads;
  void (*run)(const void *);
  // Blocks of its clusters, 0 for any number, and registers of a thread at the launch, for what asks for them.
  unsigned cluster, registers;
  const char *file;
  const Registered *next;
  Registered(const char *name, size_t params, unsigned threads, void (*run)(const void *), unsigned cluster = 0,
             unsigned registers = 0, const char *file = __builtin_FILE());
};

// Of the running fiber. Not `thread_local`, which would cost a call at every use.
#define TLS __thread __attribute__((tls_model("initial-exec")))
extern TLS Index thread_index, block_index, block_size, grid_size;

unsigned char *shared_memory();
void barrier(const char *file, int line);
// All lanes of `mask` come here with their payloads, in whatever order; the last one's call computes
// for all of them from `lanes[lane]`.
void collective(const char *what, unsigned mask, void *payload, void (*compute)(void **lanes),
                const char *file, int line);
// The same, and what a lane wrote before is seen by the others after.
void warp_barrier(unsigned mask, const char *file, int line);
void copy_async(void *to, const void *from, unsigned bytes, unsigned valid, const char *file, int line);
void copy_commit();
void copy_wait(unsigned left);
// Ends the launch with a report.
[[noreturn]] void fail(const char *what, const char *file, int line);

template <class T> struct Shuffle {
  T value, out;
  int from;
};

template <class T> QUIET inline void shuffle(void **lanes) {
  for (int lane = 0; lane < 32; lane++) {
    if (!lanes[lane]) continue;
    auto &me = *static_cast<Shuffle<T> *>(lanes[lane]);
    if (lanes[me.from]) me.out = static_cast<Shuffle<T> *>(lanes[me.from])->value;
    else me.from = -1;
  }
}

template <class T>
inline T shuffle(unsigned mask, T value, int from, const char *file, int line) {
  Shuffle<T> me{value, value, from};
  collective("shuffle", mask, &me, shuffle<T>, file, line);
  if (me.from < 0) fail("a shuffle reads a lane that is not in its mask", file, line);
  return me.out;
}

struct Ballot {
  bool vote;
  unsigned out;
};

QUIET inline void ballot(void **lanes) {
  unsigned votes = 0;
  for (int lane = 0; lane < 32; lane++)
    if (lanes[lane] && static_cast<Ballot *>(lanes[lane])->vote) votes |= 1u << lane;
  for (int lane = 0; lane < 32; lane++)
    if (lanes[lane]) static_cast<Ballot *>(lanes[lane])->out = votes;
}

} // namespace host

#define threadIdx host::thread_index
#define blockIdx host::block_index
#define blockDim host::block_size
#define gridDim host::grid_size

inline int lane_of_this() { return static_cast<int>(host::thread_index.x % 32); }

inline void barrier_at(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
  host::barrier(file, line);
}
#define __syncthreads barrier_at

inline void __syncwarp(unsigned mask = FULL_WARP WHERE) { host::warp_barrier(mask, file, line); }

template <class T> inline T __shfl_sync(unsigned mask, T value, int lane WHERE) {
  return host::shuffle(mask, value, lane & 31, file, line);
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int bits WHERE) {
  return host::shuffle(mask, value, lane_of_this() ^ bits, file, line);
}
template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned delta WHERE) {
  const int lane = lane_of_this(), from = lane - static_cast<int>(delta);
  return host::shuffle(mask, value, from < 0 ? lane : from, file, line);
}
template <class T> inline T __shfl_down_sync(unsigned mask, T value, unsigned delta WHERE) {
  const int lane = lane_of_this(), from = lane + static_cast<int>(delta);
  return host::shuffle(mask, value, from > 31 ? lane : from, file, line);
}
inline unsigned __ballot_sync(unsigned mask, bool vote WHERE) {
  host::Ballot me{vote, 0};
  host::collective("ballot", mask, &me, host::ballot, file, line);
  return me.out;
}
inline bool __any_sync(unsigned mask, bool vote WHERE) {
  host::Ballot me{vote, 0};
  host::collective("any", mask, &me, host::ballot, file, line);
  return me.out != 0;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(unsigned v) { return __builtin_ffs(static_cast<int>(v)); }

// Atomic for the thread sanitizer's sake: fibers are switched elsewhere only.
inline unsigned atomicAdd(unsigned *at, unsigned v) {
  return __atomic_fetch_add(at, v, __ATOMIC_RELAXED);
}
