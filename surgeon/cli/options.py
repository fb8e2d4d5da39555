"""What the commands share: their options, loading of models, and reporting of errors."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import surgeon
from surgeon.cli.terms import in_terms
from surgeon.errors import InvalidArgument, SurgeonError
from surgeon.pipeline.options import CONCERNS, keywords
from surgeon.support.arguments import BUDGETS, RENAMED, SCOPES
from surgeon.support.spec import check

if TYPE_CHECKING:
    from torch import nn

    from surgeon.plans.plan import Plan

_OPTIONS = keywords(*CONCERNS)


def _told(name: str, **shown: Any) -> Any:
    """An option of `surgeon.shrink`, with its help."""
    return typer.Option(help=_OPTIONS[name].option.summary, **shown)


Spec = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="timm:NAME, torchvision:NAME, package.module:FACTORY, folder/file.py:FACTORY, or a file: NAME.onnx, or a "
        "torch.export program, NAME.pt2. Files are validated, and nothing in them is unpickled, evaluated or imported; "
        "a FACTORY is run.",
    ),
]
Shape = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[INPUT=]1,3,224,224", help="Shape of an input, once for each; inferred where that is safe. With its "
        "name for an input of an ONNX file.",
    ),
]
Fixed = Annotated[
    list[str] | None,
    typer.Option(
        metavar="INPUT=NUMBER", help="The value of an input of an ONNX file that is the same in every run, such as a "
        "sampling rate: what it decides is decided, and other branches stay as they are.",
    ),
]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Use the zoo's pretrained weights.")]
Seed = Annotated[int, typer.Option(help="Seed of a zoo's random weights, and of criteria that use random numbers.")]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Where to write; created if missing.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Threads of onnxruntime; default: as many as it takes by itself, one a physical core."),
]
CpuTime = Annotated[
    bool, typer.Option("--cpu-time", help="With several threads, take their CPU time, and not the time on the wall.")
]
#: What names inputs, on every command that takes some.
READ = "FILE|FOLDER|FILE.py:NAME|MODULE:NAME"
FORMS = f"{READ}|noise|synthetic"
_DATA = typer.Option(
    metavar=FORMS,
    help="Unlabeled inputs as for inference: .npy, .npz or .safetensors, a folder of such files or of pictures, a "
    "Python object that yields batches, such as file.py:LOADER or package.module:LOADER, or noise, or synthetic: made "
    "from the model alone.",
)
Data = Annotated[str | None, _DATA]
NeededData = Annotated[str, _DATA]
Mean = Annotated[
    str | None,
    typer.Option(metavar="M[,M,M]", help="For pictures as --data of an ONNX file: the mean of pixels from 0 to 1."),
]
Std = Annotated[str | None, typer.Option(metavar="S[,S,S]", help="Their standard deviation, that they are divided by.")]
Layout = Annotated[
    str | None, typer.Option(metavar="NCHW|NHWC", help="Their layout, where the shape of the input does not tell it.")
]
Resize = Annotated[
    str | None, typer.Option(metavar="H,W", help="What they are resized to, where the file leaves that free.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="8,3,224,224[:WEIGHT]",
        help="For a latency: the shape of a run's inputs, batch included; several times, with weights, for a mixture. "
        "Of several inputs: INPUT=1,128;INPUT=1,128.",
    ),
]
Samples = Annotated[int, _told("samples")]
Ignore = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Module or parameter to leave alone; may be given several times."),
]

#: Options that the command line takes in another way than Python.
_SHOWN: dict[str, Any] = {
    "budget": Annotated[StrEnum("Budget", [(name, name) for name in (*BUDGETS, "latency")]), _told("budget")],
    "scope": Annotated[StrEnum("Scope", [(name, name) for name in SCOPES]), _told("scope")],
    "device": Annotated[Path | None, _told("device", metavar="PROFILE")],
    "threads": Annotated[int | None, _told("threads", min=1)],
    "cpu_time": CpuTime,
    "shapes": Shapes,
    "max_params": Annotated[float | None, _told("max_params", metavar="N")],
    "data": Data,
    "loss": Annotated[str | None, _told("loss", metavar="FILE.py:NAME|MODULE:NAME")],
    "metric": Annotated[str | None, _told("metric", metavar="FILE.py:NAME|MODULE:NAME")],
    "metric_data": Annotated[str | None, _told("metric_data", metavar=READ)],
    "importance": Annotated[str | None, _told("importance")],
    "ignore": Ignore,
    "min_width": Annotated[list[str] | None, _told("min_width", metavar="[GLOB=]N")],
    "seed": Seed,
}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command with `**options` those of `surgeon.shrink`, which it gets as the Python API takes them."""
    signature = inspect.signature(command, eval_str=True)
    *own, _ = signature.parameters.values()
    more = [
        (name, _SHOWN.get(name, Annotated[each.type, _told(name)]), each.default) for name, each in _OPTIONS.items()
    ]
    more += [(old, _renamed(old, new), None) for old, new in RENAMED.items()]
    by_name = inspect.Parameter.KEYWORD_ONLY
    options = [
        inspect.Parameter(name, by_name, default=None if default == () else default, annotation=annotation)
        for name, annotation, default in more if annotation is not None
    ]
    own = [each.replace(kind=by_name) for each in own]
    required = [each for each in own if each.default is each.empty]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for old in RENAMED:
            given.pop(old)
        given["min_width"] = _least_widths(given["min_width"] or [])
        given["ignore"] = given["ignore"] or ()
        given["shapes"] = weighted(given["shapes"] or [])
        from surgeon.cli import data

        for name, read in (
            ("data", data.read), ("metric_data", data.read), ("metric", data.metric), ("loss", data.loss),
        ):
            if given[name] is not None:
                given[name] = read(given[name])
        command(**{name: value.value if isinstance(value, StrEnum) else value for name, value in given.items()})

    run.__signature__ = inspect.Signature([*required, *options, *own[len(required) :]])  # type: ignore[attr-defined]
    return run


