"""What a pruned model must compute, found without any of the code that prunes.

`masked` runs the original eager model at full size and carries, beside every tensor, which of its elements are left.
Operators that move data move both; elementwise ones keep what all operands keep; contractions and statistics go over
what is left. Nothing is sliced, no axis is typed, and the rules of `surgeon.rules` are not looked at: what happens is
decided element by element, by the operators that the eager model dispatches. `zeroed` is the plainer reference, for
models without statistics over pruned axes and in which zero stays zero.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

# What is left of a model's tensors: name and axis -> kept positions.
Cuts = Mapping[tuple[str, int], Iterable[int]]

aten = torch.ops.aten

# Operators that only move elements, or make copies of them.
MOVES = set("""
view _unsafe_view _reshape_alias reshape permute transpose t expand slice select split split_with_sizes unbind squeeze
unsqueeze cat stack clone _to_copy alias detach roll flip repeat index_select index gather unfold pixel_shuffle
pixel_unshuffle channel_shuffle native_channel_shuffle lift_fresh diagonal upsample_nearest2d
upsample_nearest1d unsafe_chunk unsafe_split unsafe_split_with_sizes transpose_ t_
squeeze_ unsqueeze_
""".split())

_VIEWS = (aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default)

# Operators on single elements of operands that broadcast.
ELEMENTWISE = set("""
add sub mul div neg abs relu gelu silu sigmoid tanh hardswish hardsigmoid leaky_relu elu exp sqrt rsqrt pow reciprocal
clamp clamp_min maximum minimum where masked_fill _prelu_kernel native_dropout add_ mul_ relu_ rsub cos sin erf log
sub_ div_ tanh_ sigmoid_ hardswish_ silu_ leaky_relu_ softplus mish hardtanh hardtanh_ eq ne lt gt le ge logical_not
masked_fill_ bitwise_not square
""".split())

# Operators whose result does not depend on the values of a tensor.
MAKES = set("""
arange zeros ones full empty zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty rand randn
scalar_tensor bernoulli_ fill_ zero_ linspace
""".split())

# Windows over spatial axes, which are never pruned: a channel is left as a whole.
WINDOWS = set("""
max_pool2d_with_indices avg_pool2d avg_pool1d _adaptive_avg_pool2d adaptive_max_pool2d upsample_bilinear2d
upsample_linear1d
""".split())


def masked(model: nn.Module, cuts: Cuts, inputs: tuple[Any, ...]) -> list[Tensor]:
    """The outputs of `model`, in float64, that are left when everything that `cuts` removes is ignored.

    Raises AssertionError where an output loses elements, and NotImplementedError at an operator it does not know.
    """
    model = copy.deepcopy(model).double().eval()
    mode = _Masks()
    for name, kept in _kept(model, cuts).items():
        mode.kept[dict(_tensors(model))[name]] = kept
    with torch.no_grad(), ExitStack() as stack:
        fast = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(mode)
        outputs = pytree.tree_leaves(model(*double(inputs)))
    for output in outputs:
        assert bool(mode.of(output).all()), "the cuts remove elements of an output"
    return outputs


def zeroed(model: nn.Module, cuts: Cuts, inputs: tuple[Any, ...]) -> list[Tensor]:
    """The outputs of `model`, in float64, with every removed element of every parameter set to zero."""
    model = copy.deepcopy(model).double().eval()
    kept = _kept(model, cuts)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in kept:
                parameter.mul_(kept[name])
        return pytree.tree_leaves(model(*double(inputs)))


def double(inputs: Any) -> Any:
    """`inputs` with their floating tensors in float64."""
    return pytree.tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)


def deviation(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the largest expected magnitude of each output."""
    assert [x.shape for x in found] == [y.shape for y in expected], "the outputs have other shapes"
    return max(
        float((x - y).detach().abs().max() / y.detach().abs().max().clamp_min(1e-30))
        for x, y in zip(found, expected, strict=True)
    )


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def _kept(model: nn.Module, cuts: Cuts) -> dict[str, Tensor]:
    """For each tensor that is cut: which of its elements are left."""
    shapes = {name: tensor.shape for name, tensor in _tensors(model)}
    found: dict[str, Tensor] = {}
    for (name, axis), positions in cuts.items():
        if name not in shapes:  # a constant that the trace lifted; the model itself makes it anew at full size
            continue
        line = torch.zeros(shapes[name][axis], dtype=torch.bool)
        line[torch.as_tensor(np.asarray(list(positions), dtype=np.int64))] = True
        box = line.view([-1 if i == axis else 1 for i in range(len(shapes[name]))]).expand(shapes[name])
        found[name] = found[name] & box if name in found else box.clone()
    return found


