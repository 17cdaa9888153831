// One row of cross-entropy: what every loss here is made of.
#pragma once

#include "row_math.hpp"

namespace fastmpl {

// What a row is to learn: the class `label`, or, where `row` is not null, the distribution row * scale, whose sum is `mass`
// (a distribution that was rounded to bfloat16 does not sum to one).
struct Target {
  const float* row;
  float scale, mass;
  int64_t label;
};

FASTMPL_INLINE Target one_hot(int64_t label) { return {nullptr, 1.0f, 1.0f, label}; }
FASTMPL_INLINE Target distribution(const float* row, float scale, float mass) { return {row, scale, mass, -1}; }

// A row of logits (-inf in the padding) with its maximum, and the powers e^(logits - top) with their sum.
struct Powers {
  const float *logits, *power;
  float top, total;
};

FASTMPL_INLINE Powers powers(const float* logits, float top, int64_t columns, float* power) {
  return {logits, power, top, exponentials(logits, columns, top, 1.0f, power)};
}

// The loss -sum_c t_c log p_c with t = (1 - smoothing) * target + smoothing / K of one row. `gradient` (unless null)
// becomes scale * (sum(t) p - t), the gradient of scale times the loss: its first `written` columns, which may be the
// padding's too, where it holds anything. It may lie where the powers do.
template <class T>
FASTMPL_INLINE float cross_entropy(const Powers& row, const Target& target, float smoothing, float scale,
                                   int64_t columns, T* gradient, int64_t written) {
  const float uniform = smoothing / static_cast<float>(columns), kept = 1.0f - smoothing;
  const float mass = kept * target.mass + smoothing, inverse = scale * mass / row.total;
  const auto log_p = [&](int64_t c) FASTMPL_ALWAYS { return row.logits[c] - row.top; };  // but for -log(total)
  if (target.row != nullptr) {
    const float soft = kept * target.scale;
    const auto t = [&](int64_t c) FASTMPL_ALWAYS { return target.row[c] * soft + uniform; };
    if (gradient != nullptr)
      store_each(gradient, written, [&](int64_t c) FASTMPL_ALWAYS { return row.power[c] * inverse - t(c) * scale; });
    // A class of probability 0 adds 0 even where its logit is -inf: it is masked.
    return mass * std::log(row.total) -
           sum_each(columns, [&](int64_t c) FASTMPL_ALWAYS { return t(c) == 0.0f ? 0.0f : t(c) * log_p(c); });
  }
  const int64_t label = target.label;
  if (gradient != nullptr) {
    const float level = uniform * scale, of_label = row.power[label] * inverse - (uniform + kept) * scale;
    store_each(gradient, written, [&](int64_t c) FASTMPL_ALWAYS { return row.power[c] * inverse - level; });
    store(gradient + label, of_label);
  }
  const float smooth = smoothing == 0.0f ? 0.0f : uniform * sum_each(columns, log_p);  // else 0 times a masked -inf
  return std::log(row.total) - (kept * log_p(label) + smooth);
}

// 0, or 1 + the first row whose label is no class: a label is an address here.
inline int64_t first_bad_label(const int64_t* label, int64_t rows, int64_t columns) {
  if (label != nullptr)
    for (int64_t row = 0; row < rows; ++row)
      if (label[row] < 0 || label[row] >= columns) return row + 1;
  return 0;
}

}  // namespace fastmpl
