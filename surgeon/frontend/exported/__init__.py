"""Programs that `torch.export.save` wrote: every member of the file is checked before torch sees what it says."""

from surgeon.frontend.exported.program import read_program

__all__ = ["read_program"]