class _Masks(TorchDispatchMode):
    """Carries which elements are left through every operator that is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = WeakTensorKeyDictionary()

    def of(self, tensor: Tensor) -> Tensor:
        """Which elements of `tensor` are left: all of them, unless something was removed upstream."""
        kept = self.kept.get(tensor)
        return torch.ones(tensor.shape, dtype=torch.bool) if kept is None else kept

    def filled(self, tensor: Tensor, value: float = 0.0) -> Tensor:
        """`tensor` with `value` in place of what is not left."""
        return torch.where(self.of(tensor), tensor, torch.full((), value, dtype=tensor.dtype))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operands = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        name = func._schema.name.removeprefix("aten::")
        if all(self.kept.get(x) is None for x in operands):
            return func(*args, **kwargs)
        if name in MAKES:
            return func(*args, **kwargs)
        with _no_dispatch():
            result, kept = self._run(func, name, args, kwargs)
        results, keeps = pytree.tree_leaves(result), pytree.tree_leaves(kept)
        for tensor, mask in zip(results, keeps, strict=False):
            if isinstance(tensor, Tensor):
                assert tensor.shape == mask.shape, f"the oracle's mask of {name} has the wrong shape"
                self.kept[tensor] = mask
        return result

    def _run(self, func: Any, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if name in MOVES or name in WINDOWS or name == "constant_pad_nd":
            return self._move(func, args, kwargs)
        if name in ELEMENTWISE:
            operands = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            result = func(*args, **kwargs)
            kept = self._all(operands)
            first = pytree.tree_leaves(result)[0]
            if name.endswith("_") and first._is_view() and not bool((kept == self.of(first)).all()):
                raise NotImplementedError(f"the oracle does not follow what {func} writes into a view")
            return result, kept.expand(first.shape).clone() if kept.shape != first.shape else kept
        rule: Callable[..., tuple[Any, Any]] | None = getattr(self, f"_{name.strip('_')}_rule", None)
        if rule is None:
            raise NotImplementedError(f"the oracle has no rule for {func}")
        return rule(func, *args, **kwargs)

    def _all(self, operands: list[Tensor]) -> Tensor:
        kept = self.of(operands[0])
        for other in operands[1:]:
            kept = kept & self.of(other)
        return kept

    def _move(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The same operator moves the mask; first, because it may change the shape of its operand in place."""

        def mask(x: Any) -> Any:
            return self.of(x).double() if isinstance(x, Tensor) and x.is_floating_point() else x

        new = (*args[:2], 1.0) if func is aten.constant_pad_nd.default else args
        move = aten.reshape.default if func in _VIEWS else func  # strides of masks may be others than those of values
        moved = move(*pytree.tree_map(mask, new), **pytree.tree_map(mask, kwargs))
        return func(*args, **kwargs), pytree.tree_map(lambda x: x > 0.5, moved)

    def _contract(self, func: Any, *operands: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        result = func(*(self.filled(x) for x in operands), **kwargs)
        return result, func(*(self.of(x).double() for x in operands), **kwargs) > 0.5

    def _mm_rule(self, func: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._contract(func, x, y)

    _bmm_rule = _mm_rule

    def _addmm_rule(self, func: Any, bias: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        result, kept = self._contract(aten.mm.default, x, y)
        return result + bias, kept & self.of(bias)

    def _convolution_rule(self, func: Any, x: Tensor, w: Tensor, bias: Any, *rest: Any) -> tuple[Tensor, Tensor]:
        result = func(self.filled(x), self.filled(w), None, *rest)
        kept = func(self.of(x).double(), self.of(w).double(), None, *rest) > 0.5
        if bias is not None:
            line = [1, -1] + [1] * (result.dim() - 2)
            result, kept = result + bias.view(line), kept & self.of(bias).view(line)
        return result, kept

    def _as_strided_rule(self, func: Any, x: Tensor, size: Any, stride: Any, *rest: Any) -> tuple[Tensor, Tensor]:
        """In place: pooling gives its result the strides of channels-last."""
        if list(size) != list(x.shape) or func is not aten.as_strided_.default:
            raise NotImplementedError(f"the oracle does not follow {func} to another shape")
        return func(x, size, stride, *rest), self.of(x)

    def _embedding_rule(self, func: Any, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return func(weight, *rest), func(self.of(weight).double(), *rest) > 0.5

    def _glu_rule(self, func: Any, x: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
        first, second = self.of(x).chunk(2, dim)
        return func(x, dim), first & second

    def _sum_rule(
        self, func: Any, x: Tensor, dim: Any = None, keepdim: bool = False, **kw: Any
    ) -> tuple[Tensor, Tensor]:
        over = list(range(x.dim())) if dim is None else dim
        return self.filled(x).sum(over, keepdim), self.of(x).sum(over, keepdim) > 0

    def _linalg_vector_norm_rule(
        self, func: Any, x: Tensor, order: Any = 2, dim: Any = None, keepdim: bool = False, **kw: Any
    ) -> tuple[Tensor, Tensor]:
        return func(self.filled(x), order, dim, keepdim, **kw), self.of(x).any(dim=dim[0], keepdim=keepdim)

    def _mean_rule(
        self, func: Any, x: Tensor, dim: Any = None, keepdim: bool = False, **kw: Any
    ) -> tuple[Tensor, Tensor]:
        over = list(range(x.dim())) if dim is None else dim
        count = self.of(x).sum(over, keepdim)
        return self.filled(x).sum(over, keepdim) / count.clamp_min(1), count > 0

    def _cumsum_rule(self, func: Any, x: Tensor, dim: int, **kw: Any) -> tuple[Tensor, Tensor]:
        kept = self.of(x)
        assert bool((kept == kept.select(dim, 0).unsqueeze(dim)).all()), "a running sum over what is left in part"
        return func(self.filled(x), dim, **kw), kept

    def _amax_rule(self, func: Any, x: Tensor, dim: Any, keepdim: bool = False) -> tuple[Tensor, Tensor]:
        return self.filled(x, -torch.inf).amax(dim, keepdim), self.of(x).double().amax(dim, keepdim) > 0.5

    def _softmax_rule(self, func: Any, x: Tensor, dim: int, *rest: Any) -> tuple[Tensor, Tensor]:
        return self.filled(x, -torch.inf).softmax(dim).nan_to_num(0.0), self.of(x)

    def _safe_softmax_rule(self, func: Any, x: Tensor, dim: int, *rest: Any) -> tuple[Tensor, Tensor]:
        return self._softmax_rule(func, x, dim)

    def _normalized(self, x: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """`x` less its mean, over its spread, both over what is left along `dims`; the mean; one over the spread."""
        count = self.of(x).sum(dims, keepdim=True).clamp_min(1)
        mean = self.filled(x).sum(dims, keepdim=True) / count
        square = torch.where(self.of(x), (x - mean) ** 2, 0.0).sum(dims, keepdim=True) / count
        inverse = torch.rsqrt(square + eps)
        return (x - mean) * inverse, mean, inverse

    def _native_layer_norm_rule(self, func: Any, x: Tensor, shape: Any, w: Any, b: Any, eps: float) -> tuple[Any, Any]:
        result, mean, inverse = self._normalized(x, list(range(-len(shape), 0)), eps)
        kept = self.of(x)
        for parameter, operate in ((w, torch.mul), (b, torch.add)):
            if parameter is not None:
                result, kept = operate(result, parameter), kept & self.of(parameter)
        return (result, mean, inverse), kept

    def _fused_rms_norm_rule(self, func: Any, x: Tensor, shape: Any, w: Any, eps: Any) -> tuple[Any, Any]:
        dims = list(range(-len(shape), 0))
        count = self.of(x).sum(dims, keepdim=True).clamp_min(1)
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        inverse = torch.rsqrt(self.filled(x).pow(2).sum(dims, keepdim=True) / count + eps)
        result, kept = x * inverse, self.of(x)
        if w is not None:
            result, kept = result * w, kept & self.of(w)
        return (result, inverse), kept

    def _native_group_norm_rule(
        self, func: Any, x: Tensor, w: Any, b: Any, n: int, c: int, area: int, groups: int, eps: float
    ) -> tuple[Any, Any]:
        kept = self.of(x)
        grouped = x.reshape(n, groups, -1)
        self.kept[grouped] = kept.reshape(n, groups, -1)
        result, mean, inverse = self._normalized(grouped, [-1], eps)
        result = result.reshape(x.shape)
        line = [1, -1] + [1] * (x.dim() - 2)
        for parameter, operate in ((w, torch.mul), (b, torch.add)):
            if parameter is not None:
                result, kept = operate(result, parameter.view(line)), kept & self.of(parameter).view(line)
        return (result, mean, inverse), kept

    def _native_batch_norm_rule(self, func: Any, x: Tensor, *parameters: Any) -> tuple[Any, Any]:
        """Each channel by itself: what is left of one is left of its scale, shift and statistics."""
        kept = self.of(x)
        for parameter in parameters[:4]:
            if parameter is not None:
                kept = kept & self.of(parameter).view([1, -1] + [1] * (x.dim() - 2))
        return func(x, *parameters), kept


def _no_dispatch() -> Any:
    return torch.utils._python_dispatch._disable_current_modes()
