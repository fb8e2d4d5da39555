"""What `surgeon` offers, for type checkers and editors; `__init__.py` imports each name when it is first used."""

from surgeon import scoring as scoring
from surgeon import study as study
from surgeon import training as training
from surgeon.calibration.synthesis import synthesize as synthesize
from surgeon.deploy.export import export as export
from surgeon.deploy.export_report import ExportReport as ExportReport
from surgeon.deploy.profiling import kit as kit
from surgeon.deploy.profiling import profile as profile
from surgeon.deploy.verdict_file import load_verdict as load_verdict
from surgeon.device.benchmark import Verdict as Verdict
from surgeon.device.benchmark import benchmark as benchmark
from surgeon.device.profile import Profile as Profile
from surgeon.errors import SurgeonError as SurgeonError
from surgeon.onnx_import.load import load_onnx as load_onnx
from surgeon.pipeline.shrink import inspect as inspect
from surgeon.pipeline.shrink import plan as plan
from surgeon.pipeline.shrink import shrink as shrink
from surgeon.pipeline.shrink import verify as verify
from surgeon.pipeline.storage import load as load
from surgeon.pipeline.storage import save as save
from surgeon.pipeline.timing import Timing as Timing
from surgeon.plans.plan import Plan as Plan
from surgeon.projection.project import project as project
from surgeon.quantization.quantize import Quantized as Quantized
from surgeon.quantization.quantize import quantize as quantize
from surgeon.recovery.recover import recover as recover
from surgeon.recovery.report import Recovery as Recovery
from surgeon.reporting.report import Report as Report
from surgeon.sparsity.connections import prune_connections as prune_connections
from surgeon.sparsity.report import SweepReport as SweepReport
from surgeon.sparsity.sweep import sweep as sweep
from surgeon.training import schedules as schedules
from surgeon.training.optimizers import TransferReport as TransferReport
from surgeon.training.optimizers import transfer_optimizer as transfer_optimizer
from surgeon.training.pruner import Pruner as Pruner
from surgeon.training.weight_masks import Masks as Masks
from surgeon.verification.certificate import Certificate as Certificate

_HOMES: dict[str, str]
_MODULES: dict[str, str]
__all__: list[str]
__version__: str
