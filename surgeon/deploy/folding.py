"""BatchNorm folded into the convolution before it, in a torch.export program: fewer operators to translate to ONNX."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from surgeon.ir.operators import by_name

_aten = torch.ops.aten

_NORM = _aten.batch_norm.default
_CONVOLUTIONS = {
    overload for name in ("conv1d", "conv2d", "conv3d")
    for overload in (getattr(_aten, name).default, getattr(_aten, name).padding)
}


def fold_batch_norms(program: torch.export.ExportedProgram) -> int:
    """Fold every BatchNorm that reads what a convolution alone writes for it into that one's weights; how many.

    The program gets new weights in place of those that are folded; tensors that it shares with a module stay as they
    are. A weight or bias that others read too is left alone.
    """
    tensors = _tensors(program)
    count = 0
    for node in list(program.graph.nodes):
        if node.target is _NORM and _fold(node, program, tensors):
            count += 1
    if count:
        program.graph_module.recompile()
    return count


def _tensors(program: torch.export.ExportedProgram) -> dict[str, str]:
    """What the placeholders of parameters and buffers stand for."""
    signature = program.graph_signature
    return {**signature.inputs_to_parameters, **signature.inputs_to_buffers}


def _fold(node: fx.Node, program: torch.export.ExportedProgram, names: Mapping[str, str]) -> bool:
    norm = by_name(node.target, node.args, node.kwargs)
    source = norm["input"]
    if norm["training"] or norm["running_mean"] is None or not _is_for(source, node):
        return False
    conv = by_name(source.target, source.args, source.kwargs)
    target = conv["bias"] if conv["bias"] is not None else norm["bias"]
    reader = source if conv["bias"] is not None else node
    if not _is_own(conv["weight"], source, names) or not _is_own(target, reader, names):
        return False
    weight, bias = (_value(each, program, names) for each in (conv["weight"], conv["bias"]))
    scale, shift, mean, variance = (
        _value(norm[name], program, names) for name in ("weight", "bias", "running_mean", "running_var")
    )
    known = {each.name for each in (norm["weight"], norm["bias"], norm["running_mean"], norm["running_var"]) if each}
    if weight is None or not known <= names.keys() or mean is None or variance is None:
        return False
    folded = fuse_conv_bn_weights(weight, bias, mean, variance, norm["eps"], scale, shift)
    for tensor, value in zip((conv["weight"], target), folded, strict=True):
        program.state_dict[names[tensor.name]] = nn.Parameter(value.float(), requires_grad=False)
    source.args = (conv["input"], conv["weight"], target, *source.args[3:])
    source.kwargs = {name: value for name, value in source.kwargs.items() if name not in ("input", "weight", "bias")}
    node.replace_all_uses_with(source)
    program.graph_signature.replace_all_uses(node.name, source.name)
    program.graph.erase_node(node)
    return True


def _is_for(source: object, reader: fx.Node) -> bool:
    """Whether this is a convolution whose result goes to one reader alone."""
    return isinstance(source, fx.Node) and source.target in _CONVOLUTIONS and list(source.users) == [reader]


def _is_own(tensor: fx.Node | None, reader: fx.Node, names: Mapping[str, str]) -> bool:
    """Whether this is a parameter or buffer that has one reader alone."""
    return tensor is not None and tensor.name in names and list(tensor.users) == [reader]


def _value(node: fx.Node | None, program: torch.export.ExportedProgram, names: Mapping[str, str]) -> Tensor | None:
    if node is None or node.name not in names:
        return None
    name = names[node.name]
    found = program.state_dict.get(name, program.constants.get(name))
    return found.detach().double() if isinstance(found, Tensor) else None
