"""Structured pruning that is exact, explained, and measured on the clock.

>>> import surgeon
>>> surgeon.SurgeonError.__name__
'SurgeonError'
"""

from surgeon import interrupts as interrupts  # first: torch, which the others import, takes seconds
from surgeon import schedules as schedules
from surgeon import training as training
from surgeon.clock import Timing
from surgeon.connections import prune_connections
from surgeon.deploy.export import ExportReport, export
from surgeon.deploy.quantize import Quantized, quantize
from surgeon.device.benchmark import Verdict, benchmark
from surgeon.device.profile import Profile
from surgeon.errors import SurgeonError
from surgeon.plan import Plan
from surgeon.profiling import kit, profile
from surgeon.recovery import Recovery, project, recover
from surgeon.recovery.synthesis import synthesize
from surgeon.report import Report
from surgeon.shrink import inspect, plan, shrink, verify
from surgeon.storage import load, save
from surgeon.sweep import sweep
from surgeon.sweeping.report import SweepReport
from surgeon.training.masks import Masks
from surgeon.training.pruner import Pruner
from surgeon.verify import Certificate

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
