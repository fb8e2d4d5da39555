"""Models at shapes of inputs that are asked for: what is traced again, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.deploy.workloads import Workload, workloads
from surgeon.errors import InvalidArgument
from surgeon.groups.analyze import analyze
from surgeon.support.shapes import shapes


class Two(nn.Module):
    """Two inputs of one length, and a third of none."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.fc, self.out = nn.Embedding(50, 16), nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, ids: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
        return self.out(self.fc(self.words(ids)).relu() * mask.unsqueeze(-1) * scale)


class Fixed(nn.Module):
    """Its code counts the samples, so that the batch is not free."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return torch.stack([self.b(y[place]) for place in range(int(x.shape[0]))])


IMAGES = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    nn.Linear(8, 4),
).eval()
X = torch.randn(2, 3, 8, 8)
TOKENS = {"ids": torch.randint(0, 50, (2, 6)), "mask": torch.ones(2, 6), "scale": torch.ones(())}


def made(model: nn.Module, inputs: Any, given: Any) -> tuple[Workload, ...]:
    return workloads(model, analyze(model, inputs), shapes("shapes", given))


def test_without_shapes_a_run_is_one_sample() -> None:
    groups = analyze(IMAGES, X)
    (run,) = workloads(IMAGES, groups)
    assert run.groups is groups and (run.batch, run.weight) == (1, 1.0)
    assert run.shapes(IMAGES) == {"input": (1, 3, 8, 8)} and run.told(IMAGES) == "1×3×8×8"


def test_another_batch_needs_no_other_trace() -> None:
    groups = analyze(IMAGES, X)
    runs = workloads(IMAGES, groups, shapes("shapes", [((4, 3, 8, 8), 3), ((1, 3, 12, 10), 1)]))
    assert [run.told(IMAGES) for run in runs] == ["4×3×8×8", "1×3×12×10"]
    assert [run.groups is groups for run in runs] == [True, False]
    assert [run.weight for run in runs] == [0.75, 0.25]
    assert [run.feeds(IMAGES)["input"].shape for run in runs] == [(4, 3, 8, 8), (1, 3, 12, 10)]
    assert len({run.mark(IMAGES) for run in (*runs, Workload(groups))}) == 3
    assert workloads(IMAGES, groups, shapes("shapes", (1, 3, 8, 8)))[0].mark(IMAGES) == Workload(groups).mark(IMAGES)


def test_several_inputs_by_name() -> None:
    (run,) = made(Two().eval(), TOKENS, {"ids": (3, 9), "mask": (3, 9)})
    assert run.told(Two()) == "ids 3×9, mask 3×9, scale"
    feeds = run.feeds(Two())
    assert feeds["ids"].shape == (3, 9) and feeds["ids"].max() < 50 and feeds["scale"].shape == ()


def test_a_batch_that_is_not_free_is_traced_anew() -> None:
    net = Fixed().eval()
    (run,) = made(net, torch.randn(2, 8), (5, 8))
    assert not run.groups.graph.dynamic and run.shapes(net) == {"x": (5, 8)}


REFUSED: list[tuple[nn.Module, Any, Any, str]] = [
    (IMAGES, X, {"image": (1, 3, 8, 8)}, r"the name 'image', and the model takes input \(2, 3, 8, 8\)"),
    (IMAGES, X, (3, 8, 8), r"3×8×8 has 3 axes, and the model takes input \(2, 3, 8, 8\)"),
    (Two().eval(), TOKENS, (2, 6), r"a shape without a name, .* ids \(2, 6\), mask \(2, 6\): give the shapes of "),
    (Two().eval(), TOKENS, {"ids": (2, 6), "mask": (3, 6)}, "batches of 2 and 3; give one batch"),
]


@pytest.mark.parametrize(("model", "inputs", "given", "message"), REFUSED)
def test_what_is_refused(model: nn.Module, inputs: Any, given: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        made(model, inputs, given)
