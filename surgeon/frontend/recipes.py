"""How a model was made, where that can be told: by a name in the registry of a well-known library, with arguments.

A recipe may come from a stranger's file. What it names is looked up in the registries of torchvision, timm and
transformers alone, and nothing is imported by it; its arguments are numbers, and texts that name no file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from surgeon.errors import InvalidArgument, SurgeonError, WeightsError, first_line
from surgeon.frontend.model_loading import library, timm_model, torchvision_model
from surgeon.ir.fingerprint import fingerprint
from surgeon.support.time_limit import TimeIsUp, limited

LIBRARIES = ("torchvision", "timm", "transformers")
#: The arguments of torchvision's and timm's functions that a recipe may have, and the largest value of each.
_LARGEST = {"num_classes": 1 << 16, "in_chans": 1 << 10, "img_size": 1 << 12}
#: The largest number in a configuration of transformers.
_LARGEST_FIELD = 1 << 24
#: Entries of a configuration that say where it is from, and how it is run.
_ASIDE = (
    "architectures", "attn_implementation", "auto_map", "dtype", "experts_implementation", "name_or_path",
    "quantization_config", "torch_dtype", "transformers_version",
)  # fmt: skip
#: Seconds in which a model without values must be made.
_PATIENCE = 60.0


@dataclass(frozen=True)
class Trace:
    """What a model shows of how it was made: the module and name of its class, and what its library wrote on it."""

    module: str
    kind: str
    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A model's maker, as `library:NAME` or `package.module:factory`, and the arguments for one of a library."""

    by: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether it is in a well-known library's registry."""
        return self.by.partition(":")[0] in LIBRARIES


def trace_of(model: nn.Module) -> Trace | None:
    """What is to be seen of how a model of a well-known library was made."""
    kind = type(model)
    source = kind.__module__.partition(".")[0]
    if source not in LIBRARIES:
        return None
    arguments: dict[str, Any] = {}
    name = ""
    if source == "transformers":
        with suppress(AttributeError, TypeError, ValueError):  # without a configuration, or one that JSON can't hold
            arguments = {"config": json.loads(model.config.to_json_string(use_diff=False))}  # type: ignore[operator, union-attr]
    else:
        shapes = [parameter.shape for parameter in model.parameters()]
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)
        written = getattr(model, "num_classes", None)
        arguments = {
            "num_classes": written if isinstance(written, int) else shapes[-1][0] if shapes and shapes[-1] else None,
            "in_chans": next((shape[1] for shape in shapes if len(shape) == 4), None),
            "img_size": list(size) if isinstance(size, tuple) else None,
        }
        told = getattr(model, "pretrained_cfg", None)
        name = str(told.get("architecture", "")) if isinstance(told, Mapping) else ""
    return Trace(kind.__module__, kind.__qualname__, name, arguments)


def recall(trace: Trace, architecture: str) -> Recipe | None:
    """How the model with this trace and fingerprint was made; None where no recipe gives its class and tensors."""
    for recipe in _candidates(trace):
        with suppress(SurgeonError):
            model = _without_values(recipe)
            same = (type(model).__module__, type(model).__qualname__) == (trace.module, trace.kind)
            if same and fingerprint(model) == architecture:
                return recipe
    return None


def _candidates(trace: Trace) -> Iterator[Recipe]:
    source = trace.module.partition(".")[0]
    if source not in sys.modules:  # so that nothing is imported to find it out
        return
    if source == "transformers":
        if "config" in trace.arguments:
            yield Recipe(f"transformers:{trace.kind}", {"config": _settings(trace.arguments["config"])})
        return
    names = [trace.name] if trace.name else []
    choices = [("num_classes",), ("num_classes", "in_chans"), ("num_classes", "in_chans", "img_size")]
    if source == "torchvision":
        models = library("torchvision").models
        names = [name for name in models.list_models() if models.get_model_builder(name).__module__ == trace.module]
        choices = choices[:1]
    for chosen in ((), *choices):
        arguments = {key: trace.arguments[key] for key in chosen}
        if None not in arguments.values():
            yield from (Recipe(f"{source}:{name}", arguments) for name in names)