def _renamed(old: str, new: str) -> Any:
    """A hidden option whose error gives its new name."""
    flag = isinstance(_OPTIONS[new].default, bool)
    names = [f"--{name.replace('_', '-')}" for name in ((old, new, f"no-{old}", f"no-{new}") if flag else (old, new))]

    def tell(value: Any) -> None:
        if value in (None, []):
            return
        given, now = names[2:] if value is False else names[:2]
        with reported():
            raise InvalidArgument(f"{given} is called {now} now")

    option = typer.Option("/".join(names[::2]), hidden=True, callback=tell)
    return Annotated[bool | None if flag else list[str] | None, option]


@contextmanager
def reported() -> Iterator[None]:
    """Turn an error of surgeon's into its message, in the command line's terms, and exit code 1."""
    try:
        yield
    except SurgeonError as error:
        sys.stderr.write(f"surgeon: {in_terms(str(error))}\n")
        raise typer.Exit(1) from error


def load(
    spec: str, shapes: Sequence[str], pretrained: bool, seed: int, fixed: Sequence[str] = ()
) -> tuple[nn.Module, Any]:
    """The model, and example inputs as the Python API takes them."""
    check(spec)
    if spec.endswith(".onnx"):
        from surgeon.cli.onnx_file import load_file

        return load_file(spec, shapes, fixed)
    if fixed:
        raise InvalidArgument(f"--fixed {fixed[0]} is for an input of an ONNX file")
    sizes = [sizes_of(shape) for shape in shapes]
    import torch

    from surgeon.frontend import model_loading as sources
    from surgeon.frontend.infer_inputs import infer

    model, known = sources.load(spec, pretrained=pretrained, seed=seed)
    if sizes:
        generator = torch.Generator().manual_seed(seed)
        return model, tuple(torch.randn(size, generator=generator) for size in sizes)
    if known is not None:
        return model, known
    args, kwargs = infer(model)
    return model, args or kwargs


def load_slim(folder: Path, model: nn.Module) -> tuple[nn.Module, Plan]:
    """The smaller model in a folder, and its plan; consistent even if the folder is being replaced."""
    from surgeon.plans.carried import plan_of

    if folder.suffix == ".onnx":
        raise InvalidArgument(
            f"{folder} is an ONNX file, which holds no plan; give the FOLDER that `surgeon shrink -o FOLDER` writes"
        )
    slim = surgeon.load(folder, model)
    plan = plan_of(slim, None)
    assert plan is not None  # every loaded model carries its plan
    return slim, plan


def sizes_of(text: str, option: str = "--shape") -> list[int]:
    try:
        sizes = [int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise InvalidArgument(f"{option} {text!r} is not a shape; give positive sizes, such as 1,3,224,224")
    return sizes


def weighted(texts: Sequence[str]) -> Any:
    """`shapes` as the Python API takes them.

    >>> weighted(["1,3,224,224:0.8", "1,3,320,320:.2"])
    [((1, 3, 224, 224), 0.8), ((1, 3, 320, 320), 0.2)]
    >>> weighted(["ids=1,128;mask=1,128"])
    [({'ids': (1, 128), 'mask': (1, 128)}, 1.0)]
    """
    found: list[tuple[Any, float]] = []
    for each in texts:
        shape, colon, number = each.rpartition(":")
        try:
            weight = float(number) if colon else 1.0
        except ValueError as error:
            raise InvalidArgument(
                f"--shapes {each!r}: {number!r} is no weight; give a shape, or SHAPE:WEIGHT, such as 1,3,224,224:0.8"
            ) from error
        named = [one.rpartition("=") for one in (shape if colon else number).split(";")]
        sizes = {name: tuple(sizes_of(one, "--shapes")) for name, _, one in named}
        found.append((sizes if any(sizes) else sizes[""], weight))
    return found or ()


def _least_widths(texts: Sequence[str]) -> Any:
    """`min_width` as the Python API takes it; a value without a glob is for all groups."""
    named: dict[str, float | int] = {}
    for text in texts:
        glob, equals, number = text.rpartition("=")
        try:
            value = float(number) if "." in number else int(number)
        except ValueError as error:
            raise InvalidArgument(
                f"--min-width {text!r} is neither a width (16) nor a share (0.25), nor GLOB= and one of them"
            ) from error
        named[glob if equals else "*"] = value
    return named["*"] if named.keys() == {"*"} else named or None


def show(report: Any, json: bool = False) -> None:
    """Print a report, or its JSON."""
    if json:
        print(report.to_json())
        return
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(report)


def told(json: bool, kind: str, *texts: object, **parts: object) -> None:
    """Print `texts`, or with `json` one document in the format `kind` with `parts`."""
    if not json:
        for each in texts:
            print(each)
        return
    from surgeon.reporting.report import document

    print(document(kind, **parts))
