// sm_90 alone: clusters of blocks, barriers in shared memory (mbarrier), copies of boxes by the tensor memory
// accelerator (TMA), and matmuls of a warpgroup of 128 threads (wgmma). On the host: cuda_emulator_sm90.h.
//
// Addresses of shared memory are 32-bit addresses of the shared window (`shared_address`). A box of 64 columns of bf16
// has rows of 128 bytes, of which the 16-byte pieces are permuted by the 128-byte swizzle: piece ^= row % 8, as bits
// of the address. A box begins at a multiple of 1024 bytes.
//
// A matmul's operands are both K-major boxes of that kind, described by matrix_descriptor; 16 columns further on are
// 32 bytes, which is 2 in the descriptor. Accumulators of a lane, with g = lane / 4 and t = lane % 4, of warp w of
// the warpgroup: d[4n], d[4n + 1] row 16w + g columns 8n + 2t, 8n + 2t + 1; d[4n + 2], d[4n + 3] row 16w + g + 8.
#pragma once
#include "../compat.cuh"

#if defined(__CUDACC__)

// Whether code for this architecture can have any of it.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER 1
#else
#define HOPPER 0
#endif

// A kernel in clusters of so many blocks, which the launch asks for; with so many registers a thread as it starts.
#define KERNEL_CLUSTER(name, Params, threads, blocks, registers) \
  extern "C" __global__ void __launch_bounds__(threads, 1) name(const __grid_constant__ Params p)
// A loop whose body stands once in the code.
#define ROLLED _Pragma("unroll 1")
// Dynamic shared memory for boxes.
#define SWIZZLED_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

#if HOPPER

DEVICE unsigned shared_address(const void *at) { return static_cast<unsigned>(__cvta_generic_to_shared(at)); }

// The block's number in its cluster.
DEVICE unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of all blocks of the cluster. Relaxed, as to release everything costs a fence of memory: what was
// written before is seen after only where a fence says so, such as barrier_init_done.
DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// Makes a barrier of 8 bytes that counts so many arrivals.
DEVICE void barrier_init(unsigned barrier, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// Barriers that this thread made can be used by the cluster and by copies, after a cluster_sync.
DEVICE void barrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives, and lets the phase wait for so many bytes of copies.
DEVICE void barrier_expect(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Waits for the end of the phase of this parity; the first has parity 0.
DEVICE void barrier_wait(unsigned barrier, unsigned parity) {
  asm volatile("{\n.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
               "@p bra DONE;\nbra WAIT;\nDONE:\n}" ::"r"(barrier), "r"(parity) : "memory");
}

// Arrives at the barrier of that block of the cluster. Without `.release.cluster`, which costs a fence of memory: who
// arrives has only read.
DEVICE void barrier_arrive(unsigned barrier, unsigned rank) {
  asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
               "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier), "r"(rank) : "memory");
}

// Copies the box whose first element is at that column and row; what lies outside of the matrix is zeros.
DEVICE void copy_box(unsigned to, const TensorMap *map, int column, int row, unsigned barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
               " [%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier) : "memory");
}

// The same to the same place in every block of the cluster whose bit is set, and to the barrier of each.
DEVICE void copy_box_to(unsigned short blocks, unsigned to, const TensorMap *map, int column, int row,
                        unsigned barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
               " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier),
               "h"(blocks) : "memory");
}

// What this thread wrote to shared memory is seen by copies and matmuls.
DEVICE void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Before the first matmul, and between an access to accumulators and the next matmul.
DEVICE void matmul_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends a group of matmuls.
DEVICE void matmul_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most `LEFT` groups are under way.
template <int LEFT> DEVICE void matmul_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
// Waits for all, after which these accumulators can be used: the compiler must not take them from before.
DEVICE void matmul_wait_all(float (&d)[128]) {
  matmul_wait<0>();
  UNROLL
  for (int i = 0; i < 128; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// A warpgroup: d [64, 256] = a [64, 16] · b [256, 16]ᵀ, plus d if `accumulate`.
DEVICE void matmul_64x256x16(float (&d)[128], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, p, 1, 1, 0, 0;\n}"
      : // clang-format off
        "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
        "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
        "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
        "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
        "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]),
        "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]),
        "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]),
        "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]),
        "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]),
        "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]),
        "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]),
        "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]),
        "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
        // clang-format on
      : "l"(a), "l"(b), "r"(accumulate));
}

// Of all four warps of a warpgroup: each thread has at most so many registers from here on, and others can have the rest.
template <int COUNT> DEVICE void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> DEVICE void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

#endif

#else

#include "cuda_emulator_sm90.h"
#define HOPPER 1
#define ROLLED

inline unsigned shared_address(const void *at) { return host::shared_address(at); }
inline unsigned cluster_rank() { return host::cluster_rank(); }
inline void cluster_sync(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
  host::cluster_barrier(file, line);
}
inline void barrier_init(unsigned barrier, unsigned count WHERE) { host::mbarrier_init(barrier, count, file, line); }
inline void barrier_init_done() { host::mbarrier_publish(); }
inline void barrier_expect(unsigned barrier, unsigned bytes WHERE) {
  host::mbarrier_expect(barrier, bytes, file, line);
}
inline void barrier_wait(unsigned barrier, unsigned parity WHERE) { host::mbarrier_wait(barrier, parity, file, line); }
inline void barrier_arrive(unsigned barrier, unsigned rank WHERE) { host::mbarrier_arrive(barrier, rank, file, line); }
inline void copy_box(unsigned to, const TensorMap *map, int column, int row, unsigned barrier WHERE) {
  host::tensor_copy(to, map, column, row, barrier, 1u << host::cluster_rank(), file, line);
}
inline void copy_box_to(unsigned short blocks, unsigned to, const TensorMap *map, int column, int row,
                        unsigned barrier WHERE) {
  host::tensor_copy(to, map, column, row, barrier, blocks, file, line);
}
inline void proxy_fence() { host::proxy_fence(); }
inline void matmul_fence(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
  host::wgmma_fence(file, line);
}
inline void matmul_commit(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
  host::wgmma_commit(file, line);
}
template <int LEFT> inline void matmul_wait(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
  host::wgmma_wait(LEFT, file, line);
}
inline void matmul_wait_all(float (&)[128] WHERE) { host::wgmma_wait(0, file, line); }
inline void matmul_64x256x16(float (&d)[128], uint64_t a, uint64_t b, int accumulate WHERE) {
  host::wgmma(d, 256, a, b, accumulate != 0, file, line);
}
template <int COUNT> inline void fewer_registers(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
  host::set_registers(COUNT, false, file, line);
}
template <int COUNT> inline void more_registers(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
  host::set_registers(COUNT, true, file, line);
}

#endif

// Describes rows of 128 bytes with the 128-byte swizzle, eight of them every 1024 bytes: start / 16, a leading stride
// that is not looked at, 1024 / 16, and 1 for the swizzle.
DEVICE constexpr uint64_t matrix_descriptor(unsigned shared) {
  return static_cast<uint64_t>((shared & 0x3ffff) >> 4) | static_cast<uint64_t>(1) << 16 |
         static_cast<uint64_t>(1024 >> 4) << 32 | static_cast<uint64_t>(1) << 62;
}
// As other libraries have it: the upper word for this layout, and 2 for 16 columns further on.
static_assert(matrix_descriptor(0x400) == 0x4000004000010040, "start, leading stride, stride, swizzle");
static_assert(matrix_descriptor(0x400 + 32) == matrix_descriptor(0x400) + 2, "16 columns of bf16");
