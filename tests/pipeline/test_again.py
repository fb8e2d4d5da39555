"""Models that were made smaller before: again, after other tools had them, with another head; and back from disk."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import surgeon
from surgeon.errors import InvalidModel, NotEquivalent, PlanError, WeightsError
from surgeon.plans.carried import attached

X = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def net(classes: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes))


def shrink(model: nn.Module, ratio: float = 0.3, x: Tensor = X, **options: Any) -> Any:
    return surgeon.shrink(model, ratio, example_inputs=x, align=1, compensate=False, **options)


class Residual(nn.Module):
    """Convolutions with a residual, and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.mix, self.head = nn.Conv2d(32, 32, 3, padding=1), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head((x + self.mix(x).relu()).mean((2, 3)))


class Tokens(nn.Module):
    """A transformer's layer between an embedding and a head that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
        self.head = nn.Linear(32, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)))


def back(slim: nn.Module, fresh: nn.Module, folder: Path, x: Tensor = X) -> nn.Module:
    """What is loaded of a saved model, which must be equal to it; also once it was saved again."""
    for _ in range(2):
        surgeon.save(slim, folder)
        loaded = surgeon.load(folder, fresh)
        assert type(loaded).__name__ == type(slim).__name__
        assert list(loaded.state_dict()) == list(slim.state_dict())
        assert torch.equal(loaded.eval()(x), slim.eval()(x))
        assert attached(loaded) == attached(slim)
        slim = loaded
    return loaded


def tuned(model: nn.Module) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(X).square().mean().backward()
    optimizer.step()
    return model


def swept(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.get_parameter("0.weight")[:9] = 0
    slim: nn.Module = surgeon.sweep(model, X)
    return slim


LIVES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "twice": lambda m: shrink(shrink(m)),
    "five times": lambda m: shrink(shrink(shrink(shrink(shrink(m, 0.2), 0.2), 0.2), 0.2), 0.2),
    "fine-tuned between": lambda m: shrink(tuned(shrink(m))),
    "swept, then shrunk": lambda m: shrink(swept(m)),
    "shrunk, then swept": lambda m: swept(shrink(m)),
    "nothing to sweep": lambda m: surgeon.sweep(shrink(m), X),
    "connections pruned between": lambda m: shrink(surgeon.prune_connections(shrink(m), 0.5, example_inputs=X)),
    "dead units shrunk away": lambda m: shrink(surgeon.sweep(surgeon.prune_connections(m, 0.9, example_inputs=X), X)),
    "a module, then a graph": lambda m: shrink(shrink(m), form="graph"),
    "a graph twice": lambda m: shrink(shrink(m, form="graph"), form="graph"),
    "a graph, then what comes": lambda m: shrink(shrink(m, form="graph")),
    "with data twice": lambda m: shrink(shrink(m, data=torch.randn(64, 16)), data=torch.randn(64, 16)),
    "by a plan of its own": lambda m: surgeon.plan(s := shrink(m), 0.3, example_inputs=X).apply(s),
    "copied": lambda m: copy.deepcopy(shrink(copy.deepcopy(shrink(m, form="graph")), form="graph")),
}


@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES)
def test_what_was_pruned_again_comes_back(life: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    slim = life(net())
    back(slim, net(), tmp_path)
    plan = surgeon.Plan.load(tmp_path / "plan.json")
    assert plan == attached(slim)
    for name, value in slim.named_parameters():
        whole = net().get_parameter(name)
        for axis, kept in plan.tensor(name).items():
            assert len(kept) == value.shape[axis] < whole.shape[axis]


@pytest.mark.parametrize("form", ["auto", "graph"])
@pytest.mark.parametrize(
    ("make", "x"), [(Residual, IMAGE), (Tokens, torch.randint(0, 20, (2, 5)))], ids=["images", "tokens"]
)
def test_other_networks_come_back(make: Callable[[], nn.Module], x: Tensor, form: str, tmp_path: Path) -> None:
    slim = shrink(shrink(make().eval(), x=x, form=form), x=x, form=form)
    back(slim, make().eval(), tmp_path, x)


def test_projected_twice_comes_back(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()

    torch.manual_seed(0)
    rows = torch.randn(64, 16)
    slim = shrink(shrink(make(), data=rows), data=rows)
    assert all("basis" in step.settings for step in slim.surgeon_plan.steps)
    back(slim, make(), tmp_path)
    with pytest.raises(PlanError, match=r"surgeon\.project rotated"):
        slim.surgeon_plan.apply(make())


def test_the_last_is_held_against_the_first() -> None:
    model = net()
    middle = shrink(model)
    slim = shrink(middle)
    plan = slim.surgeon_plan
    assert surgeon.verify(model, slim, plan).deviation < 1e-9
    assert surgeon.verify(middle, slim, plan).deviation < 1e-9  # it is the result of the first step already
    assert surgeon.verify(model, plan.apply(model), plan).deviation < 1e-9
    with torch.no_grad():
        slim[4].weight += 1
    with pytest.raises(NotEquivalent, match="linear in 4"):
        surgeon.verify(model, slim, plan)


def test_the_cuts_are_of_the_first_model() -> None:
    model: Any = net()
    slim = shrink(shrink(model))
    rows = slim.surgeon_plan.tensor("0.weight")[0]
    assert torch.equal(slim[0].weight, model[0].weight[list(rows)])
    earlier = {name: value + 1 for name, value in model.state_dict().items()}
    surgeon.training.rewind(slim, earlier)
    assert torch.equal(slim[0].bias, model[0].bias[list(rows)] + 1)


@pytest.mark.parametrize("again", [False, True], ids=["shrunk once", "shrunk again"])
@pytest.mark.parametrize("fresh", [10, 3])
@pytest.mark.parametrize(("before", "after"), [(10, 3), (3, 10)])
def test_a_head_for_other_classes(before: int, after: int, fresh: int, again: bool, tmp_path: Path) -> None:
    slim = shrink(net(before))
    slim[4] = nn.Linear(slim[4].in_features, after)
    model = net(fresh)
    loaded: Any = back(shrink(slim) if again else slim, model, tmp_path)
    assert loaded[4].out_features == after
    assert model[4].out_features == fresh


def test_a_plan_fits_another_head() -> None:
    plan = surgeon.plan(net(10), 0.3, example_inputs=X)
    assert plan.apply(net(3))(X).shape == (2, 3)


class Fixed(nn.Module):
    """The number of classes stands in its code."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.head, self.classes = nn.Linear(16, 64), nn.Linear(64, classes), classes

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu()).view(-1, self.classes, 1)


