"""Images and labels in, batches out: sources -> split -> draws -> pipeline -> Batch."""
