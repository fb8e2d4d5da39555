"""Recovery without labels: compensation of what a cut removed, BatchNorm, distillation."""

from surgeon.recovery.recover import recover, recover_groups
from surgeon.recovery.report import Layer, Recovery

__all__ = ["Layer", "Recovery", "recover", "recover_groups"]
