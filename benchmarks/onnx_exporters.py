"""Small models of other exporters: each file is read and held against onnxruntime, or refused with the operator's name.

    pip install --target LIBRARIES skl2onnx                  # and so on: keras, tf2onnx tensorflow-cpu, paddle2onnx ...
    PYTHONPATH=.:LIBRARIES python -m benchmarks.onnx_exporters --only skl2onnx
    python -m benchmarks.onnx_exporters --table

An exporter that is not installed is passed over, and its rows stay as they are. A line of JSON a model goes to
`benchmarks/results/onnx_exporters.jsonl`, and the table to `onnx_exporters.md`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

import surgeon
from benchmarks.rows import append, command, last, last_line, publish, to_run
from surgeon.errors import NothingToPrune, SurgeonError, first_line
from testbed.onnx_graphs import convolutional, model, weight

RESULTS = Path(__file__).parent / "results"
ROWS, TABLE = RESULTS / "onnx_exporters.jsonl", RESULTS / "onnx_exporters.md"

Inputs = dict[str, np.ndarray]
#: Writes a file, and gives inputs for it in their order.
Maker = Callable[[Path], tuple[np.ndarray, ...]]
MAKERS: dict[str, dict[str, Maker]] = {}


def maker(exporter: str, name: str) -> Callable[[Maker], Maker]:
    def add(function: Maker) -> Maker:
        MAKERS.setdefault(exporter, {})[name] = function
        return function

    return add


def _numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _skl(name: str, make: Callable[[], Any], **options: Any) -> None:
    @maker("skl2onnx", name)
    def write(path: Path) -> tuple[np.ndarray, ...]:
        skl = importlib.import_module("skl2onnx")
        x = _numbers(60, 6)
        model = make().fit(x, (x[:, 0] + x[:, 1] > 0).astype(np.int64))
        named = {id(model): options} if options else None
        path.write_bytes(skl.to_onnx(model, x[:1], options=named, target_opset=18).SerializeToString())
        return (x[:4],)


def _of_sklearn(where: str, **arguments: Any) -> Callable[[], Any]:
    module, _, name = where.rpartition(".")
    return lambda: getattr(importlib.import_module(f"sklearn.{module}"), name)(**arguments)


_skl("a multilayer perceptron", _of_sklearn("neural_network.MLPRegressor", hidden_layer_sizes=(32, 16), max_iter=20))
_skl("a classifier of perceptrons", _of_sklearn("neural_network.MLPClassifier", hidden_layer_sizes=(32,), max_iter=20),
     zipmap=False)
_skl("one with probabilities by name", _of_sklearn("linear_model.LogisticRegression"))
_skl("logistic regression", _of_sklearn("linear_model.LogisticRegression"), zipmap=False)
_skl("linear regression", _of_sklearn("linear_model.LinearRegression"))
_skl("principal components", _of_sklearn("decomposition.PCA", n_components=3))
_skl("clusters", _of_sklearn("cluster.KMeans", n_clusters=3, n_init=1))
_skl("a scaler", _of_sklearn("preprocessing.StandardScaler"))
_skl("a forest", _of_sklearn("ensemble.RandomForestRegressor", n_estimators=3, max_depth=3))
_skl("support vectors", _of_sklearn("svm.SVR"))


def _keras_networks() -> dict[str, tuple[Callable[[Any, Any], Any], tuple[int, ...]]]:
    """Networks by name: from keras' layers and an input to an output, and the shape of a sample."""

    def image(k: Any, x: Any) -> Any:
        x = k.Conv2D(16, 3, padding="same", use_bias=False)(x)
        x = k.ReLU()(k.BatchNormalization()(x))
        x = k.Conv2D(16, 3, strides=2, padding="same", activation="relu")(x)
        return k.Dense(5, activation="softmax")(k.GlobalAveragePooling2D()(x))

    def separable(k: Any, x: Any) -> Any:
        x = k.Conv2D(16, 3, strides=2, padding="same", activation="relu")(x)
        y = k.DepthwiseConv2D(3, padding="same", activation="relu")(x)
        y = k.Conv2D(16, 1)(y)
        return k.Dense(4)(k.Flatten()(k.MaxPooling2D()(k.Add()([x, y]))))

    def decoder(k: Any, x: Any) -> Any:
        x = k.Conv2D(12, 3, padding="same", activation="relu")(x)
        x = k.UpSampling2D(2, interpolation="bilinear")(x)
        return k.Conv2DTranspose(3, 3, strides=2, padding="same")(x)

    def recurrent(k: Any, x: Any) -> Any:
        return k.Dense(3)(k.GRU(12)(k.LSTM(16, return_sequences=True)(x)))

    def attention(k: Any, x: Any) -> Any:
        y = k.MultiHeadAttention(2, 8)(x, x)
        x = k.LayerNormalization()(k.Add()([x, y]))
        return k.Dense(4)(k.Dense(32, activation="gelu")(x))

    return {
        "an image network": (image, (16, 16, 3)), "separable convolutions": (separable, (16, 16, 3)),
        "a decoder": (decoder, (8, 8, 3)), "recurrent layers": (recurrent, (7, 6)), "attention": (attention, (7, 16)),
    }


