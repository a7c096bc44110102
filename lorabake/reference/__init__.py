"""The second account of the mathematics: what a bake should write, worked out again in NumPy and float64.

It shares with the bake what both are told, and what a mistake in would show elsewhere:

- `planning`: the records of the plan: steps, targets, methods, tallies, and the words of one error,
- `matching`: the record of a patch: which tensors of a LoRA meet which rows of the base, at which strength,
- `adapters`: of a kind its name and title, the records of its settings, which tensors its change takes, and how long
  its sums are; names of slots, and how a shape is flattened,
- `codecs`: the record of how a weight is stored: which tensors hold it, in which roles, with which settings; GGUF's
  blocks are unpacked by one library for both,
- `tensors`: headers, what a dtype is, and the system calls that read a file,
- `errors` and `machine`: the words for what goes wrong.

It shares no arithmetic of changes: deltas, DoRA, methods, draws, codecs and rounding are written here a second time,
after papers, formats and programs. torch draws random numbers that no other generator draws (`formulas/draws.py`),
and no more. Both take from the kind the rank that alpha is divided by, and a scale that its settings hold. Nothing
here is fast. Only `baking` asks it something, namely what a coarse output keeps; it knows nothing of what executes.
"""
