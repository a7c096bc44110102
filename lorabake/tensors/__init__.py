"""Tensors on disk, below everything else: dtypes, SafeTensors, pickles, checkpoints of several files."""
