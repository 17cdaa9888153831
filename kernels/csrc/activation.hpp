// The activations that follow a batch norm: their values and derivatives at the pre-activation z.
#pragma once

#include "scalar.hpp"

namespace fastmpl {

enum Activation : int32_t { kNone = 0, kRelu = 1, kLeakyRelu = 2, kSilu = 3 };

template <int32_t A>
FASTMPL_INLINE float activate(float z, float slope) {
  if constexpr (A == kRelu) return z <= 0.0f ? 0.0f : z;  // a NaN stays one
  if constexpr (A == kLeakyRelu) return z > 0.0f ? z : z * slope;
  if constexpr (A == kSilu) return z * sigmoid(z);
  return z;
}

template <int32_t A>
FASTMPL_INLINE float derivative(float z, float slope) {
  if constexpr (A == kRelu) return z <= 0.0f ? 0.0f : 1.0f;
  if constexpr (A == kLeakyRelu) return z > 0.0f ? 1.0f : slope;
  if constexpr (A == kSilu) {
    const float s = sigmoid(z);
    return s * (1.0f + z * (1.0f - s));
  }
  return 1.0f;
}

}  // namespace fastmpl
