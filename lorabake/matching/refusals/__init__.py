"""Why may a LoRA not be baked? Each refusal is a function: its name says the reason, its answer tells it, or is None.

A refusal takes frozen records and changes nothing. They lie in files by what they look at, each with a table at its
end that says in which order they are asked:

- `modules`: a module of the LoRA, by its name, by its tensors, and by where it fits,
- `shapes`: its tensors, on one module of the base,
- `programs`: what the program cannot do whose reading the recipe asks for,
- `matrices`: random matrices that modules share,
- `files`: the whole file, and what the recipe says of it,
- `families`: whose it is.

What is refused of single modules is collected, and told at once. What a tuple tells, line by line, ends the matching.
"""
