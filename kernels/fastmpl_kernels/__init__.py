"""Fused operations of Meta Pseudo Labels: one public function an op, each with a reference, Triton and C++ form."""
