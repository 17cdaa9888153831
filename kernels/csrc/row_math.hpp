// What the row losses share: a row of logits as floats, whatever its type in memory, and passes over it.
//
// A row is first widened into a float buffer padded to whole vectors (it stays in the first-level cache), so that no
// pass over it has a tail. Each pass is a plain loop that the compiler vectorises for the instruction set of the
// function it is inlined into; `omp simd` (-fopenmp-simd, no OpenMP at run time) allows it to reorder that one sum,
// which nothing else here allows.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "scalar.hpp"

namespace fastmpl {

constexpr int64_t LANES = 16;
constexpr float INF = std::numeric_limits<float>::infinity();

FASTMPL_INLINE int64_t padded(int64_t columns) { return (columns + LANES - 1) / LANES * LANES; }

// e^x for x <= 0 to 1 ulp or so: 2^n e^r, |r| <= ln(2)/2, polynomial of degree 6 (Cephes' expf). 0 below -87.3.
FASTMPL_INLINE float exponential_of_negative(float x) {
  const float y = x < -87.3f ? -87.3f : x;
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
  p *= float_of((bits_of(shifted) - 0x4b400000u + 127u) << 23);
  return x < -87.3f ? 0.0f : p;
}

// Sets the padding of a row.
FASTMPL_INLINE void pad(float* x, int64_t columns, float value) {
  for (int64_t c = columns; c < padded(columns); ++c) x[c] = value;
}

FASTMPL_INLINE void clear(float* x, int64_t columns) {
  std::memset(x, 0, static_cast<size_t>(padded(columns)) * sizeof(float));
}

// A row as floats; the padding is -inf, which no maximum sees and whose exponential is 0. Returns the maximum.
template <class T>
FASTMPL_INLINE float load_row(const T* row, int64_t columns, float* x) {
  float top = -INF;
#pragma omp simd reduction(max : top)
  for (int64_t c = 0; c < columns; ++c) {
    x[c] = load(row + c);
    top = x[c] > top ? x[c] : top;
  }
  pad(x, columns, -INF);
  return top;
}

template <class T>
FASTMPL_INLINE void store_row(T* row, int64_t columns, const float* x) {
#pragma omp simd
  for (int64_t c = 0; c < columns; ++c) store(row + c, x[c]);
}

template <class T>
FASTMPL_INLINE void store_zeros(T* row, int64_t columns) {
  std::memset(static_cast<void*>(row), 0, static_cast<size_t>(columns) * sizeof(T));
}

FASTMPL_INLINE float maximum(const float* x, int64_t columns) {
  float top = -INF;
#pragma omp simd reduction(max : top)
  for (int64_t c = 0; c < padded(columns); ++c) top = x[c] > top ? x[c] : top;
  return top;
}

// The first column that holds `value`; the last column where none does (a row of NaN), so that it is always a class.
FASTMPL_INLINE int64_t first(const float* x, int64_t columns, float value) {
  for (int64_t block = 0; block < columns; block += 8 * LANES) {
    const int64_t end = block + 8 * LANES < columns ? block + 8 * LANES : columns;
    int32_t found = 0;
#pragma omp simd reduction(| : found)
    for (int64_t c = block; c < end; ++c) found |= x[c] == value;
    for (int64_t c = block; found && c < end; ++c)
      if (x[c] == value) return c;
  }
  return columns - 1;
}

// out = e^((x - top) * scale), and its sum; 0 in the padding. `out` may be `x`.
FASTMPL_INLINE float exponentials(const float* x, int64_t columns, float top, float scale, float* out) {
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int64_t c = 0; c < padded(columns); ++c) {
    out[c] = exponential_of_negative((x[c] - top) * scale);
    total += out[c];
  }
  return total;
}

FASTMPL_INLINE float total(const float* x, int64_t columns) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < padded(columns); ++c) sum += x[c];
  return sum;
}

FASTMPL_INLINE float dot(const float* x, const float* y, int64_t columns) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < padded(columns); ++c) sum += x[c] * y[c];
  return sum;
}

// The sum of the rows' values over their number, in double and in the rows' order.
FASTMPL_INLINE float mean(const float* value, int64_t rows) {
  double sum = 0.0;
  for (int64_t row = 0; row < rows; ++row) sum += value[row];
  return static_cast<float>(sum / static_cast<double>(rows));
}

// Rows a thread takes at least: tens of microseconds of work, far above the price of waking it.
FASTMPL_INLINE int64_t rows_per_thread(int64_t columns) { return 1 + 32768 / columns; }

}  // namespace fastmpl
