"""Recovery without labels: rotation before a cut, compensation of what it removed, BatchNorm, distillation."""

from surgeon.projection.project import project
from surgeon.recovery.recover import recover, recover_groups
from surgeon.recovery.report import Layer, Recovery

__all__ = ["Layer", "Recovery", "project", "recover", "recover_groups"]
