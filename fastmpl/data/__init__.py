"""Images and labels in, batches out: sources -> split -> draws -> views -> Batch.

files       image files: names, bytes, formats, decoding
readers     published sets, a folder, lists, tars, TFRecord
memory      views of images that are decoded once and held
streaming   views of images that are read and decoded at every step
stores      what a large teacher said of each image
checks      `fastmpl check`: bad images, and copies
packing     `fastmpl pack`: a folder into tars

Beside them lies what all of them use (arrays, draws, order, stream, errors), and what makes a run's data of them:
`sources`, `prepare`, `streams`, `loader`, `ahead`, and `build`, which the trainer calls.
"""
