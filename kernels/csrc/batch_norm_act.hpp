// The loops of batch norm with activation over tiles of a channels-last matrix (see columns.hpp).
//
//   z = w (x - mean) rstd + b + residual,   y = act(z)
//
// Every pass that needs z computes it again from x. The accumulators and tables of a tile are local arrays of constant
// length, which the compiler keeps in registers for each instruction set. Passes that sum run from the last block to the
// first, passes that write from the first to the last. So each begins with what the layer or the pass before it has left in
// the cache.
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

// What the passes read and write. `in` is dy or the tangent of x; `residual_in` is the residual's tangent, or in kJoined the
// gradient of x from elsewhere.
template <class X>
struct Views {
  const X *x, *in, *residual, *residual_in;
  X *out, *residual_out;

  FASTMPL_INLINE Views at(int64_t i) const {  // null pointers are never read, so they may move too
    return {x + i, in + i, residual + i, residual_in + i, out + i, residual_out + i};
  }
};

// kJoined: kGradient, to which the gradient of x from elsewhere is added. kDual: y to `out`, its tangent to `residual_out`.
enum Pass : int32_t { kForward, kGradient, kJoined, kTangent, kDual };

// A tile is taken in words (see load_word): lane (way, word) of its accumulators and tables is column
// word * kWays + way.
template <class X>
constexpr int kWords = kTile / kWays<X>;

template <class X>
FASTMPL_INLINE void load_table(const std::vector<float>& table, int64_t column, float* lanes) {
  for (int way = 0; way < kWays<X>; ++way)
    for (int word = 0; word < kWords<X>; ++word)
      lanes[way * kWords<X> + word] = table[column + word * kWays<X> + way];
}

// What a summing pass of the forward direction reads; where there is an addend, it first adds it to x in place, and the
// addend's tangent to the tangent of x.
template <class X>
struct Summed {
  X *x, *tangent;
  const X *addend, *addend_tangent;
};

// x += addend, rounded to the type, over `count` elements: whole tiles.
template <class X>
FASTMPL_INLINE void add_tiles(X* x, const X* addend, int64_t count) {
  for (const X* end = x + count; x < end; x += kTile, addend += kTile) {
#pragma GCC ivdep
    for (int word = 0; word < kWords<X>; ++word) {
      const float low = load_word(x, word, 0) + load_word(addend, word, 0);
      store_word(x, word, low, kWays<X> == 1 ? low : load_word(x, word, 1) + load_word(addend, word, 1));
    }
  }
}

// The value of x + addend as it is stored.
template <class X>
FASTMPL_INLINE float added(const X* x, const X* addend) {
  X sum;
  store(&sum, load(x) + load(addend));
  return load(&sum);
}

// The sums of x and x^2 about `origin`; with T also those of the tangent t of x, and of t x about `origin`. With S the
// addends are added first, a block that fits the cache at a time.
template <bool T, bool S, class X>
FASTMPL_CLONES void sum_lines(const Columns& m, const Summed<X>& data, const float* origin, int64_t first, int64_t count,
                              double* s) {
  constexpr int W = kWays<X>, N = kWords<X>;
  for (int64_t end = first + count; end > first; end -= std::min(m.block(), end - first)) {
    const int64_t lines = std::min(m.block(), end - first), begin = end - lines, at = begin * m.width;
    if constexpr (S) add_tiles(data.x + at, data.addend + at, lines * m.width);
    if constexpr (S && T) add_tiles(data.tangent + at, data.addend_tangent + at, lines * m.width);
    for (int64_t column = 0; column < m.width; column += kTile) {
      const X* x = data.x + at + column;
      const X* t = T ? data.tangent + at + column : x;
      // Sums are taken around the mean of the block's first four lines, so that nothing cancels. A single line would be far
      // off in some channel, and the variance would lose a factor of that distance in standard deviations, squared.
      float shift[kTile] = {}, a1[kTile] = {}, a2[kTile] = {}, a3[kTile] = {}, a4[kTile] = {};
      const int64_t sample = std::min<int64_t>(lines, 4);
      for (int64_t r = 0; r < sample; ++r)
        for (int way = 0; way < W; ++way)
          for (int word = 0; word < N; ++word) shift[way * N + word] += load_word(x + r * m.width, word, way);
      for (int j = 0; j < kTile; ++j) shift[j] *= 1.0f / static_cast<float>(sample);
      for (int64_t r = 0; r < lines; ++r, x += m.width, t += m.width)
        for (int way = 0; way < W; ++way)
          for (int word = 0; word < N; ++word) {
            const int j = way * N + word;
            const float d = load_word(x, word, way) - shift[j];
            a1[j] += d;
            a2[j] += d * d;
            if constexpr (T) a3[j] += load_word(t, word, way);
            if constexpr (T) a4[j] += load_word(t, word, way) * d;
          }
      const double n = static_cast<double>(lines);
      for (int way = 0; way < W; ++way)
        for (int word = 0; word < N; ++word) {  // from this block's shift to the common origin: exact enough in float64
          const int j = way * N + word;
          const int64_t at = column + word * W + way;
          const double move = static_cast<double>(shift[j]) - static_cast<double>(origin[at]);
          double* sum = s + at;
          sum[0] += a1[j] + n * move;
          sum[m.width] += a2[j] + move * (2.0 * a1[j] + n * move);
          if constexpr (T) sum[2 * m.width] += a3[j];
          if constexpr (T) sum[3 * m.width] += a4[j] + move * a3[j];
        }
    }
  }
}

