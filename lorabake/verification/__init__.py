"""Step 6 of the flow: prove that a checkpoint is what its recipe says, by structure, by weights, by samples."""
