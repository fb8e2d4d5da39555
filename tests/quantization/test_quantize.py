"""int8 files: what is quantized, what decides, and what lands at the path."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from surgeon.deploy.export import export
from surgeon.device.benchmark import Latency, Verdict
from surgeon.device.layout import Comparison, Layout
from surgeon.device.statistics import Decision, Ratio
from surgeon.errors import ExportError, InvalidArgument, InvalidInputs, OutputError
from surgeon.onnx_import.load import load_onnx
from surgeon.quantization import recipes
from surgeon.quantization.calibration import Input, collect, divide
from surgeon.quantization.quantize import Quantized, quantize
from surgeon.quantization.quantizer import Recipe, Source
from testbed.onnx_graphs import convolutional
from tests.deploy_nets import Masked, conv_net, run

EMPTY = Layout((), 0, 0, 0, 0, 0)


def verdict(decision: Decision, value: float = 2.0) -> Verdict:
    ratio, latency = Ratio(value, value - 0.1, value + 0.1), Latency(1.0, 1.0, 1.0, 1.0, 1.0, 1000.0)
    return Verdict(decision, ratio, ratio, 0.01, latency, latency, 1, 30, 1, Comparison(EMPTY, EMPTY, ()))


@pytest.fixture
def decide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[Path, Path]]]:
    """Sets what a measurement says, and how long each recipe takes by the number of int8 convolutions in its file."""

    def install(decision: Decision, cost: Callable[[Counter[str]], float] = lambda kinds: 1.0) -> list[Any]:
        asked: list[tuple[Path, Path]] = []

        def measured(base: Path, slim: Path, **options: object) -> Verdict:
            asked.append((Path(base), Path(slim)))
            return verdict(decision)

        def times(paths: Sequence[Path], feeds: object, **options: object) -> list[float]:
            return [cost(quantized(path)) for path in paths]

        monkeypatch.setattr("surgeon.quantization.quantize.benchmark", measured)
        monkeypatch.setattr(recipes, "times", times)
        return asked

    return install


def quantized(path: Path) -> Counter[str]:
    """The operators with int8 weights, by kind; "grouped" counts depthwise ones, "dynamic" MatMulInteger."""
    graph = onnx.load(path).graph
    made = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    found = [node for node in graph.node if len(node.input) > 1 and node.input[1] in made]
    kinds = Counter(node.op_type for node in found)
    kinds["grouped"] = sum(a.name == "group" and a.i > 1 for node in found for a in node.attribute)
    kinds["all"] = len(made)
    kinds["folded"] = sum(node.op_type == "SpaceToDepth" for node in graph.node)
    kinds["dynamic"] = sum(node.op_type == "MatMulInteger" for node in graph.node)
    return kinds


def images(count: int = 6, rows: int = 4, size: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, 3, size, size, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    export(conv_net(16, 32), path, example_inputs=images()[0])
    return path


def test_accepted(decide: Any, file: Path, tmp_path: Path) -> None:
    asked = decide("faster")
    result = quantize(file, images(), path=tmp_path / "int8.onnx", kind="static", base=file, agreement=0.5)
    assert result.accepted and "2.00 times as fast" in result.reason
    assert result.bytes == (tmp_path / "int8.onnx").stat().st_size
    assert quantized(tmp_path / "int8.onnx")["Conv"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]
    assert asked[0][0] == asked[1][0] == file and result.overall is not None
    got, want = (run(path, images(1)[0])[0] for path in (tmp_path / "int8.onnx", file))
    assert got.shape == want.shape and 0 < np.abs(got - want).max() < 0.2 * np.abs(want).max()
    assert result.accuracy is not None and result.accuracy.rows == 12
    assert json.loads(result.to_json())["accepted"] is True
    for part in ("int8", "same top-1", "deviation", "12 held-out rows", "against the base: 2.00x", "(faster)"):
        assert part in str(result)


@pytest.mark.parametrize("decision", ["slower", "no reliable difference"])
def test_float_is_kept_where_int8_is_not_faster(decide: Any, file: Path, tmp_path: Path, decision: Decision) -> None:
    decide(decision)
    result = quantize(file, images(), path=tmp_path / "out.onnx", kind="static", agreement=0.0)
    assert not result.accepted and decision in result.reason and "2.00x" in result.reason
    assert not quantized(tmp_path / "out.onnx")["all"] and "float32 is kept" in str(result)
    np.testing.assert_array_equal(run(tmp_path / "out.onnx", images(1)[0])[0], run(file, images(1)[0])[0])
    assert result.bytes == result.float_bytes


def test_float_is_kept_where_int8_is_inaccurate(decide: Any, file: Path, tmp_path: Path) -> None:
    decide("faster")
    result = quantize(file, images(), path=tmp_path / "out.onnx", kind="static", judge="deviation", deviation=1e-9)
    assert not result.accepted and "not accurate enough" in result.reason
    assert result.accuracy is not None and result.accuracy.deviation > 1e-9
    assert not quantized(tmp_path / "out.onnx")["all"]
    assert result.verdict is not None


def test_what_int8_slows_down_stays_float(decide: Any, file: Path, tmp_path: Path) -> None:
    """Depthwise convolutions cost in int8 what the others gain: found by timing, not by their name."""
    decide("faster", lambda kinds: 10 - kinds["Conv"] + 3 * kinds["grouped"])
    result = quantize(file, images(), path=tmp_path / "out.onnx", kind="static", agreement=0.0)
    assert "grouped Conv in float" in result.recipe
    kinds = quantized(tmp_path / "out.onnx")
    assert kinds["Conv"] == 2 and kinds["grouped"] == 0
    assert min(trial.share or 9 for trial in result.tried) == pytest.approx(0.8)


def test_the_start_stays_float_where_that_is_faster(decide: Any, file: Path, tmp_path: Path) -> None:
    decide("faster", lambda kinds: 10 - kinds["Gemm"] + 3 * max(0, kinds["Conv"] - 1))
    result = quantize(file, images(), path=tmp_path / "out.onnx", kind="static", agreement=0.0)
    assert "the first 2 operators with weights in float" in result.recipe
    assert quantized(tmp_path / "out.onnx")["Conv"] == 1


def test_auto_takes_the_better_kind(decide: Any, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
    batches = list(torch.randn(4, 8, 16))
    for counted, kind in (("dynamic", "dynamic"), ("Gemm", "static")):
        decide("faster", lambda kinds, counted=counted: 10 - kinds[counted])
        result = quantize(net, batches, path=tmp_path / "out.onnx", agreement=0.0)
        assert result.accepted and result.recipe.startswith(kind), result.tried


def test_without_calibration(decide: Any, tmp_path: Path) -> None:
    decide("faster")
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
    result = quantize(net, path=tmp_path / "out.onnx", example_inputs=torch.randn(2, 16), agreement=0.5)
    assert result.accepted and "accuracy measured on random inputs" in str(result)
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node)
    assert operators["MatMulInteger"] == 2
    with pytest.raises(InvalidArgument, match="pass calibration"):
        quantize(net, path=tmp_path / "out.onnx", kind="static", example_inputs=torch.randn(2, 16))


def test_a_model_without_anything_to_quantize(decide: Any, tmp_path: Path) -> None:
    decide("faster")
    result = quantize(nn.Softplus(), [torch.randn(2, 4)] * 2, path=tmp_path / "out.onnx")
    assert not result.accepted and "no operator with weights" in result.reason and (tmp_path / "out.onnx").is_file()


# how long files take, whether int8 is faster, what the file is called then, how many operators are left in float32
PRECISIONS: list[tuple[Callable[[Counter[str]], float], Decision, str, int]] = [
    (lambda kinds: 10 - kinds["Conv"] - kinds["Gemm"], "faster", "int8", 0),
    (lambda kinds: 10 - kinds["Conv"] + 3 * kinds["grouped"], "faster", "mixed", 1),
    (lambda kinds: 10 - kinds["Conv"], "slower", "float32", 4),
]


@pytest.mark.parametrize(("cost", "decision", "precision", "floating"), PRECISIONS)
def test_names_and_reports_say_what_a_file_is(
    decide: Any, file: Path, tmp_path: Path, cost: Any, decision: Decision, precision: str, floating: int
) -> None:
    decide(decision, cost)
    own = tmp_path / "net.onnx"
    own.write_bytes(file.read_bytes())
    result = quantize(own, images(), kind="static", agreement=0.0)
    assert (result.precision, len(result.floating), result.operators) == (precision, floating, 4)
    assert {path.name for path in tmp_path.iterdir()} == {"net.onnx", f"net.{precision}.onnx"}
    assert str(result).startswith(f"{tmp_path / f'net.{precision}.onnx'}: {precision}")
    assert quantized(result.path)["Conv"] + quantized(result.path)["Gemm"] == 4 - floating
    asked = quantize(own, images(), path=tmp_path / "my.int8.onnx", kind="static", agreement=0.0)
    assert (f"but the file is {precision}" in str(asked)) == (precision != "int8")


def test_operators_that_the_quantizer_renames_are_int8(decide: Any, tmp_path: Path) -> None:
    decide("faster")
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
    result = quantize(net, path=tmp_path / "out.onnx", example_inputs=torch.randn(2, 16), agreement=0.5)
    assert (result.precision, result.floating, result.operators) == ("int8", (), 2)


def test_remedies_in_turn(file: Path, tmp_path: Path) -> None:
    source = Source(file, tmp_path, [{"input": images(1)[0].numpy()}])
    plain = onnx.load(source.write(Recipe("static")))
    seven = onnx.load(source.write(Recipe("static", seven_bits=True)))
    largest = [
        max(np.abs(onnx.numpy_helper.to_array(t).astype(int)).max() for t in m.graph.initializer if t.data_type == 3)
        for m in (plain, seven)
    ]
    assert largest == [127, 64]
    scales = [
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.name == "input_scale"}
        for path in (source.write(Recipe("static")), source.write(Recipe("static", ranges="Percentile")))
    ]
    assert scales[1]["input_scale"] <= scales[0]["input_scale"]
    assert source.write(Recipe("static")) == source.write(Recipe("static"))


def test_nothing_is_printed_or_logged(
    file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    handlers = list(logging.getLogger().handlers)
    source = Source(file, tmp_path, [{"input": images(1)[0].numpy()}])
    for method in ("static", "dynamic"):
        source.write(Recipe(method))
    assert capfd.readouterr() == ("", "") and caplog.records == []
    assert logging.getLogger().handlers == handlers


def test_dictionaries_by_name(decide: Any, tmp_path: Path) -> None:
    decide("faster")
    batch = {"input_ids": torch.randint(10, (4, 5)), "attention_mask": torch.ones(4, 5, dtype=torch.int64)}
    result = quantize(Masked(), [batch] * 4, path=tmp_path / "out.onnx", deviation=10.0, judge="deviation")
    assert (tmp_path / "out.onnx").is_file() and isinstance(result, Quantized)


def generator_used_up() -> Iterator[Tensor]:
    made = iter(images(1))
    list(made)
    yield from made


BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "empty": (lambda: [], InvalidInputs, "calibration is empty"),
    "used up": (generator_used_up, InvalidInputs, "nothing left"),
    "no iterable": (lambda: 3, InvalidArgument, "int; give a tensor of samples, an iterable"),
    "text": (lambda: "images", InvalidArgument, "calibration='images' names no inputs; give FILE"),
    "NaN": (lambda: [images()[0], images()[0] * float("nan")], InvalidInputs, "batch 1 of calibration: input .* NaN"),
    "shape": (lambda: [torch.randn(4, 1, 8, 8)], InvalidInputs, r"shape \(4, 1, 8, 8\), the model takes \(any, 3, any"),
    "type": (lambda: [torch.ones(4, 3, 8, 8, dtype=torch.int64)], InvalidInputs, "is int64, the model takes float32"),
    "name": (lambda: [{"image": images()[0]}], InvalidInputs, "is a dict of 'image' without 'input'"),
    "no tensor": (lambda: [["cat"]], InvalidInputs, "is a str; give a tensor"),
    "no rows": (lambda: [torch.ones(0, 3, 8, 8)], InvalidInputs, r"has shape \(0, 3, 8, 8\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calibration(file: Path, tmp_path: Path, name: str) -> None:
    make, error, message = BAD[name]
    with pytest.raises(error, match=message):
        quantize(file, make(), path=tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_module_and_a_first_batch_with_nan(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputs, match="batch 0 of calibration holds NaN or infinity in 768 of 768"):
        quantize(conv_net(), [images()[0] * float("nan")], path=tmp_path / "out.onnx")


def test_what_shrink_takes_as_data_is_taken(decide: Any, file: Path, tmp_path: Path) -> None:
    decide("faster")
    np.savez(tmp_path / "images.npz", torch.cat(images()).numpy())
    given = [tmp_path / "images.npz", torch.cat(images()), [(batch, torch.ones(4)) for batch in images()],
             [{"input": batch, "label": 1} for batch in images()]]
    for data in given:
        quantize(file, data, path=tmp_path / "out.onnx")
        quantize(conv_net(), data, path=tmp_path / "out.onnx")
    quantize(conv_net(), "synthetic", path=tmp_path / "out.onnx", example_inputs=images()[0], samples=8)
    with pytest.raises(InvalidArgument, match="made from a module, not from a file"):
        quantize(file, "synthetic", path=tmp_path / "out.onnx")


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "kind": ({"kind": "int4"}, InvalidArgument, "'int4' is unknown.* auto, static, dynamic"),
    "judge": ({"judge": "taste"}, InvalidArgument, "'taste' is unknown; choose one of"),
    "agreement": ({"agreement": 98.0}, InvalidArgument, "from 0 to 1"),
    "deviation": ({"deviation": 0.0}, InvalidArgument, "above 0"),
    "samples": ({"samples": 0}, InvalidArgument, "at least 1"),
    "folder": ({"path": "missing/out.onnx"}, OutputError, "does not exist"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(file: Path, tmp_path: Path, name: str) -> None:
    options, error, message = REFUSED[name]
    path = tmp_path / options.pop("path", "out.onnx") if "path" in options else tmp_path / "out.onnx"
    with pytest.raises(error, match=message):
        quantize(file, images(), path=path, **options)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "garbage.onnx").write_bytes(b"garbage")
    for name in ("garbage.onnx", "missing.onnx"):
        with pytest.raises(InvalidArgument, match=name):
            quantize(tmp_path / name, images(), path=tmp_path / "out.onnx")
    with pytest.raises(ExportError, match="can't be prepared"):
        Source(tmp_path / "garbage.onnx", tmp_path, [])


def test_calibration_is_read_once_and_no_further_than_needed() -> None:
    inputs = (Input("input", "tensor(float)", (None, 3, 8, 8)),)
    read = []

    def endless() -> Iterator[Tensor]:
        while True:
            read.append(1)
            yield images(1)[0]

    collected, _ = collect(endless(), inputs, None, samples=10)
    assert len(read) == 3 and [len(each["input"]) for each in collected] == [4, 4, 4]
    use, held, note = divide(collected, inputs)
    assert (len(use), len(held), note) == (2, 1, "")


def test_one_batch_is_halved_and_a_fixed_one_cut_to_size() -> None:
    free, fixed = (Input("input", "tensor(float)", (size, 3, 8, 8)) for size in (None, 2))
    use, held, note = divide(collect(images(1), (free,), None, 100)[0], (free,))
    assert use[0]["input"].shape == held[0]["input"].shape == (2, 3, 8, 8) and not note
    assert not np.array_equal(use[0]["input"], held[0]["input"])
    pieces, _ = collect(images(1), (fixed,), None, 100)
    assert [piece["input"].shape for piece in pieces] == [(2, 3, 8, 8)] * 2
    np.testing.assert_array_equal(np.concatenate([piece["input"] for piece in pieces]), images(1)[0].numpy())
    use, held, note = divide(pieces[:1], (fixed,))
    assert use == held and "a single batch" in note


def test_times_follow_the_work(tmp_path: Path, file: Path) -> None:
    """Files that can't be run take for ever; the clock is the one that is asked for."""
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    taken = recipes.times([file, tmp_path / "broken.onnx"], {}, threads=1, seconds=0.01, seed=0)
    assert 0 < taken[0] < float("inf") and taken[1] == float("inf")


