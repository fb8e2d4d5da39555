"""Allocation: the width of each group for a budget."""
