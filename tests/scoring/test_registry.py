"""Criteria that are told by inputs and labels, as `shrink` takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon
from surgeon.calibration.data import calibrate
from surgeon.errors import InvalidArgument, InvalidInputs
from surgeon.frontend.trace import Inputs, trace
from surgeon.groups.coupling import couple
from surgeon.scoring.activation_criteria import scores
from surgeon.scoring.labeled_gradients import observe

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(48) % 3
BATCHES = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 48, 16)]


def network() -> Any:
    """Of 32 hidden units, the first 16 do nothing: nothing reads them."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    with torch.no_grad():
        net[2].weight[:, :16] = 0
    return net


def keep_of(net: nn.Module, **options: Any) -> tuple[int, ...]:
    plan = surgeon.plan(net, 0.5, example_inputs=X[:2], **options)
    return tuple(next(cut for cut in plan.cuts if cut.tensor == "0.weight").keep)


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_units_that_the_loss_does_not_depend_on_go(criterion: str) -> None:
    net = network()
    net.train()
    net(X).sum().backward()
    before = [(p.grad.clone(), p.detach().clone()) for p in net.parameters() if p.grad is not None]
    assert keep_of(net, data=BATCHES, loss=F.cross_entropy, importance=criterion) == tuple(range(16, 32))
    after = [(p.grad, p.detach()) for p in net.parameters() if p.grad is not None]
    assert net.training
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(before, after, strict=True))


def test_frozen_weights_are_judged_too() -> None:
    net = network().requires_grad_(False)
    assert keep_of(net, data=BATCHES, loss=nn.CrossEntropyLoss(), importance="taylor") == tuple(range(16, 32))
    assert not any(p.requires_grad for p in net.parameters())


def test_the_loss_sees_each_sample_with_its_own_label() -> None:
    net, seen = network(), []

    def loss(output: Tensor, labels: Tensor, names: list[str]) -> Tensor:
        seen.append((output.detach(), labels, names))
        return F.cross_entropy(output, labels)

    data = [(x, y, [str(i) for i in y.tolist()]) for x, y in BATCHES]
    graph = trace(net, X[:2])
    observe(net, couple(graph), calibrate(data, graph, net, 40, labeled=True), loss)
    outputs, labels = torch.cat([each[0] for each in seen]), torch.cat([each[1] for each in seen])
    assert len(outputs) == 40 and [name for each in seen for name in each[2]] == [str(i) for i in labels.tolist()]
    wanted = {tuple(row.tolist()): int(y) for row, y in zip(net(X[:40]).detach().round(decimals=4), Y, strict=False)}
    assert [wanted[tuple(row.tolist())] for row in outputs.round(decimals=4)] == labels.tolist()


def test_a_dict_hands_the_loss_what_the_model_does_not_take() -> None:
    data = [{"input": x, "labels": y} for x, y in BATCHES]
    found = keep_of(
        network(), data=data, loss=lambda output, rest: F.cross_entropy(output, rest["labels"]), importance="taylor"
    )
    assert found == tuple(range(16, 32))


def test_reconstruction_weighs_errors_by_the_loss() -> None:
    net = network()
    torch.nn.init.normal_(net[2].weight)
    with torch.no_grad():
        net[2].weight[1:, :16] = 0  # the first half is read by class 0 alone, the second half by the others
        net[2].weight[0, 16:] = 0
    first = keep_of(net, data=BATCHES, loss=lambda output, labels: output[:, 0].square().mean())
    others = keep_of(net, data=BATCHES, loss=lambda output, labels: output[:, 1:].square().mean())
    assert sum(unit < 16 for unit in first) > 12 and sum(unit < 16 for unit in others) < 4


def test_the_loss_gets_the_output_as_the_model_gives_it() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.net(x)
            return {"logits": y, "best": y.argmax(1), "twice": 2 * y}

    def loss(output: dict[str, Tensor], labels: Tensor) -> Tensor:
        assert torch.equal(output["best"], output["logits"].argmax(1))
        return F.cross_entropy(output["logits"], labels) + output["twice"].square().mean()

    slim = surgeon.shrink(Named(), 0.5, example_inputs=X[:2], data=BATCHES, loss=loss)
    assert slim.net[0].out_features == 16


def test_activations_by_hand() -> None:
    net = network()
    groups = couple(trace(net, X[:2]))
    leaf = groups.groups[0].leaf.id
    hidden = net[0](X).relu().detach().double().numpy()
    squares = np.sqrt((hidden**2).mean(0))
    batches: list[Inputs] = [((x,), {}) for x, _ in BATCHES]
    assert np.allclose(scores(groups, batches, "activation")[leaf], squares / squares.mean(), rtol=1e-4)
    assert np.allclose(scores(groups, batches, "apoz")[leaf], (hidden > 0).mean(0))
    with pytest.raises(InvalidArgument, match="apoz"):
        scores(groups, batches, "taylor")


@pytest.mark.parametrize("criterion", ["activation", "apoz"])
def test_dead_units_go(criterion: str) -> None:
    net = network()
    with torch.no_grad():
        net[0].bias[16:] = -100
    assert keep_of(net, data=X, importance=criterion) == tuple(range(16))


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"importance": "taylor"}, InvalidArgument, "loss="),
    ({"importance": "taylor", "data": BATCHES}, InvalidArgument, "loss="),
    ({"importance": "activation"}, InvalidArgument, "data="),
    ({"importance": "nothing"}, InvalidArgument, "taylor"),
    ({"importance": "l1", "data": BATCHES, "loss": F.cross_entropy}, InvalidArgument, "no loss"),
    ({"loss": F.cross_entropy}, InvalidArgument, "labeled data"),
    ({"data": "synthetic", "loss": F.cross_entropy}, InvalidArgument, "labeled data"),
    ({"data": BATCHES, "loss": 3}, InvalidArgument, "loss=3"),
    ({"data": X, "loss": F.cross_entropy}, InvalidArgument, r"\(inputs, labels\)"),
    ({"data": [(X, Y[:5])], "loss": F.cross_entropy}, InvalidInputs, "48 rows"),
    ({"data": [(X, Y.float())], "loss": F.cross_entropy}, InvalidArgument, "loss fails"),
    ({"data": BATCHES, "loss": lambda o, y: F.cross_entropy(o, y, reduction="none")}, InvalidArgument, "scalar"),
    ({"data": BATCHES, "loss": lambda o, y: float(o.sum())}, InvalidArgument, "float"),
    ({"data": BATCHES, "loss": lambda o, y: o.detach().sum()}, InvalidArgument, "constant"),
    ({"data": BATCHES, "loss": lambda o, y: o.sum() * float("nan")}, InvalidInputs, "nan"),
]


@pytest.mark.parametrize(("options", "kind", "text"), WRONG)
@pytest.mark.filterwarnings("ignore:Converting a tensor")
@pytest.mark.parametrize("criterion", ["taylor", None])
def test_what_does_not_fit_is_told(
    options: dict[str, Any], kind: type[Exception], text: str, criterion: str | None
) -> None:
    net = network()
    with pytest.raises(kind, match=text):
        surgeon.shrink(net, 0.5, example_inputs=X[:2], **{"importance": criterion, **options})
