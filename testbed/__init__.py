"""What tests and benchmarks share: random networks, the oracle that they are held against, and models by name."""
