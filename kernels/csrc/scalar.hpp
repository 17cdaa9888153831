// Element types and element-wise functions, written so that a loop over them vectorises: no branch, no call.
#pragma once

#include <cstdint>
#include <cstring>

#include "parallel.hpp"

namespace fastmpl {

struct bfloat16 {
  uint16_t bits;
};

FASTMPL_INLINE uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}

FASTMPL_INLINE float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

FASTMPL_INLINE float load(const float* p) { return *p; }
FASTMPL_INLINE float load(const bfloat16* p) { return float_of(uint32_t{p->bits} << 16); }

FASTMPL_INLINE void store(float* p, float x) { *p = x; }

// Rounds to nearest, ties to even; a NaN stays one (rounding its bits could carry into an infinity).
FASTMPL_INLINE void store(bfloat16* p, float x) {
  const uint32_t u = bits_of(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  p->bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

// Memory in words of 32 bits: a float, or two bfloat16 with the first in the low half. To split and join words needs no
// shuffle; to widen and narrow 16-bit elements does.
template <class X>
constexpr int kWays = 1;
template <>
constexpr int kWays<bfloat16> = 2;

FASTMPL_INLINE float load_word(const float* p, int word, int) { return p[word]; }
FASTMPL_INLINE float load_word(const bfloat16* p, int word, int way) {
  uint32_t u;
  std::memcpy(&u, p + 2 * word, sizeof u);
  return float_of(way == 0 ? u << 16 : u & 0xffff0000u);
}

// Rounds to nearest, ties to even, as `store` does, but a NaN with bits beyond bfloat16's could become a number. Arithmetic
// on bfloat16 and on canonical NaNs (see `canonical`) makes no such NaN, and a check would be a third of the work.
FASTMPL_INLINE uint32_t rounded(float x) {
  const uint32_t u = bits_of(x);
  return u + 0x7fffu + ((u >> 16) & 1u);
}

FASTMPL_INLINE void store_word(float* p, int word, float x, float) { p[word] = x; }
FASTMPL_INLINE void store_word(bfloat16* p, int word, float low, float high) {
  const uint32_t u = rounded(low) >> 16 | (rounded(high) & 0xffff0000u);
  std::memcpy(static_cast<void*>(p + 2 * word), &u, sizeof u);
}

FASTMPL_INLINE float canonical(float x) { return x != x ? float_of(0x7fc00000u) : x; }

// e^x to 1 ulp or so: 2^n e^r with |r| <= ln(2)/2 and a polynomial of degree 6 (Cephes' expf). 0 below -87.3 (no
// subnormals), infinity above 88.7, NaN for NaN.
FASTMPL_INLINE float exponential(float x) {
  float y = x < -87.3f ? -87.3f : x;
  y = y > 88.72f ? 88.72f : y;  // both comparisons are false for NaN, which flows through the polynomial
  const float shifted = y * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: the integer lands in the low bits
  const float n = shifted - 12582912.0f;
  const float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two factors, because n reaches 128 and the exponent's field ends at 127
  const uint32_t half = (bits_of(shifted) - 0x4b400000u);
  const int32_t whole = static_cast<int32_t>(half), low = whole >> 1, high = whole - low;
  p = p * float_of(static_cast<uint32_t>(low + 127) << 23) * float_of(static_cast<uint32_t>(high + 127) << 23);
  p = x < -87.3f ? 0.0f : p;
  return x > 88.72f ? float_of(0x7f800000u) : p;
}

FASTMPL_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

}  // namespace fastmpl
