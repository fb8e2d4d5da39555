"""The latency model: milliseconds of a model's operators at any widths, from a device profile."""
