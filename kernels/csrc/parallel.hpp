// Runs loops on the threads that torch already has. A second pool of threads would compete with it for the same cores.
#pragma once

#include <cstdint>

// Marks a function that the library's Python side calls.
#define FASTMPL_EXPORT extern "C" __attribute__((visibility("default")))

// Compiles a function for several instruction sets, of which the loader chooses one. It is for plain functions that inline
// what they call (FASTMPL_INLINE): a lambda or a function that is not inlined would be compiled for the lowest set only.
#if FASTMPL_TARGET_CLONES
#define FASTMPL_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FASTMPL_CLONES
#endif
#define FASTMPL_ALWAYS __attribute__((always_inline))  // for a lambda that a loop calls
#define FASTMPL_INLINE inline FASTMPL_ALWAYS

namespace fastmpl {

using Body = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);

extern ParallelFor torch_parallel_for;  // null until Python sets it; then loops are serial

// Calls f(begin, end) over disjoint ranges that cover [0, n), each of at least `grain` items, possibly at once.
// f must not throw: no exception crosses a C interface.
template <class F>
void parallel(int64_t n, int64_t grain, F f) {
  if (n <= 0) return;
  if (torch_parallel_for != nullptr && n > grain) {
    const Body body = [](int64_t begin, int64_t end, void* context) { (*static_cast<F*>(context))(begin, end); };
    if (torch_parallel_for(0, n, grain, body, &f) == 0) return;
  }
  f(int64_t{0}, n);  // reached where torch refuses a loop, of which nothing has run then
}

}  // namespace fastmpl
