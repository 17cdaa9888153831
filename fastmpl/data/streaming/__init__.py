"""Views of images that are read and decoded at every step, and images that are evaluated so."""
