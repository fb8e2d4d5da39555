"""Structured pruning that is exact, explained, and measured on the clock.

Public names are imported when they are first used, so that `import surgeon` costs next to nothing.

>>> import surgeon
>>> surgeon.SurgeonError.__name__
'SurgeonError'
"""

import importlib
import random

__version__ = "0.2.0"

# Where each public name lives; `__init__.pyi` says the same to type checkers and editors.
_HOMES = {
    "surgeon.deploy.export": "export",
    "surgeon.deploy.export_report": "ExportReport",
    "surgeon.deploy.profiling": "kit profile",
    "surgeon.deploy.verdict_file": "load_verdict",
    "surgeon.device.benchmark": "Verdict benchmark",
    "surgeon.device.profile": "Profile",
    "surgeon.errors": "SurgeonError",
    "surgeon.onnx_import.load": "load_onnx",
    "surgeon.pipeline.shrink": "inspect plan shrink verify",
    "surgeon.pipeline.storage": "load save",
    "surgeon.pipeline.timing": "Timing",
    "surgeon.plans.plan": "Plan",
    "surgeon.projection.project": "project",
    "surgeon.quantization.quantize": "Quantized quantize",
    "surgeon.calibration.synthesis": "synthesize",
    "surgeon.recovery.recover": "recover",
    "surgeon.recovery.report": "Recovery",
    "surgeon.reporting.report": "Report",
    "surgeon.sparsity.connections": "prune_connections",
    "surgeon.sparsity.report": "SweepReport",
    "surgeon.sparsity.sweep": "sweep",
    "surgeon.training.optimizers": "TransferReport transfer_optimizer",
    "surgeon.training.pruner": "Pruner",
    "surgeon.training.weight_masks": "Masks",
    "surgeon.verification.certificate": "Certificate",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
_MODULES = {
    "schedules": "surgeon.training.schedules",
    "scoring": "surgeon.scoring",
    "study": "surgeon.study",
    "training": "surgeon.training",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    value: object
    drawn = random.getstate()  # what torch imports along draws random numbers
    try:
        if name in _MODULES:
            value = importlib.import_module(_MODULES[name])
        elif name in _HOME:
            value = getattr(importlib.import_module(_HOME[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    finally:
        random.setstate(drawn)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
