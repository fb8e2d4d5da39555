"""Calibration: batches of inputs, moments, sensitivities, and inputs synthesized from the model alone."""
