// One row of cross-entropy: what every loss here is made of.
#pragma once

#include "row_math.hpp"

namespace fastmpl {

constexpr int64_t NO_LABEL = -1;

// The loss -sum_c t_c log p_c with t = (1 - smoothing) * target + smoothing / K, where the target is the row `target`
// (0 in its padding) times `target_scale`, or one-hot at `label`. Leaves scale * (p - t), the gradient of scale times
// the loss, in `exponential`; `shifted` holds the logits before, and the logits less their maximum after.
FASTMPL_INLINE float cross_entropy(float* shifted, float* exponential, const float* target, float target_scale,
                                   int64_t label, float smoothing, float scale, int64_t columns) {
  const float peak = maximum(shifted, columns);
  const float total = exponentials(shifted, columns, peak, 1.0f, exponential);
  shift(shifted, columns, peak);
  const float uniform = smoothing / static_cast<float>(columns), kept = 1.0f - smoothing;
  const float soft = kept * target_scale, inverse = scale / total;
  Floats cross = {};
  float agreement = 0.0f;
  if (label == NO_LABEL) {
    for (int64_t c = 0; c < columns; c += LANES) {
      const Floats t = read<Floats>(target + c) * soft + uniform;
      cross += t * read<Floats>(shifted + c);
      write(exponential + c, read<Floats>(exponential + c) * inverse - t * scale);
    }
  } else {
    for (int64_t c = 0; c < columns; c += LANES) {
      cross += read<Floats>(shifted + c);
      write(exponential + c, read<Floats>(exponential + c) * inverse - uniform * scale);
    }
    cross *= all(uniform);
    agreement = kept * shifted[label];
    exponential[label] -= kept * scale;
  }
  return std::log(total) - (agreement + sum(cross));
}

// 0, or 1 + the first row whose label is no class: a label is an address here.
inline int64_t first_bad_label(const int64_t* label, int64_t rows, int64_t columns) {
  if (label != nullptr)
    for (int64_t row = 0; row < rows; ++row)
      if (label[row] < 0 || label[row] >= columns) return row + 1;
  return 0;
}

}  // namespace fastmpl
