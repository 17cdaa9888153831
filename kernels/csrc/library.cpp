// The state of the library: the function with which torch runs loops on its threads.
#include "parallel.hpp"

#include <atomic>

namespace fastmpl {
ParallelFor torch_parallel_for = nullptr;
}

// `function` is torch's exported C function torch_parallel_for, or null for serial loops.
FASTMPL_EXPORT void fastmpl_use(void* function) {
  fastmpl::torch_parallel_for = reinterpret_cast<fastmpl::ParallelFor>(function);
}

// The hash of the sources of this library (CMakeLists.txt).
FASTMPL_EXPORT const char* fastmpl_sources() { return FASTMPL_SOURCES; }

// The number of items in the largest piece of a loop over n; n if loops are serial. For tests.
FASTMPL_EXPORT int64_t fastmpl_largest_piece(int64_t n) {
  std::atomic<int64_t> largest{0};
  fastmpl::parallel(n, 1, [&](int64_t begin, int64_t end) {
    int64_t seen = largest.load();
    while (end - begin > seen && !largest.compare_exchange_weak(seen, end - begin)) {
    }
  });
  return largest.load();
}
