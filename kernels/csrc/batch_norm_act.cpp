// Batch norm over all rows of a channels-last activation, an optional residual, and an activation: the C interface.
//
// The forward direction may begin with a sum: x becomes x + addend in the pass that sums over rows. The backward direction
// then takes the gradient that the sum has from elsewhere.
//
// Forward, backward and forward-mode derivative are each one pass that sums over rows (`sums`, `gradient_sums`) and one
// that writes (`forward`, `gradient`, `tangent`); between the two the caller may add the sums of other ranks.
//
// moments is [4, channels]: the mean rounded to float32, the remainder of that rounding, 1 / sqrt(var + eps), 1 / count.
// With the two parts of the mean, x - mean is as exact at a large mean as at 0.
#include "batch_norm_act.hpp"

#include <cmath>

namespace fastmpl {
namespace {

// The loops of one pass for one activation, with or without a residual.
template <Pass P, int32_t A, bool R, class X>
void write_all(const Columns& m, const Tables& t, const Views<X>& v, float slope) {
  parallel(m.lines, std::max<int64_t>(m.block(), 16384 / m.width),
           [&](int64_t begin, int64_t end) { write_lines<P, A, R>(m, t, v, slope, begin, end - begin); });
  write_left<P, A, R>(m, t, v, slope);
}

template <int32_t A, bool R, class X>
void gradient_all(const Columns& m, const Tables& t, const Views<X>& v, float slope, double* out) {
  column_sums(
      m, 2, out,
      [&](int64_t first, int64_t count, double* s) { gradient_lines<A, R>(m, t, v, slope, first, count, s); },
      [&](double* s) { gradient_left<A, R>(m, t, v, slope, s); });
}

template <class X, int32_t... A>
void gradient_any(int32_t activation, const Columns& m, const Tables& t, const Views<X>& v, float slope, double* s,
                  std::integer_sequence<int32_t, A...>) {
  const bool r = v.residual != nullptr;
  (void)((activation == A && (r ? gradient_all<A, true>(m, t, v, slope, s)
                                : gradient_all<A, false>(m, t, v, slope, s), true)) || ...);
}

template <Pass P, class X, int32_t... A>
void write_any(int32_t activation, const Columns& m, const Tables& t, const Views<X>& v, float slope,
               std::integer_sequence<int32_t, A...>) {
  const bool r = v.residual != nullptr;
  (void)((activation == A && (r ? write_all<P, A, true>(m, t, v, slope) : write_all<P, A, false>(m, t, v, slope),
                              true)) || ...);
}

using Activations = std::integer_sequence<int32_t, kNone, kRelu, kLeakyRelu, kSilu>;

// f(null pointer of the element type): calls a generic lambda for one of the two types.
template <class F>
void with_type(bool is_bfloat16, F f) {
  is_bfloat16 ? f(static_cast<bfloat16*>(nullptr)) : f(static_cast<float*>(nullptr));
}

// Extends a table of one value a channel to one a column. Every NaN becomes the one that a word's rounding keeps.
void finish(std::vector<float>& table, const Columns& m) {
  for (float& value : table) value = canonical(value);
  repeat(table, m);
}

Tables tables(const Columns& m, const float* moments, const float* weight, const float* bias) {
  Tables t;
  const int64_t n = m.channels;
  const float *high = moments, *low = moments + n, *rstd = moments + 2 * n;
  for (int64_t c = 0; c < n; ++c) {
    const float scale = weight[c] * rstd[c];
    t.mean.push_back(high[c]);
    t.scale.push_back(scale);
    t.offset.push_back(bias[c] - low[c] * scale);
  }
  for (auto* table : {&t.mean, &t.scale, &t.offset}) finish(*table, m);
  return t;
}

}  // namespace
}  // namespace fastmpl

using namespace fastmpl;

namespace fastmpl {
namespace {

template <bool T, bool S, class X>
void sum_all(const Columns& m, const Summed<X>& data, const float* origin, double* out) {
  column_sums(
      m, T ? 4 : 2, out,
      [&](int64_t first, int64_t count, double* s) { sum_lines<T, S>(m, data, origin, first, count, s); },
      [&](double* s) { sum_left<T, S>(m, data, origin, s); });
}

}  // namespace
}  // namespace fastmpl

