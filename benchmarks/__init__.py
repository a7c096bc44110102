"""Full-size benchmarks: inputs, a peer, speed and memory. `benchmarks/README.md` says how to run them."""
