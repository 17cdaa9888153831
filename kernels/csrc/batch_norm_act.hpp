// The loops of batch norm with activation over tiles of a channels-last matrix (see columns.hpp).
//
//   z = w (x - mean) rstd + b + residual,   y = act(z)
//
// z is computed again from x in every pass that needs it. The accumulators and tables of a tile are local arrays of
// constant length: the compiler keeps them in registers, for each instruction set. Passes that sum run from the last block
// to the first and passes that write from the first to the last, so that each begins with what the cache still holds: of
// the layer before, and of the pass before.
#pragma once

#include "activation.hpp"
#include "columns.hpp"

namespace fastmpl {
namespace {

// Constants of each column: z = centred * scale + offset + residual with centred = x - mean, and the derivatives
// d * scale + centred * slant + level for an incoming derivative d.
struct Tables {
  std::vector<float> mean, scale, offset, slant, level;
};

// What the passes read and write. `in` is dy or the tangent of x, `residual_in` the residual's tangent.
template <class X>
struct Views {
  const X *x, *in, *residual, *residual_in;
  X *out, *residual_out;

  FASTMPL_INLINE Views at(int64_t i) const {  // null pointers are never read, so they may move too
    return {x + i, in + i, residual + i, residual_in + i, out + i, residual_out + i};
  }
};

enum Pass : int32_t { kForward, kGradient, kTangent, kDual };  // kDual: y to `out`, its tangent to `residual_out`

// The sums of x and x^2 about `origin`; with T also those of the tangent t of x, and of t x about `origin`.
template <bool T, class X>
FASTMPL_CLONES void sum_lines(const Columns& m, const X* data, const X* tangents, const float* origin, int64_t first,
                              int64_t count, double* s) {
  for (int64_t end = first + count; end > first; end -= std::min(m.block(), end - first)) {
    const int64_t lines = std::min(m.block(), end - first), begin = end - lines;
    for (int64_t column = 0; column < m.width; column += kTile) {
      const X* x = data + begin * m.width + column;
      const X* t = T ? tangents + begin * m.width + column : x;
      // Sums are taken around the mean of the block's first lines, so that nothing cancels. One line would be far off in
      // some channel, which costs the variance a factor of the distance in standard deviations, squared.
      float shift[kTile] = {}, a1[kTile] = {}, a2[kTile] = {}, a3[kTile] = {}, a4[kTile] = {};
      const int64_t sample = std::min<int64_t>(lines, 4);
      for (int64_t r = 0; r < sample; ++r)
        for (int j = 0; j < kTile; ++j) shift[j] += load(x + r * m.width + j);
      for (int j = 0; j < kTile; ++j) shift[j] *= 1.0f / static_cast<float>(sample);
      for (int64_t r = 0; r < lines; ++r, x += m.width, t += m.width)
        for (int j = 0; j < kTile; ++j) {
          const float d = load(x + j) - shift[j];
          a1[j] += d;
          a2[j] += d * d;
          if constexpr (T) a3[j] += load(t + j);
          if constexpr (T) a4[j] += load(t + j) * d;
        }
      const double n = static_cast<double>(lines);
      for (int j = 0; j < kTile; ++j) {  // from this block's shift to the common origin: exact enough in float64
        const double move = static_cast<double>(shift[j]) - static_cast<double>(origin[column + j]);
        double* sum = s + column + j;
        sum[0] += a1[j] + n * move;
        sum[m.width] += a2[j] + move * (2.0 * a1[j] + n * move);
        if constexpr (T) sum[2 * m.width] += a3[j];
        if constexpr (T) sum[3 * m.width] += a4[j] + move * a3[j];
      }
    }
  }
}

template <bool T, class X>
void sum_left(const Columns& m, const X* data, const X* tangents, const float* origin, double* s) {
  for (int64_t r = 0; r < m.left; ++r)
    for (int64_t c = 0; c < m.channels; ++c) {
      const int64_t i = m.lines * m.width + r * m.channels + c;
      const double d = static_cast<double>(load(data + i)) - static_cast<double>(origin[c]);
      s[c] += d;
      s[m.width + c] += d * d;
      if constexpr (T) s[2 * m.width + c] += load(tangents + i);
      if constexpr (T) s[3 * m.width + c] += load(tangents + i) * d;
    }
}

// The derivative at z, times dy, for element i: what both sums of the backward pass are made of.
template <int32_t A, bool R, class X>
FASTMPL_INLINE float pre_activation_gradient(const Views<X>& v, int64_t i, float centred, float scale, float offset,
                                             float slope) {
  float z = centred * scale + offset;
  if constexpr (R) z += load(v.residual + i);
  return load(v.in + i) * derivative<A>(z, slope);
}

template <int32_t A, bool R, class X>
FASTMPL_CLONES void gradient_lines(const Columns& m, const Tables& t, const Views<X>& all, float slope, int64_t first,
                                   int64_t count, double* s) {
  for (int64_t end = first + count; end > first; end -= std::min(m.block(), end - first)) {
    const int64_t lines = std::min(m.block(), end - first), begin = end - lines;
    for (int64_t column = 0; column < m.width; column += kTile) {
      float mean[kTile], scale[kTile], offset[kTile], a1[kTile] = {}, a2[kTile] = {};
      for (int j = 0; j < kTile; ++j) {
        mean[j] = t.mean[column + j];
        scale[j] = t.scale[column + j];
        offset[j] = t.offset[column + j];
      }
      for (int64_t r = 0; r < lines; ++r) {
        const Views<X> v = all.at((begin + r) * m.width + column);
        for (int j = 0; j < kTile; ++j) {
          const float centred = load(v.x + j) - mean[j];
          const float dz = pre_activation_gradient<A, R>(v, j, centred, scale[j], offset[j], slope);
          a1[j] += dz;
          a2[j] += dz * centred;
        }
      }
      for (int j = 0; j < kTile; ++j) {
        s[column + j] += a1[j];
        s[m.width + column + j] += a2[j];
      }
    }
  }
}

template <int32_t A, bool R, class X>
void gradient_left(const Columns& m, const Tables& t, const Views<X>& all, float slope, double* s) {
  for (int64_t r = 0; r < m.left; ++r) {
    const Views<X> v = all.at(m.lines * m.width + r * m.channels);
    for (int64_t c = 0; c < m.channels; ++c) {
      const float centred = load(v.x + c) - t.mean[c];
      const float dz = pre_activation_gradient<A, R>(v, c, centred, t.scale[c], t.offset[c], slope);
      s[c] += dz;
      s[m.width + c] += static_cast<double>(dz) * centred;
    }
  }
}

// Element i of a writing pass.
template <Pass P, int32_t A, bool R, class X>
FASTMPL_INLINE void write(const Views<X>& v, int64_t i, float mean, float scale, float offset, float slant, float level,
                          float slope) {
  const float centred = load(v.x + i) - mean;
  if constexpr (P == kGradient) {
    const float dz = pre_activation_gradient<A, R>(v, i, centred, scale, offset, slope);
    if constexpr (R) store(v.residual_out + i, dz);
    store(v.out + i, dz * scale + (centred * slant + level));
    return;
  }
  float z = centred * scale + offset;
  if constexpr (R) z += load(v.residual + i);
  if constexpr (P == kForward || P == kDual) store(v.out + i, activate<A>(z, slope));
  if constexpr (P == kTangent || P == kDual) {
    float tangent = load(v.in + i) * scale + (centred * slant + level);
    if constexpr (R) tangent += load(v.residual_in + i);
    store((P == kDual ? v.residual_out : v.out) + i, tangent * derivative<A>(z, slope));
  }
}

template <Pass P, int32_t A, bool R, class X>
FASTMPL_CLONES void write_lines(const Columns& m, const Tables& t, const Views<X>& all, float slope, int64_t first,
                                int64_t count) {
  for (int64_t begin = first; begin < first + count; begin += m.block()) {
    const int64_t lines = std::min(m.block(), first + count - begin);
    for (int64_t column = 0; column < m.width; column += kTile) {
      float mean[kTile], scale[kTile], offset[kTile], slant[kTile] = {}, level[kTile] = {};
      for (int j = 0; j < kTile; ++j) {
        mean[j] = t.mean[column + j];
        scale[j] = t.scale[column + j];
        offset[j] = t.offset[column + j];
        if constexpr (P != kForward) slant[j] = t.slant[column + j];
        if constexpr (P != kForward) level[j] = t.level[column + j];
      }
      for (int64_t r = 0; r < lines; ++r) {
        const Views<X> v = all.at((begin + r) * m.width + column);
#pragma GCC ivdep
        for (int j = 0; j < kTile; ++j) write<P, A, R>(v, j, mean[j], scale[j], offset[j], slant[j], level[j], slope);
      }
    }
  }
}

template <Pass P, int32_t A, bool R, class X>
void write_left(const Columns& m, const Tables& t, const Views<X>& all, float slope) {
  for (int64_t r = 0; r < m.left; ++r) {
    const Views<X> v = all.at(m.lines * m.width + r * m.channels);
    for (int64_t c = 0; c < m.channels; ++c) {
      const float slant = P == kForward ? 0.0f : t.slant[c], level = P == kForward ? 0.0f : t.level[c];
      write<P, A, R>(v, c, t.mean[c], t.scale[c], t.offset[c], slant, level, slope);
    }
  }
}

}  // namespace
}  // namespace fastmpl
