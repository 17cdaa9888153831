// One row of cross-entropy: what every loss here is made of.
#pragma once

#include "row_math.hpp"

namespace fastmpl {

// What a row is to learn: the class `label`, or, where `row` is not null, the distribution row * scale, whose sum is `mass`: a distribution that was rounded to bfloat16 does not sum to one.
struct Target {
  const float* row;
  float scale, mass;
  int64_t label;
};

FASTMPL_INLINE Target one_hot(int64_t label) { return {nullptr, 1.0f, 1.0f, label}; }
FASTMPL_INLINE Target distribution(const float* row, float scale, float mass) { return {row, scale, mass, -1}; }

// The loss -sum_c t_c log p_c with t = (1 - smoothing) * target + smoothing / K of one row of `logits` (-inf in the
// padding) with the maximum `top`. `gradient` becomes scale * (sum(t) p - t), the gradient of scale times the loss, and
// anything in its padding.
FASTMPL_INLINE float cross_entropy(const float* logits, float top, const Target& target, float smoothing, float scale,
                                   int64_t columns, float* gradient) {
  const float total = exponentials(logits, columns, top, 1.0f, gradient);
  const float uniform = smoothing / static_cast<float>(columns), kept = 1.0f - smoothing;
  const float mass = kept * target.mass + smoothing, inverse = scale * mass / total;
  Lanes agreement = lanes(0.0f);  // sum_c t_c (logit_c - top)
  if (target.row != nullptr) {
    const float soft = kept * target.scale;
    for (int64_t c = 0; c < columns; c += LANES) {
      const int32_t here = static_cast<int32_t>(columns - c);
#pragma omp simd
      for (int32_t j = 0; j < LANES; ++j) {
        const float t = target.row[c + j] * soft + uniform, log_p = logits[c + j] - top;
        agreement.of[j] += j < here ? t * log_p : 0.0f;
        gradient[c + j] = gradient[c + j] * inverse - t * scale;
      }
    }
    return mass * std::log(total) - fold(agreement, add);
  }
  for (int64_t c = 0; c < columns; c += LANES) {
    const int32_t here = static_cast<int32_t>(columns - c), label = static_cast<int32_t>(target.label - c);
#pragma omp simd
    for (int32_t j = 0; j < LANES; ++j) {
      agreement.of[j] += j < here ? logits[c + j] - top : 0.0f;
      const float t = j == label ? uniform + kept : uniform;  // not subtracted afterwards: the next pass would wait for it
      gradient[c + j] = gradient[c + j] * inverse - t * scale;
    }
  }
  return std::log(total) - (kept * (logits[target.label] - top) + uniform * fold(agreement, add));
}

// 0, or 1 + the first row whose label is no class: a label is an address here.
inline int64_t first_bad_label(const int64_t* label, int64_t rows, int64_t columns) {
  if (label != nullptr)
    for (int64_t row = 0; row < rows; ++row)
      if (label[row] < 0 || label[row] >= columns) return row + 1;
  return 0;
}

}  // namespace fastmpl