def _keras(exporter: str, backend: str, name: str, build: Callable[[Any, Any], Any], shape: tuple[int, ...]) -> None:
    @maker(exporter, name)
    def write(path: Path) -> tuple[np.ndarray, ...]:
        os.environ["KERAS_BACKEND"] = backend
        keras = importlib.import_module("keras")
        if keras.backend.backend() != backend:
            raise ModuleNotFoundError(f"keras runs on {keras.backend.backend()} here")
        keras.utils.set_random_seed(0)
        x = keras.Input(shape, name="x")
        model = keras.Model(x, build(keras.layers, x))
        if backend == "torch":
            model(_numbers(2, *shape))
            model.export(str(path), format="onnx", verbose=False)
        else:
            tf = importlib.import_module("tensorflow")
            importlib.import_module("tf2onnx").convert.from_function(
                tf.function(lambda x: model(x)), [tf.TensorSpec([None, *shape], tf.float32, name="x")], opset=17,
                output_path=str(path),
            )
        return (_numbers(2, *shape),)


for _name, (_build, _shape) in _keras_networks().items():
    _keras("keras on torch", "torch", _name, _build, _shape)
    _keras("keras by tf2onnx", "tensorflow", _name, _build, _shape)


@maker("tf2onnx", "operators of tf.function")
def _function(path: Path) -> tuple[np.ndarray, ...]:
    tf, tf2onnx = importlib.import_module("tensorflow"), importlib.import_module("tf2onnx")

    def run(x: Any) -> Any:
        w, v = tf.constant(_numbers(3, 3, 3, 16)), tf.constant(_numbers(16, 5))
        y = tf.nn.relu(tf.nn.conv2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), w, 2, "VALID"))
        y = tf.image.resize(y, [9, 9]) + tf.reduce_max(y)
        return tf.matmul(tf.reshape(y[:, ::2], [tf.shape(y)[0], -1, 16]), v)

    spec = [tf.TensorSpec([None, 8, 8, 3], tf.float32, name="x")]
    tf2onnx.convert.from_function(tf.function(run), spec, opset=15, output_path=str(path))
    return (_numbers(2, 8, 8, 3),)


@maker("tf2onnx", "a table of words")
def _words(path: Path) -> tuple[np.ndarray, ...]:
    tf, tf2onnx = importlib.import_module("tensorflow"), importlib.import_module("tf2onnx")
    spec = [tf.TensorSpec([None], tf.string, name="x")]
    tf2onnx.convert.from_function(
        tf.function(lambda x: tf.strings.lower(x)), spec, opset=15, output_path=str(path),
        extra_opset=[importlib.import_module("onnx").helper.make_opsetid("ai.onnx.contrib", 1)],
    )
    return (np.array(["A"]),)


