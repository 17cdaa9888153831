// The student's loss on pseudo labels, its logits gradient, the label and the confidence mask: one pass a row.
// The formulas are those of student_objective/reference.py.
#include <vector>

#include "cross_entropy.hpp"

namespace fastmpl {
namespace {

enum Targets : int32_t { SOFT = 0, SAMPLED = 1, ARGMAX = 2 };

struct StudentObjective {  // mirrored in student_objective/native.py
  int64_t rows, columns;
  const void *label_logits, *student_logits;
  const int64_t *key, *index;  // null unless targets are sampled
  float* parts;                // [3]: loss, confidence, coverage
  int64_t* label;              // [rows]
  uint8_t* mask;               // [rows]
  void* gradient;              // [rows, columns], or null where nobody asks for it
  int32_t targets;
  float temperature, label_smoothing, threshold;
};

FASTMPL_INLINE uint64_t splitmix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

FASTMPL_INLINE int64_t fixed_point(float weight) { return static_cast<int32_t>(weight * 1073741824.0f + 0.5f); }

FASTMPL_INLINE int64_t fixed_point_sum(const float* weight, int64_t count) {
  int64_t sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < count; ++c) sum += fixed_point(weight[c]);
  return sum;
}

// The inverse of the cumulative distribution at the row's keyed uniform number, in 30-bit fixed point: integer sums are
// exact in any order, so every implementation draws the same label.
FASTMPL_INLINE int64_t draw(const float* weight, int64_t columns, uint64_t key, uint64_t index) {
  const int64_t total = fixed_point_sum(weight, columns);
  const int64_t odd = static_cast<int64_t>((splitmix64(splitmix64(key + index)) >> 41) << 1 | 1);  // uniform * 2^24
  const int64_t point = odd * (total >> 24) + (odd * (total & 0xffffff) >> 24);
  int64_t below = 0, c = 0;
  for (; c + LANES < columns; c += LANES) {
    const int64_t block = fixed_point_sum(weight + c, LANES);
    if (below + block > point) break;
    below += block;
  }
  for (; c < columns - 1; ++c) {
    below += fixed_point(weight[c]);
    if (below > point) break;
  }
  return c;
}

struct Scratch {
  float *loss, *confidence;         // [rows]
  float *weight, *logits, *power;  // one row
};

template <class T>
FASTMPL_INLINE void student_row(const StudentObjective& o, int64_t row, const Scratch& s) {
  const int64_t K = o.columns, at = row * K;
  T* gradient = static_cast<T*>(o.gradient);
  float *weight = s.weight, *logits = s.logits, *power = s.power;
  const float top = load_row(static_cast<const T*>(o.label_logits) + at, K, weight);
  int64_t label = o.targets == SAMPLED ? 0 : first(weight, K, top);
  const float total = exponentials(weight, K, top, 1.0f / o.temperature, weight);
  if (o.targets == SAMPLED)
    label = draw(weight, K, static_cast<uint64_t>(*o.key), static_cast<uint64_t>(o.index[row]));
  const bool keep = 1.0f / total >= o.threshold;
  s.confidence[row] = 1.0f / total;
  o.label[row] = label;
  o.mask[row] = keep;
  if (!keep) {
    s.loss[row] = 0.0f;
    if (gradient != nullptr) store_zeros(gradient + at, K);
    return;
  }
  const Target target = o.targets == SOFT ? distribution(weight, 1.0f / total, 1.0f) : one_hot(label);
  const float peak = load_row(static_cast<const T*>(o.student_logits) + at, K, logits);
  const float scale = 1.0f / static_cast<float>(o.rows);
  T* to = gradient == nullptr ? nullptr : gradient + at;
  s.loss[row] = cross_entropy(powers(logits, peak, K, power), target, o.label_smoothing, scale, K, to, K);
}

template <class T>
FASTMPL_INLINE void student_rows(const StudentObjective& o, float* row_part, int64_t begin, int64_t end) {
  const size_t wide = static_cast<size_t>(padded(o.columns));
  std::vector<float> buffer(3 * wide);
  float* b = buffer.data();
  const Scratch scratch{row_part, row_part + o.rows, b, b + wide, b + 2 * wide};
  for (int64_t row = begin; row < end; ++row) student_row<T>(o, row, scratch);
}

FASTMPL_CLONES void student_float(const StudentObjective& o, float* row_part, int64_t b, int64_t e) {
  student_rows<float>(o, row_part, b, e);
}
FASTMPL_CLONES void student_bfloat16(const StudentObjective& o, float* row_part, int64_t b, int64_t e) {
  student_rows<bfloat16>(o, row_part, b, e);
}

}  // namespace
}  // namespace fastmpl

// Returns 0: no label comes from outside.
FASTMPL_EXPORT int64_t fastmpl_student_objective(const fastmpl::StudentObjective* o, int32_t is_bfloat16) {
  using namespace fastmpl;
  const auto rows = is_bfloat16 ? student_bfloat16 : student_float;
  std::vector<float> row_part(static_cast<size_t>(2 * o->rows));
  float* part = row_part.data();
  parallel(o->rows, rows_per_thread(o->columns), [&](int64_t begin, int64_t end) { rows(*o, part, begin, end); });
  int64_t kept = 0;
  for (int64_t row = 0; row < o->rows; ++row) kept += o->mask[row];
  o->parts[0] = mean(part, o->rows);
  o->parts[1] = mean(part + o->rows, o->rows);
  o->parts[2] = static_cast<float>(static_cast<double>(kept) / static_cast<double>(o->rows));
  return 0;
}
