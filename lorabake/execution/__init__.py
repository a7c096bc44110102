"""Step 4 of the flow: compute the tensors of a plan, on one device, by several workers."""
