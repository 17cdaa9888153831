"""Views and evaluation sets of images that are decoded once and kept in memory, and of points."""
