"""Experiments over arms and seeds, one command each; their records are in benchmarks/results."""
