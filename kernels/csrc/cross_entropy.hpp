// One row of cross-entropy: what every loss here is made of.
#pragma once

#include "row_math.hpp"

namespace fastmpl {

// What a row is to learn: the class `label`, or, where `row` is not null, the distribution row * scale (0 in its
// padding), whose sum is `mass`: a distribution that was rounded to bfloat16 does not sum to one.
struct Target {
  const float* row;
  float scale, mass;
  int64_t label;
};

FASTMPL_INLINE Target one_hot(int64_t label) { return {nullptr, 1.0f, 1.0f, label}; }
FASTMPL_INLINE Target distribution(const float* row, float scale, float mass) { return {row, scale, mass, -1}; }

// The loss -sum_c t_c log p_c with t = (1 - smoothing) * target + smoothing / K. Leaves scale * (sum(t) p - t), the
// gradient of scale times the loss, in `exponential`; `shifted` holds the logits before, and the logits less their
// maximum after.
FASTMPL_INLINE float cross_entropy(float* shifted, float* exponential, const Target& target, float smoothing,
                                   float scale, int64_t columns) {
  const float peak = maximum(shifted, columns);
  const float total = exponentials(shifted, columns, peak, 1.0f, exponential);
  shift(shifted, columns, peak);
  const float uniform = smoothing / static_cast<float>(columns), kept = 1.0f - smoothing;
  const float mass = kept * target.mass + smoothing, inverse = scale * mass / total;
  Floats cross = {};
  if (target.row != nullptr) {
    const float soft = kept * target.scale;
    for (int64_t c = 0; c < columns; c += LANES) {
      const Floats t = read<Floats>(target.row + c) * soft + uniform;
      cross += t * read<Floats>(shifted + c);
      write(exponential + c, read<Floats>(exponential + c) * inverse - t * scale);
    }
    return mass * std::log(total) - sum(cross);
  }
  for (int64_t c = 0; c < columns; c += LANES) {
    cross += read<Floats>(shifted + c);
    write(exponential + c, read<Floats>(exponential + c) * inverse - uniform * scale);
  }
  exponential[target.label] -= kept * scale;
  return std::log(total) - (kept * shifted[target.label] + uniform * sum(cross));
}

// 0, or 1 + the first row whose label is no class: a label is an address here.
inline int64_t first_bad_label(const int64_t* label, int64_t rows, int64_t columns) {
  if (label != nullptr)
    for (int64_t row = 0; row < rows; ++row)
      if (label[row] < 0 || label[row] >= columns) return row + 1;
  return 0;
}

}  // namespace fastmpl
