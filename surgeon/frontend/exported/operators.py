"""The operators that an exported program may call, by name.

torch resolves a name by attributes of `torch`, `math` or `operator`, one after the other, so that it can lead to any
function of torch. Here only operators on tensors of known libraries and arithmetic on sizes are accepted.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

import torch

from surgeon.support.opening import Unfit

_OPERATOR: Final = re.compile(r"torch\.ops\.(aten|prims|torchvision)\.(_*[A-Za-z]\w*)\.([A-Za-z]\w*)", re.ASCII)
_HIGHER: Final = frozenset(
    f"torch.ops.higher_order.{name}"
    for name in ("cond", "map_impl", "scan", "while_loop", "wrap_with_autocast", "wrap_with_set_grad_enabled")
)
#: Arithmetic on sizes, under the names that torch writes.
_SIZES: Final = frozenset(
    f"_operator.{name}"
    for name in """add and_ eq floordiv ge gt le lshift lt mod mul ne neg or_ pos pow rshift sub truediv""".split()
) | {"math.trunc", *(f"torch.{name}" for name in "_sym_sqrt sym_float sym_int sym_ite sym_max sym_min sym_not".split())}

_PLAIN: Final = r"(Tensor|number|int|float|bool|complex|SymInt|SymBool|Device|Layout|ScalarType|MemoryFormat)"
_TYPE: Final = re.compile(rf"((Optional|List)\[)*{_PLAIN}\]*")
#: String arguments of operators: modes and messages, none of which is the name of a file.
_TEXTS: Final = frozenset(
    """UPLO api_name approximate assert_msg driver equation indexing interpolation mode norm ord p pad_mode padding
    padding_mode padding_side reduce rounding_mode side""".split()
)


@cache
def check_operator(name: str) -> None:
    """Make sure that a program may call the operator of this name.

    Raises:
        Unfit: there is no such operator, or it does more than compute tensors from tensors and numbers.

    >>> check_operator("torch.ops.aten.conv2d.default")
    >>> check_operator("torch.hub.load")
    Traceback (most recent call last):
        ...
    surgeon.support.opening.Unfit: 'torch.hub.load' is not an operator that an exported program may call
    """
    if name in _SIZES or name in _HIGHER:
        return
    found = _OPERATOR.fullmatch(name)
    if found is None:
        raise Unfit(f"{name[:120]!a} is not an operator that an exported program may call")
    library, operator, overload = found.groups()
    if library == "torchvision":
        _import_torchvision(name)
    try:
        schema = torch._C._get_schema(f"{library}::{operator}", "" if overload == "default" else overload)
    except RuntimeError as error:
        raise Unfit(f"torch {torch.__version__} has no operator {name}") from error
    for argument in (*schema.arguments, *schema.returns):
        kind = str(argument.type)
        generator = kind == "Optional[Generator]"  # always None: a program can't hold one
        text = kind in ("str", "Optional[str]") and argument.name in _TEXTS
        if not (_TYPE.fullmatch(kind) or generator or text):
            raise Unfit(f"{name} takes or returns a {kind}, so it does more than compute with tensors and numbers")
    resolved = getattr(getattr(getattr(torch.ops, library), operator, None), overload, None)
    if not isinstance(resolved, torch._ops.OpOverload):
        raise Unfit(f"{name} can't be called from a program")


def _import_torchvision(name: str) -> None:
    try:
        __import__("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        raise Unfit(f"{name} needs torchvision, which can't be imported: {error}") from error
