// Asynchronous copies from global to shared memory (cp.async, sm_80 and later).
//
// A thread's copies are seen by itself after copy_wait and by others after a barrier that follows it.
// On the host a copy lands at once or as late as copy_wait allows, as the launch says: each finds
// other mistakes.
#pragma once
#include "../compat.cuh"

#if defined(__CUDACC__)

// 16 bytes, both sides aligned to 16; from `valid` (0 to 16) on zeros instead of what `from` holds.
DEVICE void copy_async_16(void *to, const void *from, unsigned valid) {
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(valid)
               : "memory");
}

// Ends a group of copies.
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `LEFT` groups of this thread are under way.
template <int LEFT> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

#else

inline void copy_async_16(void *to, const void *from, unsigned valid WHERE) {
  host::copy_async(to, from, 16, valid, file, line);
}
inline void copy_commit() { host::copy_commit(); }
template <int LEFT> inline void copy_wait() { host::copy_wait(LEFT); }

#endif
