"""Coupled groups: which indices of which parameters are removed together."""
