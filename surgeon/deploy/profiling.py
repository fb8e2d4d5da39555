"""Takes the profile of a device for a model, here, or makes the kit that takes it elsewhere."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from surgeon.cost.cost import Cost
from surgeon.deploy.export import export
from surgeon.deploy.free_axes import BATCH
from surgeon.deploy.kit import write_kit
from surgeon.deploy.workloads import Workload, workloads
from surgeon.device.layout_probes import Probe
from surgeon.device.microbenchmark import Key, Point, Whole
from surgeon.device.profile import Profile
from surgeon.device.take_profile import take
from surgeon.errors import InvalidArgument
from surgeon.frontend.isolation import undisturbed
from surgeon.frontend.parameters import public
from surgeon.groups.analyze import analyze
from surgeon.groups.coupling import Groups
from surgeon.latency.operators import operators
from surgeon.latency.sample_points import points, questions
from surgeon.support.progress import counter, stage
from surgeon.support.scratch import temporary_folder
from surgeon.support.shapes import shapes

#: A larger model is not put into a profile as a whole: its file would not fit into memory twice on a small device.
MOST_BYTES = 1 << 30


@public(shapes=shapes)
@undisturbed()
def profile(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    threads: int | None = None,
    cpu_time: bool = False,
    shapes: Any = None,
    path: str | os.PathLike[str] | None = None,
) -> Profile:
    """What this CPU takes for the operators of `model` at different widths, and for the model as a whole.

    Args:
        model: any module that `torch.export` can trace; it is left as it is.
        example_inputs: as for `shrink`.
        threads: onnxruntime's threads, by default as many as it takes by itself: one for each physical core. With
            several, milliseconds are those on the wall, with threads that spin while they wait for one another, as
            onnxruntime has it by default; with one, its CPU time, which does not count what else runs on the machine.
        cpu_time: with several threads, the CPU time of all together, without spinning.
        shapes: what runs it is to answer for, as for `shrink`: a shape such as `(8, 3, 224, 224)`, or a list of shapes;
            by default one sample of the shape of `example_inputs`.
        path: where the profile is written while it is taken. What is there already is not measured again: an
            interrupted profile is resumed, and a second model's, or another shape's, joins the first's.

    Raises:
        InvalidArgument: there are fewer CPUs than threads, or the model does not take one of the shapes.
        InvalidInputs, TraceError, ExportError: the model can't be traced or exported.
        ProfileError: what is at `path` is no profile, or of another CPU, thread count, clock or version of
            onnxruntime.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 3))
    >>> taken = profile(net, torch.randn(1, 16, 8, 8), threads=1)
    >>> taken.clock, len(taken.samples) > 0, taken.answers
    ('CPU time', True, 'Sequential at 1×16×8×8')
    """
    runs = workloads(model, analyze(model, example_inputs), shapes or ())
    return profile_workloads(model, runs, threads=threads, cpu_time=cpu_time, path=path)


def profile_workloads(
    model: nn.Module,
    runs: Sequence[Workload],
    *,
    threads: int | None = None,
    cpu_time: bool = False,
    path: str | os.PathLike[str] | None = None,
    known: Profile | None = None,
    bases: Callable[[Workload], Path] | None = None,
) -> Profile:
    """The same for workloads of a model that is traced already, exported by `bases`; what `known` holds is not measured
    again."""
    wanted, probes = asked(runs)
    having = {} if known is None else known.models
    marks = {each.mark(model): each for each in runs}
    models = {mark: _whole(model, each, bases) for mark, each in marks.items() if "ms" not in having.get(mark, {})}
    with counter("profile") as progress:
        return take(
            wanted, probes, models=models, threads=threads, cpu_time=cpu_time, path=path, known=known, progress=progress
        )


@public(shapes=shapes)
@undisturbed()
def kit(model: nn.Module, path: str | os.PathLike[str], example_inputs: Any = None, *, shapes: Any = None) -> Path:
    """Write one file that takes this model's profile where there is neither torch nor surgeon.

    `python kit.pyz -o device.json` runs it there, with Python, numpy and onnxruntime; `python kit.pyz bench base.onnx
    slim.onnx` compares two models there. The profile that it writes is what `shrink(…, device="device.json")` takes.

    Args:
        model: any module that `torch.export` can trace; it is left as it is.
        path: where to write, NAME.pyz.
        example_inputs: as for `shrink`.
        shapes: what runs the profile is to answer for, as for `surgeon.profile`.

    Raises:
        InvalidArgument: `path` does not end in .pyz, or the model does not take one of the shapes.
        InvalidInputs, TraceError, ExportError: the model can't be traced or exported.
        OutputError: it can't be written.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 3))
    >>> with temporary_folder() as folder:
    ...     kit(net, f"{folder}/kit.pyz", torch.randn(1, 16, 8, 8)).name
    'kit.pyz'
    """
    if Path(path).suffix != ".pyz":
        raise InvalidArgument(f"path={str(path)!r}: a kit is a Python archive; let its name end in .pyz")
    runs = workloads(model, analyze(model, example_inputs), shapes or ())
    wanted, probes = asked(runs)
    models = {each.mark(model): _whole(model, each) for each in runs}
    return write_kit(path, wanted, probes, models=models, name=type(model).__name__)


def load_device(
    device: Profile | str | os.PathLike[str], threads: int | None = None, cpu_time: bool = False
) -> Profile:
    """A profile, or the one in a file; with a warning where it may be wrong about this CPU.

    Raises:
        InvalidArgument: it is neither, or was taken with another number of threads or by another clock.
        ProfileError: the file holds no profile.
    """
    found = device if isinstance(device, Profile) else Profile.load(device)
    if threads is not None and found.cpus and threads > found.cpus:
        raise InvalidArgument(
            f"threads={threads}: the machine that was profiled, {found.cpu}, has {found.cpus} CPUs; give no more"
        )
    if threads is not None and threads != found.threads:
        raise InvalidArgument(
            f"threads={threads}: the profile was taken with {found.threads}, and tells nothing about others; leave "
            "threads= out, or take a profile with that many"
        )
    if found.timed.wall == cpu_time and found.threads > 1:
        given = "cpu_time=True: that is" if cpu_time else "a budget with several threads is"
        wanted = "the CPU time of all threads together" if cpu_time else "the time on the wall"
        remedy = "leave cpu_time= out" if cpu_time else "give cpu_time=True"
        raise InvalidArgument(
            f"{given} {wanted}, and the profile of {found.cpu} holds {found.clock}, taken with {found.threads} "
            f"threads: {remedy}, or take a profile by that clock"
        )
    for text in found.warnings_here(threads):
        warnings.warn(text, stacklevel=2)
    return found


def asked(runs: Iterable[Workload]) -> tuple[list[Point], list[Probe]]:
    """What a profile for these runs has to hold: operators at widths, as small ONNX graphs, and probes of
    onnxruntime."""
    wanted: dict[Key, Point] = {}
    probes: dict[str, Probe] = {}
    for each in runs:
        cost = Cost(each.groups)
        found = operators(each.groups, cost, each.batch)
        wanted = {point.key: point for point in points(found, cost.sizes)} | wanted
        probes = {probe.name: probe for probe in questions(found, cost.sizes)} | probes
    return [*wanted.values()], [*probes.values()]


def _whole(model: nn.Module, run: Workload, bases: Callable[[Workload], Path] | None = None) -> Whole:
    """The model as ONNX; without its bytes where it is too large."""
    about = f"{type(model).__name__} at {run.told(model)}"
    if sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) > MOST_BYTES:
        return Whole(b"", {}, about)
    with temporary_folder() as folder:
        path = export_groups(model, run.groups, folder / "base.onnx") if bases is None else bases(run)
        return Whole(path.read_bytes(), run.shapes(model), about)


def export_groups(model: nn.Module, groups: Groups, path: Path) -> Path:
    """Export a model on the inputs that `groups` were traced with."""
    args, kwargs = groups.graph.inputs
    with stage(f"export {path.stem}"):
        return export(model, path, example_inputs=args or kwargs, dynamic=BATCH).path
