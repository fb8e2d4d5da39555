"""The stages in order: what the public functions do."""
