"""How a model is called: its example inputs by name, other inputs like them, and its outputs by name."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.errors import InvalidInputs
from surgeon.frontend.free_sizes import resized
from surgeon.frontend.input_spec import by_argument
from surgeon.frontend.trace import normalize_inputs

#: An axis of an input: which of a call's tensors, and which of its axes.
Place = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a model, its tensors taken out and named; whatever else was passed stays as it was.

    >>> call = read_call(nn.Linear(3, 2), torch.ones(4, 3))
    >>> call.names, call.batch, call.batched
    (('input',), 4, (0,))
    >>> args, kwargs = call.bind((torch.zeros(1, 3),))
    >>> args[0].shape, kwargs
    (torch.Size([1, 3]), {})
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec

    @property
    def batch(self) -> int | None:
        """Size of the first axis of the first input that has one."""
        return next((tensor.shape[0] for tensor in self.tensors if tensor.ndim), None)

    @property
    def batched(self) -> tuple[int, ...]:
        """Positions of the tensors whose first axis has the size of the batch."""
        batch = self.batch
        return tuple(i for i, tensor in enumerate(self.tensors) if tensor.ndim and tensor.shape[0] == batch)

    def shapes(self, tensors: tuple[Tensor, ...]) -> dict[str, tuple[int, ...]]:
        """The shapes of a sample's tensors by name, for messages."""
        return {name: tuple(tensor.shape) for name, tensor in zip(self.names, tensors, strict=True)}

    def bind(self, tensors: tuple[Tensor, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments with `tensors` in the places of the example's."""
        rest = iter(tensors)
        leaves = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs

    @property
    def places(self) -> tuple[int, ...]:
        """Where each tensor stands among the leaves."""
        return tuple(index for index, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor))

    def at(self, sizes: Mapping[Place, int]) -> "Call":
        """The example at other sizes of some axes, by rows that stand there already, see `resized`."""
        inputs = resized(self.bind(self.tensors), {(self.places[i], axis): size for (i, axis), size in sizes.items()})
        leaves = pytree.tree_leaves(inputs)
        return dataclasses.replace(self, tensors=tuple(leaves[place] for place in self.places))

    def with_batch(self, batch: int) -> "Call":
        """The example with so many rows."""
        return self.at({(i, 0): batch for i in self.batched})

    def sample(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Random inputs of the example's shapes, types and value ranges, see `sample_like`."""
        return tuple(sample_like(tensor, generator) for tensor in self.tensors)


def read_call(model: nn.Module, example_inputs: object) -> Call:
    """Read example inputs: a tensor, a tuple or list of positional inputs, or a dict of keyword inputs.

    The call's tensors are detached copies on the CPU, floating-point ones in float32. Raises
    `InvalidInputs` if there is no tensor among them or one of them is empty.
    """
    args, kwargs = normalize_inputs(example_inputs)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    names = [
        name if len(values) == 1 else f"{name}_{index}"
        for name, values in by_argument(model, (args, kwargs))
        for index, leaf in enumerate(values)
        if isinstance(leaf, Tensor)
    ]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    for name, tensor in zip(names, tensors, strict=True):
        if not tensor.numel():
            raise InvalidInputs(f"example input {name!r} is empty, its shape is {tuple(tensor.shape)}")
    return Call(unique(names), tuple(_to_float32(tensor) for tensor in tensors), tuple(leaves), spec)


def sample_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """A random tensor of `tensor`'s shape and type.

    Integers and booleans are drawn from the example's own values, so that an index stays in range. Floats
    are normal with the example's mean and standard deviation, clamped to its range; a constant example
    says nothing of its spread and gets a standard deviation of 1.

    >>> ids = sample_like(torch.tensor([[3, 7, 7]]), torch.Generator().manual_seed(0))
    >>> ids.shape, set(ids.flatten().tolist()) <= {3, 7}
    (torch.Size([1, 3]), True)
    """
    if not tensor.is_floating_point():
        values = tensor.flatten()
        return values[torch.randint(values.numel(), tensor.shape, generator=generator)]
    noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    low, high = tensor.aminmax()
    if low == high:
        return noise + low
    return (noise * tensor.std() + tensor.mean()).clamp(low, high)


def named_outputs(output: object) -> Iterator[tuple[str, object]]:
    """The leaves of a model's output with their names; a leaf that is None is left out.

    A lone tensor is `output`, a tuple's are `output_0`, `output_1`, a dict's (a Hugging Face `ModelOutput`
    is one) have its keys. What is neither a container nor a tensor comes as it is.

    >>> [name for name, _ in named_outputs({"logits": torch.ones(1), "states": (torch.ones(1), None)})]
    ['logits', 'states_0']
    """
    yield from _walk("", output)


def unique(names: list[str], taken: tuple[str, ...] = ()) -> tuple[str, ...]:
    """`names` with a number added to those that stand twice or are `taken`."""
    seen = set(taken)
    result: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in seen:
            candidate, number = f"{name}_{number}", number + 1
        seen.add(candidate)
        result.append(candidate)
    return tuple(result)


def _walk(prefix: str, value: object) -> Iterator[tuple[str, object]]:
    if value is None:
        return
    children: list[tuple[str, object]] | None = None
    if isinstance(value, Mapping):
        children = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        children = list(zip(value._fields, value, strict=True))
    elif isinstance(value, (tuple, list)):
        children = [(str(index), child) for index, child in enumerate(value)]
        prefix = prefix or "output"
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        children = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if children is None:
        yield prefix or "output", value
        return
    for key, child in children:
        yield from _walk(f"{prefix}_{key}" if prefix else key, child)


def _to_float32(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().clone()
    return tensor.float() if tensor.is_floating_point() else tensor
