// Cross-entropy with label smoothing against labels or distributions, and its logits gradient: one pass a row.
// The formulas are those of soft_cross_entropy/reference.py.
#include <vector>

#include "cross_entropy.hpp"

namespace fastmpl {
namespace {

struct SoftCrossEntropy {  // mirrored in soft_cross_entropy/native.py
  int64_t rows, columns;
  const void* logits;
  const int64_t* label;      // [rows], or null: then
  const void* distribution;  // [rows, columns]
  float* loss;               // 0-D
  void* gradient;            // [rows, columns], or null where nobody asks for it
  float label_smoothing;
};

// Rows whose passes alternate, so that the arithmetic of one fills the wait for another's maximum or sum, where all of them
// fit the first-level cache.
constexpr int64_t kAbreast = 4, kAbreastColumns = 1024;

template <class T>
FASTMPL_INLINE void cross_entropy_rows(const SoftCrossEntropy& o, float* row_loss, int64_t begin, int64_t end) {
  const int64_t K = o.columns, wide = padded(K);
  const int64_t abreast = K <= kAbreastColumns ? kAbreast : 1;
  std::vector<float> buffer(static_cast<size_t>((2 * abreast + 1) * wide));
  float *logits = buffer.data(), *power = logits + abreast * wide, *distribution_row = power + abreast * wide;
  const float scale = 1.0f / static_cast<float>(o.rows);
  for (int64_t first = begin; first < end; first += abreast) {
    const int64_t rows = std::min(abreast, end - first);
    float top[kAbreast];
    Powers made[kAbreast];
    for (int64_t i = 0; i < rows; ++i)
      top[i] = load_row(static_cast<const T*>(o.logits) + (first + i) * K, K, logits + i * wide);
    for (int64_t i = 0; i < rows; ++i) made[i] = powers(logits + i * wide, top[i], K, power + i * wide);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = first + i, at = row * K;
      Target target = one_hot(o.label == nullptr ? 0 : o.label[row]);
      if (o.distribution != nullptr) {
        widen(static_cast<const T*>(o.distribution) + at, K, 0.0f, distribution_row);
        target = distribution(distribution_row, 1.0f, total(distribution_row, K));
      }
      T* gradient = o.gradient == nullptr ? nullptr : static_cast<T*>(o.gradient) + at;
      row_loss[row] = cross_entropy(made[i], target, o.label_smoothing, scale, K, gradient, K);
    }
  }
}

FASTMPL_CLONES void rows_float(const SoftCrossEntropy& o, float* row_loss, int64_t b, int64_t e) {
  cross_entropy_rows<float>(o, row_loss, b, e);
}
FASTMPL_CLONES void rows_bfloat16(const SoftCrossEntropy& o, float* row_loss, int64_t b, int64_t e) {
  cross_entropy_rows<bfloat16>(o, row_loss, b, e);
}

}  // namespace
}  // namespace fastmpl

// Returns 0, or 1 + the first row whose label is no class.
FASTMPL_EXPORT int64_t fastmpl_soft_cross_entropy(const fastmpl::SoftCrossEntropy* o, int32_t is_bfloat16) {
  using namespace fastmpl;
  if (const int64_t bad = first_bad_label(o->label, o->rows, o->columns)) return bad;
  const auto rows = is_bfloat16 ? rows_bfloat16 : rows_float;
  std::vector<float> row_loss(static_cast<size_t>(o->rows));
  parallel(o->rows, rows_per_thread(o->columns), [&](int64_t begin, int64_t end) { rows(*o, row_loss.data(), begin, end); });
  *o->loss = mean(row_loss.data(), o->rows);
  return 0;
}
