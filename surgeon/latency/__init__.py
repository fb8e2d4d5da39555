"""Milliseconds as a budget: what a model's operators take at any widths, and the widths that fit into a time."""
