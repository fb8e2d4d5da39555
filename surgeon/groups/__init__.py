"""Which indices of which parameters live or die together."""