template <bool T, bool S, class X>
void sum_left(const Columns& m, const Summed<X>& data, const float* origin, double* s) {
  for (int64_t r = 0; r < m.left; ++r)
    for (int64_t c = 0; c < m.channels; ++c) {
      const int64_t i = m.lines * m.width + r * m.channels + c;
      if constexpr (S) store(data.x + i, added(data.x + i, data.addend + i));
      if constexpr (S && T) store(data.tangent + i, added(data.tangent + i, data.addend_tangent + i));
      const double d = static_cast<double>(load(data.x + i)) - static_cast<double>(origin[c]);
      s[c] += d;
      s[m.width + c] += d * d;
      if constexpr (T) s[2 * m.width + c] += load(data.tangent + i);
      if constexpr (T) s[3 * m.width + c] += load(data.tangent + i) * d;
    }
}

// The values of one element and the constants of its column.
struct Element {
  float x, in, residual, residual_in, mean, scale, offset, slant, level;
};

// dy times the derivative at z, of which both sums of the backward pass are made.
template <int32_t A, bool R>
FASTMPL_INLINE float pre_activation_gradient(const Element& e, float centred, float slope) {
  float z = centred * e.scale + e.offset;
  if constexpr (R) z += e.residual;
  return e.in * derivative<A>(z, slope);
}

template <int32_t A, bool R, class X>
FASTMPL_CLONES void gradient_lines(const Columns& m, const Tables& t, const Views<X>& all, float slope, int64_t first,
                                   int64_t count, double* s) {
  constexpr int W = kWays<X>, N = kWords<X>;
  for (int64_t end = first + count; end > first; end -= std::min(m.block(), end - first)) {
    const int64_t lines = std::min(m.block(), end - first), begin = end - lines;
    for (int64_t column = 0; column < m.width; column += kTile) {
      float mean[kTile], scale[kTile], offset[kTile], a1[kTile] = {}, a2[kTile] = {};
      load_table<X>(t.mean, column, mean);
      load_table<X>(t.scale, column, scale);
      load_table<X>(t.offset, column, offset);
      for (int64_t r = 0; r < lines; ++r) {
        const Views<X> v = all.at((begin + r) * m.width + column);
        for (int way = 0; way < W; ++way)
          for (int word = 0; word < N; ++word) {
            const int j = way * N + word;
            const Element e{load_word(v.x, word, way), load_word(v.in, word, way),
                            R ? load_word(v.residual, word, way) : 0.0f, 0.0f, mean[j], scale[j], offset[j], 0.0f, 0.0f};
            const float centred = e.x - e.mean, dz = pre_activation_gradient<A, R>(e, centred, slope);
            a1[j] += dz;
            a2[j] += dz * centred;
          }
      }
      for (int way = 0; way < W; ++way)
        for (int word = 0; word < N; ++word) {
          double* sum = s + column + word * W + way;
          sum[0] += a1[way * N + word];
          sum[m.width] += a2[way * N + word];
        }
    }
  }
}

template <int32_t A, bool R, class X>
void gradient_left(const Columns& m, const Tables& t, const Views<X>& all, float slope, double* s) {
  for (int64_t r = 0; r < m.left; ++r) {
    const Views<X> v = all.at(m.lines * m.width + r * m.channels);
    for (int64_t c = 0; c < m.channels; ++c) {
      const Element e{load(v.x + c), load(v.in + c), R ? load(v.residual + c) : 0.0f, 0.0f,
                      t.mean[c], t.scale[c], t.offset[c], 0.0f, 0.0f};
      const float centred = e.x - e.mean, dz = pre_activation_gradient<A, R>(e, centred, slope);
      s[c] += dz;
      s[m.width + c] += static_cast<double>(dz) * centred;
    }
  }
}

