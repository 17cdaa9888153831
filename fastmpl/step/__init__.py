"""How a method's step is executed: the order of its passes, and whether they run one by one or as one graph."""
