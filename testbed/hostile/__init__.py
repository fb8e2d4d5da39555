"""Hostile files, made by scripts, each with a word on what it tries."""
