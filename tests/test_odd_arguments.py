"""Arguments whose fault, or whose oddity, is inside: arrays, tensors, models that hold what can't be copied."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.errors import InvalidArgument, InvalidInputs, InvalidModel, SurgeonError
from surgeon.support import arguments
from surgeon.training import schedules

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two layers with units of their own between them, and an attribute."""

    def __init__(self, extra: Any = None) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


class Cache:
    def __init__(self) -> None:
        self.lock, self.seen = threading.Lock(), {"x": torch.ones(2)}


class Stream:
    """As a stream of a device, it can't be copied."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("no")


class Stubborn:
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("no")


def shrink(model: nn.Module, **options: Any) -> Any:
    return surgeon.shrink(model, 0.5, **{"example_inputs": X, "align": 1, **options})


ODD: dict[str, Callable[[], Any]] = {
    "a lock": threading.Lock,
    "a lock in a tuple in a dict": lambda: {"x": (threading.RLock(),)},
    "a cache with a lock": Cache,
    "an open file": lambda: sys.__stdin__,
    "a generator": lambda: (i for i in range(3)),
    "a stream": Stream,
    "what refuses to be copied": Stubborn,
    "a module of Python": lambda: np,
    "a tensor with a history": lambda: [torch.ones(2, requires_grad=True) * 2],
    "keys": lambda: {}.keys(),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_what_can_not_be_copied_is_shared(make: Callable[[], Any]) -> None:
    model = Net(make())
    held = model.extra
    for form in ("module", "graph"):
        assert shrink(model, form=form)(X).shape == (4, 4)
    assert model.extra is held


def test_what_holds_a_lock_is_copied_around_it(tmp_path: Path) -> None:
    model: Any = Net(Cache())
    slim = shrink(model, data=ROWS)
    assert slim.extra is not model.extra
    assert slim.extra.lock is model.extra.lock
    assert slim.extra.seen is not model.extra.seen
    assert surgeon.sweep(model, X).extra.lock is model.extra.lock
    sparse: Any = surgeon.prune_connections(model, 0.5, example_inputs=X)
    assert sparse.extra.lock is model.extra.lock
    assert surgeon.export(model, tmp_path / "a.onnx", example_inputs=X).path.exists()
    surgeon.save(slim, tmp_path / "slim")
    loaded: Any = surgeon.load(tmp_path / "slim", Net(Cache()))
    assert loaded.extra.seen.keys() == {"x"}


def test_what_can_not_be_copied_at_all_is_named() -> None:
    class Late:
        """It says how it is copied, but that fails."""

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _fails, ()

    model = nn.Sequential(nn.Linear(8, 16), Net(Late()))
    with pytest.raises(InvalidModel, match=r"1\.extra \(a .*Late\) can't be copied: not so.*\n.*Remedy: give"):
        surgeon.inspect(model, X)


def _fails() -> Any:
    raise RuntimeError("not so")


@pytest.mark.parametrize("dtype", [">f4", np.longdouble, "U1", object], ids=str)
def test_arrays_that_torch_does_not_have(dtype: Any, tmp_path: Path) -> None:
    model, array = Net(), np.zeros((4, 8)).astype(dtype)
    for data in (array, [array], [(array, 1)], [{"x": array}]):
        with pytest.raises(InvalidInputs, match=r"data.* is an array of .*, which torch does not have; give numbers"):
            shrink(model, data=data)
    for inputs in ((array,), {"x": array}, (X, array)):
        with pytest.raises(InvalidInputs, match=r"example_inputs holds an array of .*give torch\.from_numpy"):
            surgeon.inspect(model, inputs)
    with pytest.raises(InvalidInputs, match=r"batch 0 of calibration is an array of .*, which torch does not have"):
        surgeon.quantize(model, [array], path=tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors(layout: torch.layout, tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2, 8), torch.ones(3, 8)], layout=layout)
    with pytest.raises(InvalidInputs, match="data is a nested tensor; pad"):
        shrink(Net(), data=nested)
    with pytest.raises(InvalidInputs, match="batch 0 of data, input x is a nested tensor; pad"):
        shrink(Net(), data=[nested])
    with pytest.raises(InvalidInputs, match="example_inputs holds a nested tensor; give a dense one"):
        surgeon.inspect(Net(), (X, nested))
    with pytest.raises(InvalidInputs, match="batch 0 of calibration is a nested tensor; pad"):
        surgeon.quantize(Net(), [nested], path=tmp_path / "a.onnx")


USES: dict[str, Callable[[nn.Module], Any]] = {
    "shrink": shrink,
    "inspect": lambda model: surgeon.inspect(model, X),
    "sweep": lambda model: surgeon.sweep(model, X),
    "prune_connections": lambda model: surgeon.prune_connections(model, 0.5, example_inputs=X),
    "project": lambda model: surgeon.project(model, ROWS, example_inputs=X),
    "synthesize": lambda model: surgeon.synthesize(model, X, samples=4),
    "export": lambda model: surgeon.export(model, "never.onnx", example_inputs=X),
    "Pruner": lambda model: surgeon.Pruner(model, 0.5, schedule=schedules.one_shot(), example_inputs=X),
    "Plan.apply": lambda model: surgeon.plan(Net(), 0.5, example_inputs=X, align=1).apply(model),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_negative_variance_is_refused_by_name(use: Callable[[nn.Module], Any]) -> None:
    model = Net()
    model.get_buffer("norm.running_var")[3] = -0.5
    with pytest.raises(InvalidModel, match=r"norm\.running_var holds negative variances in 1 of 16 channels.*reset_"):
        use(model)


class Complex(Net):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x.to(torch.complex64)).real))


def test_complex_weights_take_no_data() -> None:
    assert shrink(Complex())(X).shape == (4, 4)
    for use in (lambda model: shrink(model, data=ROWS), USES["project"], USES["synthesize"]):
        with pytest.raises(InvalidModel, match=r"first\.weight is torch\.complex64, and no layer can be fitted"):
            use(Complex())


def test_what_is_made_in_inference_mode_trains(tmp_path: Path) -> None:
    model = Net()
    plan = surgeon.plan(model, 0.5, example_inputs=X, align=1)
    surgeon.save(plan.apply(model), tmp_path)
    with torch.inference_mode():
        made = {
            "module": shrink(model), "graph": shrink(model, form="graph"), "data": shrink(model, data=ROWS * 1),
            "of inference tensors": shrink(Net(), example_inputs=X * 1), "sweep": surgeon.sweep(model, X),
            "apply": plan.apply(model), "project": surgeon.project(model, ROWS, example_inputs=X),
            "recover": surgeon.recover(model, plan.apply(model), plan, ROWS), "load": surgeon.load(tmp_path, model),
            "connections": surgeon.prune_connections(model, 0.5, example_inputs=X),
            "commit": surgeon.Pruner(model, 0.5, schedule=schedules.one_shot(), example_inputs=X, align=1).commit(),
        }
        with pytest.raises(InvalidArgument, match=r"model was made under torch\.inference_mode"):
            surgeon.Masks(Net())
    for name, each in made.items():
        assert not any(tensor.is_inference() for tensor in each.state_dict().values()), name
        each.train()(X).sum().backward()
        assert all(parameter.grad is not None for parameter in each.parameters()), name


def test_threads_are_no_more_than_the_machine_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(arguments, "cpus", lambda: 4)
    more = r"threads=5: give an integer from 1 to 4, no more than this process has CPUs"
    device = surgeon.Profile("another", "x86_64", 1, "1", cpus=8)
    calls: list[Callable[[], object]] = [
        lambda: surgeon.profile(Net(), X, threads=5), lambda: shrink(Net(), budget="latency", align=None, threads=5),
        lambda: surgeon.benchmark(tmp_path / "a", tmp_path / "b", threads=5),
        lambda: surgeon.quantize(Net(), path=tmp_path / "a", threads=5), lambda: surgeon.Profile.here(5),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match=more):
            call()
    with pytest.raises(InvalidArgument, match="threads=9: the machine that was profiled, another, has 8 CPUs"):
        shrink(Net(), budget="latency", align=None, threads=9, device=device)
    assert surgeon.Profile.here(4).cpus == 4


def test_an_iterator_is_read_once_for_all() -> None:
    twice = (name for name in ["first"])
    with pytest.raises(SurgeonError, match="left alone, as asked by ignore"):
        shrink(Net(), ignore=twice, data=ROWS)
    torch.manual_seed(0)
    called: list[int] = []
    surgeon.training.fit(
        nn.Linear(8, 1), [X] * 3, loss=lambda model, batch: model(batch).mean(), epochs=1,
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1),
        callbacks=(each for each in [lambda moment: called.append(moment.step)]),
    )
    assert called == [1, 2, 3]


def test_numpy_s_numbers_are_numbers() -> None:
    model = Net()
    plain = surgeon.plan(model, 0.5, example_inputs=X, align=4, min_width={"*": 4}, seed=3)
    options: dict[str, Any] = {"align": np.int32(4), "min_width": {"*": np.int64(4)}, "seed": np.uint8(3)}
    assert plain == surgeon.plan(model, np.float64(0.5), example_inputs=X, **options)


def test_units_of_no_group_are_refused() -> None:
    groups = surgeon.inspect(Net(), X)
    with pytest.raises(InvalidArgument, match="keep: 99 is not the leaf of a group"):
        surgeon.Plan.of(groups, {99: [0]})
    with pytest.raises(InvalidArgument, match="keep: 0 stands for a list; give a mapping from the leaves"):
        surgeon.Plan.of(groups, {0: [0.5]})  # type: ignore[list-item]


@pytest.mark.parametrize("importance", [max, torch.relu, np.dot], ids=["max", "torch.relu", "numpy.dot"])
def test_a_function_that_can_not_be_called_so_is_told(importance: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"importance: .* can.t be called with .Groups, Group, |expected"):
        shrink(Net(), importance=importance)
