"""Views and evaluation sets of images that are read and decoded whenever they are used."""
