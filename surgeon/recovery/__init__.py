"""Recovery without labels: compensation for what a cut removed, BatchNorm re-estimation, distillation."""

from surgeon.recovery.agreement import Agreement
from surgeon.recovery.recover import recover, recover_groups
from surgeon.recovery.report import Layer, Recovery

__all__ = ["Agreement", "Layer", "Recovery", "recover", "recover_groups"]
