"""Inputs made from the model alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon
from surgeon.calibration.data import calibrate
from surgeon.calibration.synthesis import norms, synthesize_for
from surgeon.errors import InvalidArgument, InvalidModel
from surgeon.frontend.trace import Graph, trace


class Trained(nn.Module):
    """Batch norms that remember data of another mean and spread than noise has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 3)
        self.train()
        with torch.no_grad():
            for _ in range(60):
                self(real(32))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.head(F.relu(self.last(self.second(x))).mean((2, 3)))


class Words(nn.Module):
    """Takes tokens and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(self.table(tokens))) * mask[..., None])


def real(count: int) -> Tensor:
    return 3 + 0.5 * torch.randn(count, 2, 8, 8).cumsum(3)


def divergence(graph: Graph, x: Tensor) -> float:
    """How far what the batch norms see of x is from what they remember, by hooks of none of surgeon's code."""
    net = graph.module
    found: list[float] = []
    with torch.no_grad():
        nodes = {norm.source: norm for norm in norms(graph)}
        values: dict[Any, Tensor] = {}

        class Watch(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node) -> Any:
                values[n] = super().run_node(n)
                return values[n]

        Watch(net).run(x)
        for source, norm in nodes.items():
            mean, spread = values[source].mean((0, 2, 3)), values[source].std((0, 2, 3))
            found.append(float(((mean - norm.mean).abs() / norm.variance.sqrt()).mean()))
            found.append(float((spread / norm.variance.sqrt()).log().abs().mean()))
    return max(found)


def test_batch_norms_see_what_they_remember() -> None:
    graph = trace(Trained(), torch.randn(2, 2, 8, 8))
    made = synthesize_for(graph, 64)
    assert made.leaves[0].shape == (64, 2, 8, 8) and not made.noise and "batch norms" in made.note
    assert divergence(graph, made.leaves[0]) < 0.25 * divergence(graph, torch.randn(64, 2, 8, 8))


def test_the_model_is_left_as_it_is() -> None:
    net = Trained().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    made = surgeon.synthesize(net, torch.randn(2, 2, 8, 8), samples=16)
    assert net.training and all(p.grad is None for p in net.parameters()) and not made.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_seed_gives_the_same_inputs_again() -> None:
    net, example = Trained(), torch.randn(2, 2, 8, 8)
    first, again, other = (surgeon.synthesize(net, example, samples=8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_noise_is_like_the_examples_where_there_is_no_batch_norm() -> None:
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    made = surgeon.synthesize(net, 5 + 0.1 * torch.randn(64, 8), samples=100)
    assert made.shape == (100, 8)
    assert abs(float(made.mean()) - 5) < 0.1 and 0.08 < float(made.std()) < 0.12
    assert abs(float(surgeon.synthesize(net, torch.zeros(1, 8)).std()) - 1) < 0.1


def test_tokens_are_those_of_the_embedding_and_masks_those_of_the_example() -> None:
    example = {"tokens": torch.zeros(2, 5, dtype=torch.long), "mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])}
    made = surgeon.synthesize(Words(), example, samples=40)
    assert made["tokens"].shape == (40, 5)
    assert made["tokens"].unique().tolist() == list(range(7))
    assert torch.equal(made["mask"], example["mask"].repeat(20, 1))


def test_what_is_synthesized_can_be_passed_as_data() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(3, 16), nn.Linear(16, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.c(F.relu(self.a(x) + self.b(y)))

    net, example = Two(), (torch.randn(2, 4), torch.randn(2, 3))
    data = surgeon.synthesize(net, example, samples=24)
    slim, report = surgeon.shrink(net, 0.5, example_inputs=example, data=data, return_report=True)
    assert slim.a.out_features == 8 and report.recovery.samples == 24


def test_shrink_needs_no_data() -> None:
    net, example = Trained(), torch.randn(2, 2, 8, 8)
    slim, report = surgeon.shrink(
        net, 0.5, example_inputs=example, data="synthetic", samples=64, return_report=True
    )
    blind = surgeon.shrink(net, 0.5, example_inputs=example, compensate=False)
    test = real(64)
    with torch.no_grad():
        want = net(test)
        assert float((slim(test) - want).norm()) < 0.7 * float((blind(test) - want).norm())
    assert any("synthesized" in note for note in report.recovery.notes)
    assert report.certificate is not None and slim.surgeon_plan.settings["importance"] == "reconstruction"


def test_a_fixed_batch_gets_whole_batches() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv1d(2, 16, 1), nn.BatchNorm1d(16), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.conv(x)).relu().mean(2).reshape(3, 16))

    net, example = Fixed().eval(), torch.randn(3, 2, 5)
    assert calibrate("synthetic", trace(net, example), net, 8).samples == 9


@pytest.mark.parametrize("options", [{"samples": 0}, {"samples": True}, {"samples": 2.5}, {"seed": -1}])
def test_numbers_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(options))):
        surgeon.synthesize(nn.Linear(2, 2), torch.zeros(1, 2), **options)


def test_what_can_not_be_synthesized() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.float())

    with pytest.raises(InvalidModel, match="no inputs can be synthesized"):
        surgeon.synthesize(Table(), torch.zeros(2, 4, dtype=torch.long))
    net = Trained()
    with torch.no_grad():
        net.norm.running_mean.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(InvalidModel, match="NaN"):
        surgeon.synthesize(net, torch.randn(2, 2, 8, 8), samples=8)
    with pytest.raises(InvalidArgument, match="synthetic"):
        surgeon.shrink(Trained(), 0.5, example_inputs=torch.randn(2, 2, 8, 8), data="sinthetic")


def test_more_samples_than_memory_holds_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(InvalidArgument, match=r"samples=1000000000000: so many inputs take .* GB.*give at most \d+"):
        surgeon.synthesize(net, torch.zeros(2, 3, 32, 32), samples=10**12)
