// Tensor cores: m16n8k16, bf16 in, f32 sums (sm_80 and later), and the loads that feed them.
//
// Fragments, with g = lane / 4 and t = lane % 4:
//   A 16x16: a[0] row g cols 2t..; a[1] row g+8; a[2] row g cols 2t+8..; a[3] row g+8 cols 2t+8..
//   B 16x8 (k by n): b[0] k 2t.. of column g; b[1] k 2t+8.. of column g
//   C 16x8: c[0], c[1] row g cols 2t, 2t+1; c[2], c[3] row g+8
#pragma once
#include "../compat.cuh"
#include "convert.cuh"

#if defined(__CUDACC__)

// Four 8x8 matrices of 16-bit elements: lanes 0-7 give the rows of the first, 8-15 of the second …
// and a lane gets elements 2t, 2t+1 of row g of each.
DEVICE void load_matrix_x4(unsigned (&out)[4], const void *row) {
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared)
               : "memory");
}

// The same, each matrix transposed.
DEVICE void load_matrix_x4_transposed(unsigned (&out)[4], const void *row) {
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared)
               : "memory");
}

// c += a · b
DEVICE void mma_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#else

namespace host {

struct LoadMatrix {
  const uint16_t *row;
  bool transposed;
  unsigned out[4];
};

QUIET inline void load_matrix(void **lanes) {
  for (int matrix = 0; matrix < 4; matrix++) {
    for (int lane = 0; lane < 32; lane++) {
      auto &me = *static_cast<LoadMatrix *>(lanes[lane]);
      const int g = lane / 4, t = lane % 4;
      unsigned pair[2];
      for (int i = 0; i < 2; i++) {
        const int row = me.transposed ? 2 * t + i : g;
        const int column = me.transposed ? g : 2 * t + i;
        pair[i] = static_cast<LoadMatrix *>(lanes[matrix * 8 + row])->row[column];
      }
      me.out[matrix] = pair[0] | pair[1] << 16;
    }
  }
}

struct Mma {
  float *c;
  unsigned a[4], b[2];
};

inline float half_of(unsigned pair, int i) { return float_of(i ? pair & 0xffff0000u : pair << 16); }

QUIET inline void mma(void **lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; lane++) {
    const auto &me = *static_cast<Mma *>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 2; i++) {
      a[g][2 * t + i] = half_of(me.a[0], i);
      a[g + 8][2 * t + i] = half_of(me.a[1], i);
      a[g][2 * t + 8 + i] = half_of(me.a[2], i);
      a[g + 8][2 * t + 8 + i] = half_of(me.a[3], i);
      b[2 * t + i][g] = half_of(me.b[0], i);
      b[2 * t + 8 + i][g] = half_of(me.b[1], i);
    }
  }
  float c[16][8] = {};
  for (int row = 0; row < 16; row++)
    for (int k = 0; k < 16; k++)
      for (int column = 0; column < 8; column++) c[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < 32; lane++) {
    float *out = static_cast<Mma *>(lanes[lane])->c;
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 2; i++) {
      out[i] += c[g][2 * t + i];
      out[2 + i] += c[g + 8][2 * t + i];
    }
  }
}

inline void load_matrix_x4(unsigned (&out)[4], const void *row, bool transposed, const char *file,
                           int line) {
  LoadMatrix me{static_cast<const uint16_t *>(row), transposed, {}};
  collective("ldmatrix", FULL_WARP, &me, load_matrix, file, line);
  for (int i = 0; i < 4; i++) out[i] = me.out[i];
}

} // namespace host

inline void load_matrix_x4(unsigned (&out)[4], const void *row WHERE) {
  host::load_matrix_x4(out, row, false, file, line);
}

inline void load_matrix_x4_transposed(unsigned (&out)[4], const void *row WHERE) {
  host::load_matrix_x4(out, row, true, file, line);
}

inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1 WHERE) {
  host::Mma me{c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  host::collective("mma", FULL_WARP, &me, host::mma, file, line);
}

#endif
