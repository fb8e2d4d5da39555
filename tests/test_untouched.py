"""What a user hands in, and the process around it, are afterwards what they were, in success and in failure."""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import surgeon
from surgeon.errors import InvalidModel, SurgeonError
from testbed.networks import random_network
from testbed.snapshot import Snapshot

for name in surgeon.__all__:
    getattr(surgeon, name)  # what is imported along sets the process up, as of warnings, the first time

Run = Callable[[Any, Tensor], Any]
Made = tuple[nn.Module, Tensor]


class Net(nn.Module):
    """Two layers, and a forward of its own."""

    def __init__(self, run: Run, **more: Any) -> None:
        super().__init__()
        self.run = run
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 4)
        for name, value in more.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def rows() -> Tensor:
    return torch.randn(2, 8)


def plain(m: Any, x: Tensor) -> Tensor:
    return m.b(F.relu(m.a(x)))


def writes(m: Any, x: Tensor) -> Tensor:
    """Into all that it holds."""
    m.times += 1
    m.calls += 1
    m.last = x
    m.cache["rows"]["count"] += len(x)
    m.cache["seen"].append(1)
    m.scale.data += 1
    m.a.weight.data.clamp_(-0.1, 0.1)
    return plain(m, x)


def holding(run: Run) -> Net:
    cache = {"rows": {"count": 0}, "seen": []}
    return Net(run, times=torch.tensor(0), calls=0, cache=cache, scale=nn.Parameter(torch.zeros(3)))


def branches(m: Any, x: Tensor) -> Tensor:
    return writes(m, x) if x.sum() > -1e9 else x


def fails(m: Any, x: Tensor) -> Tensor:
    writes(m, x)
    draws(m, x)
    raise RuntimeError("half way")


def interrupted(m: Any, x: Tensor) -> Tensor:
    writes(m, x)
    draws(m, x)
    raise KeyboardInterrupt


def draws(m: Any, x: Tensor) -> Tensor:
    return plain(m, x) * (random.random() + float(np.random.rand())) + torch.rand(4)


def switches(m: Any, x: Tensor) -> Tensor:
    warnings.simplefilter("always")
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.use_deterministic_algorithms(True)
    return plain(m, x)


def constant(m: Any, x: Tensor) -> Tensor:
    m.constant.add_(1)
    return plain(m, x)


def with_constant() -> Net:
    model = Net(constant)
    vars(model)["constant"] = torch.zeros(3)
    return model


def batch_statistics(m: Any, x: Tensor) -> Tensor:
    return m.b(F.relu(F.batch_norm(m.a(x), m.mean, m.variance, training=True)))


def mixed_modes() -> Made:
    layers = (nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16),
              nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    model = nn.Sequential(*layers).train()
    model[1].eval()
    return model, torch.randn(2, 3, 8, 8)


def layers(first: nn.Module) -> nn.Module:
    return nn.Sequential(first, nn.ReLU(), nn.Linear(32, 4))


