"""Retraining: survivors rewound and drawn anew, parts that are frozen, dropout for what is left, distillation."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon
from surgeon.errors import InvalidArgument, WeightsError
from surgeon.training.distillation import distillation
from surgeon.training.dropout import scale_dropout
from surgeon.training.freezing import frozen
from surgeon.training.rewinding import reinitialize, rewind
from surgeon.training.weight_masks import Masks
from tests.training.test_pruner import NETWORKS, network


class Small(nn.Module):
    """A convolution, a batch norm, a position table, two dropouts and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.positions = nn.Parameter(torch.randn(1, 16, 4, 4) * 0.3 + 2)
        self.early, self.late = nn.Dropout2d(0.2), nn.Dropout(0.5)
        self.second, self.head = nn.Conv2d(16, 32, 3), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x))) + self.positions
        x = F.relu(self.second(self.early(x)))
        return self.head(self.late(x.mean((2, 3))))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_rewound_is_the_earlier_model_cut(name: str) -> None:
    model, x = network(name)
    early = copy.deepcopy(model)
    earlier = state(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    slim = surgeon.shrink(model, 0.5, example_inputs=x[:2], align=1, compensate=False)
    rewind(slim, earlier)
    expected = surgeon.plan(model, 0.5, example_inputs=x[:2], align=1, importance="magnitude").apply(early)
    with torch.no_grad():
        torch.testing.assert_close(slim.eval()(x), expected.eval()(x), rtol=1e-12, atol=1e-12)


def test_what_can_not_be_rewound_changes_nothing() -> None:
    model, x = Small(), torch.randn(2, 3, 4, 4)
    slim = surgeon.shrink(model, 0.5, example_inputs=x, compensate=False)
    before, earlier = state(slim), state(model)
    lacking = {name: value for name, value in earlier.items() if name != "head.bias"}
    for bad, message in [
        (lacking, r"no head\.bias"),
        (before, r"was \(\d+, .* earlier, and the plan cuts position"),
        (earlier | {"head.bias": torch.zeros(5)}, r"head\.bias was \(5,\) earlier.* but it is \(4,\)"),
    ]:
        with pytest.raises(WeightsError, match=message):
            rewind(slim, bad)
    with pytest.raises(InvalidArgument, match="carries no plan"):
        rewind(Small(), earlier)
    assert all(torch.equal(value, before[name]) for name, value in slim.state_dict().items())


def test_drawn_anew() -> None:
    model, same, other = Small(), Small(), Small()
    model.bn.running_mean.fill_(3)  # type: ignore[union-attr]
    before = state(model)
    same.load_state_dict(before)
    other.load_state_dict(before)
    drawn = torch.get_rng_state()
    reinitialize(model, 1)
    reinitialize(same, 1)
    reinitialize(other, 2)
    assert torch.equal(drawn, torch.get_rng_state())
    for name in ("conv.weight", "positions", "head.bias"):
        assert torch.equal(model.state_dict()[name], same.state_dict()[name])
        assert not torch.equal(model.state_dict()[name], before[name])
        assert not torch.equal(model.state_dict()[name], other.state_dict()[name])
    assert model.bn.running_mean is not None and model.bn.running_mean.eq(0).all()
    assert model.conv.weight.abs().max() <= 1 / math.sqrt(27)
    assert float(model.positions.detach().mean()) == pytest.approx(2, abs=0.1)
    assert float(model.positions.detach().std()) == pytest.approx(0.3, rel=0.25)
    with pytest.raises(InvalidArgument, match="seed=-1"):
        reinitialize(model, -1)


@pytest.mark.parametrize("kind", ["convolutions", "linear"])
def test_only_the_other_part_is_trained(kind: str) -> None:
    model, x = Small().train(), torch.randn(8, 3, 4, 4)
    model.head.bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    model(x).square().sum().backward()
    optimizer.step()  # momentum that would go on moving what is frozen
    before = state(model)
    with frozen(model, kind) as same:
        assert same is model
        for _ in range(2):
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    after = state(model)
    still = {name for name in before if torch.equal(before[name], after[name])}
    conv = {name for name in before if name.startswith(("conv", "bn", "second")) and "num_batches" not in name}
    assert still == ({"head.bias"} | conv if kind == "convolutions" else {"head.bias", "head.weight"})
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["head.bias"]
    model(x)
    assert not torch.equal(model.bn.running_mean, after["bn.running_mean"])  # type: ignore[arg-type]


def test_nothing_to_freeze_is_told() -> None:
    with pytest.raises(InvalidArgument, match="has no convolutions that are trained"), frozen(
        nn.Linear(2, 2), "convolutions"
    ):
        pass
    with pytest.raises(InvalidArgument, match="'conv' is unknown; choose one of convolutions, linear"):
        frozen(nn.Linear(2, 2), "conv").__enter__()


def test_dropout_follows_the_connections_of_the_layers_that_it_serves() -> None:
    model, x = Small(), torch.randn(2, 3, 4, 4)
    slim = surgeon.shrink(model, 0.6, example_inputs=x, align=1, compensate=False)
    assert isinstance(slim, Small)
    found = scale_dropout(slim)
    assert set(found) == {"early", "late"}
    assert slim.early.p == pytest.approx(0.2 * math.sqrt(slim.second.weight.numel() / model.second.weight.numel()))
    assert slim.late.p == pytest.approx(0.5 * math.sqrt(slim.head.weight.numel() / model.head.weight.numel()))
    assert model.early.p == 0.2
    assert str(found["late"]).startswith("0.5 → ")


def test_dropout_counts_connections_that_are_zero() -> None:
    model, x = Small(), torch.randn(2, 3, 4, 4)
    keep = torch.zeros(4, 32, dtype=torch.bool)
    keep[:, ::4] = True
    Masks(model).set({"head.weight": keep})
    with pytest.raises(InvalidArgument, match="plan is a Linear, not a surgeon"):
        scale_dropout(nn.Linear(2, 2), nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="pass example_inputs="):
        scale_dropout(model)
    assert {name: (each.rate, each.scaled) for name, each in scale_dropout(model, example_inputs=x).items()} == {
        "late": (0.5, 0.25)
    }
    assert model.late.p == 0.25 and model.early.p == 0.2


def test_distillation_is_the_paper_s_loss() -> None:
    dense, slim, x, y = Small().eval(), Small().eval(), torch.randn(5, 3, 4, 4), torch.randint(4, (5,))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    both = distillation(loss, dense, temperature=3.0, weight=0.25)
    with torch.no_grad():
        wanted, found = (dense(x) / 3).softmax(1), slim(x) / 3
        hidden = (wanted * (wanted.log() - found.log_softmax(1))).sum(1).mean()
        expected = 0.75 * F.cross_entropy(slim(x), y) + 0.25 * 9 * hidden
    value = both(slim, (x, y))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    value.backward()
    assert all(parameter.grad is not None for parameter in slim.parameters())
    assert all(parameter.grad is None for parameter in dense.parameters())
    assert not slim._forward_hooks
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.zero_()  # the teacher is as it was
    assert both(slim, (x, y)).item() == pytest.approx(value.item())


class Named(nn.Module):
    """Gives a mapping, as models of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.fc(x), "hidden": x}


def test_distillation_reads_logits_by_name() -> None:
    dense, slim, x = Named(), Named(), torch.randn(4, 2)
    both = distillation(lambda model, batch: model(batch)["logits"].square().mean(), dense, weight=1.0)
    assert both(dense, x).item() == pytest.approx(0, abs=1e-6)
    assert both(slim, x).item() > 1e-3


def test_distillation_refuses() -> None:
    dense, x = nn.Linear(2, 3), torch.randn(4, 2)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return model(batch).sum()

    with pytest.raises(InvalidArgument, match="temperature=0"):
        distillation(loss, dense, temperature=0)
    with pytest.raises(InvalidArgument, match=r"weight=1\.5"):
        distillation(loss, dense, weight=1.5)
    with pytest.raises(InvalidArgument, match="does not call the model"):
        distillation(lambda model, batch: torch.zeros(()), dense)(dense, x)
    with pytest.raises(InvalidArgument, match=r"logits are \(4, 2\), the teacher's \(4, 3\)"):
        distillation(loss, dense)(nn.Linear(2, 2), x)
    with pytest.raises(InvalidArgument, match="a tuple is not a tensor and has no logits"):
        distillation(lambda model, batch: model(batch)[0].sum(), nn.LSTM(2, 3))(nn.LSTM(2, 3), x)
