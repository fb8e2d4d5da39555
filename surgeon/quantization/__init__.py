"""int8 files, calibrated, measured, kept only where they are faster."""
