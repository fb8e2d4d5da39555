"""Operators that the table lacks: onnxruntime runs them, or else onnx's reference, as one operator of torch."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from torch import Tensor

from surgeon.errors import InvalidInputs, InvalidModel, SurgeonError, first_line
from surgeon.onnx_import.tensors import Constant, from_array, onnx_type, read_tensor
from surgeon.onnx_import.values import Numbers, precise

if TYPE_CHECKING:
    from surgeon.onnx_import.running import Operator

#: Operators that are remembered, the last ones.
REMEMBERED = 512
#: Domains whose operators onnxruntime may know.
_DOMAINS = ("", "ai.onnx.ml", "com.microsoft")
#: Parts of the names of types that numpy lacks.
_BARE = ("bfloat16", "float8", "float4", "int4", "int2")


def refuse_unknown(operator: Operator) -> None:
    """Refuse an operator that nothing can run.

    Raises:
        InvalidModel: ONNX has no such operator, it holds graphs, or it is of another domain.
    """
    name = f"{operator.domain}.{operator.kind}".strip(".")
    known = operator.domain in _DOMAINS and 0 < operator.opset < 1 << 31
    if known and operator.domain != "com.microsoft":
        known = onnx.defs.has(operator.kind, operator.opset, operator.domain)
    if not known or operator._modules:
        what = "holds graphs, and is not in the table of operators" if known else "is an operator that is not known"
        raise InvalidModel(f"{operator.place}: {name} {what}; replace it in the file, or cut it off")


class _Run:
    """One node as a model that onnxruntime runs. `types` are those of the tensors that it is given."""

    def __init__(self, model: onnx.ModelProto, types: list[torch.dtype], kind: str) -> None:
        self._model, self._types, self._kind = model, types, kind
        self._session: Any = None

    def _found(self, feeds: dict[str, Any]) -> list[Any]:
        if self._session is not None:
            return self._ran(self._session, feeds)
        failures = []
        for start in _sessions(self._model):
            try:
                session = start()
                found = self._ran(session, feeds)
            except Exception as error:  # noqa: BLE001  (both raise all kinds, onnxruntime of its own)
                failures.append(first_line(error))
                continue
            self._session = session
            return found
        raise InvalidModel(f"neither onnxruntime nor onnx's reference runs {self._kind}: {'; '.join(failures)}")

    def _ran(self, session: Any, feeds: dict[str, Any]) -> list[Any]:
        try:
            return list(session.run(None, feeds))
        except SurgeonError:
            raise
        except Exception as error:
            raise InvalidInputs(f"{self._kind} can't run on these inputs: {first_line(error)}") from error

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        feeds = {
            f"x{place}": value.detach().to(kind).cpu().contiguous().numpy()
            for place, (value, kind) in enumerate(zip(tensors, self._types, strict=True))
        }
        found = self._found(feeds)
        given = next((each for each in zip(tensors, self._types, strict=True) if each[0].is_floating_point()), None)
        made = [from_array(np.array(each)) for each in found]
        if given is not None:  # the module may have been converted: what is of the file's type is of the module's now
            made = [each.to(given[0].dtype) if each.dtype is given[1] else each for each in made]
        return [each.to(tensors[0].device) if tensors else each for each in made]


def _sessions(model: onnx.ModelProto) -> Iterator[Callable[[], Any]]:
    """What may run a model, the best first."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    content = model.SerializeToString()
    yield lambda: _session(content, options)
    from onnx.reference import ReferenceEvaluator  # it is slow to import, and seldom needed

    yield lambda: ReferenceEvaluator(model)


def _session(content: bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """A session of onnxruntime whose outputs are of types that numpy has: of others it hands out the bare bits.

    Raises:
        InvalidModel: they are not.
    """
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    for output in session.get_outputs():
        if any(kind in output.type for kind in _BARE):
            raise InvalidModel(f"onnxruntime gives {output.type} as bare bits")
    return session


_RUNS: OrderedDict[str, _Run] = OrderedDict()


def run(operator: Operator, device: torch.device | None, values: list[Any], reason: str = "") -> list[Tensor]:
    """The outputs of an operator, which onnxruntime computes.

    Raises:
        InvalidModel: it does not know the operator either.
    """
    names: list[str] = []
    tensors: list[Tensor] = []
    initializers: list[onnx.TensorProto] = []
    for place, value in enumerate(values):
        if isinstance(value, list) or operator._modules:
            raise InvalidModel(f"{operator.place}: {operator.kind} is not covered{f': {reason}' if reason else ''}")
        if value is None:
            names.append("")
        elif isinstance(value, Numbers) and value.plain:
            names.append(f"c{place}")
            array = np.array(value.array.tolist(), dtype=helper.tensor_dtype_to_np_dtype(onnx_type(value.dtype)))
            initializers.append(onnx.numpy_helper.from_array(array, names[-1]))
        else:
            names.append(f"x{len(tensors)}")
            tensors.append(value.tensor(device) if isinstance(value, Numbers) else value)
    types = [_file_type(value.dtype) for value in tensors]
    model = _model(operator, names, types, initializers)
    label = f"{operator.kind} {hashlib.sha256(model.SerializeToString()).hexdigest()[:20]}"
    if label not in _RUNS:
        _RUNS[label] = _Run(model, types, operator.kind)
        while len(_RUNS) > REMEMBERED:
            _RUNS.popitem(last=False)
    return list(torch.ops.surgeon.onnx_operator(tensors, label))


def _file_type(kind: torch.dtype) -> torch.dtype:
    """The type that the file has for one that a module was converted to."""
    if kind.is_floating_point and precise(torch.float32) is kind:
        return torch.float32
    return kind


def _model(
    operator: Operator, names: list[str], types: list[torch.dtype], initializers: list[onnx.TensorProto]
) -> onnx.ModelProto:
    attributes = {
        name: _tensor(value) if isinstance(value, Constant) else value for name, value in operator.attributes.items()
    }
    outputs = [f"y{place}" for place in range(operator.outputs)]
    node = helper.make_node(operator.kind, names, outputs, domain=operator.domain, **attributes)
    inputs = [
        onnx.ValueInfoProto(name=f"x{place}", type=helper.make_tensor_type_proto(onnx_type(kind), None))
        for place, kind in enumerate(types)
    ]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph([node], "operator", inputs, results, initializers)
    used = [helper.make_opsetid("", operator.opset if not operator.domain else 17)]
    if operator.domain:
        used.append(helper.make_opsetid(operator.domain, max(operator.opset, 1)))
    return helper.make_model(graph, opset_imports=used, ir_version=10)


def _tensor(constant: Constant) -> onnx.TensorProto:
    if isinstance(constant.held, onnx.TensorProto):
        return onnx.numpy_helper.from_array(read_tensor(constant.held, constant.folder, constant.name))
    raise InvalidModel(f"{constant.name} is no tensor of the file")


@torch.library.custom_op("surgeon::onnx_operator", mutates_args=(), schema="(Tensor[] inputs, str key) -> Tensor[]")
def _operator(inputs: list[Tensor], key: str) -> list[Tensor]:
    return [each.clone() for each in _RUNS[key](inputs)]


@_operator.register_fake
def _shapes(inputs: list[Tensor], key: str) -> list[Tensor]:
    from surgeon.frontend.scripted import seen_shapes  # what traces is imported when something is traced

    return seen_shapes(_RUNS[key], inputs)
