// The library's own state: the function by which torch runs loops on its threads.
#include "parallel.hpp"

namespace fastmpl {
ParallelFor torch_parallel_for = nullptr;
}

// `function` is torch's exported C function torch_parallel_for, or null for serial loops.
FASTMPL_EXPORT void fastmpl_use(void* function) {
  fastmpl::torch_parallel_for = reinterpret_cast<fastmpl::ParallelFor>(function);
}
