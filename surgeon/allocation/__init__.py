"""How many units of each group stay: widths for a budget."""