// out [2 channels + 1]: the sums of x and of (x - mean)^2, and the number of rows. With a tangent t of x,
// out [4 channels + 1]: the sums of t and of t (x - mean) come before the number. Where `addend` is not null, x becomes
// x + addend first, and t becomes t + addend_tangent.
FASTMPL_EXPORT void fastmpl_batch_norm_sums(void* x, void* tangent, const void* addend, const void* addend_tangent,
                                            bool is_bfloat16, int64_t rows, int64_t channels, double* out) {
  const Columns m(rows, channels);
  const bool with_tangent = tangent != nullptr, adds = addend != nullptr;
  const int64_t kinds = with_tangent ? 4 : 2;
  with_type(is_bfloat16, [&](auto* type) {
    using X = std::remove_pointer_t<decltype(type)>;
    const Summed<X> data{static_cast<X*>(x), static_cast<X*>(tangent), static_cast<const X*>(addend),
                         static_cast<const X*>(addend_tangent)};
    std::vector<float> origin;
    for (int64_t c = 0; c < channels; ++c) origin.push_back(adds ? added(data.x + c, data.addend + c) : load(data.x + c));
    repeat(origin, m);
    const float* k = origin.data();
    if (with_tangent) {
      adds ? sum_all<true, true>(m, data, k, out) : sum_all<true, false>(m, data, k, out);
    } else {
      adds ? sum_all<false, true>(m, data, k, out) : sum_all<false, false>(m, data, k, out);
    }
    const double n = static_cast<double>(rows);
    for (int64_t c = 0; c < channels; ++c) {  // the sum from the first row as origin to 0, the others to the mean
      const double s = out[c], moved = s / n, squares = out[channels + c] - s * moved;
      out[c] = s + n * k[c];
      out[channels + c] = squares < 0.0 ? 0.0 : squares;  // a NaN stays one
      if (with_tangent) out[3 * channels + c] -= moved * out[2 * channels + c];
    }
    out[kinds * channels] = n;
  });
}

namespace fastmpl {
namespace {

// Makes the moments from the sums of x and of (x - mean)^2 and the count; moves the running statistics (unless null) by
// `momentum`, except in channels whose new ones are not finite: an average would never forget an infinity.
void measure(int64_t channels, const double* sums, double count, double eps, double momentum, float* running_mean,
             float* running_var, float* moments) {
  for (int64_t c = 0; c < channels; ++c) {
    const double mean = sums[c] / count, var = sums[channels + c] / count;
    moments[c] = static_cast<float>(mean);
    moments[channels + c] = static_cast<float>(mean - static_cast<double>(moments[c]));
    moments[2 * channels + c] = static_cast<float>(1.0 / std::sqrt(var + eps));
    moments[3 * channels + c] = static_cast<float>(1.0 / count);
    if (running_mean != nullptr) {
      const float m = running_mean[c] + static_cast<float>(momentum * (mean - running_mean[c]));
      const float v = running_var[c] + static_cast<float>(momentum * (var * (count / (count - 1.0)) - running_var[c]));
      if (std::isfinite(m) && std::isfinite(v)) {
        running_mean[c] = m;
        running_var[c] = v;
      }
    }
  }
}

// Adds to the tables what the tangent's pass needs; `sums` are those of t and of t (x - mean).
void add_tangent(Tables& t, const Columns& m, const float* moments, const double* sums, const float* weight_tangent,
                 const float* bias_tangent) {
  const int64_t channels = m.channels;
  for (int64_t c = 0; c < channels; ++c) {
    const double low = moments[channels + c], rstd = moments[2 * channels + c], inverse = moments[3 * channels + c];
    const double slant = weight_tangent[c] * rstd - t.scale[c] * rstd * rstd * sums[channels + c] * inverse;
    t.slant.push_back(static_cast<float>(slant));
    t.level.push_back(static_cast<float>(bias_tangent[c] - t.scale[c] * sums[c] * inverse - slant * low));
  }
  finish(t.slant, m);
  finish(t.level, m);
}

}  // namespace
}  // namespace fastmpl

