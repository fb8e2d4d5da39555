"""Example inputs for a model that came without any, where its configuration or first layer tells them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import InvalidInputs
from surgeon.frontend.copies import duplicate
from surgeon.frontend.isolation import untouched
from surgeon.frontend.model_checks import check_dense
from surgeon.frontend.trace import MODULE, Inputs, batched

BATCH = 2
# Sides of square images that published models are trained on, most frequent first. Where a position table
# or a flattened map fixes the side, a model fails at all others; where nothing does, any of them will do.
SIDES = (224, 32, 64, 28, 256, 384, 128, 96, 112, 160, 192, 240, 288, 299, 336, 448, 512)
GRAY_SIDES = (28, 32, *SIDES)
CLIPS = ((8, 112), (16, 112), (16, 224), (8, 224), (16, 32))
LENGTHS = (256, 1024, 16000, 64)
TOKENS = (16, 8, 4)


@dataclass(frozen=True)
class Candidate:
    """Inputs that may fit, and where they come from."""

    origin: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None


def infer(model: nn.Module) -> Inputs:
    """Example inputs `(args, kwargs)` of batch 2 that `model` is known to run on.

    Read, in this order, from a Hugging Face model's dummy inputs and configuration, a timm model's
    configuration, an image size that the model states, and the first convolution, linear, recurrent or
    embedding layer. An image of one channel is taken to be 28 pixels wide, another one 224, if the model runs
    on it. Each candidate is tried by running the model on it once; the model is left as it is.

    Raises:
        InvalidArgument: `model` is not a module.
        InvalidModel: a tensor of the model is sparse, quantized, or without a shape or values: nothing is run.
        InvalidInputs: the model runs on no candidate.

    >>> args, kwargs = infer(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
    >>> args[0].shape
    torch.Size([2, 3])
    """
    MODULE("model", model)
    check_dense(model)
    runner = _Runner(model)
    failures: list[str] = []
    for candidate in _candidates(model):
        inputs = runner.fit(candidate)
        try:
            with untouched(model):
                runner.run(inputs)
        except Exception as error:  # noqa: BLE001 - a model may raise anything on inputs that don't fit
            reason = str(error).strip().splitlines()
            failures.append(f"  {candidate.origin}: {reason[0] if reason else type(error).__name__}")
        else:
            return inputs
    kind = type(model).__name__
    tried = "\n".join(failures[:3]) or "  it states no configuration and has no layer that tells its input"
    more = f"\n  and {len(failures) - 3} more" if len(failures) > 3 else ""
    raise InvalidInputs(
        f"example inputs for {kind} could not be inferred; tried:\n{tried}{more}\n"
        f"Remedy: pass example_inputs= a tensor, a tuple, or a dict of keyword inputs for "
        f"{kind}.forward{inspect.signature(model.forward)}."
    )


class _Runner:
    """Runs a copy of a model in eval mode, on the model's device and in its precision."""

    def __init__(self, model: nn.Module) -> None:
        self.model = duplicate(model).eval()
        tensors = [*model.parameters(), *model.buffers()]
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self.dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)

    def fit(self, candidate: Candidate) -> Inputs:
        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(self.device, self.dtype if value.is_floating_point() else None)

        args = tuple(move(value) for value in candidate.args)
        return args, {name: move(value) for name, value in (candidate.kwargs or {}).items()}

    def run(self, inputs: Inputs) -> None:
        args, kwargs = inputs
        inspect.signature(self.model.forward).bind(*args, **kwargs)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about inputs that the user did not choose
            self.model(*args, **kwargs)


def _candidates(model: nn.Module) -> Iterator[Candidate]:
    yield from _hugging_face(model)
    yield from _timm(model)
    first: dict[type[nn.Module], nn.Module] = {}
    for module in model.modules():
        kind = next((kind for kind in _BY_LAYER if isinstance(module, kind)), None)
        if kind is not None:
            first.setdefault(kind, module)
    for kind, layer in first.items():
        if isinstance(layer, nn.Conv2d):
            yield from _stated_size(model, layer.in_channels)
        yield from _BY_LAYER[kind](layer)


