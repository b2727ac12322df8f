// What the parts of the stand-in for NVIDIA's driver share. See cuda.cpp for what it is and which rules it keeps.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <functional>
#include <string>

// The codes of cuda.h that the stand-in gives.
enum {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_READY = 600,
  ILLEGAL_ADDRESS = 700,
  CONTEXT_IS_DESTROYED = 709,
  LAUNCH_FAILED = 719,
  NOT_SUPPORTED = 801,
  CAPTURE_UNSUPPORTED = 900,
  CAPTURE_INVALIDATED = 901,
  CAPTURE_UNMATCHED = 903,
  CAPTURE_UNJOINED = 904,
  CAPTURE_IMPLICIT = 906,
  CAPTURED_EVENT = 907,
  CAPTURE_WRONG_THREAD = 908,
  INVALID_CLUSTER_SIZE = 912,
};

// The devices' memory: memory.cpp. Every piece has pages of its own, at addresses that are never given again: before
// it is there and after it is gone they cannot be touched. What is beside it in its pages is a guard.
namespace memory {

// An address for `size` bytes; its pages come with `appear`. 0: no address is left.
uint64_t reserve(int device, size_t size);
// Execution reaches the allocation: the piece is full of 0xff.
void appear(uint64_t address);
// Calls may not use it from now on; false if it is not a piece of that device, or given up already.
bool give_up(int device, uint64_t address);
// Execution reaches the free. False if its guards are damaged.
bool vanish(uint64_t address);
// Whether calls may use these bytes: within one piece of the device that is not given up.
bool usable(int device, uint64_t address, size_t size);
// Bytes of the piece at this very address.
size_t size_of(uint64_t address);
// A piece of the device whose guards are damaged, in words.
std::string damaged(int device);
// Pieces of a device that are not given up.
size_t pieces(int device);
// Whether an address is of the range that all pieces come from.
bool ours(uint64_t address);
// Runs `work`, which touches device memory. False if it touched what is not there; `where` is the address.
bool guarded(const std::function<void()> &work, uint64_t *where);

} // namespace memory

// For the other libraries of the stand-in.
#define SHARED extern "C" __attribute__((visibility("default")))

// Says where the kernels are; -1 if they cannot be loaded.
SHARED int stand_in_kernels(const char *path);

namespace stand_in {

// Work for a stream, which gives a code when it is executed. A capturing stream records it instead.
__attribute__((visibility("default"))) int enqueue(void *stream, const char *what, std::function<int()> work);
// A rule was broken, on the device whose context the calling thread has.
__attribute__((visibility("default"))) void complain(const std::string &what);
// Counts objects of a kind, to say at the end what is left of them.
__attribute__((visibility("default"))) void alive(const char *kind, int more);
// Counts what was done.
__attribute__((visibility("default"))) void count(const char *what);
// The code with which this call of a function shall fail, or 0. Every function asks it first.
__attribute__((visibility("default"))) int fault(const char *function);
// The device of the calling thread's context, or -1.
__attribute__((visibility("default"))) int current_device();
__attribute__((visibility("default"))) bool usable(uint64_t address, size_t size);
// Runs work that touches a device's memory; the code for a wrong address.
__attribute__((visibility("default"))) int touch(int device, const char *what, const std::function<void()> &work);

} // namespace stand_in
