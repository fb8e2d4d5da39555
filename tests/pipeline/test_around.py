"""Models that can't be traced as a whole: parts of them that can be are cut, and the rest is as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.errors import InvalidInputs, PlanError, SurgeryError, TraceError
from surgeon.frontend.parts import calls_of
from surgeon.ir.fingerprint import fingerprint
from surgeon.plans.cuts import Cut
from testbed.snapshot import Snapshot

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def chosen(x: Tensor) -> Tensor:
    """The samples whose first value is above a bound: a loop over values, which no trace can follow."""
    return x[[place for place in range(len(x)) if x[place, 0].item() > -100]]


class Detector(nn.Module):
    """A body and a head, and between them a choice by values."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 3))
        self.head = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
        self.box = nn.Parameter(torch.ones(4))

    def forward(self, images: list[Tensor], targets: Tensor | None = None) -> Any:
        found = self.head(chosen(self.body(torch.stack(list(images))).mean((2, 3)))) * self.box
        return found if targets is None else {"loss": (found - targets).square().mean()}


def shrunk(model: nn.Module, **options: Any) -> tuple[Any, Any]:
    return surgeon.shrink(model, 0.5, example_inputs=(list(X),), align=1, return_report=True, **options)


def zeroed(model: Any, plan: surgeon.Plan) -> Any:
    """The model with zeros for the units that the plan removes."""
    for name, value in model.named_parameters():
        for axis, keep in plan.tensor(name).items():
            gone = torch.ones(value.shape[axis], dtype=torch.bool)
            gone[list(keep)] = False
            value.data.index_fill_(axis, gone.nonzero().flatten(), 0.0)
    return model


def test_parts_are_cut_and_the_whole_is_of_its_own_class(tmp_path: Path) -> None:
    model = Detector().eval()
    before = Snapshot(model)
    slim, report = shrunk(model)
    assert not [each for each in before.differences(Snapshot(model)) if each.startswith("object")]
    assert slim.body[0].out_channels < 32 and slim.head[0].out_features < 64
    assert type(slim) is Detector and report.model == "Detector" and report.form == "module"
    assert "can't trace Detector" in report.form_reason and report.form_reason.endswith("as it was: body, head")
    assert report.certificate.deviation < 1e-9 and report.macs.removed >= 0.5
    plan = surgeon.plan(model, 0.5, example_inputs=(list(X),), align=1)
    assert plan.settings["parts"] == ["body", "head"] and plan.fingerprint == fingerprint(model)
    other = torch.rand(3, 3, 12, 10)
    assert surgeon.verify(model, slim, plan).deviation < 1e-9
    for applied in (plan.apply(model), plan.apply(model, (list(X),))):
        assert torch.equal(applied(other), slim(other))
    surgeon.save(slim, tmp_path)
    assert torch.equal(surgeon.load(tmp_path, Detector().eval())(other), slim(other))
    torch.testing.assert_close(slim(other), zeroed(model, plan)(other))


def test_what_is_cut_can_train_and_be_cut_again(tmp_path: Path) -> None:
    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(list(X), torch.ones(2, 4))["loss"].backward()
    optimizer.step()
    slim, _ = shrunk(model)
    optimizer = surgeon.transfer_optimizer(optimizer, slim)
    assert len(optimizer.state) == len(list(slim.parameters()))
    slim(list(X), torch.ones(2, 4))["loss"].backward()
    optimizer.step()
    twice, _ = shrunk(slim.eval())
    assert twice.body[0].out_channels < slim.body[0].out_channels
    surgeon.save(twice, tmp_path)
    assert torch.equal(surgeon.load(tmp_path, Detector().eval())(X), twice(X))


def test_what_is_ignored_is_left_alone_in_the_parts_and_out_of_them() -> None:
    slim, _ = shrunk(Detector(), ignore=["head", "box"])
    assert slim.head[0].out_features == 64 and slim.body[0].out_channels < 32
    assert "head.0.weight" in str(surgeon.inspect(Detector(), (list(X),)))


