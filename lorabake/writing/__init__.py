"""How an output comes to its place: made in a folder beside the target, and moved there in one step."""
