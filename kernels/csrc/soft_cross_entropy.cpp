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

template <class T>
FASTMPL_INLINE void cross_entropy_rows(const SoftCrossEntropy& o, float* row_loss, int64_t begin, int64_t end) {
  const int64_t K = o.columns;
  const size_t wide = static_cast<size_t>(padded(K));
  std::vector<float> buffer(3 * wide);
  float *logits = buffer.data(), *slope = logits + wide, *row_target = slope + wide;
  const float scale = 1.0f / static_cast<float>(o.rows);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * K;
    const float top = load_row(static_cast<const T*>(o.logits) + at, K, logits);
    Target target = one_hot(o.label == nullptr ? 0 : o.label[row]);
    if (o.distribution != nullptr) {
      widen(static_cast<const T*>(o.distribution) + at, K, 0.0f, row_target);
      target = distribution(row_target, 1.0f, total(row_target, K));
    }
    row_loss[row] = cross_entropy(logits, top, target, o.label_smoothing, scale, K, slope);
    if (o.gradient != nullptr) store_row(static_cast<T*>(o.gradient) + at, K, slope);
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