// Writes y and moments, and moves the running statistics (unless null) by `momentum`.
FASTMPL_EXPORT void fastmpl_batch_norm_forward(const void* x, const void* residual, bool is_bfloat16, int64_t rows,
                                               int64_t channels, const double* sums, const float* weight,
                                               const float* bias, double eps, double momentum, float* running_mean,
                                               float* running_var, int32_t activation, float slope, float* moments,
                                               void* y) {
  const Columns m(rows, channels);
  measure(channels, sums, sums[2 * channels], eps, momentum, running_mean, running_var, moments);
  const Tables t = tables(m, moments, weight, bias);
  with_type(is_bfloat16, [&](auto* type) {
    using X = std::remove_pointer_t<decltype(type)>;
    const Views<X> v{static_cast<const X*>(x), nullptr, static_cast<const X*>(residual), nullptr, static_cast<X*>(y),
                     nullptr};
    write_any<kForward>(activation, m, t, v, slope, Activations());
  });
}

// out [2 channels]: the sums of dz and of dz (x - mean), where dz = dy act'(z).
FASTMPL_EXPORT void fastmpl_batch_norm_gradient_sums(const void* dy, const void* x, const void* residual,
                                                     bool is_bfloat16, int64_t rows, int64_t channels,
                                                     const float* moments, const float* weight, const float* bias,
                                                     int32_t activation, float slope, double* out) {
  const Columns m(rows, channels);
  const Tables t = tables(m, moments, weight, bias);
  with_type(is_bfloat16, [&](auto* type) {
    using X = std::remove_pointer_t<decltype(type)>;
    const Views<X> v{static_cast<const X*>(x), static_cast<const X*>(dy), static_cast<const X*>(residual), nullptr,
                     nullptr, nullptr};
    gradient_any(activation, m, t, v, slope, out, Activations());
  });
  for (int64_t c = 0; c < channels; ++c) out[channels + c] -= static_cast<double>(moments[channels + c]) * out[c];
}

// dx = w rstd (dz - mean(dz) - xhat mean(dz xhat)) and, with a residual, its gradient dz; the gradients of weight and
// bias from `local`, the sums of this rank alone. `elsewhere` (unless null) is a gradient of x that is added to dx.
FASTMPL_EXPORT void fastmpl_batch_norm_gradient(const void* dy, const void* elsewhere, const void* x,
                                                const void* residual, bool is_bfloat16, int64_t rows,
                                                int64_t channels, const float* moments,
                                                const double* sums, const double* local, const float* weight,
                                                const float* bias, int32_t activation, float slope, void* dx,
                                                void* dresidual, float* dweight, float* dbias) {
  const Columns m(rows, channels);
  Tables t = tables(m, moments, weight, bias);
  for (int64_t c = 0; c < channels; ++c) {
    const double low = moments[channels + c], rstd = moments[2 * channels + c], inverse = moments[3 * channels + c];
    const double slant = -t.scale[c] * rstd * rstd * sums[channels + c] * inverse;
    t.slant.push_back(static_cast<float>(slant));
    t.level.push_back(static_cast<float>(-t.scale[c] * sums[c] * inverse - slant * low));
    dweight[c] = static_cast<float>(local[channels + c] * rstd);
    dbias[c] = static_cast<float>(local[c]);
  }
  finish(t.slant, m);
  finish(t.level, m);
  with_type(is_bfloat16, [&](auto* type) {
    using X = std::remove_pointer_t<decltype(type)>;
    const Views<X> v{static_cast<const X*>(x), static_cast<const X*>(dy), static_cast<const X*>(residual),
                     static_cast<const X*>(elsewhere), static_cast<X*>(dx), static_cast<X*>(dresidual)};
    elsewhere == nullptr ? write_any<kGradient>(activation, m, t, v, slope, Activations())
                         : write_any<kJoined>(activation, m, t, v, slope, Activations());
  });
}

// Both passes of the forward direction, for statistics of this rank alone; x becomes x + addend unless that is null.
FASTMPL_EXPORT void fastmpl_batch_norm_train(void* x, const void* addend, const void* residual, bool is_bfloat16,
                                             int64_t rows, int64_t channels, const float* weight, const float* bias,
                                             double eps, double momentum, float* running_mean, float* running_var,
                                             int32_t activation, float slope, float* moments, void* y) {
  std::vector<double> sums(static_cast<size_t>(2 * channels + 1));
  fastmpl_batch_norm_sums(x, nullptr, addend, nullptr, is_bfloat16, rows, channels, sums.data());
  fastmpl_batch_norm_forward(x, residual, is_bfloat16, rows, channels, sums.data(), weight, bias, eps, momentum,
                             running_mean, running_var, activation, slope, moments, y);
}

