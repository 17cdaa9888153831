"""Reads data sets: published sets, a folder, lists of files, tars and TFRecord files, with the index or cache of each."""