def test_the_first_convolution_is_folded_where_that_is_faster(decide: Any, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1))
    batches = [batch.repeat(1, 1, 2, 2) for batch in images()]
    decide("faster", lambda kinds: 10 - kinds["Conv"] - kinds["folded"])
    result = quantize(net, batches, path=tmp_path / "out.onnx", kind="static", judge="deviation", deviation=0.5)
    assert result.accepted and "stride folded" in result.recipe
    assert quantized(tmp_path / "out.onnx")["folded"] == 1
    assert result.accuracy is not None and 0 < result.accuracy.deviation < 0.1


def file_of_a_user(path: Path) -> Path:
    """A file that says something beside its graph, and leaves the sizes of its pictures free."""
    made = convolutional()
    made.metadata_props.add(key="alphabet", value="abc")
    made.doc_string, made.producer_name = "reads", "somebody"
    onnx.save(made, path)
    return path


@pytest.mark.parametrize("loaded", [False, True])
def test_a_file_of_the_users_keeps_what_it_says(
    loaded: bool, tmp_path: Path, decide: Callable[..., Any]
) -> None:
    decide("faster")
    path = file_of_a_user(tmp_path / "net.onnx")
    model = load_onnx(path) if loaded else path
    rows = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    batches = [{"x": rows}, {"x": rows + 1}]
    made = quantize(model, batches, path=tmp_path / "small.onnx", deviation=1.0, judge="deviation")
    after, before = onnx.load(made.path), onnx.load(path)
    assert made.accepted and quantized(made.path)["Conv"]
    assert after.metadata_props == before.metadata_props and after.doc_string == "reads"
    assert after.graph.input == before.graph.input and after.graph.output == before.graph.output
    assert after.producer_name == "somebody" and after.graph.name == before.graph.name


@pytest.mark.parametrize("calibrated", [False, True])
def test_float16_is_half_the_bytes_however_fast(
    calibrated: bool, tmp_path: Path, decide: Callable[..., Any]
) -> None:
    decide("slower")
    path = file_of_a_user(tmp_path / "net.onnx")
    rows = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    made = quantize(path, [{"x": rows}] if calibrated else None, kind="float16", judge="deviation")
    assert made.accepted and made.precision == "float16" and made.path.name == "net.float16.onnx"
    kinds = {each.data_type for each in onnx.load(made.path).graph.initializer if np.prod(each.dims) > 100}
    assert kinds == {onnx.TensorProto.FLOAT16} and "2.00 times as fast" in str(made)
    assert onnx.load(made.path).graph.input == onnx.load(path).graph.input
    strict = quantize(path, None, kind="float16", judge="deviation", deviation=1e-9)
    assert not strict.accepted and strict.precision == "float32" and "float16 is not accurate enough" in strict.reason
