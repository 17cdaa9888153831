// What the row losses share: a row of logits in 16 float lanes, whatever its type in memory.
//
// A row is first widened into a float buffer padded to whole vectors (it fits the first-level cache), so that no pass
// over it has a tail. Lanes are a compiler's vector type rather than a hint to vectorise: sums keep one order on every
// instruction set, and reassociation need not be allowed anywhere.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "scalar.hpp"

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed to functions that are always inlined

namespace fastmpl {

constexpr int64_t LANES = 16;
constexpr float INF = std::numeric_limits<float>::infinity();
using Floats = float __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using Shorts = uint16_t __attribute__((vector_size(32)));
using Longs = int64_t __attribute__((vector_size(64)));  // half of the lanes

FASTMPL_INLINE int64_t padded(int64_t columns) { return (columns + LANES - 1) / LANES * LANES; }

FASTMPL_INLINE Floats all(float x) { return Floats{} + x; }

template <class V, class T>
FASTMPL_INLINE V read(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V, class T>
FASTMPL_INLINE void write(T* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

FASTMPL_INLINE float sum(Floats v) {
  float lane[LANES];
  write(lane, v);
  for (int64_t width = LANES / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

// e^x for x <= 0 to 1 ulp or so: 2^n e^r, |r| <= ln(2)/2, polynomial of degree 6 (Cephes' expf). 0 below -87.3.
FASTMPL_INLINE Floats exponential(Floats x) {
  const Floats y = x < -87.3f ? all(-87.3f) : x;
  const Floats shifted = y * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: the integer lands in the low bits
  const Floats n = shifted - 12582912.0f;
  const Floats r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Ints exponent = (reinterpret_cast<Ints>(shifted) - 0x4b400000 + 127) << 23;
  return x < -87.3f ? all(0.0f) : p * reinterpret_cast<Floats>(exponent);
}

FASTMPL_INLINE Floats widen(const float* p) { return read<Floats>(p); }
FASTMPL_INLINE Floats widen(const bfloat16* p) {
  using Words = uint32_t __attribute__((vector_size(64)));
  return reinterpret_cast<Floats>(__builtin_convertvector(read<Shorts>(p), Words) << 16);
}

FASTMPL_INLINE void narrow(float* p, Floats v) { write(p, v); }
// Rounds to nearest, ties to even; a NaN stays one.
FASTMPL_INLINE void narrow(bfloat16* p, Floats v) {
  using Words = uint32_t __attribute__((vector_size(64)));
  const Words u = reinterpret_cast<Words>(v);
  const Words rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  write(p, __builtin_convertvector(v != v ? Words{} + 0x7fc0u : rounded, Shorts));
}

// Sets the padding of a row.
FASTMPL_INLINE void pad(float* x, int64_t columns, float value) {
  for (int64_t c = columns; c < padded(columns); ++c) x[c] = value;
}

FASTMPL_INLINE void clear(float* x, int64_t columns) {
  std::memset(x, 0, static_cast<size_t>(padded(columns)) * sizeof(float));
}

// A row as floats; the padding is -inf, which no maximum sees and whose exponential is 0.
template <class T>
FASTMPL_INLINE void load_row(const T* row, int64_t columns, float* x) {
  int64_t c = 0;
  for (; c + LANES <= columns; c += LANES) write(x + c, widen(row + c));
  for (; c < columns; ++c) x[c] = load(row + c);
  pad(x, columns, -INF);
}

template <class T>
FASTMPL_INLINE void store_row(T* row, int64_t columns, const float* x) {
  int64_t c = 0;
  for (; c + LANES <= columns; c += LANES) narrow(row + c, read<Floats>(x + c));
  for (; c < columns; ++c) store(row + c, x[c]);
}

template <class T>
FASTMPL_INLINE void store_zeros(T* row, int64_t columns) {
  std::memset(row, 0, static_cast<size_t>(columns) * sizeof(T));
}

FASTMPL_INLINE float maximum(const float* x, int64_t columns) {
  Floats best = read<Floats>(x);
  for (int64_t c = LANES; c < columns; c += LANES) {
    const Floats v = read<Floats>(x + c);
    best = v > best ? v : best;
  }
  float top = best[0];
  for (int64_t i = 1; i < LANES; ++i) top = best[i] > top ? best[i] : top;
  return top;
}

// The first column that holds `value`; the last column where none does (a row of NaN), so that it is always a class.
FASTMPL_INLINE int64_t first(const float* x, int64_t columns, float value) {
  for (int64_t c = 0; c < columns; c += 4 * LANES) {
    Ints found = {};
    for (int64_t d = c; d < c + 4 * LANES && d < columns; d += LANES) found |= read<Floats>(x + d) == value;
    const Longs half = reinterpret_cast<Longs>(found);
    int64_t any = 0;
    for (int64_t i = 0; i < LANES / 2; ++i) any |= half[i];
    if (any == 0) continue;
    for (int64_t d = c; d < columns; ++d)
      if (x[d] == value) return d;
  }
  return columns - 1;
}

// out = e^((x - top) * scale), and its sum; 0 in the padding. `out` may be `x`.
FASTMPL_INLINE float exponentials(const float* x, int64_t columns, float top, float scale, float* out) {
  Floats total = {};
  for (int64_t c = 0; c < columns; c += LANES) {
    const Floats e = exponential((read<Floats>(x + c) - top) * scale);
    write(out + c, e);
    total += e;
  }
  return sum(total);
}

// x -= top, with 0 in the padding: products with it are then 0, not -inf * 0.
FASTMPL_INLINE void shift(float* x, int64_t columns, float top) {
  for (int64_t c = 0; c < columns; c += LANES) write(x + c, read<Floats>(x + c) - top);
  pad(x, columns, 0.0f);
}

FASTMPL_INLINE float dot(const float* x, const float* y, int64_t columns) {
  Floats total = {};
  for (int64_t c = 0; c < columns; c += LANES) total += read<Floats>(x + c) * read<Floats>(y + c);
  return sum(total);
}

FASTMPL_INLINE float total(const float* x, int64_t columns) {
  Floats lanes = {};
  for (int64_t c = 0; c < columns; c += LANES) lanes += read<Floats>(x + c);
  return sum(lanes);
}

// The sum of the rows' values over their number, in double and in the rows' order.
FASTMPL_INLINE float mean(const float* value, int64_t rows) {
  double total = 0.0;
  for (int64_t row = 0; row < rows; ++row) total += value[row];
  return static_cast<float>(total / static_cast<double>(rows));
}

// Rows a thread takes at least: about 30 microseconds of work, far above the price of waking it.
FASTMPL_INLINE int64_t rows_per_thread(int64_t columns) { return 1 + 32768 / columns; }

}  // namespace fastmpl
