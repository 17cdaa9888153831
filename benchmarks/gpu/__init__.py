"""The rows of `benchmarks.gpu_check`: what is asked of a GPU, in groups that each run in a process of their own."""