// What a writing pass computes for an element: `out`, and the residual's gradient (kGradient, kJoined) or y's tangent (kDual).
struct Made {
  float out, second;
};

template <Pass P, int32_t A, bool R>
FASTMPL_INLINE Made make(const Element& e, float slope) {
  const float centred = e.x - e.mean;
  if constexpr (P == kGradient || P == kJoined) {
    const float dz = pre_activation_gradient<A, R>(e, centred, slope);
    const float dx = dz * e.scale + (centred * e.slant + e.level);
    return {P == kJoined ? dx + e.residual_in : dx, dz};
  }
  float z = centred * e.scale + e.offset;
  if constexpr (R) z += e.residual;
  if constexpr (P == kForward) return {activate<A>(z, slope), 0.0f};
  float tangent = e.in * e.scale + (centred * e.slant + e.level);
  if constexpr (R) tangent += e.residual_in;
  tangent *= derivative<A>(z, slope);
  if constexpr (P == kTangent) return {tangent, 0.0f};
  return {activate<A>(z, slope), tangent};
}

template <Pass P, bool R>
constexpr bool kSecond = P == kDual || (R && (P == kGradient || P == kJoined));  // whether `residual_out` is written
template <Pass P>
constexpr bool kIn = P != kForward;  // whether `in` is read
template <Pass P, bool R>
constexpr bool kResidualIn = P == kJoined || (R && (P == kTangent || P == kDual));  // whether `residual_in` is read

template <Pass P, int32_t A, bool R, class X>
FASTMPL_CLONES void write_lines(const Columns& m, const Tables& t, const Views<X>& all, float slope, int64_t first,
                                int64_t count) {
  constexpr int W = kWays<X>, N = kWords<X>;
  for (int64_t begin = first; begin < first + count; begin += m.block()) {
    const int64_t lines = std::min(m.block(), first + count - begin);
    for (int64_t column = 0; column < m.width; column += kTile) {
      float mean[kTile], scale[kTile], offset[kTile], slant[kTile] = {}, level[kTile] = {};
      load_table<X>(t.mean, column, mean);
      load_table<X>(t.scale, column, scale);
      load_table<X>(t.offset, column, offset);
      if constexpr (kIn<P>) load_table<X>(t.slant, column, slant);
      if constexpr (kIn<P>) load_table<X>(t.level, column, level);
      for (int64_t r = 0; r < lines; ++r) {
        const Views<X> v = all.at((begin + r) * m.width + column);
        const auto made = [&](int word, int way) FASTMPL_ALWAYS {
          const int j = way * N + word;
          const Element e{load_word(v.x, word, way),
                          kIn<P> ? load_word(v.in, word, way) : 0.0f,
                          R ? load_word(v.residual, word, way) : 0.0f,
                          kResidualIn<P, R> ? load_word(v.residual_in, word, way) : 0.0f,
                          mean[j], scale[j], offset[j], slant[j], level[j]};
          return make<P, A, R>(e, slope);
        };
#pragma GCC ivdep
        for (int word = 0; word < N; ++word) {
          const Made low = made(word, 0), high = W == 1 ? low : made(word, 1);
          store_word(v.out, word, low.out, high.out);
          if constexpr (kSecond<P, R>) store_word(v.residual_out, word, low.second, high.second);
        }
      }
    }
  }
}

template <Pass P, int32_t A, bool R, class X>
void write_left(const Columns& m, const Tables& t, const Views<X>& all, float slope) {
  for (int64_t r = 0; r < m.left; ++r) {
    const Views<X> v = all.at(m.lines * m.width + r * m.channels);
    for (int64_t c = 0; c < m.channels; ++c) {
      const float slant = kIn<P> ? t.slant[c] : 0.0f, level = kIn<P> ? t.level[c] : 0.0f;
      const Element e{load(v.x + c), kIn<P> ? load(v.in + c) : 0.0f, R ? load(v.residual + c) : 0.0f,
                      kResidualIn<P, R> ? load(v.residual_in + c) : 0.0f, t.mean[c], t.scale[c], t.offset[c], slant, level};
      const Made made = make<P, A, R>(e, slope);
      store(v.out + c, made.out);
      if constexpr (kSecond<P, R>) store(v.residual_out + c, made.second);
    }
  }
}

}  // namespace
}  // namespace fastmpl
