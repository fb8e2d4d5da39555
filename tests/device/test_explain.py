"""Which widths took convolutions out of the fast layout, and how seldom equal models are called different."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from surgeon.deploy.export import export
from surgeon.device.benchmark import benchmark
from surgeon.device.explain import BlockingWidth, Explanation, LostBlockedLayout, explain, stays_blocked
from surgeon.device.layout import Comparison, Convolution, Layout, compare, layout
from surgeon.device.statistics import NO_DIFFERENCE, compare_timings
from tests.deploy_nets import conv_net

needs_blocks = pytest.mark.skipif(not stays_blocked(64, 64), reason="onnxruntime has no blocked layout on this CPU")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    for name, widths in {"base": (64, 64), "slim": (33, 47), "even": (32, 48)}.items():
        export(conv_net(*widths), folder / f"{name}.onnx", example_inputs=torch.randn(2, 3, 8, 8))
    return folder


def between(base: Path, slim: Path) -> Explanation:
    return explain(compare(layout(base), layout(slim)), base, slim)


def test_the_probe_asks_about_the_convolution_it_is_given(tmp_path: Path) -> None:
    """A file of the same widths, written by onnx, ends in the same layout."""
    for into, out, group in ((64, 64, 1), (33, 64, 1), (64, 33, 1), (33, 33, 33), (64, 64, 64), (30, 30, 2)):
        weight = numpy_helper.from_array(np.ones((out, into // group, 1, 1), np.float32), "w")
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["y"], group=group)],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, into, 6, 6])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, out, 6, 6])],
            [weight],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        onnx.save(model, tmp_path / "m.onnx")
        assert stays_blocked(into, out, group) == bool(layout(tmp_path / "m.onnx").blocked)


@needs_blocks
def test_widths_at_fault(files: Path) -> None:
    found = between(files / "base.onnx", files / "slim.onnx")
    by_name = {each.names[0]: each for each in found.fallen}
    assert set(by_name) == {"3.weight", "6.weight"}
    (depthwise,), (dense,) = by_name["3.weight"].culprits, by_name["6.weight"].culprits
    assert (depthwise.width, depthwise.size) == ("channels", 33)
    # 47 output channels are padded to blocks: only what is read matters
    assert (dense.width, dense.size) == ("in_channels", 33)
    for culprit, ask in ((depthwise, lambda n: stays_blocked(n, n, n)), (dense, lambda n: stays_blocked(n, 64))):
        assert culprit.below is not None and culprit.above is not None
        assert culprit.below < 33 < culprit.above <= 64
        near = range(culprit.below, culprit.above + 1)
        assert [n for n in near if ask(n)] == [culprit.below, culprit.above]
    text = str(found)
    assert "2 convolutions left the fast layout" in text and "in_channels 33" in text and "would keep it" in text


@needs_blocks
def test_nothing_to_explain(files: Path) -> None:
    found = between(files / "base.onnx", files / "even.onnx")
    assert not found and str(found) == ""


@needs_blocks
def test_the_nearest_width_does_keep_the_layout(files: Path, tmp_path: Path) -> None:
    """Followed, the advice leaves nothing to explain."""
    found = between(files / "base.onnx", files / "slim.onnx")
    width = next(c.above for each in found.fallen for c in each.culprits if each.names == ("3.weight",))
    assert width is not None
    export(conv_net(width, 47), tmp_path / "mended.onnx", example_inputs=torch.randn(2, 3, 8, 8))
    assert not between(files / "base.onnx", tmp_path / "mended.onnx").fallen


@needs_blocks
def test_grouped_convolutions_are_asked_about_per_group(tmp_path: Path) -> None:
    for name, width in (("base", 64), ("slim", 36)):
        net = nn.Sequential(nn.Conv2d(3, width, 1), nn.ReLU(), nn.Conv2d(width, width, 3, groups=2), nn.ReLU())
        export(net, tmp_path / f"{name}.onnx", example_inputs=torch.randn(2, 3, 8, 8))
    if stays_blocked(36, 36, 2):
        pytest.skip("grouped convolutions of 18 channels a group are fast on this CPU")
    found = between(tmp_path / "base.onnx", tmp_path / "slim.onnx")
    culprits = [(culprit.width, culprit.size) for each in found.fallen for culprit in each.culprits]
    assert set(culprits) <= {("in_channels per group", 18), ("out_channels per group", 18)} and culprits


class Concatenated(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Conv2d(3, width, 1), nn.Conv2d(3, 64, 1), nn.Conv2d(width + 64, 64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat([self.left(x), self.right(x)], 1))


@needs_blocks
def test_changes_of_layout_are_named(tmp_path: Path) -> None:
    """36 channels do no harm to a convolution, but a concatenation joins whole blocks only."""
    for name, width in (("base", 64), ("slim", 36)):
        export(Concatenated(width), tmp_path / f"{name}.onnx", example_inputs=torch.randn(2, 3, 8, 8))
    found = between(tmp_path / "base.onnx", tmp_path / "slim.onnx")
    before, after = layout(tmp_path / "base.onnx"), layout(tmp_path / "slim.onnx")
    added = after.reorders_in + after.reorders_out - before.reorders_in - before.reorders_out
    if added <= 0:
        pytest.skip("concatenations of 36 channels stay blocked on this CPU")
    assert found.added == added and dict(found.before).keys() == {"Concat"}
    assert "of layout added" in str(found) and "before Concat" in str(found)


def test_equal_convolutions_share_a_line() -> None:
    convolution = Convolution("", 33, 64, 1, False)
    names = ("a", "b", "c", "d", "e")
    lost = LostBlockedLayout(names, convolution, (BlockingWidth("in_channels", 33, 32, None),))
    text = str(Explanation((lost,), 0, ()))
    assert "5 convolutions" in text and "a, b, c and 2 more" in text and "in_channels 33 (32 would keep it)" in text


def test_a_convolution_that_its_widths_do_not_explain() -> None:
    def make(blocked: bool) -> Layout:
        return Layout((Convolution("w", 64, 64, 1, blocked),), 0, 0, 0, 0, 0)

    if not stays_blocked(64, 64):
        pytest.skip("onnxruntime has no blocked layout on this CPU")
    found = explain(compare(make(True), make(False)), "unread", "unread")
    assert found.fallen[0].culprits == () and "the operators around it" in str(found)


def test_the_verdict_explains(files: Path) -> None:
    verdict = benchmark(files / "base.onnx", files / "slim.onnx", runs=30)
    assert verdict.explanation == explain(verdict.layout, files / "base.onnx", files / "slim.onnx")
    assert str(verdict.explanation) in str(verdict)
    assert isinstance(verdict.layout, Comparison)


def noise(rng: np.random.Generator, rounds: int) -> np.ndarray:
    """Timings of three equal models, (3, rounds), as a shared CPU gives them.

    A slow drift that a round has in common, jitter of each timing, and seldom a long interruption; the clock's
    frequency is one of two for a while.
    """
    drift = np.cumsum(rng.normal(0, 0.003, rounds))
    frequency = 0.06 * (np.cumsum(rng.random(rounds) < 0.1) % 2)
    jitter = rng.lognormal(0, rng.uniform(0.005, 0.05), (3, rounds))
    interrupted = 1 + (rng.random((3, rounds)) < 0.05) * rng.exponential(0.5, (3, rounds))
    return np.exp(drift + frequency) * jitter * interrupted


@pytest.mark.parametrize("rounds", [30, 80])
def test_equal_models_are_seldom_called_different(rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    decisions = [compare_timings(*noise(rng, rounds), seed=trial).decision for trial in range(200)]
    assert sum(decision != NO_DIFFERENCE for decision in decisions) <= 10


def test_a_real_difference_is_seen_through_the_same_noise() -> None:
    rng = np.random.default_rng(0)
    decisions = []
    for trial in range(40):
        base, slim, control = noise(rng, 80)
        decisions.append(compare_timings(base, slim / 1.3, control, seed=trial).decision)
    assert decisions.count("faster") >= 38
