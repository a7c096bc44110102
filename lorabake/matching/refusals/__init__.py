"""Why may a LoRA not be baked? Each refusal is a function: its name says the reason, its answer tells it, or is None.

A refusal takes frozen records and changes nothing. Each file has the refusals that look at the same thing. The table
at its end gives the order in which they are asked:

- `modules`: a module of the LoRA, by its name, by its tensors, and by where it fits,
- `shapes`: its tensors, on one module of the base,
- `programs`: what the program named in `semantics` cannot do,
- `matrices`: random matrices that modules share,
- `files`: the whole file, and what the recipe says of it,
- `families`: whose it is.

Refusals of single modules are collected and reported together. A refusal that returns a tuple of lines ends the
matching.
"""