def test_sizes_that_fit_neither_are_named(tmp_path: Path) -> None:
    surgeon.save(shrink(Fixed(3)), tmp_path)
    with pytest.raises(WeightsError, match=r"misshapen: head\.weight is \[3, \d+\] in the file, and \[10, \d+\]"):
        surgeon.load(tmp_path, Fixed(10))
    slim = shrink(net())
    slim[4] = nn.Sequential(nn.Linear(slim[4].in_features, 8), nn.ReLU(), nn.Linear(8, 3))
    surgeon.save(slim, tmp_path)
    with pytest.raises(WeightsError, match=r"missing: 4\.weight, 4\.bias\n.*extra: 4\.0\.bias, 4\.0\.weight"):
        surgeon.load(tmp_path, net())
    slim[4] = nn.Linear(7, 3)  # it does not run
    surgeon.save(slim, tmp_path)
    with pytest.raises(WeightsError, match=r"misshapen: 4\.weight is \[3, 7\] in the file"):
        surgeon.load(tmp_path, net())


def test_a_quantized_model_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it
        quantized = torch.ao.quantization.quantize_dynamic(shrink(net()), {nn.Linear})
    with pytest.raises(InvalidModel, match="0 is quantized; prune the floating model, then quantize"):
        shrink(quantized)


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "data parallel": nn.DataParallel,
    "compiled": compiled,
    "averaged": AveragedModel,
    "averaged of compiled": lambda m: AveragedModel(compiled(m)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_are_taken_off_and_put_on(wrap: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    model = net()
    wrapped = wrap(model)
    slim = shrink(wrapped)
    assert type(slim) is type(wrapped)
    plan = attached(slim)
    assert plan is not None
    assert plan.tensor("0.weight").keys() == {0}
    bare = plan.apply(model)
    assert type(bare) is nn.Sequential
    assert torch.allclose(bare(X), slim(X))
    same = surgeon.plan(model, 0.3, example_inputs=X, align=1, importance="magnitude")
    assert torch.allclose(same.apply(wrapped)(X), slim(X))
    assert surgeon.verify(wrapped, slim, plan).deviation < 1e-9
    again = shrink(slim)
    surgeon.save(again, tmp_path)
    for fresh in (net(), wrap(net())):
        loaded = surgeon.load(tmp_path, fresh)
        assert type(loaded) is type(fresh)
        assert torch.allclose(loaded(X), again(X))


def test_an_average_goes_on() -> None:
    model: Any = net()
    average: Any = AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)
    tuned(model)
    slim = shrink(model)
    plan = slim.surgeon_plan
    applied = plan.apply(average)
    assert type(applied) is AveragedModel
    smaller: Any = applied
    assert int(smaller.n_averaged) == 1
    rows = list(plan.tensor("0.weight")[0])
    assert torch.equal(smaller.module[0].weight, average.module[0].weight[rows])
    tuned(slim)
    smaller.update_parameters(slim)
    assert torch.allclose(smaller.module[0].bias, (average.module[0].bias[rows] + slim[0].bias) / 2)
    assert int(smaller.n_averaged) == 2
    assert int(average.n_averaged) == 1


def test_the_average_of_a_smaller_model_takes_the_step_that_is_left() -> None:
    middle = shrink(net())
    average = AveragedModel(middle)
    slim = shrink(middle)
    assert torch.equal(slim.surgeon_plan.apply(average)(X), slim(X))
