"""A learner: a network with the optimiser that trains it. The only code of a step that knows about ranks."""