def make(recipe: Recipe, architecture: str, largest: int) -> nn.Module:
    """The model of a recipe of a well-known library, with random weights.

    `architecture` is the fingerprint that it must have, `largest` the number of bytes that its tensors may take.

    Raises:
        WeightsError: the recipe is none, or gives another model.
    """
    try:
        sketch = _without_values(recipe)
    except InvalidArgument as error:
        raise WeightsError(f"the model was made by {recipe.by}, which can't be done here: {error}; {_PASS}") from error
    size = sum(value.numel() * value.element_size() for value in (*sketch.parameters(), *sketch.buffers()))
    if fingerprint(sketch) != architecture:
        raise WeightsError(
            f"the model was made by {recipe.by}, which here gives a model with other tensors, as another version of "
            f"the library may; {_PASS}"
        )
    if size > largest:
        raise WeightsError(f"{recipe.by} gives a model of {size:,} bytes, far larger than what is stored; {_PASS}")
    return _build(recipe)


_PASS = "pass fresh_model, made as the original was"


def _without_values(recipe: Recipe) -> nn.Module:
    """The model of a recipe, whose tensors take no memory."""
    try:
        with limited(_PATIENCE, ("torch/nn/", "transformers/models/")), torch.device("meta"):
            return _build(recipe)
    except TimeIsUp as error:
        raise InvalidArgument(f"it takes more than {_PATIENCE:.0f} s") from error


def _build(recipe: Recipe) -> nn.Module:
    """
    Raises:
        InvalidArgument: there is no such model, or an argument is not of those that are taken.
    """
    source, _, name = recipe.by.partition(":")
    if source == "transformers":
        return _transformers(name, recipe.arguments)
    for key, value in recipe.arguments.items():
        each = value if isinstance(value, list) and key == "img_size" else [value]
        if key not in _LARGEST or not all(type(one) is int and 0 <= one <= _LARGEST[key] for one in each):
            raise InvalidArgument(f"{key}={str(value)[:40]} is no argument of a recipe")
    return (torchvision_model if source == "torchvision" else timm_model)(name, **recipe.arguments)


def _transformers(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    transformers = library("transformers")
    config = arguments.get("config")
    if arguments.keys() != {"config"} or not isinstance(config, dict):
        raise InvalidArgument("a model of transformers is made by its configuration alone")
    kind: Any = getattr(transformers, name, None) if name.isidentifier() and name in dir(transformers) else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise InvalidArgument(f"transformers has no model {name!r}")
    _refuse_odd(config, "config")
    maker: Any = kind
    try:
        made: nn.Module = maker(maker.config_class.from_dict(_settings(config)))
        return made
    except Exception as error:  # transformers raises many kinds for a configuration that is none
        raise InvalidArgument(f"{name} can't be made of its configuration: {first_line(error)}") from error


def _settings(config: Any) -> Any:
    """A configuration without entries that say where it is from, and how it is run; those within it too."""
    if isinstance(config, dict):
        return {key: _settings(value) for key, value in config.items() if not key.startswith("_") and key not in _ASIDE}
    return [_settings(each) for each in config] if isinstance(config, list) else config


def _refuse_odd(value: Any, place: str) -> None:
    """Refuse a configuration that names a file or a repository, asks for published weights, or for absurd sizes."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key == "use_pretrained_backbone" and each:
                raise InvalidArgument(f"{place}.{key} asks for published weights")
            _refuse_odd(each, f"{place}.{key}")
    elif isinstance(value, list):
        for each in value:
            _refuse_odd(each, place)
    elif isinstance(value, str) and ("/" in value or "\\" in value):
        if not place.rpartition(".")[2].startswith("_") and place.rpartition(".")[2] not in _ASIDE:
            raise InvalidArgument(f"{place} may name a file or a repository: {value[:40]!r}")
    elif isinstance(value, int) and abs(value) > _LARGEST_FIELD:
        raise InvalidArgument(f"{place} is {str(value)[:40]}, larger than any size")