class Reaching(nn.Module):
    """`use` is what the rest does with the parts beside calling them."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor], **more: nn.Module) -> None:
        super().__init__()
        self.use = use
        self.a = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
        self.b = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
        for name, module in more.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, chosen(self.b(self.a(x))))


REACHING: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a weight": lambda m, x: x + m.a[0].weight.sum(0),
    "a weight as an argument": lambda m, x: nn.functional.linear(x, weight=m.a[2].weight.T),
    "a layer": lambda m, x: m.a[2](m.a[1](m.a[0](x))),
}


@pytest.mark.parametrize("name", REACHING)
def test_a_part_that_the_rest_reaches_into_is_left_alone(name: str) -> None:
    model = Reaching(REACHING[name])
    slim = surgeon.shrink(model, 0.2, example_inputs=torch.randn(2, 8), align=1)
    assert slim.a[0].out_features == 32 and slim.b[0].out_features < 32


def test_a_part_that_shares_a_parameter_with_the_rest_is_left_alone() -> None:
    model = Reaching(lambda m, x: m.last(x), last=nn.Linear(8, 32))
    model.get_submodule("last").weight = model.a[0].weight
    slim = surgeon.shrink(model, 0.2, example_inputs=torch.randn(2, 8), align=1)
    assert slim.a[0].out_features == 32 and slim.b[0].out_features < 32


def test_every_way_in_which_a_part_is_called_is_seen_once() -> None:
    model = Reaching(lambda m, x: m.a(m.a(x)[0]) + m.b(x) + m.b(x[:1]))
    calls = calls_of(model, ["a", "b"], ((torch.randn(2, 8),), {}))
    assert [[args[0].shape for args, _ in calls[path]] for path in ("a", "b")] == [[(2, 8), (8,)], [(2, 8)]]
    slim = surgeon.shrink(model, 0.2, example_inputs=torch.randn(2, 8), align=1)
    assert slim(torch.randn(5, 8)).shape == (5, 8)


def test_a_part_below_one_that_can_not_be_traced() -> None:
    slim, _ = shrunk(nn.Sequential(Detector()))
    assert slim[0].body[0].out_channels < 32
    assert type(slim[0]) is Detector


@pytest.mark.parametrize("options", [{"form": "graph"}, {"data": X}], ids=str)
def test_what_needs_the_whole_names_the_parts(options: dict[str, Any]) -> None:
    with pytest.raises(TraceError, match=r"(?s)around what can't be traced, but .*Remedy: .*model\.body, model\.head"):
        shrunk(Detector(), **options)


def test_a_rest_that_reads_a_width_is_told() -> None:
    model = Reaching(lambda m, x: x.new_zeros(len(x), 32) + x.new_zeros(m.a[0].out_features))
    with pytest.raises(SurgeryError, match=r"the rest of Reaching does not run with the smaller parts: .*32"):
        surgeon.shrink(model, 0.2, example_inputs=torch.randn(2, 8), align=1)


@pytest.mark.parametrize("parts", [["nose"], [""], [], "body", [3]], ids=str)
def test_a_plan_of_parts_that_there_are_not_is_refused(parts: Any) -> None:
    wrong = surgeon.Plan("", (Cut("head.0.bias", 0, 64, (1, 2)),), settings={"parts": parts})
    with pytest.raises(PlanError, match="no submodules of this model"):
        wrong.apply(Detector())


def test_inputs_on_which_the_model_does_not_run_are_told() -> None:
    plan = surgeon.Plan("", (Cut("head.0.bias", 0, 64, (1, 2)),), settings={"parts": ["head"]})
    with pytest.raises(InvalidInputs, match=r"Detector\.forward does not run on example_inputs: .*3 channels"):
        plan.apply(Detector(), (list(torch.rand(2, 5, 8, 8)),))
