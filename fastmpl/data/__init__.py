"""Makes batches of images and labels: sources -> split -> sampler -> views -> Batch.

files       image files: names, bytes, formats, decoding
readers     published sets, a folder, lists, tars, TFRecord
memory      views and evaluation sets of images that are decoded once
streaming   views and evaluation sets of images that are read and decoded at every step
stores      a large teacher's class probabilities of each image
checks      `fastmpl check`: bad images, and copies
packing     `fastmpl pack`: a folder into tars

Files beside the folders: what all folders use (dataset, draws, sampler, view_stream, device_stream, errors), and what
makes the data of a run (sources, prepare, open_streams, loader, prefetch, evaluation, and build, which the trainer calls).
A "stream" here is an endless series of views (`view_stream`); a stream of a GPU is always called a CUDA stream.
"""
