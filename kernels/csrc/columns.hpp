// Walks a channels-last activation as a matrix whose columns belong to channels.
//
// `rows` pixels of `channels` each are contiguous. Rows are taken `group` at a time, so that a line of
// `width = group * channels` elements divides into tiles of kTile whatever the number of channels; every per-channel
// table is laid out `group` times. The up to group - 1 rows that are left over are a short matrix of width `channels`.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "parallel.hpp"

namespace fastmpl {

// Four AVX-512 registers: the tables and sums of a pass stay in registers, and cache lines are read whole.
constexpr int64_t kTile = 64;

struct Columns {
  int64_t rows, channels, group, width, lines, left;

  Columns(int64_t rows, int64_t channels) : rows(rows), channels(channels) {
    group = kTile / std::gcd(channels, kTile);
    width = group * channels;
    lines = rows / group;
    left = rows - lines * group;
  }

  // Lines that are summed in float32 before the sum is added to float64. They fit the first or second cache.
  int64_t block() const { return std::clamp<int64_t>(8192 / width, 32, 256); }

  // Parts of the matrix that have their own sums. Their number depends on the shape alone, so the result does not depend
  // on the number of threads.
  int64_t parts() const { return std::clamp<int64_t>(lines * width / 65536, 1, 32); }
};

// Extends a table of one value a channel to one value a column.
inline void repeat(std::vector<float>& table, const Columns& m) {
  table.resize(static_cast<size_t>(m.width));
  for (int64_t j = m.channels; j < m.width; ++j) table[j] = table[j - m.channels];
}

// `kinds` sums a channel over all rows, in float64, to out [kinds, channels]. lines_sum(first line, number of lines, s)
// adds those of whole lines to s [kinds, width], left_sum(s) those of the rows left over to the first `channels` columns.
template <class Lines, class Left>
void column_sums(const Columns& m, int64_t kinds, double* out, Lines lines_sum, Left left_sum) {
  const int64_t parts = m.parts(), lines = (m.lines + parts - 1) / parts;
  std::vector<double> partial(static_cast<size_t>(kinds * parts * m.width), 0.0);
  parallel(parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = end - 1; p >= begin; --p) {
      double* s = partial.data() + kinds * p * m.width;
      std::fill(s, s + kinds * m.width, 0.0);  // a part may run twice
      const int64_t first = std::min(p * lines, m.lines), last = std::min(first + lines, m.lines);
      lines_sum(first, last - first, s);
    }
  });
  left_sum(partial.data());
  std::fill(out, out + kinds * m.channels, 0.0);
  for (int64_t i = 0; i < parts * kinds; ++i) {
    double* sum = out + (i % kinds) * m.channels;
    for (int64_t g = 0; g < m.width; g += m.channels)
      for (int64_t c = 0; c < m.channels; ++c) sum[c] += partial[i * m.width + g + c];
  }
}

}  // namespace fastmpl
