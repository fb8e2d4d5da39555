"""The solver: widths of least damage within budgets, without torch."""
