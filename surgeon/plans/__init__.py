"""Plans: which units stay, as a value and as a file."""
