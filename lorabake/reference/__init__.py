"""The second account of the mathematics: what a bake should write, worked out again in NumPy and float64."""
