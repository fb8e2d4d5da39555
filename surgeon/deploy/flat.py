"""A model as a function from tensors to a tuple of tensors, in eval mode, float32 and on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surgeon.deploy.inputs import Call, named_outputs, unique
from surgeon.errors import ExportError, InvalidInputs, first_line
from surgeon.frontend.copies import duplicate


def flatten(model: nn.Module, call: Call) -> tuple[Flat, list[str]]:
    """A copy of the model as a function of the call's tensors, and notes on what is unlike the model.

    Raises:
        InvalidInputs: the model does not run on the call.
        ExportError: it returns no tensor.
    """
    copy, notes = _float32_copy(model)
    flat = Flat(copy, call)
    flat.learn_outputs()
    return flat, [*notes, *(f"output {name} is a {kind}, not a tensor, and left out" for name, kind in flat.left_out)]


class Flat(nn.Module):
    """`model` as a function from tensors to a tuple of tensors, whatever it takes and returns."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model = model
        self.call = call
        self.output_names: tuple[str, ...] = ()
        self.left_out: list[tuple[str, str]] = []
        self.training = False

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = self.call.bind(tensors)
        leaves = named_outputs(self.model(*args, **kwargs))
        return tuple(leaf for _, leaf in leaves if isinstance(leaf, Tensor))

    def in_double(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The same outputs, computed in float64 throughout."""
        double = Flat(duplicate(self.model).double(), self.call)
        return double(*tensors)

    def learn_outputs(self) -> None:
        """Run the model on the example and note its outputs' names; `InvalidInputs` if it does not run."""
        args, kwargs = self.call.bind(tuple(tensor.clone() for tensor in self.call.tensors))
        try:
            with torch.no_grad():
                leaves = list(named_outputs(self.model(*args, **kwargs)))
        # A user's forward may raise anything.
        except Exception as error:
            shapes = self.call.shapes(self.call.tensors)
            raise InvalidInputs(
                f"the model does not run on the example inputs {shapes}: {cause(error)}"
            ) from error
        names = [name for name, leaf in leaves if isinstance(leaf, Tensor)]
        if not names:
            raise ExportError("the model returns no tensor, so there is nothing to export")
        self.output_names = unique(names, self.call.names)
        self.left_out = [(name, type(leaf).__name__) for name, leaf in leaves if not isinstance(leaf, Tensor)]


def _float32_copy(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A copy of the model in eval mode, float32, on the CPU, and a note on what was converted."""
    result = duplicate(model)
    tensors = [*model.parameters(), *model.buffers()]
    kinds = {str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()} - {"float32"}
    result.to("cpu")
    if kinds:
        result.float()
    # Set directly: `eval()` is refused by the modules that torch.export returns.
    for module in result.modules():
        module.training = False
    notes = [f"exported in float32, the model is in {', '.join(sorted(kinds))}"] if kinds else []
    return result, notes


def cause(error: BaseException) -> str:
    """The first line of what went wrong at the bottom: torch.onnx wraps the reason in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
