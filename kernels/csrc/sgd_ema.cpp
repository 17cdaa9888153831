// The optimiser's step over many tensors as if they were one: each element is read and written once.
//
//   d = clip g + weight_decay p,   b <- momentum b + d,   p <- p - rate (nesterov ? d + momentum b : b)
//   a <- a + (1 - decay) (p - a)
//
// What changes from step to step (rate, clip, found_inf, decay) is read through a pointer, as on a GPU.
#include <algorithm>
#include <cmath>
#include <vector>

#include "scalar.hpp"

namespace fastmpl {
namespace {

struct Step {
  float rate, clip, momentum, weight_decay, rest;  // rest = 1 - decay
};

template <bool kNesterov, bool kAverage>
FASTMPL_CLONES void step(const Step& s, float* __restrict p, const float* __restrict g, float* __restrict b,
                         float* __restrict a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float d = s.clip * g[i] + s.weight_decay * p[i];
    const float velocity = s.momentum * b[i] + d;
    const float moved = p[i] - s.rate * (kNesterov ? d + s.momentum * velocity : velocity);
    b[i] = velocity;
    p[i] = moved;
    if constexpr (kAverage) a[i] += s.rest * (moved - a[i]);
  }
}

// Products are added in float32 over runs of kRun elements a lane, whose error is far below that of one rounding of the
// norm, and the runs in float64: converting every element to float64 first would take longer than reading it.
constexpr int64_t kLanes = 64, kRun = 16;

FASTMPL_CLONES double products_in_runs(const float* a, const float* b, int64_t n) {
  double lanes[kLanes] = {}, sum = 0.0;
  int64_t i = 0;
  for (; i + kLanes * kRun <= n; i += kLanes * kRun) {
    float run[kLanes] = {};
    for (int64_t r = 0; r < kRun; ++r)
      for (int64_t j = 0; j < kLanes; ++j) run[j] += a[i + r * kLanes + j] * b[i + r * kLanes + j];
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += run[j];
  }
  for (; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  for (double lane : lanes) sum += lane;
  return sum;
}

FASTMPL_CLONES double products_in_float64(const float* a, const float* b, int64_t n) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

double sum_of_products(const float* a, const float* b, int64_t n) {
  const double sum = products_in_runs(a, b, n), size = std::abs(sum);
  const bool in_range = size > 1e-20 && size < 1e30;  // else a float32 product may have become 0 or infinite
  return in_range ? sum : products_in_float64(a, b, n);
}

// f(tensor, first element, number of elements) over pieces of at most kPiece elements that cover all tensors; small
// tensors share a thread's turn.
constexpr int64_t kPiece = 65536;

struct Piece {
  int64_t tensor, first, count;
};

std::vector<Piece> pieces(int64_t tensors, const int64_t* sizes) {
  std::vector<Piece> all;
  for (int64_t t = 0; t < tensors; ++t)
    for (int64_t first = 0; first < sizes[t]; first += kPiece)
      all.push_back({t, first, std::min(kPiece, sizes[t] - first)});
  return all;
}

}  // namespace
}  // namespace fastmpl

using namespace fastmpl;

// `averages` is null where none are kept; `clip` and `found_inf` are null for 1 and 0.
FASTMPL_EXPORT void fastmpl_sgd_ema(int64_t tensors, const int64_t* sizes, float* const* params,
                                    const float* const* grads, float* const* buffers, float* const* averages,
                                    const float* rate, const float* clip, const float* found_inf, const float* decay,
                                    float momentum, float weight_decay, bool nesterov) {
  if (found_inf != nullptr && *found_inf != 0.0f) return;
  const Step s{*rate, clip == nullptr ? 1.0f : *clip, momentum, weight_decay,
               averages == nullptr ? 0.0f : 1.0f - *decay};
  const auto run = averages == nullptr ? (nesterov ? step<true, false> : step<false, false>)
                                       : (nesterov ? step<true, true> : step<false, true>);
  const std::vector<Piece> all = pieces(tensors, sizes);
  parallel(static_cast<int64_t>(all.size()), 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto [t, first, count] = all[i];
      run(s, params[t] + first, grads[t] + first, buffers[t] + first,
          averages == nullptr ? nullptr : averages[t] + first, count);
    }
  });
}

namespace {

// <a, b> over two lists of tensors, summed in float64 in an order that does not depend on the threads.
double inner_product(int64_t tensors, const int64_t* sizes, const float* const* a, const float* const* b) {
  const std::vector<Piece> all = pieces(tensors, sizes);
  std::vector<double> partial(all.size());
  parallel(static_cast<int64_t>(all.size()), 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto [t, first, count] = all[i];
      partial[i] = sum_of_products(a[t] + first, b[t] + first, count);
    }
  });
  double sum = 0.0;
  for (double value : partial) sum += value;
  return sum;
}

}  // namespace

// The Euclidean norm of all tensors together.
FASTMPL_EXPORT void fastmpl_global_norm(int64_t tensors, const int64_t* sizes, const float* const* grads, float* out) {
  *out = static_cast<float>(std::sqrt(inner_product(tensors, sizes, grads, grads)));
}

FASTMPL_EXPORT void fastmpl_inner_product(int64_t tensors, const int64_t* sizes, const float* const* a,
                                          const float* const* b, float* out) {
  *out = static_cast<float>(inner_product(tensors, sizes, a, b));
}
