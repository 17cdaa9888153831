"""Meta Pseudo Labels and ReducedMPL: correct, cheap teacher-student training on one CPU, one GPU or many."""

__version__ = "0.1.0"
