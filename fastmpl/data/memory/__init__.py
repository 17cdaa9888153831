"""Views of images that are decoded once and held in memory, and of points."""
