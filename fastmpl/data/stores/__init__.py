"""A large teacher's class probabilities of each image, on disk, and images selected by them."""
