// bf16 <-> f32 and the fast exponential. A bf16 is a uint16_t: the upper half of a f32.
#pragma once
#include "../compat.cuh"

DEVICE float bf16_to_float(uint16_t v) { return float_of(static_cast<unsigned>(v) << 16); }

#if defined(__CUDACC__)

// Two floats, rounded to nearest even; `low` comes first in memory.
DEVICE unsigned to_bf16x2(float low, float high) {
  unsigned out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}

// 2^x, flushing denormals; 2^-inf is 0.
DEVICE float exp2_fast(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

#else

inline unsigned round_to_bf16(float v) {
  const unsigned bits = bits_of(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
  return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

inline unsigned to_bf16x2(float low, float high) {
  return round_to_bf16(low) | round_to_bf16(high) << 16;
}

inline float exp2_fast(float x) { return exp2f(x); }

#endif

// Four bf16 that are written at once.
struct alignas(8) FourBf16 {
  unsigned low, high;
};

DEVICE uint16_t to_bf16(float v) { return static_cast<uint16_t>(to_bf16x2(v, 0.0f)); }
