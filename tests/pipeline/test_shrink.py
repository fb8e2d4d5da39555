"""The pipeline end to end: what a user hands in stays as it is, and what comes out trains, runs and is explained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import surgeon
from surgeon.cost.cost import Cost
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import Groups, couple
from surgeon.scoring import CRITERIA

FORMS = ("module", "graph")


class Convolutions(nn.Module):
    """BatchNorm, dropout, a residual, a depthwise convolution, and a buffer of the user's own."""

    scale: Tensor

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.block = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.ReLU(), nn.Dropout(0.5))
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.project = nn.Conv2d(2 * width, width, 1)
        self.head = nn.Linear(width, 4)
        self.register_buffer("scale", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = x + self.project(self.depthwise(self.block(x)))
        return self.head(x.mean((2, 3)) * self.scale)

    def twice(self, x: Tensor) -> Tensor:
        return 2 * self(x)


def image(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def shrunk(model: nn.Module, inputs: Any, ratio: float = 0.5, **options: Any) -> tuple[Any, Any]:
    return surgeon.shrink(model, ratio, example_inputs=inputs, return_report=True, **{"align": 1, **options})


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_model_is_left_as_it_is() -> None:
    model, x = Convolutions().train(), image()
    model.block.eval()
    calls: list[int] = []
    model.stem.register_forward_hook(lambda *args: calls.append(1))
    model(x).sum().backward()
    before = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    modes = {name: module.training for name, module in model.named_modules()}
    attributes = {name: {k: v for k, v in vars(m).items() if isinstance(v, int)} for name, m in model.named_modules()}
    hooks, state = len(calls), torch.random.get_rng_state()
    surgeon.shrink(model, 0.5, example_inputs=x)
    after = model.state_dict(keep_vars=True)
    assert all(after[name] is tensor and torch.equal(tensor, value) for name, (tensor, value) in before.items())
    assert all(torch.equal(model.get_parameter(name).grad, value) for name, value in gradients.items())  # type: ignore[arg-type]
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert attributes == {n: {k: v for k, v in vars(m).items() if isinstance(v, int)} for n, m in model.named_modules()}
    assert torch.equal(torch.random.get_rng_state(), state)
    model(x)
    assert len(model.stem._forward_hooks) == 1 and len(calls) > hooks
    assert not hasattr(model, "surgeon_plan")


def test_the_class_and_its_methods_stay() -> None:
    slim, report = shrunk(Convolutions(), image())
    assert isinstance(slim, Convolutions)
    assert (report.form, report.form_reason) == ("module", "sizes rewritten on its modules")
    torch.testing.assert_close(slim.eval().twice(image()), 2 * slim(image()))
    expand = slim.get_submodule("block.0")
    assert expand.out_channels == expand.get_parameter("weight").shape[0] == slim.depthwise.groups
    assert slim.depthwise.groups < 64
    assert slim.bn.num_features == slim.get_buffer("bn.running_mean").numel() == slim.scale.numel()
    assert "Conv2d(3, " in repr(slim) and str(slim.stem.out_channels) in repr(slim.stem)


def test_modes_stay_module_by_module(form: str) -> None:
    model = Convolutions().train()
    model.block[2].eval()
    slim, _ = shrunk(model, image(), form=form)
    assert slim.training
    assert slim.bn.training
    assert not slim.get_submodule("block.2").training
    slim, _ = shrunk(model.eval(), image(), form=form)
    assert not any(module.training for module in slim.modules())


def test_it_trains(form: str) -> None:
    slim, _ = shrunk(Convolutions().train(), image(), form=form)
    x = image(8)
    slim.train()
    assert not torch.equal(slim(x), slim(x)), "dropout is alive"
    mean = slim.bn.running_mean.clone()
    slim(x + 3)
    assert not torch.equal(slim.bn.running_mean, mean), "BatchNorm counts"
    parameters = dict(slim.named_parameters())
    optimizer = torch.optim.SGD(slim.parameters(), 0.05)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    losses = []
    torch.manual_seed(0)
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(slim(x), torch.arange(8) % 4)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(not torch.equal(parameters[name], value) for name, value in before.items())
    assert losses[-1] < losses[0]
    slim.eval()
    assert torch.equal(slim(x), slim(x)), "dropout rests"


def test_frozen_parameters_stay_frozen(form: str) -> None:
    model = Convolutions()
    model.stem.weight.requires_grad_(False)
    slim, _ = shrunk(model, image(), form=form)
    assert not slim.get_parameter("stem.weight").requires_grad
    assert slim.get_parameter("head.weight").requires_grad


def test_the_keys_of_state_dict_are_the_originals() -> None:
    model = Convolutions()
    names = list(model.state_dict())
    module, graph = (shrunk(model, image(), form=form)[0] for form in FORMS)
    assert list(module.state_dict()) == names
    assert set(graph.state_dict()) <= set(names)
    assert isinstance(graph, fx.GraphModule)
    assert isinstance(graph.get_submodule("block.0"), nn.Conv2d)
    assert isinstance(graph.get_submodule("bn"), nn.BatchNorm2d)
    torch.testing.assert_close(module.eval()(image()), graph.eval()(image()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(form: str, dtype: torch.dtype) -> None:
    model = Convolutions().eval().to(dtype)
    slim, report = shrunk(model, image().to(dtype), form=form)
    assert {value.dtype for value in slim.parameters()} == {dtype}
    assert slim(image().to(dtype)).dtype == dtype
    assert report.certificate.deviation < 1e-9


class Several(nn.Module):
    """Two inputs, one of them optional; several outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 32), nn.Linear(5, 32)
        self.mean, self.spread = nn.Linear(32, 3), nn.Linear(32, 3)

    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> dict[str, Any]:
        z = torch.relu(self.left(x) + scale * self.right(y))
        return {"mean": self.mean(z), "rest": (self.spread(z).exp(), x)}


PAIR = (torch.ones(3, 6), torch.ones(3, 5))


@pytest.mark.parametrize("inputs", [PAIR, list(PAIR), {"x": PAIR[0], "y": PAIR[1], "scale": 0.5}, (*PAIR, 0.5)])
def test_inputs_and_outputs_of_every_form(form: str, inputs: Any) -> None:
    slim, report = shrunk(Several(), inputs, form=form)
    args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else (inputs, {})
    found = slim(*args, **kwargs)
    assert found["mean"].shape == found["rest"][0].shape == (3, 3)
    assert torch.equal(found["rest"][1], PAIR[0])
    assert len(report.certificate.outputs) == 3


@pytest.mark.parametrize("batch", [1, 5])
def test_any_batch_runs_afterwards(form: str, batch: int) -> None:
    slim, _ = shrunk(Convolutions().eval(), image(batch), form=form)
    whole = slim(image(7))
    torch.testing.assert_close(slim(image(7)[2:3]), whole[2:3])


@pytest.mark.parametrize("budget", ["macs", "params", "channels"])
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("align", [None, 1])
def test_budgets_are_met(budget: str, scope: str, align: int | None) -> None:
    model = Convolutions(64)
    slim, report = shrunk(model, image(), 0.5, budget=budget, scope=scope, align=align)
    if budget == "channels":
        assert {(change.before, change.after) for change in report.groups.values()} == {(64, 32), (128, 64)}
    else:
        assert report.reached == pytest.approx(0.5, abs=0.02)
        count = sum(p.numel() for p in slim.parameters()) / sum(p.numel() for p in model.parameters())
        groups = couple(trace(slim, image()))
        macs = Cost(groups).macs({}) / Cost(couple(trace(model, image()))).macs({})
        assert {"params": count, "macs": macs}[budget] == pytest.approx(0.5, abs=0.02)
    if align is None:
        assert all(change.after % 16 == 0 or name in report.unaligned for name, change in report.groups.items())
        assert all(change.after % 4 == 0 for change in report.groups.values())
    if scope == "local":
        shares = [change.after / change.before for change in report.groups.values()]
        assert max(shares) - min(shares) < 0.3


def test_a_ratio_of_zero_changes_nothing(form: str) -> None:
    model = Convolutions().eval()
    slim, report = shrunk(model, image(), 0, form=form)
    assert report.reached == 0
    torch.testing.assert_close(slim(image()), model(image()))


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 3))


# what is ignored, the layers whose rows are cut nevertheless
IGNORED: list[tuple[str, Callable[[nn.Sequential], Any], set[str]]] = [
    ("nothing", lambda model: (), {"0", "2", "4"}),
    ("a name", lambda model: "2", {"4"}),
    ("names", lambda model: ["0", "5"], {"2"}),
    ("a glob", lambda model: "[01]", {"2", "4"}),
    ("a glob of tensors", lambda model: ["*.bias"], set()),
    ("a module", lambda model: model[5], {"0", "2"}),
    ("a parameter", lambda model: [model[2].bias], {"0", "4"}),
    ("a tensor by name", lambda model: "4.weight", {"0"}),
]


@pytest.mark.parametrize(("ignored", "cut"), [pytest.param(*row[1:], id=row[0]) for row in IGNORED])
def test_what_is_ignored_is_left_alone(ignored: Callable[[nn.Sequential], Any], cut: set[str]) -> None:
    model = layers()
    groups = surgeon.inspect(model, torch.randn(2, 6), ignored(model))
    assert {group.name for group in groups} == cut
    if cut:
        inputs = torch.randn(2, 6)
        plan = surgeon.plan(model, 0.5, example_inputs=inputs, ignore=ignored(model), budget="channels")
        assert {cut.tensor.split(".")[0] for cut in plan.cuts if cut.axis == 0} == cut
    else:
        assert {pin.reason for pin in groups.pinned} >= {"left alone, as asked by ignore"}


@pytest.mark.parametrize(("min_width", "least"), [(0.9, (29, 58)), (30, (30, 30)), ({"block.*": 60}, (1, 60))])
def test_no_group_gets_narrower_than_its_least_width(min_width: Any, least: tuple[int, int]) -> None:
    _, report = shrunk(Convolutions(), image(), 0.1, min_width=min_width)
    by_size = {change.before: change.after for change in report.groups.values()}
    assert by_size[32] >= least[0] and by_size[64] >= least[1]


def test_the_seed_decides_what_is_drawn() -> None:
    plans = [
        surgeon.plan(Convolutions(), 0.5, example_inputs=image(), importance="random", seed=seed) for seed in (3, 3, 4)
    ]
    assert plans[0].cuts == plans[1].cuts != plans[2].cuts


def test_a_criterion_of_the_users_own_decides() -> None:
    def first_come(groups: Groups, group: Any, rng: np.random.Generator) -> np.ndarray:
        return np.arange(group.size, 0, -1)

    plan = surgeon.plan(Convolutions(), 0.5, example_inputs=image(), importance=first_come)
    assert all(cut.keep == tuple(range(len(cut.keep))) for cut in plan.cuts)
    assert plan.settings["importance"] == "first_come"


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_gives_a_right_model(name: str) -> None:
    _, report = shrunk(Convolutions(), image(), importance=name)
    assert report.certificate.deviation < 1e-9


def test_a_copy_is_the_same(form: str, tmp_path: Path) -> None:
    slim, _ = shrunk(Convolutions().eval(), image(), form=form)
    twin = copy.deepcopy(slim)
    assert torch.equal(twin(image()), slim(image()))
    surgeon.save(twin, tmp_path)
    assert surgeon.Plan.load(tmp_path / "plan.json") == slim.surgeon_plan
    twin.get_parameter("head.weight").data.zero_()
    assert slim.get_parameter("head.weight").any()


def test_it_exports_and_shrinks_again(form: str) -> None:
    slim, _ = shrunk(Convolutions().eval(), image(), form=form)
    program = torch.export.export(slim, (image(),), strict=False)
    torch.testing.assert_close(program.module()(image()), slim(image()))
    again, report = shrunk(slim, image())
    assert report.certificate.deviation < 1e-9
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in slim.parameters())


def test_state_dict_comes_back(form: str) -> None:
    slim, _ = shrunk(Convolutions().eval(), image(), form=form)
    other = slim.surgeon_plan.apply(Convolutions().eval(), form=form)
    assert not torch.equal(other(image()), slim(image()))
    other.load_state_dict(slim.state_dict())
    assert torch.equal(other(image()), slim(image()))


def test_save_and_load_give_the_same(form: str, tmp_path: Path) -> None:
    slim, _ = shrunk(Convolutions().eval(), image(), form=form)
    surgeon.save(slim, tmp_path)
    again = surgeon.load(tmp_path, Convolutions().eval())
    assert torch.equal(again(image()), slim(image()))
    assert again.surgeon_plan == slim.surgeon_plan


def test_a_plan_slices_any_weights(form: str, tmp_path: Path) -> None:
    plan = surgeon.plan(Convolutions(), 0.5, example_inputs=image(), align=1)
    plan.save(tmp_path / "plan.json")
    plan = surgeon.Plan.load(tmp_path / "plan.json")
    fresh = Convolutions().eval()
    slim = plan.apply(fresh, form=form)
    for name, value in slim.state_dict().items():
        expected = fresh.state_dict()[name]
        for axis, keep in plan.tensor(name).items():
            expected = expected.index_select(axis, torch.tensor(keep))
        assert torch.equal(value, expected), name
    assert surgeon.verify(fresh, slim, plan, example_inputs=image()).deviation < 1e-9


def test_a_report_adds_up() -> None:
    model = Convolutions()
    slim, report = shrunk(model, image())
    assert report.params.before == sum(p.numel() for p in model.parameters())
    assert report.params.after == sum(p.numel() for p in slim.parameters())
    assert {pin.tensor for pin in report.pinned} >= {"stem.weight", "head.weight"}
    assert set(report.seconds) >= {"trace", "couple", "plan", "operate", "verify"}
