"""Image files: their names, their bytes, their formats, and what a decoder makes of them."""
