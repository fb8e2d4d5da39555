"""The JSON of an exported program, validated against torch's schema, field by field.

torch itself does not check types. Here every value must have the type that torch's schema gives it, every string is
checked for its purpose, and fields that surgeon does not need, some of which torch runs or imports, are left out.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

from torch._export.serde import schema
from torch._export.serde.union import _Union

from surgeon.frontend.exported.expressions import check_expression
from surgeon.frontend.exported.operators import check_operator
from surgeon.frontend.exported.text import (
    check_device,
    check_name,
    check_optional_name,
    check_path,
    check_payload,
    check_spec,
    check_symbol,
    check_text,
    metadata,
)
from surgeon.support.opening import Unfit

Check = Callable[[str], None]

_INTEGER: Final = 1 << 64
_FLOATS: Final = ("Infinity", "-Infinity", "NaN")

#: The checks of strings, by field; also for the strings of a list and the keys of an object.
_TEXTS: Final[Mapping[str, Check]] = {
    field: check
    for check, fields in (
        (check_device, "Device.type"),
        (check_expression, "SymExpr.expr_str"),
        (check_name, """
            SymIntArgument.as_name SymFloatArgument.as_name SymBoolArgument.as_name TensorArgument.name
            GraphArgument.name Node.name Graph.tensor_values Graph.sym_int_values Graph.sym_bool_values
            Graph.sym_float_values InputToConstantInputSpec.name UserInputMutationSpec.user_input_name
            ModuleCallSignature.forward_arg_names ExportedProgram.opset_version
        """),
        (check_text, "Argument.as_string Argument.as_strings ConstantValue.as_string"),
        (check_operator, "Argument.as_operator Node.target"),
        (check_optional_name, "NamedArgument.name ModuleCallEntry.fqn"),
        (check_path, """
            InputToParameterSpec.parameter_name InputToBufferSpec.buffer_name
            InputToTensorConstantSpec.tensor_constant_name BufferMutationSpec.buffer_name
            ParameterMutationSpec.parameter_name PayloadConfig.config
        """),
        (check_spec, "ModuleCallSignature.in_spec ModuleCallSignature.out_spec"),
        (check_symbol, "ExportedProgram.range_constraints"),
        (check_payload, "PayloadMeta.path_name"),
    )
    for field in fields.split()
}

#: The accepted kinds of a union, if not all are.
_KINDS: Final[Mapping[str, frozenset[str]]] = {
    "InputSpec": frozenset(("user_input", "parameter", "buffer", "tensor_constant", "constant_input")),
    "OutputSpec": frozenset(("user_output", "buffer_mutation", "parameter_mutation", "user_input_mutation")),
    "Argument": frozenset(
        f"as_{kind}"
        for kind in """bool bools complex device float floats graph int ints layout memory_format nested_tensors none
        operator optional_tensor optional_tensors scalar_type string strings sym_bool sym_bools sym_float sym_floats
        sym_int sym_ints tensor tensors""".split()
    ),
}

#: Fields that are ignored, and the value that torch gets instead.
_LEFT_OUT: Final[Mapping[str, Any]] = {
    "ExportedProgram.guards_code": [],
    "ExportedProgram.torch_version": "",
    "ExportedProgram.verifiers": ["TRAINING"],
    "GraphModule.metadata": {},
    "GraphModule.treespec_namedtuple_fields": {},
}

#: Fields that must be empty.
_EMPTY: Final = frozenset(("Graph.custom_obj_values",))


def checked(kind: Any, data: Any) -> Any:
    """`data` as a value of the schema's class `kind`, without the fields that are left out.

    Raises:
        Unfit: it is not; the message says where.

    >>> checked(schema.TensorArgument, {"name": "x"})
    {'name': 'x'}
    >>> checked(schema.TensorArgument, {"name": "x): evil()"})
    Traceback (most recent call last):
        ...
    surgeon.frontend.exported.schema._Placed: name: 'x): evil()' is not the name of a value
    """
    try:
        return _checked(kind, data, "")
    except RecursionError as error:
        raise Unfit("graphs are nested too deeply") from error


def _checked(kind: Any, data: Any, field: str) -> Any:
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _checked(typing.get_args(kind)[0], data, field)
    if origin in (typing.Union, types.UnionType):
        return None if data is None else _checked(typing.get_args(kind)[0], data, field)
    if origin is list:
        _require(isinstance(data, list), "a list", data)
        (inner,) = typing.get_args(kind)
        return [_at(index, inner, each, field) for index, each in enumerate(data)]
    if origin is dict:
        _require(isinstance(data, dict), "an object", data)
        inner = typing.get_args(kind)[1]
        if field == "Node.metadata":
            return metadata({key: _checked(inner, each, "") for key, each in data.items() if key == "nn_module_stack"})
        check = _TEXTS[field]
        for key in data:
            check(key)
        return {key: _at(key, inner, each, field) for key, each in data.items()}
    if isinstance(kind, type) and issubclass(kind, _Union):
        return _union(kind, data)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _fields(kind, data)
    if isinstance(kind, type) and issubclass(kind, enum.IntEnum):
        _require(type(data) is int and data in tuple(kind), f"a {kind.__name__}", data)
        return data
    return _plain(kind, data, field)


def _plain(kind: Any, data: Any, field: str) -> Any:
    if kind is str:
        _require(isinstance(data, str), "a string", data)
        if field:
            _TEXTS[field](data)
    elif kind is int:
        _require(type(data) is int and abs(data) < _INTEGER, "a whole number of 64 bits", data)
    elif kind is float:
        _require(type(data) in (int, float) or data in _FLOATS, "a number", data)
        _require(type(data) is not int or abs(data) < _INTEGER, "a number of 64 bits", data)
    elif kind is bool:
        _require(type(data) is bool, "true or false", data)
    else:
        raise Unfit(f"torch's schema has a {kind}, which this surgeon does not know")
    return data


def _union(kind: type, data: Any) -> dict[str, Any]:
    _require(isinstance(data, dict) and len(data) == 1, f"one {kind.__name__}", data)
    ((tag, value),) = data.items()
    hints = _hints(kind)
    if tag not in _KINDS.get(kind.__name__, frozenset(hints)):
        raise Unfit(f"a program with {str(tag)[:40]!a} is not supported")
    return {tag: _at(tag, hints[tag], value, f"{kind.__name__}.{tag}")}


def _fields(kind: type, data: Any) -> dict[str, Any]:
    _require(isinstance(data, dict), f"a {kind.__name__}", data)
    hints = _hints(kind)
    if unknown := next((key for key in data if key not in hints), None):
        raise Unfit(f"a {kind.__name__} has no {unknown[:40]!a}")
    found = {}
    for each in dataclasses.fields(kind):
        name = f"{kind.__name__}.{each.name}"
        if name in _LEFT_OUT:
            found[each.name] = _LEFT_OUT[name]
        elif each.name not in data:
            if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
                raise Unfit(f"a {kind.__name__} lacks {each.name}")
        elif name in _EMPTY:
            if data[each.name]:
                raise Unfit(f"a program that holds Python objects is not supported ({each.name})")
        elif name == "GraphModule.module_call_graph":
            # The call of the whole program comes first; those of its modules are not needed.
            _require(isinstance(data[each.name], list) and bool(data[each.name]), "a list", data[each.name])
            found[each.name] = [_at(each.name, schema.ModuleCallEntry, data[each.name][0], "")]
        else:
            found[each.name] = _at(each.name, hints[each.name], data[each.name], name)
    return found


def _at(place: str | int, kind: Any, data: Any, field: str) -> Any:
    """The checked value; errors say where it is."""
    shown = str(place)[:60]
    try:
        return _checked(kind, data, field)
    except _Placed as error:
        raise _Placed(f"{shown}.{error.place}", error.reason) from error
    except Unfit as error:
        raise _Placed(shown, str(error)) from error


class _Placed(Unfit):
    """An error with its place in the document."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place, self.reason = place, reason


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, globalns=vars(schema))


def _require(fits: bool, wanted: str, data: Any) -> None:
    if not fits:
        shown = f"{data!r:.40}" if isinstance(data, str | int | float | None) else f"a {type(data).__name__}"
        raise Unfit(f"{wanted} is expected, not {shown}")
