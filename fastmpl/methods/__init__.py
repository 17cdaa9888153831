"""The methods, one file each: pure phases over logits. They know no device, rank, optimiser, precision or graph."""
