"""Runs onnxruntime's quantizer quietly, with exact control over which operators stay in float."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import onnx

from surgeon.errors import ExportError
from surgeon.frontend.isolation import quietly
from surgeon.quantization.calibration import Feeds
from surgeon.quantization.space_to_depth import fold_stride

Method = Literal["static", "dynamic"]
Ranges = Literal["MinMax", "Percentile", "Entropy"]

HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "Attention")
"""The operators with weights, at which a network is divided into a float part and an int8 part."""

HISTOGRAM_ROWS = 16
"""Calibration rows that histograms are made from: the quantizer holds all of their activations in memory."""


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized.

    `static` takes the ranges of activations from calibration, `dynamic` from each run. The first `float_until` heavy
    operators and everything up to the next one stay in float, and so do all operators of the kinds `float_kinds` (see
    `kind_of`). `ranges` is the calibration method; `seven_bits` leaves one bit of the weights unused, so that sums
    can't saturate on CPUs that add pairs of products in 16 bits. `folded` rewrites the first convolution, see
    `fold_stride`.
    """

    method: Method
    float_until: int = 0
    float_kinds: tuple[str, ...] = ()
    ranges: Ranges = "MinMax"
    seven_bits: bool = False
    folded: bool = False

    def __str__(self) -> str:
        parts = [f"{self.method} int8"]
        if self.float_until:
            parts.append(f"the first {self.float_until} operators with weights in float")
        if self.float_kinds:
            parts.append(f"{', '.join(self.float_kinds)} in float")
        if self.folded:
            parts.append("the first convolution's stride folded into channels")
        if self.ranges != "MinMax":
            parts.append(f"{self.ranges} ranges")
        if self.seven_bits:
            parts.append("7-bit weights")
        return ", ".join(parts)


class Source:
    """A float model prepared for the quantizer, in a folder that also takes all that the quantizer writes."""

    def __init__(self, path: Path, folder: Path, calibration: Sequence[Feeds]) -> None:
        """Raises ExportError if the file can't be read or is too large for a single file."""
        self.folder = folder
        self.calibration = calibration
        self.path = folder / "prepared.onnx"
        self.folded = folder / "folded.onnx"
        try:
            model = onnx.load(path)
            taken: set[str] = set()
            for index, node in enumerate(model.graph.node):
                if not node.name or node.name in taken:
                    node.name = f"{node.name or node.op_type}_at_{index}"
                taken.add(node.name)
            # The mark of the quantizer's own preparation, which is not needed: export has optimized the model.
            del model.metadata_props[:]
            model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
            onnx.save(model, self.path)
            nodes = list(model.graph.node)
            self.folds = fold_stride(model)
            if self.folds:
                onnx.save(model, self.folded)
        # onnx and protobuf raise ValueError, DecodeError and more for a broken or too large file.
        except Exception as error:
            raise ExportError(f"{path} can't be prepared for quantization: {error}") from error
        self.nodes = [(node.name, kind_of(node), node.op_type in HEAVY) for node in nodes]
        self.free = all(
            dims and not dims[0].HasField("dim_value")
            for dims in (each.type.tensor_type.shape.dim for each in model.graph.input)
        )
        self.types = {node.op_type for node in model.graph.node}
        self._made: dict[Recipe, Path] = {}

    @property
    def heavy(self) -> int:
        """The number of operators with weights."""
        return sum(heavy for _, _, heavy in self.nodes)

    def kinds(self, recipe: Recipe) -> tuple[str, ...]:
        known = _known(recipe.method)
        left = set(self.left_float(recipe))
        found = [kind for name, kind, _ in self.nodes if name not in left and kind.split()[-1] in known]
        return tuple(dict.fromkeys(found))

    def write(self, recipe: Recipe) -> Path:
        """The model quantized by `recipe`, written on the first call. Raises ExportError if the quantizer fails."""
        if recipe in self._made:
            return self._made[recipe]
        target = self.folder / f"int8-{len(self._made)}.onnx"
        try:
            with quietly(), contextlib.redirect_stdout(io.StringIO()):  # it prints too
                _quantize(self, recipe, target)
        # The quantizer raises all kinds of errors, ValueError, KeyError and RuntimeError among them.
        except Exception as error:
            raise ExportError(f"onnxruntime's quantizer fails ({recipe}): {error}") from error
        self._made[recipe] = target
        return target

    def left_float(self, recipe: Recipe) -> list[str]:
        left: list[str] = []
        heavies = 0
        for name, kind, heavy in self.nodes:
            heavies += heavy
            if kind in recipe.float_kinds or (recipe.float_until and heavies <= recipe.float_until):
                left.append(name)
        return left


def kind_of(node: Any) -> str:
    """The kind of an ONNX node: its operator, and whether a convolution is grouped.

    >>> kind_of(onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=4))
    'grouped Conv'
    """
    grouped = any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
    return f"{'grouped ' if grouped else ''}{node.op_type}"


def left_in_float(path: Path) -> tuple[list[str], int]:
    """The names of the operators with weights that a quantized model computes in float, and their number in total.

    The quantizer leaves operators that it does not know in float, whatever it was told. An int8 operator either has
    another name (MatMulInteger, QLinearConv) or a dequantized weight (DequantizeLinear).
    """
    graph = onnx.load(path, load_external_data=False).graph
    dequantized = {output for node in graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    floating = [
        node.name for node in graph.node if node.op_type in HEAVY and dequantized.isdisjoint(node.input[1:2])
    ]
    plain = sum(node.op_type in HEAVY for node in graph.node)
    other = sum(any(kind in node.op_type for kind in HEAVY) and node.op_type not in HEAVY for node in graph.node)
    return floating, plain + other


def _known(method: Method) -> set[str]:
    from onnxruntime.quantization.registry import IntegerOpsRegistry, QDQRegistry, QLinearOpsRegistry

    return {*IntegerOpsRegistry, "Gemm"} if method == "dynamic" else {*QLinearOpsRegistry, *QDQRegistry}


def _quantize(source: Source, recipe: Recipe, target: Path) -> None:
    from onnxruntime import quantization

    left = source.left_float(recipe)
    path = source.folded if recipe.folded else source.path
    types = sorted(_known(recipe.method) & source.types)
    if recipe.method == "dynamic":
        # The quantizer first splits every Gemm into a MatMul and an Add.
        quantization.quantize_dynamic(
            path,
            target,
            op_types_to_quantize=[*types, "MatMul"],
            nodes_to_exclude=[*left, *(f"{name}_MatMul" for name in left)],
            weight_type=quantization.QuantType.QInt8,
            reduce_range=recipe.seven_bits,
        )
        return
    feeds = iter(source.calibration if recipe.ranges == "MinMax" else _few(source))
    reader: Any = SimpleNamespace(get_next=functools.partial(next, feeds, None))
    # Unsigned activations and signed weights: ReLU then costs nothing, as its zero is the type's least value.
    quantization.quantize_static(
        path,
        target,
        reader,
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=types,
        nodes_to_exclude=left,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=recipe.seven_bits,
        calibrate_method=quantization.CalibrationMethod[recipe.ranges],
        calibration_cache_path=source.folder / f"{path.stem}-{recipe.ranges}.json",
    )


def _few(source: Source) -> list[Feeds]:
    few: list[Feeds] = []
    for feeds in source.calibration:
        few.append({name: value[:HISTOGRAM_ROWS] for name, value in feeds.items()} if source.free else feeds)
        if sum(len(next(iter(each.values()))) for each in few) >= HISTOGRAM_ROWS:
            break
    return few
