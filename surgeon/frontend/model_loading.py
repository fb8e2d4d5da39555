"""Models by name: from a zoo, from the user's own Python, or from an exported program on disk."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from surgeon.errors import InvalidArgument, first_line
from surgeon.frontend.exported import read_program
from surgeon.frontend.own_python import current_folder_importable, imported
from surgeon.support.opening import Unfit
from surgeon.support.spec import FORMS, parts

Loaded = tuple[nn.Module, Any]


def load(spec: str, *, pretrained: bool = False, seed: int = 0) -> Loaded:
    """The model that `spec` names, in eval mode, and example inputs for it, or None where none are known.

    `spec` is one of

    - `timm:NAME` or `torchvision:NAME`: with random weights, drawn from `seed`, or with published ones if
      `pretrained`, which may download them;
    - `package.module:NAME`: imported, from the current folder too. NAME is a module, a function or class that
      gives one when called without arguments, or, in a package with a function `load`, what `load` knows. A
      function may also return a pair of a module and its example inputs;
    - `folder/file.py:NAME`: the same, of a file that need not be importable;
    - `FILE.pt2`: a program that `torch.export.save` wrote. Its operators, sizes and, unless it was exported
      otherwise, its batch are fixed; its mode is the one that it was exported in, so export it in eval mode.

    Raises:
        InvalidArgument: the library is missing, or the name, the file or the factory can't be found or used.
    """
    if spec.endswith(".pt2"):
        return _program(Path(spec))
    named = parts(spec)
    if named is None:
        raise InvalidArgument(f"{spec!r} names no model; give {FORMS}")
    source, name = named
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match source:
            case "timm":
                model, inputs = timm_model(name, pretrained, seed), None
            case "torchvision":
                model = torchvision_model(name, pretrained, seed)
                inputs = _evaluated_at(library("torchvision").models, name)
            case _:
                model, inputs = _own(source, name, seed)
    return model.eval(), inputs


def timm_model(name: str, pretrained: bool = False, seed: int = 0, **arguments: Any) -> nn.Module:
    """A model of timm's registry, with random weights unless `pretrained`."""
    timm = library("timm")
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        raise InvalidArgument(f"timm has no model {name!r}{_near(architecture, timm.list_models())}")
    torch.manual_seed(seed)
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except (RuntimeError, ValueError, OSError, TypeError) as error:
        raise InvalidArgument(f"timm can't build {name!r}: {first_line(error)}") from error


def torchvision_model(name: str, pretrained: bool = False, seed: int = 0, **arguments: Any) -> nn.Module:
    """A model of torchvision's registry, with random weights unless `pretrained`."""
    models = importlib.import_module(f"{library('torchvision').__name__}.models")
    if name not in (known := models.list_models()):
        raise InvalidArgument(f"torchvision has no model {name!r}{_near(name, known)}")
    parameters = inspect.signature(models.get_model_builder(name)).parameters
    options: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
    if "weights_backbone" in parameters:
        options["weights_backbone"] = None  # its default downloads a file
    if "init_weights" in parameters and not pretrained:
        options["init_weights"] = False  # its default draws every weight slowly, and warns
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # some announce another initialization
            return models.get_model(name, **options, **arguments)
    except (RuntimeError, ValueError, OSError, TypeError) as error:
        raise InvalidArgument(f"torchvision can't build {name!r}: {first_line(error)}") from error


def _evaluated_at(models: Any, name: str) -> Any:
    """Two images of the size that the published weights were evaluated at, where there is one size."""
    try:
        transforms = models.get_model_weights(name).DEFAULT.transforms
    except (AttributeError, ValueError):  # a model without published weights
        return None
    crop = getattr(transforms, "keywords", {}).get("crop_size")
    return torch.randn(2, 3, crop, crop) if isinstance(crop, int) else None


def library(name: str) -> ModuleType:
    """Import a zoo; where it fails, say what to install."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InvalidArgument(
            f"{error.name or name} is not installed; it comes with: pip install 'model-surgeon[zoo]'"
        ) from error
    except (ImportError, RuntimeError, OSError) as error:
        found = torch.__version__
        build = found.partition("+")[2] or "cpu"
        reason = first_line(error)
        remedy = "reinstall it: pip install --force-reinstall --no-deps " + name
        if "torchvision::" in reason:
            remedy = (
                f"torchvision's compiled operators don't fit torch {found}; install the two from one place: "
                f"pip install --force-reinstall --no-deps torchvision "
                f"--index-url https://download.pytorch.org/whl/{build}"
            )
        raise InvalidArgument(f"{name} can't be imported: {reason}. {remedy}") from error


def _own(package: str, name: str, seed: int) -> Loaded:
    with current_folder_importable():
        module = imported(package)
        found: Any = module
        for part in name.split("."):
            found = getattr(found, part, None)
        if isinstance(found, nn.Module):
            return found, None
        arguments: tuple[str, ...] = ()
        loader = getattr(module, "load", None)
        if not callable(found) and callable(loader):
            found, arguments = loader, (name,)
        if not callable(found):
            kind = "nothing" if found is None else f"a {type(found).__name__}"
            named = {key: value for key, value in vars(module).items() if key != name and not key.startswith("_")}
            near = _near(name, (key for key, value in named.items() if callable(value)))
            raise InvalidArgument(
                f"{package}:{name} is {kind}, neither a torch.nn.Module nor a function that gives one{near}"
            )
        torch.manual_seed(seed)  # again: the first import may have drawn from it, a second one does not
        try:
            result = found(*arguments)
        except Exception as error:  # the user's own code may raise anything
            raise InvalidArgument(f"{package}:{name} could not be built: {_told(error)}") from error
    model, inputs = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"{package}:{name} gives a {type(model).__name__}, not a torch.nn.Module")
    return model, inputs


def _program(path: Path) -> Loaded:
    if not os.path.lexists(path):
        raise InvalidArgument(f"{path}: there is no such file")
    try:
        program = read_program(path)
        module = program.module(check_guards=False)
    except Unfit as error:
        raise InvalidArgument(f"{path} is not a program that torch.export.save wrote of a model: {error}") from error
    except Exception as error:  # torch raises many unrelated kinds for a program that it can't put together
        # torch's own message holds its whole graph; what it came from says what is wrong
        told = _told(error.__cause__ or error)[:200]
        raise InvalidArgument(f"{path} can't be read by torch {torch.__version__}: {told}") from error
    for name in ("train", "eval"):
        vars(module).pop(name, None)  # torch's refuse; nn.Module's do no harm, as operators have no mode
    example = program.example_inputs
    if example is None:
        return module, None
    args, kwargs = example
    return module, kwargs if kwargs and not args else args


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
