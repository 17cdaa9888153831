// The teacher's losses (supervised, UDA consistency, feedback from the student) and their logits gradients: one pass a
// row. The formulas are those of teacher_objective/reference.py.
#include <vector>

#include "cross_entropy.hpp"

namespace fastmpl {
namespace {

enum Feedback : int32_t { NONE = 0, EXACT = 1, ON_LABEL = 2 };

struct TeacherObjective {  // mirrored in teacher_objective/native.py
  int64_t labelled, unlabelled, columns;
  const void *labelled_logits, *strong_logits, *weak_logits;  // the last null where no term reads it
  const int64_t* target;                                      // [labelled]
  const float *uda_weight, *feedback_weight;                  // 0-D
  const float* tangent;  // [unlabelled, columns]: the student's tangent (exact)
  const float* credit;   // [unlabelled] or 0-D (feedback on a label), 0-D: the tangent's scale (exact)
  const int64_t* drawn;  // [unlabelled]: the label that the student learnt (feedback on a label)
  float* part;           // [labelled + unlabelled, 4], scratch
  float* parts;          // [5]: loss, supervised, uda, feedback, coverage
  void *labelled_gradient, *strong_gradient, *weak_gradient;  // null where nobody asks for it
  int32_t uda, feedback, credit_a_row, feedback_on_weak;
  float temperature, label_smoothing, supervised_weight, uda_temperature, uda_threshold, credit_sign;
};

struct Scratch {
  float *weak, *strong, *q, *tangent, *gradient;
};

template <class T>
FASTMPL_INLINE void labelled_row(const TeacherObjective& o, int64_t row, const Scratch& s) {
  const int64_t K = o.columns, at = row * K;
  const float scale = o.supervised_weight / static_cast<float>(o.labelled);
  const float top = load_row(static_cast<const T*>(o.labelled_logits) + at, K, s.strong);
  float* part = o.part + 4 * row;
  T* to = o.labelled_gradient == nullptr ? nullptr : static_cast<T*>(o.labelled_gradient) + at;
  const Powers p = powers(s.strong, top, K, s.q);
  part[0] = cross_entropy(p, one_hot(o.target[row]), o.label_smoothing, scale, K, to, K);
  part[1] = part[2] = part[3] = 0.0f;
}

// Consistency of the strong view with the weak one: the loss, its gradient in s.gradient, whether the row counts.
FASTMPL_INLINE bool consistency_row(const TeacherObjective& o, float weak_top, float strong_top, const Scratch& s,
                                    float* loss) {
  const int64_t K = o.columns;
  const float total = exponentials(s.weak, K, weak_top, 1.0f / o.uda_temperature, s.q);
  if (!(1.0f / total >= o.uda_threshold)) return false;
  const float scale = *o.uda_weight / static_cast<float>(o.unlabelled);
  const Powers p = powers(s.strong, strong_top, K, s.gradient);
  *loss = cross_entropy(p, distribution(s.q, 1.0f / total, 1.0f), 0.0f, scale, K, s.gradient, padded(K));
  return true;
}

// Adds the feedback's gradient for one row of the credited view to s.gradient; returns the feedback's value.
FASTMPL_INLINE float feedback_row(const TeacherObjective& o, int64_t row, const float* view, float top,
                                  const Scratch& s) {
  const int64_t K = o.columns;
  const float inverse_temperature = 1.0f / o.temperature;
  const float total = exponentials(view, K, top, inverse_temperature, s.q), inverse = 1.0f / total;
  const float credit = o.credit_sign * o.credit[o.credit_a_row ? row : 0];
  const float scale = *o.feedback_weight * credit * inverse_temperature;
  if (o.feedback == EXACT) {
    widen(o.tangent + row * K, K, 0.0f, s.tangent);
    const float mean = dot(s.q, s.tangent, K) * inverse;
#pragma omp simd
    for (int64_t c = 0; c < padded(K); ++c) s.gradient[c] += s.q[c] * inverse * (s.tangent[c] - mean) * scale;
    return credit * mean;
  }
  const int64_t label = o.drawn[row];
#pragma omp simd
  for (int64_t c = 0; c < padded(K); ++c) s.gradient[c] -= s.q[c] * (inverse * scale);
  s.gradient[label] += scale;
  return credit * ((view[label] - top) * inverse_temperature - std::log(total));
}

template <class T>
FASTMPL_INLINE void unlabelled_row(const TeacherObjective& o, int64_t row, const Scratch& s) {
  const int64_t K = o.columns, at = row * K;
  float* part = o.part + 4 * (o.labelled + row);
  part[0] = part[1] = part[2] = part[3] = 0.0f;
  float weak_top = 0.0f;
  if (o.weak_logits != nullptr) weak_top = load_row(static_cast<const T*>(o.weak_logits) + at, K, s.weak);
  const float strong_top = load_row(static_cast<const T*>(o.strong_logits) + at, K, s.strong);
  const bool keep = o.uda && consistency_row(o, weak_top, strong_top, s, &part[1]);
  part[3] = keep;
  if (!keep) clear(s.gradient, K);
  if (o.feedback != NONE && !o.feedback_on_weak) part[2] = feedback_row(o, row, s.strong, strong_top, s);
  if (o.strong_gradient != nullptr) store_row(static_cast<T*>(o.strong_gradient) + at, K, s.gradient);
  if (o.feedback == NONE || !o.feedback_on_weak) return;
  clear(s.gradient, K);
  part[2] = feedback_row(o, row, s.weak, weak_top, s);
  if (o.weak_gradient != nullptr) store_row(static_cast<T*>(o.weak_gradient) + at, K, s.gradient);
}

// Rows [0, labelled) are the labelled ones, the others the unlabelled ones.
template <class T>
FASTMPL_INLINE void teacher_rows(const TeacherObjective& o, int64_t begin, int64_t end) {
  const size_t wide = static_cast<size_t>(padded(o.columns));
  std::vector<float> buffer(5 * wide);
  float* b = buffer.data();
  const Scratch scratch{b, b + wide, b + 2 * wide, b + 3 * wide, b + 4 * wide};
  for (int64_t row = begin; row < end; ++row) {
    if (row < o.labelled)
      labelled_row<T>(o, row, scratch);
    else
      unlabelled_row<T>(o, row - o.labelled, scratch);
  }
}

FASTMPL_CLONES void teacher_float(const TeacherObjective& o, int64_t b, int64_t e) { teacher_rows<float>(o, b, e); }
FASTMPL_CLONES void teacher_bfloat16(const TeacherObjective& o, int64_t b, int64_t e) { teacher_rows<bfloat16>(o, b, e); }

void add_up(const TeacherObjective& o) {
  double part[4] = {};
  for (int64_t row = 0; row < o.labelled + o.unlabelled; ++row)
    for (int64_t i = 0; i < 4; ++i) part[i] += o.part[4 * row + i];
  const double rows = static_cast<double>(o.unlabelled);
  const double supervised = part[0] / static_cast<double>(o.labelled), uda = part[1] / rows, feedback = part[2];
  double total = o.supervised_weight * supervised;
  if (o.uda) total += *o.uda_weight * uda;
  if (o.feedback != NONE) total += *o.feedback_weight * feedback;
  const double parts[5] = {total, supervised, uda, feedback, part[3] / rows};
  for (int64_t i = 0; i < 5; ++i) o.parts[i] = static_cast<float>(parts[i]);
}

}  // namespace
}  // namespace fastmpl

// Returns 0, or 1 + the first row whose label is no class (unlabelled rows are counted after the labelled ones).
FASTMPL_EXPORT int64_t fastmpl_teacher_objective(const fastmpl::TeacherObjective* o, int32_t is_bfloat16) {
  using namespace fastmpl;
  if (const int64_t bad = first_bad_label(o->target, o->labelled, o->columns)) return bad;
  if (const int64_t bad = first_bad_label(o->drawn, o->unlabelled, o->columns)) return o->labelled + bad;
  const auto rows = is_bfloat16 ? teacher_bfloat16 : teacher_float;
  const int64_t n = o->labelled + o->unlabelled;
  parallel(n, rows_per_thread(o->columns), [o, rows](int64_t begin, int64_t end) { rows(*o, begin, end); });
  add_up(*o);
  return 0;
}
