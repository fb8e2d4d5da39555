"""Recovery without training: compensation of what was removed, and BatchNorm statistics."""

from surgeon.recovery.recover import recover, recover_groups
from surgeon.recovery.report import Layer, Recovery

__all__ = ["Layer", "Recovery", "recover", "recover_groups"]
