"""Fused ops of Meta Pseudo Labels. Each op is one public function with three implementations: reference, Triton, C++."""
