"""Projection: rotations of linear streams and attention heads, which keep the function, but lessen what a cut costs."""
