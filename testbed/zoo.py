"""The models that the benchmarks run on: torchvision, timm and transformers, with random weights.

`models.json` lists them as `{library: {name: spec}}`. A vision spec gives the `input` shape without
the batch; a transformers spec gives the configuration class, its arguments, the model class and the
inputs. Any other torchvision or timm name can be loaded too, at the size its own configuration states.
"""

import glob
import importlib
import importlib.util
import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MODELS = Path(__file__).with_name("models.json")
LIBRARIES = ("torchvision", "timm", "transformers")
BATCH = 2
SEED = 0

Spec = dict[str, Any]
Inputs = tuple[Any, ...] | dict[str, Tensor]


def entries(path: str | Path = MODELS) -> Iterator[tuple[str, str, Spec]]:
    """Yield `(library, name, spec)` for every model of the list, in the order of the file.

    >>> next(entries())
    ('torchvision', 'alexnet', {'input': [3, 224, 224]})
    """
    for library, models in json.loads(Path(path).read_text(encoding="utf-8")).items():
        for name, spec in models.items():
            yield library, name, spec


def load(
    library: str, name: str, spec: Spec | None = None, path: str | Path = MODELS
) -> tuple[nn.Module, Inputs]:
    """Build one model in eval mode, with reproducible random weights, and example inputs for it.

    Args:
        library: "torchvision", "timm" or "transformers".
        name: a name of the list at `path`, or any other that torchvision or timm knows.
        spec: what to build; by default what the list says.
        path: the list, used only where `spec` is not given.

    Returns:
        The model, and either a tuple of positional tensors `(2, channels, [frames,] height, width)`
        (torchvision and timm; its detectors take a list of two images) or a dict of keyword tensors
        (transformers). The global random state is left as it was.

    Raises:
        ValueError: the library is not one of the three, or a transformers model is not in the list.
    """
    if library not in LIBRARIES:
        raise ValueError(f"unknown library {library!r}; choose one of {', '.join(LIBRARIES)}")
    if spec is None:
        spec = {(lib, key): value for lib, key, value in entries(path)}.get((library, name))
    build = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}[library]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model, inputs = build(name, spec)
    return model.eval(), inputs


def _torchvision(name: str, spec: Spec | None) -> tuple[nn.Module, Inputs]:
    define_torchvision_operators()
    models = importlib.import_module("torchvision.models")
    builder = models.get_model_builder(name)
    parameters = inspect.signature(builder).parameters
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in parameters:
        options["weights_backbone"] = None  # its default downloads a file
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # the default warns, and samples a slow truncated normal
    model = models.get_model(name, **options)
    shape = spec["input"] if spec is not None else _torchvision_shape(models, name)
    torch.manual_seed(SEED)
    family = builder.__module__
    if ".detection." in family:
        return model, ([torch.rand(shape) for _ in range(BATCH)],)
    views = 2 if ".optical_flow." in family else 1
    return model, tuple(torch.randn(BATCH, *shape) for _ in range(views))


def _torchvision_shape(models: Any, name: str) -> list[int]:
    """The input shape, without the batch, that the model's published weights were evaluated at."""
    family = models.get_model_builder(name).__module__
    try:
        transforms = models.get_model_weights(name).DEFAULT.transforms
    except (AttributeError, ValueError):  # a model without published weights
        transforms = None
    crop = getattr(transforms, "keywords", {}).get("crop_size", 224)
    height, width = crop if isinstance(crop, tuple | list) else (crop, crop)
    return [3, 16, height, width] if ".video." in family else [3, height, width]


def _timm(name: str, spec: Spec | None) -> tuple[nn.Module, Inputs]:
    define_torchvision_operators()  # timm imports torchvision
    model = importlib.import_module("timm").create_model(name, pretrained=False)
    shape = spec["input"] if spec is not None else model.pretrained_cfg["input_size"]
    torch.manual_seed(SEED)
    return model, (torch.randn(BATCH, *shape),)


def _transformers(name: str, spec: Spec | None) -> tuple[nn.Module, Inputs]:
    if spec is None:
        raise ValueError(f"{name!r} is not in the list; pass a spec with config, args, model and inputs")
    define_torchvision_operators()  # transformers imports torchvision where it is installed
    transformers = importlib.import_module("transformers")
    config = getattr(transformers, spec["config"])(**spec["args"])
    model = getattr(transformers, spec["model"])(config)
    torch.manual_seed(SEED)
    return model, {key: _tensor(value) for key, value in spec["inputs"].items()}


def _tensor(spec: Spec) -> Tensor:
    dtype = getattr(torch, spec["dtype"])
    if dtype.is_floating_point:
        return torch.randn(spec["shape"], dtype=dtype)
    return torch.randint(spec["below"], spec["shape"], dtype=dtype)


# A torch.library.Library takes its operators with it when it is collected.
_libraries: list[torch.library.Library] = []


def define_torchvision_operators() -> None:
    """Declare the operators without which `import torchvision` fails.

    torchvision attaches shape functions to `nms` and `qnms` on import, but its compiled extension,
    which defines them, can't be loaded next to a torch of another build (a CPU-only one, say). None
    of the models traced here calls them.
    """
    found = importlib.util.find_spec("torchvision")
    if _libraries or found is None or found.origin is None:
        return
    operators: Any = torch.ops
    registry: Any = torch.library
    for extension in glob.glob(os.path.join(os.path.dirname(found.origin), "_C*.so")):
        try:
            operators.load_library(extension)
        except OSError:
            continue
        return
    library = registry.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