// Both passes of the backward direction.
FASTMPL_EXPORT void fastmpl_batch_norm_backward(const void* dy, const void* elsewhere, const void* x,
                                                const void* residual, bool is_bfloat16, int64_t rows,
                                                int64_t channels, const float* moments, const float* weight,
                                                const float* bias, int32_t activation, float slope, void* dx,
                                                void* dresidual, float* dweight, float* dbias) {
  std::vector<double> sums(static_cast<size_t>(2 * channels));
  fastmpl_batch_norm_gradient_sums(dy, x, residual, is_bfloat16, rows, channels, moments, weight, bias, activation,
                                   slope, sums.data());
  fastmpl_batch_norm_gradient(dy, elsewhere, x, residual, is_bfloat16, rows, channels, moments, sums.data(), sums.data(),
                              weight, bias, activation, slope, dx, dresidual, dweight, dbias);
}

// The tangent of y along the tangents of x, weight, bias and residual; `sums` are those of the tangent t of x and of
// t (x - mean).
FASTMPL_EXPORT void fastmpl_batch_norm_tangent(const void* x, const void* x_tangent, const void* residual,
                                               const void* residual_tangent, bool is_bfloat16, int64_t rows,
                                               int64_t channels, const float* moments, const double* sums,
                                               const float* weight, const float* bias, const float* weight_tangent,
                                               const float* bias_tangent, int32_t activation, float slope, void* out) {
  const Columns m(rows, channels);
  Tables t = tables(m, moments, weight, bias);
  add_tangent(t, m, moments, sums, weight_tangent, bias_tangent);
  with_type(is_bfloat16, [&](auto* type) {
    using X = std::remove_pointer_t<decltype(type)>;
    const Views<X> v{static_cast<const X*>(x), static_cast<const X*>(x_tangent), static_cast<const X*>(residual),
                     static_cast<const X*>(residual_tangent), static_cast<X*>(out), nullptr};
    write_any<kTangent>(activation, m, t, v, slope, Activations());
  });
}

// y and its tangent in one pass, from the sums of x and of its tangent together.
FASTMPL_EXPORT void fastmpl_batch_norm_dual(const void* x, const void* x_tangent, const void* residual,
                                            const void* residual_tangent, bool is_bfloat16, int64_t rows,
                                            int64_t channels, const double* sums, const float* weight,
                                            const float* bias, const float* weight_tangent, const float* bias_tangent,
                                            double eps, double momentum, float* running_mean, float* running_var,
                                            int32_t activation, float slope, void* y, void* y_tangent) {
  const Columns m(rows, channels);
  const double count = sums[4 * channels], *of_tangent = sums + 2 * channels;
  std::vector<float> moments(static_cast<size_t>(4 * channels));
  measure(channels, sums, count, eps, momentum, running_mean, running_var, moments.data());
  Tables t = tables(m, moments.data(), weight, bias);
  add_tangent(t, m, moments.data(), of_tangent, weight_tangent, bias_tangent);
  with_type(is_bfloat16, [&](auto* type) {
    using X = std::remove_pointer_t<decltype(type)>;
    const Views<X> v{static_cast<const X*>(x), static_cast<const X*>(x_tangent), static_cast<const X*>(residual),
                     static_cast<const X*>(residual_tangent), static_cast<X*>(y), static_cast<X*>(y_tangent)};
    write_any<kDual>(activation, m, t, v, slope, Activations());
  });
}

// Both passes of the dual; x becomes x + addend, and its tangent likewise, unless `addend` is null.
FASTMPL_EXPORT void fastmpl_batch_norm_dual_train(void* x, void* x_tangent, const void* addend,
                                                  const void* addend_tangent, const void* residual,
                                                  const void* residual_tangent, bool is_bfloat16, int64_t rows,
                                                  int64_t channels, const float* weight, const float* bias,
                                                  const float* weight_tangent, const float* bias_tangent, double eps,
                                                  double momentum, float* running_mean, float* running_var,
                                                  int32_t activation, float slope, void* y, void* y_tangent) {
  std::vector<double> sums(static_cast<size_t>(4 * channels + 1));
  fastmpl_batch_norm_sums(x, x_tangent, addend, addend_tangent, is_bfloat16, rows, channels, sums.data());
  fastmpl_batch_norm_dual(x, x_tangent, residual, residual_tangent, is_bfloat16, rows, channels, sums.data(), weight,
                          bias, weight_tangent, bias_tangent, eps, momentum, running_mean, running_var, activation,
                          slope, y, y_tangent);
}
