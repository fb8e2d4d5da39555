"""Files of `torch.export.save`: every member is checked before torch gets its content."""

from surgeon.frontend.exported.program import read_program

__all__ = ["read_program"]
