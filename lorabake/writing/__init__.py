"""Write an output: bring the bytes to their planned places, and the output to its name.

An `Output` lives in this order, whatever its form:

1. target: what has its name may be replaced, or the bake stops before anything is written;
2. partial: a marked and locked folder beside the target, in which everything is made;
3. weights: files of their full length, which take ranges from any thread; beside: learned embeddings;
4. complete: headers get what is known only at the end, the form adds what else it has, and all of it is on the disk;
5. commit: names change places, all of them or none; a journal lets the next bake complete what a kill interrupts;
6. clean: nothing is left beside the target.

`form` says what a file and a folder do each in their own way; another form is one more file like `onefile` and
`folder`. `inputs` are the files that are read meanwhile. `system` has the system calls, one file a platform.
"""