def _paddle(name: str, build: Callable[[Any], Any], *shape: int) -> None:
    @maker("paddle2onnx", name)
    def write(path: Path) -> tuple[np.ndarray, ...]:
        paddle, writer = importlib.import_module("paddle"), importlib.import_module("paddle2onnx")
        paddle.seed(0)
        net = build(paddle.nn)
        net.eval()
        saved = path.parent / "paddle"
        spec = paddle.static.InputSpec([None, *shape], "float32", "x")
        paddle.jit.save(net, str(saved), input_spec=[spec])
        program = next(each for suffix in (".json", ".pdmodel") if (each := saved.with_suffix(suffix)).exists())
        writer.export(str(program), str(saved.with_suffix(".pdiparams")), str(path), opset_version=17)
        return (_numbers(2, *shape),)


_paddle("an image network", lambda nn: nn.Sequential(
    nn.Conv2D(3, 16, 3, padding=1), nn.BatchNorm2D(16), nn.Hardswish(), nn.Conv2D(16, 16, 3, groups=16, padding=1),
    nn.Conv2D(16, 24, 1), nn.ReLU(), nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(24, 5), nn.Softmax(),
), 3, 16, 16)
_paddle("a decoder", lambda nn: nn.Sequential(
    nn.Conv2D(3, 12, 3, padding=1), nn.ReLU(), nn.Upsample(size=[16, 16], mode="bilinear"),
    nn.Conv2DTranspose(12, 4, 2, stride=2), nn.Sigmoid(),
), 3, 8, 8)
_paddle("a transformer's layer", lambda nn: nn.TransformerEncoderLayer(16, 2, 32, activation="gelu"), 7, 16)
_paddle("linear layers", lambda nn: nn.Sequential(
    nn.Linear(6, 32), nn.LayerNorm(32), nn.LeakyReLU(), nn.Linear(32, 3)
), 6)


def _quantized(name: str, quantize: Callable[[Path, Path, Mapping[str, np.ndarray]], None]) -> None:
    @maker("onnxruntime", name)
    def write(path: Path) -> tuple[np.ndarray, ...]:
        before, x = path.parent / "float.onnx", _numbers(2, 3, 8, 8)
        onnx.save(onnx.shape_inference.infer_shapes(convolutional()), before)
        quantize(before, path, {"x": x})
        return (x,)


def _static(form: str) -> Callable[[Path, Path, Mapping[str, np.ndarray]], None]:
    def quantize(before: Path, path: Path, feeds: Mapping[str, np.ndarray]) -> None:
        q = importlib.import_module("onnxruntime.quantization")

        class Feeds(q.CalibrationDataReader):  # type: ignore[name-defined]
            def __init__(self) -> None:
                self._left = [dict(feeds)]

            def get_next(self) -> Any:
                return self._left.pop() if self._left else None

        q.quantize_static(before, path, Feeds(), quant_format=getattr(q.QuantFormat, form), per_channel=True)

    return quantize


def _dynamic(before: Path, path: Path, feeds: Mapping[str, np.ndarray]) -> None:
    q = importlib.import_module("onnxruntime.quantization")
    q.quantize_dynamic(before, path, weight_type=q.QuantType.QUInt8)


_quantized("integers with scales (QDQ)", _static("QDQ"))
_quantized("layers of integers (QLinearConv)", _static("QOperator"))
_quantized("integers while it runs (ConvInteger)", _dynamic)


@maker("onnxruntime", "weights of 4 bits (MatMulNBits)")
def _four_bits(path: Path) -> tuple[np.ndarray, ...]:
    quantizer = importlib.import_module("onnxruntime.quantization.matmul_nbits_quantizer")
    proto = model(
        "net (float[n,32] x) => (float[n,8] y) { a = MatMul (x, w) b = Relu (a) c = MatMul (b, v) d = Relu (c) "
        "y = MatMul (d, u) }",
        w=weight(32, 64), v=weight(64, 32), u=weight(32, 8),
    )
    proto.graph.node[-1].name = "last"
    made = quantizer.MatMulNBitsQuantizer(proto, block_size=32, nodes_to_exclude=["last"])
    made.process()
    made.model.save_model_to_file(str(path))
    return (_numbers(2, 32),)


