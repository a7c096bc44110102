"""How a checkpoint stores its weights: what its tensors show, what it says of them, and what both mean."""
