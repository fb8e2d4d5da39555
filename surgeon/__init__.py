"""Structured pruning that is exact, explained, and measured on the clock.

>>> import surgeon
>>> surgeon.SurgeonError.__name__
'SurgeonError'
"""

from surgeon.deploy.export import ExportReport, export
from surgeon.device.benchmark import Verdict, benchmark
from surgeon.errors import SurgeonError
from surgeon.plan import Plan
from surgeon.report import Report
from surgeon.shrink import inspect, plan, shrink, verify
from surgeon.storage import load, save
from surgeon.verify import Certificate

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "ExportReport",
    "Plan",
    "Report",
    "SurgeonError",
    "Verdict",
    "benchmark",
    "export",
    "inspect",
    "load",
    "plan",
    "save",
    "shrink",
    "verify",
]
