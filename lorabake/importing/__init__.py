"""Make a recipe of what people have: options, a prompt with tags, or a picture with its generation data.

The story is in `drafting`. What a prompt, a picture and a workflow say becomes `Wanted`, whoever said it.
"""