def old_norm(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have others used
        return layers(norm(nn.Linear(8, 32)))


class Recurrent(nn.Module):
    """It remembers its state from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(8, 16, batch_first=True, bidirectional=True), nn.Linear(32, 4)
        self.state: Any = None

    def forward(self, x: Tensor) -> Tensor:
        y, self.state = self.rnn(x)
        return self.out(y)


def remembers(m: Any, x: Tensor) -> Tensor:
    m.last = plain(m, x)
    return m.last


def learnt() -> Net:
    model: Any = Net(remembers)
    model(rows()).sum().backward()
    model.a.bias.requires_grad_(False)
    model.b.weight.grad = None
    model.outputs = [model.last]
    return model


def on_one_storage() -> Net:
    model, flat = Net(plain), torch.randn(8 * 32 + 32)
    model.a.weight, model.a.bias = nn.Parameter(flat[:256].view(32, 8)), nn.Parameter(flat[256:])
    return model


def inferred() -> Made:
    with torch.inference_mode():
        return Net(plain), rows()


def compiled() -> nn.Module:
    model: Any = torch.compile(Net(plain), backend="eager")
    return model


def compiled_in_place() -> Net:
    model = Net(plain)
    model.compile(backend="eager")
    return model


def hooked() -> Net:
    model: Any = Net(plain, seen={})
    enclosed: list[int] = []
    count = 0

    def counts(*_: Any) -> None:
        nonlocal count
        count += 1

    model.a.register_forward_hook(lambda _, inputs, output: model.seen.__setitem__("output", output))
    model.a.register_forward_pre_hook(counts)
    model.a.register_full_backward_hook(lambda _, given, taken: model.seen.__setitem__("gradient", taken))
    model.a.weight.register_hook(lambda gradient: gradient * 2)
    model.b.register_forward_hook(lambda *_: enclosed.append(1))
    model.b.register_state_dict_pre_hook(lambda *_: None)
    return model


def generating() -> Net:
    return Net(lambda m, x: plain(m, x) + torch.rand(4, generator=m.source), source=torch.Generator().manual_seed(3))


def of_nan() -> Net:
    model = Net(plain)
    model.a.weight.data[0, 0] = torch.nan
    return model


KINDS: dict[str, Callable[[], Made]] = {
    "writes": lambda: (holding(writes), rows()),
    "branches": lambda: (holding(branches), rows()),
    "fails": lambda: (holding(fails), rows()),
    "interrupted": lambda: (holding(interrupted), rows()),
    "draws": lambda: (Net(draws), rows()),
    "generator": lambda: (generating(), rows()),
    "switches": lambda: (Net(switches), rows()),
    "constant": lambda: (with_constant(), rows()),
    "batch statistics": lambda: (Net(batch_statistics, mean=torch.zeros(32), variance=torch.ones(32)), rows()),
    "mixed modes": mixed_modes,
    "spectral norm": lambda: (layers(parametrizations.spectral_norm(nn.Linear(8, 32))), rows()),
    "old spectral norm": lambda: (old_norm(torch.nn.utils.spectral_norm), rows()),
    "old weight norm": lambda: (old_norm(torch.nn.utils.weight_norm), rows()),
    "torch's pruning": lambda: (layers(prune.l1_unstructured(nn.Linear(8, 32), "weight", 0.3)), rows()),
    "recurrent": lambda: (Recurrent(), torch.randn(2, 5, 8)),
    "learnt": lambda: (learnt(), rows()),
    "frozen": lambda: (Net(plain).requires_grad_(False).eval(), rows()),
    "one storage": lambda: (on_one_storage(), rows()),
    "inference mode": inferred,
    "compiled": lambda: (compiled(), rows()),
    "compiled in place": lambda: (compiled_in_place(), rows()),
    "data parallel": lambda: (nn.DataParallel(Net(plain)), rows()),
    "hooks": lambda: (hooked(), rows()),
    "lazy": lambda: (nn.Sequential(nn.LazyConv2d(32, 3), nn.Flatten(), nn.LazyLinear(4)), torch.randn(2, 3, 8, 8)),
    "lazy inside": lambda: (nn.Sequential(nn.Conv2d(3, 8, 3), nn.LazyBatchNorm2d()), torch.randn(2, 3, 8, 8)),
    "not a number": lambda: (of_nan(), rows()),
    "half": lambda: (Net(plain).bfloat16(), rows().bfloat16()),
}


def batches(x: Tensor) -> list[Tensor]:
    return [torch.cat([x] * 4) for _ in range(4)]


def labeled(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(batch, torch.zeros(len(batch))) for batch in batches(x)]


def cut(m: nn.Module, x: Tensor) -> tuple[surgeon.Plan, nn.Module]:
    plan = surgeon.plan(m, 0.4, example_inputs=x, align=1)
    return plan, plan.apply(m, x)


Act = Callable[[nn.Module, Tensor, Path], object]


def verifies(m: nn.Module, x: Tensor, _: Path) -> None:
    plan, slim = cut(m, x)
    same(lambda: plan.verify(m, slim, x), slim)


def recovers(m: nn.Module, x: Tensor, _: Path) -> None:
    plan, slim = cut(m, x)
    same(lambda: surgeon.recover(m, slim, plan, batches(x), samples=16, example_inputs=x), slim, m)


def saves(m: nn.Module, x: Tensor, folder: Path) -> None:
    _, slim = cut(m, x)
    same(lambda: surgeon.save(slim, folder / "slim"), slim)
    surgeon.load(folder / "slim", m)


def trains(m: nn.Module, x: Tensor, _: Path) -> None:
    schedule = surgeon.schedules.cubic(1, 5, 1)
    surgeon.Pruner(m, 0.4, schedule=schedule, example_inputs=x, align=1).release()


def loads_shuffled(m: nn.Module, x: Tensor, _: Path) -> None:
    samples: Any = torch.cat(batches(x))
    data: Any = torch.utils.data.DataLoader(samples, batch_size=4, shuffle=True)
    surgeon.plan(m, 0.4, example_inputs=x, align=1, data=data, importance="activation")


#: What is tried with every kind of model.
OFTEN: dict[str, Act] = {
    "inspect": lambda m, x, _: surgeon.inspect(m, x),
    "inspect without inputs": lambda m, x, _: surgeon.inspect(m),
    "shrink": lambda m, x, _: surgeon.shrink(m, 0.4, example_inputs=x, align=1),
    "shrink with labels": lambda m, x, _: surgeon.shrink(
        m, 0.4, example_inputs=x, align=1, data=labeled(x), loss=lambda output, _: output.float().mean(), distill=False
    ),
}
#: What is tried with a few.
SELDOM: dict[str, Act] = {
    "shrink without inputs": lambda m, x, _: surgeon.shrink(m, 0.4),
    "shrink too far": lambda m, x, _: surgeon.shrink(m, 0.9999, example_inputs=x),
    "shrink of other inputs": lambda m, x, _: surgeon.shrink(m, 0.4, example_inputs=x[..., :3]),
    "shrink to a graph": lambda m, x, _: surgeon.shrink(m, 0.4, example_inputs=x, align=1, form="graph"),
    "plan, shuffled": loads_shuffled,
    "export": lambda m, x, folder: surgeon.export(m, folder / "net.onnx", example_inputs=x),
    "export nowhere": lambda m, x, folder: surgeon.export(m, folder / "no" / "net.onnx", example_inputs=x),
    "verify": verifies,
    "recover": recovers,
    "project": lambda m, x, _: surgeon.project(m, batches(x), samples=16, example_inputs=x),
    "synthesize": lambda m, x, _: surgeon.synthesize(m, x, samples=8),
    "sweep": lambda m, x, _: surgeon.sweep(m, x),
    "prune_connections": lambda m, x, _: surgeon.prune_connections(m, 0.5, example_inputs=x),
    "save and load": saves,
    "masks": lambda m, x, _: surgeon.Masks.of_zeros(m, x),
    "pruner": trains,
    "kit": lambda m, x, folder: surgeon.kit(m, folder / "kit.pyz", x),
}
FEW = ("writes", "mixed modes", "batch statistics", "learnt")


def same(act: Callable[[], object], *objects: Any) -> None:
    """`act` leaves everything as it is, whether it succeeds or not."""
    before = Snapshot(*objects)
    try:
        act()
    except (SurgeonError, KeyboardInterrupt):
        pass
    finally:
        differences = before.differences(Snapshot(*objects))
    assert not differences, "\n".join(differences)


@pytest.mark.parametrize("act", OFTEN.values(), ids=OFTEN)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_of_model_is_left_as_it_is(kind: Callable[[], Made], act: Act, tmp_path: Path) -> None:
    model, x = kind()
    same(lambda: act(model, x, tmp_path), model, x)


@pytest.mark.parametrize("act", SELDOM.values(), ids=SELDOM)
@pytest.mark.parametrize("kind", FEW)
def test_every_function_leaves_a_model_as_it_is(kind: str, act: Act, tmp_path: Path) -> None:
    model, x = KINDS[kind]()
    same(lambda: act(model, x, tmp_path), model, x)


@pytest.mark.parametrize("seed", range(6))
def test_random_networks_are_left_as_they_are(seed: int, tmp_path: Path) -> None:
    model, inputs = random_network(seed)
    model.train(seed % 2 == 0)
    same(lambda: surgeon.inspect(model), model, inputs)
    same(lambda: surgeon.shrink(model, 0.3, example_inputs=inputs, align=1), model, inputs)
    same(lambda: surgeon.shrink(model, 0.9999, example_inputs=inputs), model, inputs)


@pytest.mark.parametrize("kind", ["lazy", "lazy inside"])
@pytest.mark.parametrize("act", [*OFTEN.values(), SELDOM["export"]], ids=[*OFTEN, "export"])
def test_a_lazy_model_is_refused_before_it_is_run(kind: str, act: Act, tmp_path: Path) -> None:
    model, x = KINDS[kind]()
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    with pytest.raises(InvalidModel, match="has no shape yet; run the model once"):
        act(model, x, tmp_path)


def test_a_snapshot_sees_what_is_changed() -> None:
    model = hooked()
    before = Snapshot(model)
    assert not before.differences(Snapshot(model))
    state = torch.random.get_rng_state()
    model(rows())
    model.b.weight.data[0, 0] += 1
    model.a.train(False)
    found = "\n".join(before.differences(Snapshot(model)))
    torch.random.set_rng_state(state)
    for part in ("closure", "seen", "['weight'] values", "training", "torch.random"):
        assert part in found


def test_the_first_use_of_a_name_draws_no_random_number() -> None:
    code = "import random, surgeon; random.seed(0); surgeon.shrink; print(random.random())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(found.stdout) == random.Random(0).random()
