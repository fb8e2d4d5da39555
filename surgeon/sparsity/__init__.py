"""Which units of a network are constant or read by nobody, and what takes over the constants."""
