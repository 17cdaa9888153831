"""What a large teacher said of each image, on disk; and images chosen by it."""
