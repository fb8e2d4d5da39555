"""Structured pruning that is exact, explained, and measured on the clock.

>>> import surgeon
>>> surgeon.SurgeonError.__name__
'SurgeonError'
"""

from surgeon import training as training
from surgeon.calibration.synthesis import synthesize
from surgeon.deploy.export import ExportReport, export
from surgeon.deploy.profiling import kit, profile
from surgeon.device.benchmark import Verdict, benchmark
from surgeon.device.profile import Profile
from surgeon.errors import SurgeonError
from surgeon.pipeline.latency_target import Timing
from surgeon.pipeline.shrink import inspect, plan, shrink, verify
from surgeon.pipeline.storage import load, save
from surgeon.plans.plan import Plan
from surgeon.quantization.quantize import Quantized, quantize
from surgeon.recovery import Recovery, project, recover
from surgeon.reporting.report import Report
from surgeon.sparsity.connections import prune_connections
from surgeon.sparsity.report import SweepReport
from surgeon.sparsity.sweep import sweep
from surgeon.training import schedules
from surgeon.training.pruner import Pruner
from surgeon.training.weight_masks import Masks
from surgeon.verification import Certificate

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "ExportReport",
    "Masks",
    "Plan",
    "Profile",
    "Pruner",
    "Quantized",
    "Recovery",
    "Report",
    "SurgeonError",
    "SweepReport",
    "Timing",
    "Verdict",
    "benchmark",
    "export",
    "inspect",
    "kit",
    "load",
    "plan",
    "profile",
    "project",
    "prune_connections",
    "quantize",
    "recover",
    "save",
    "shrink",
    "sweep",
    "synthesize",
    "verify",
]
