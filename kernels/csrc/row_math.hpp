// What the row losses share: a row of logits as floats, whatever its type in memory, and passes over it.
//
// A row is first widened into a float buffer that is padded to whole vectors and stays in the first-level cache. So no pass
// over it has a tail, which at ten or a hundred classes would cost more than the rest. Only a row's last vector in memory
// is partial; it is read and written under a mask. Each pass is a plain loop that the compiler vectorises for the
// instruction set of the function it is inlined into; `omp simd` (-fopenmp-simd, no OpenMP at run time) allows it to
// reorder that one sum, which nothing else here allows.
#pragma once

#include <algorithm>
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

FASTMPL_INLINE void clear(float* x, int64_t columns) {
  std::memset(x, 0, static_cast<size_t>(padded(columns)) * sizeof(float));
}

// One value a lane. Reductions keep their lanes apart until the end and then fold them in halves: `omp simd reduction` adds
// them one after another, which for a short row takes longer than everything else.
struct Lanes {
  float of[LANES];
};

FASTMPL_INLINE Lanes lanes(float value) {
  Lanes all;
  for (int j = 0; j < LANES; ++j) all.of[j] = value;
  return all;
}

typedef float Quad __attribute__((vector_size(16)));  // the widest vector that every instruction set here has

FASTMPL_INLINE Quad add(Quad a, Quad b) { return a + b; }
FASTMPL_INLINE Quad larger(Quad a, Quad b) { return b > a ? b : a; }

template <class F>
FASTMPL_INLINE float fold(const Lanes& all, F f) {
  Quad q[4];
  std::memcpy(q, all.of, sizeof q);
  Quad one = f(f(q[0], q[1]), f(q[2], q[3]));
  one = f(one, __builtin_shufflevector(one, one, 2, 3, 0, 1));
  return f(one, __builtin_shufflevector(one, one, 1, 0, 3, 2))[0];
}