def measure(make: Maker, folder: Path) -> dict[str, Any]:
    """The row of a model.

    Raises:
        ModuleNotFoundError: its exporter is not installed.
    """
    path = folder / "model.onnx"
    try:
        with quiet():
            inputs = make(path)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001  (exporters raise all kinds)
        return {"exported": f"{type(error).__name__}: {first_line(error)}"}
    row: dict[str, Any] = {}
    try:
        net = surgeon.load_onnx(path)
        row |= {"operators": len(net.operators.steps), "fallbacks": sorted(net.fallbacks.values())}
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        wanted = session.run(None, dict(zip(names, inputs, strict=True)))
        example = {
            port.parameter: torch.from_numpy(array) for port, array in zip(net.inputs, inputs, strict=True)
        }
        with torch.no_grad():
            made = net(**example)
        row["deviation"] = max(
            float(np.abs(a.numpy().astype(np.float64) - b).max() / max(float(np.abs(b).max()), 1e-30))
            for a, b in zip(made if isinstance(made, tuple) else (made,), wanted, strict=True)
        )
        row["stage"] = "shrink"
        _, report = surgeon.shrink(net, 0.3, example_inputs=example, align=1, return_report=True)
        row |= {"groups": len(report.groups), "reached": round(report.reached, 3),
                "certificate": report.certificate.deviation}
    except NothingToPrune as error:
        return {**row, "unpruned": str(error).partition("\n  ")[2].partition("\n")[0] or first_line(error)}
    except SurgeonError as error:
        told = str(error).replace(f"{path}: ", "").splitlines()[0]
        return {**row, "unpruned": told} if "deviation" in row else {**row, "refused": told}
    except Exception:  # noqa: BLE001  (a crash is a result too)
        return {**row, "foreign": traceback.format_exc()[-1000:]}
    return row


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    read = [row for row in rows.values() if row.get("deviation", 1.0) <= 1e-3]
    cut = [row for row in rows.values() if row.get("certificate", 1.0) < 1e-9]
    refused = [row for row in rows.values() if "refused" in row]
    lines = [
        f"`python -m benchmarks.onnx_exporters`: of {len(rows)} small models, {len(read)} are read and equal to "
        f"onnxruntime, {len(cut)} of them cut and certified; {len(refused)} are refused.\n",
        "| exporter: model | operators | fallbacks | off onnxruntime | groups | MACs removed | certificate |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        words = ("refused", "exported", "foreign")
        bad = next((f"{word}: {last_line(row[word])}" for word in words if word in row), None)
        if bad is not None:
            lines.append(f"| {name} | {bad.replace('|', '/')} | | | | | |")
            continue
        end = f"{row['groups']} | {row['reached']:.0%} | {row['certificate']:.0e}" if "certificate" in row else (
            f"{row['unpruned']} | |"
        )
        fallbacks = ", ".join(each.partition(":")[0] for each in row["fallbacks"]) or "–"
        lines.append(f"| {name} | {row['operators']} | {fallbacks} | {row['deviation']:.0e} | {end} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    given = command(__doc__).parse_args()
    torch.set_num_threads(1)
    rows = last(ROWS, "model")
    every = {f"{exporter}: {name}": make for exporter, found in MAKERS.items() for name, make in found.items()}
    for name in [] if given.table else to_run(every, given.only, given.redo, rows):
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = {"model": name, **measure(every[name], Path(folder))}
            except ModuleNotFoundError as error:
                print(f"{name}: passed over: {error}", flush=True)
                continue
        append(ROWS, row)
    done = last(ROWS, "model")
    publish(table({name: done[name] for name in every if name in done}), TABLE)


if __name__ == "__main__":
    main()