def _hugging_face(model: nn.Module) -> Iterator[Candidate]:
    config = getattr(model, "config", None)
    accepted = inspect.signature(model.forward).parameters
    dummy = getattr(model, "dummy_inputs", None)
    if isinstance(dummy, Mapping) and all(isinstance(value, Tensor) for value in dummy.values()):
        fitting = {name: value for name, value in dummy.items() if name in accepted}
        if fitting:
            yield Candidate("its dummy_inputs", kwargs=batched(((), fitting), BATCH)[1])
            yield Candidate("its dummy_inputs as they are", kwargs=fitting)
    name = getattr(model, "main_input_name", None)
    if config is None or not isinstance(name, str) or name not in accepted:
        return
    extra = {}
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        start = getattr(config, "decoder_start_token_id", None) or 0
        extra = {"decoder_input_ids": torch.full((BATCH, 8), start)}
    for value in _main_input(config, name):
        yield Candidate(f"its configuration, {name} {tuple(value.shape)}", kwargs={name: value, **extra})


def _main_input(config: Any, name: str) -> Iterator[Tensor]:
    match name:
        case "input_ids":
            yield _tokens(getattr(config, "vocab_size", None) or 8, 8)
        case "pixel_values":
            sizes = _sides(getattr(config, "image_size", None)) or [(224, 224), (64, 64)]
            yield from (_noise(getattr(config, "num_channels", 3), *size) for size in sizes)
        case "input_values":
            yield _noise(16000)
        case "input_features":
            bins = getattr(config, "num_mel_bins", None) or 80
            frames = getattr(config, "max_source_positions", None)
            yield from (_noise(*shape) for shape in ([(bins, 2 * frames)] if frames else [(256, bins)]))


def _timm(model: nn.Module) -> Iterator[Candidate]:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    for key in ("input_size", "test_input_size", "min_input_size"):
        size = config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)
        if isinstance(size, tuple | list) and size and all(isinstance(n, int) for n in size):
            yield Candidate(f"{key} {tuple(size)} of its configuration", (_noise(*size),))


def _stated_size(model: nn.Module, channels: int) -> Iterator[Candidate]:
    for name in ("image_size", "img_size", "input_size", "input_resolution"):
        for size in _sides(getattr(model, name, None)):
            yield Candidate(f"its {name} {size}", (_noise(channels, *size),))


def _sides(value: Any) -> list[tuple[int, int]]:
    match value:
        case bool():
            return []
        case int():
            return [(value, value)]
        case [int(), int()]:
            return [(value[0], value[1])]
    return []


def _images(layer: nn.Conv2d) -> Iterator[Candidate]:
    for side in GRAY_SIDES if layer.in_channels == 1 else SIDES:
        yield _of(layer, side, side)


def _clips(layer: nn.Conv3d) -> Iterator[Candidate]:
    for frames, side in CLIPS:
        yield _of(layer, frames, side, side)


def _signals(layer: nn.Conv1d) -> Iterator[Candidate]:
    for length in LENGTHS:
        yield _of(layer, length)


def _of(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, *size: int) -> Candidate:
    value = _noise(layer.in_channels, *size)
    return Candidate(f"an input {tuple(value.shape)} for the first convolution", (value,))


def _features(layer: nn.Linear) -> Iterator[Candidate]:
    value = _noise(layer.in_features)
    yield Candidate(f"an input {tuple(value.shape)} for the first linear layer", (value,))


def _steps(layer: nn.RNNBase) -> Iterator[Candidate]:
    if layer.batch_first:  # otherwise the first axis is time, not the batch that surgeon takes it for
        value = _noise(8, layer.input_size)
        yield Candidate(f"an input {tuple(value.shape)} for the first recurrent layer", (value,))


def _words(layer: nn.Embedding | nn.EmbeddingBag) -> Iterator[Candidate]:
    for length in TOKENS:
        value = _tokens(layer.num_embeddings, length)
        yield Candidate(f"{length} indices for the first embedding", (value,))


_BY_LAYER: dict[type[nn.Module], Callable[[Any], Iterator[Candidate]]] = {
    nn.Conv1d: _signals,
    nn.Conv2d: _images,
    nn.Conv3d: _clips,
    nn.Linear: _features,
    nn.RNNBase: _steps,
    nn.Embedding: _words,
    nn.EmbeddingBag: _words,
}


def _noise(*shape: int) -> Tensor:
    return torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(0))


def _tokens(vocabulary: int, length: int) -> Tensor:
    return (torch.arange(BATCH * length) % vocabulary).reshape(BATCH, length)