// The last vector of a row, of which `here` columns exist: a load and a store under a mask. The mask is made of numbers of
// the columns' own size, or it would take longer than the rest.
constexpr int16_t kNumber[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

FASTMPL_INLINE void load_part(const float* at, int32_t here, float padding, float* x) {
#pragma omp simd
  for (int32_t j = 0; j < LANES; ++j) x[j] = j < here ? at[j] : padding;
}

FASTMPL_INLINE void load_part(const bfloat16* at, int32_t here, float padding, float* x) {
  const int16_t count = static_cast<int16_t>(here);
  bfloat16 part[LANES], filler;
  store(&filler, padding);
#pragma omp simd
  for (int32_t j = 0; j < LANES; ++j) part[j].bits = kNumber[j] < count ? at[j].bits : filler.bits;
#pragma omp simd
  for (int32_t j = 0; j < LANES; ++j) x[j] = load(part + j);
}

FASTMPL_INLINE void store_part(float* at, int32_t here, const float* x) {
#pragma omp simd
  for (int32_t j = 0; j < LANES; ++j)
    if (j < here) at[j] = x[j];
}

FASTMPL_INLINE void store_part(bfloat16* at, int32_t here, const float* x) {
  const int16_t count = static_cast<int16_t>(here);
  bfloat16 part[LANES];
#pragma omp simd
  for (int32_t j = 0; j < LANES; ++j) store(part + j, x[j]);
#pragma omp simd
  for (int32_t j = 0; j < LANES; ++j)
    if (kNumber[j] < count) at[j].bits = part[j].bits;
}

// A row as floats, and `padding` in its padding.
template <class T>
FASTMPL_INLINE void widen(const T* row, int64_t columns, float padding, float* x) {
  const int64_t whole = columns / LANES * LANES;
#pragma omp simd
  for (int64_t c = 0; c < whole; ++c) x[c] = load(row + c);
  if (whole < columns) load_part(row + whole, static_cast<int32_t>(columns - whole), padding, x + whole);
}

FASTMPL_INLINE float maximum(const float* x, int64_t columns) {
  Lanes top = lanes(-INF);
  for (int64_t c = 0; c < columns; c += LANES)
#pragma omp simd
    for (int j = 0; j < LANES; ++j) top.of[j] = x[c + j] > top.of[j] ? x[c + j] : top.of[j];
  return fold(top, larger);
}

// The same with a padding of -inf, which no maximum sees and whose exponential is 0. Returns the maximum.
template <class T>
FASTMPL_INLINE float load_row(const T* row, int64_t columns, float* x) {
  widen(row, columns, -INF, x);
  return maximum(x, columns);
}

// Writes f(0), ..., f(columns - 1); f can be computed in the padding too.
template <class T, class F>
FASTMPL_INLINE void store_each(T* row, int64_t columns, F f) {
  const int64_t whole = columns / LANES * LANES;
#pragma omp simd
  for (int64_t c = 0; c < whole; ++c) store(row + c, f(c));
  if (whole == columns) return;
  float part[LANES];
#pragma omp simd
  for (int64_t j = 0; j < LANES; ++j) part[j] = f(whole + j);
  store_part(row + whole, static_cast<int32_t>(columns - whole), part);
}

template <class T>
FASTMPL_INLINE void store_row(T* row, int64_t columns, const float* x) {
  store_each(row, columns, [x](int64_t c) FASTMPL_ALWAYS { return x[c]; });
}

template <class T>
FASTMPL_INLINE void store_zeros(T* row, int64_t columns) {
  std::memset(static_cast<void*>(row), 0, static_cast<size_t>(columns) * sizeof(T));
}

// The first column that holds `value`; the last column where none does (a row of NaN), so that it is always a class.
FASTMPL_INLINE int64_t first(const float* x, int64_t columns, float value) {
  constexpr int64_t kRun = 8 * LANES;
  for (int64_t run = 0; run < columns; run += kRun) {
    const int32_t length = static_cast<int32_t>(std::min(kRun, padded(columns) - run));
    int32_t found = kRun;
#pragma omp simd reduction(min : found)
    for (int32_t c = 0; c < length; ++c) found = x[run + c] == value && c < found ? c : found;
    if (found < kRun) return std::min(run + found, columns - 1);
  }
  return columns - 1;
}

// out = e^((x - top) * scale), and its sum; 0 in the padding. `out` may be `x`.
FASTMPL_INLINE float exponentials(const float* x, int64_t columns, float top, float scale, float* out) {
  Lanes total = lanes(0.0f);
  for (int64_t c = 0; c < columns; c += LANES)
#pragma omp simd
    for (int j = 0; j < LANES; ++j) {
      out[c + j] = exponential_of_negative((x[c + j] - top) * scale);
      total.of[j] += out[c + j];
    }
  return fold(total, add);
}

// f(0) + ... + f(columns - 1); f can be computed in the padding too.
template <class F>
FASTMPL_INLINE float sum_each(int64_t columns, F f) {
  Lanes sum = lanes(0.0f);
  const int64_t whole = columns / LANES * LANES;
  for (int64_t c = 0; c < whole; c += LANES)
#pragma omp simd
    for (int j = 0; j < LANES; ++j) sum.of[j] += f(c + j);
  const int32_t here = static_cast<int32_t>(columns - whole);
  if (here != 0)
#pragma omp simd
    for (int32_t j = 0; j < LANES; ++j) {
      const float value = f(whole + j);
      sum.of[j] += j < here ? value : 0.0f;
    }
  return fold(sum, add);
}

FASTMPL_INLINE float total(const float* x, int64_t columns) {
  return sum_each(padded(columns), [x](int64_t c) FASTMPL_ALWAYS { return x[c]; });
}

FASTMPL_INLINE float dot(const float* x, const float* y, int64_t columns) {
  return sum_each(padded(columns), [x, y](int64_t c) FASTMPL_ALWAYS { return x[c] * y[c]; });
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
