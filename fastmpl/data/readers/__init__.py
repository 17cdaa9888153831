"""Where a data set comes from: published sets, a folder, lists, tars and TFRecord, with the index or cache of each."""
