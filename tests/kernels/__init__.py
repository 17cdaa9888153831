"""Tests of the fused kernels."""
