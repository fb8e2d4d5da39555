"""Widths of least damage within a budget, without torch."""
