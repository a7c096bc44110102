"""The language of key maps: views onto base tensors, tables of names, spellings of LoRA keys."""
