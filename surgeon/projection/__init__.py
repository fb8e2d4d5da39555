"""Rotations of linear streams and attention heads, which change nothing but what a cut loses."""
