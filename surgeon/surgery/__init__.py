"""From kept units to a physically smaller module."""

from surgeon.surgery.operate import Operation, operate

__all__ = ["Operation", "operate"]
