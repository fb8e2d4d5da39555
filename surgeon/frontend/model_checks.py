"""What a model must not hold, checked before anything of it is run."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from surgeon.errors import InvalidModel


def check_dense(model: nn.Module) -> None:
    """Make sure that the model holds nothing that can't be handled, before anything of it is run.

    Raises:
        InvalidModel: its code is gone, or a tensor is sparse, quantized, or without a shape or values, or a variance
            is negative.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise InvalidModel(
            "the model is a ScriptModule, whose Python code is gone; prune the nn.Module that it was made of, and "
            "script the result"
        )
    for path, module in model.named_modules():
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            raise InvalidModel(f"{path or type(module).__name__} is quantized; prune the floating model, then quantize")
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_var is not None:
            check_variance(f"{path}.running_var".lstrip("."), module.running_var)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        fault = ""
        if is_lazy(value):
            fault = "has no shape yet; run the model once on example inputs"
        elif value.is_meta:
            fault = "is on the meta device and holds no values; load its weights"
        elif value.layout is not torch.strided or value.is_quantized:
            fault = f"is {'quantized' if value.is_quantized else value.layout}; make it a dense floating tensor"
        if fault:
            raise InvalidModel(f"{name} {fault}")


def check_variance(name: str, value: Tensor) -> None:
    """Refuse the running variance of a batch norm that would take the root of a negative number."""
    if is_lazy(value) or value.is_meta or value.layout is not torch.strided or value.is_quantized:
        return
    if bool((below := value.detach() < 0).any()):
        raise InvalidModel(
            f"{name} holds negative variances in {int(below.sum())} of {below.numel()} channels, of which no batch "
            "norm can take the root; load the weights again, or call reset_running_stats() and run it in train mode"
        )
