"""Plans: from units to cuts and back, on disk, and every way in which a file can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from surgeon.allocation.choose import choose
from surgeon.errors import InvalidInputs, OutputError, PlanError
from surgeon.frontend.input_spec import describe
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import Groups, couple
from surgeon.ir.fingerprint import fingerprint
from surgeon.plans.cuts import Cut
from surgeon.plans.plan import Plan
from surgeon.scoring import score


class Net(nn.Module):
    """A residual, a depthwise convolution, attention with a fused weight, and a flatten before the last layer."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.bn = nn.BatchNorm2d(12)
        self.expand = nn.Conv2d(12, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.project = nn.Conv2d(hidden, 12, 1)
        self.qkv = nn.Linear(12, 3 * 4 * 5)
        self.proj = nn.Linear(20, 12)
        self.head = nn.Linear(12 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x))
        x = x + self.project(self.depthwise(self.expand(x)))
        n = x.shape[0]
        t = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(t).reshape(n, 4, 3, 4, 5).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        t = t + self.proj(y.transpose(1, 2).reshape(n, 4, 20))
        return self.head(t.transpose(1, 2).flatten(1))


class Tied(nn.Module):
    """A weight with two names, and a module with two."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.first = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8))
        self.again = self.first
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.again(self.first(x) + x) + x)


def grouped(model: nn.Module) -> Groups:
    return couple(trace(model.eval(), torch.randn(2, 3, 2, 2)))


def halves(groups: Groups, seed: int = 0) -> dict[int, tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return {
        group.leaf.id: tuple(sorted(rng.choice(group.size, max(1, group.size // 2), replace=False).tolist()))
        for group in groups
    }


@pytest.fixture(scope="module")
def net() -> tuple[Net, Groups, Plan]:
    model = Net()
    groups = grouped(model)
    return model, groups, Plan.of(groups, halves(groups), {"ratio": 0.5, "importance": "l2"}, model=model)


@pytest.mark.parametrize("seed", range(5))
def test_units_come_back_from_the_cuts(net: tuple[Net, Groups, Plan], seed: int) -> None:
    _, groups, _ = net
    keep = halves(groups, seed)
    assert Plan.of(groups, keep).keep(groups) == keep
    (some, *_) = keep
    assert Plan.of(groups, {some: keep[some]}).keep(groups) == {some: keep[some]}
    assert Plan.of(groups, {}).cuts == ()


def test_cuts_are_where_the_axes_say(net: tuple[Net, Groups, Plan]) -> None:
    _, groups, _ = net
    by_size = {group.size: group.leaf.id for group in groups}
    plan = Plan.of(groups, {by_size[12]: [0, 11], by_size[4]: [1], by_size[5]: [0, 4]})
    assert plan.tensor("stem.weight") == {0: (0, 11)}
    assert plan.tensor("bn.running_var") == {0: (0, 11)}
    assert plan.tensor("qkv.bias") == {0: (5, 9, 25, 29, 45, 49)}
    assert plan.tensor("proj.weight") == {0: (0, 11), 1: (5, 9)}
    assert plan.tensor("head.weight") == {1: (0, 1, 2, 3, 44, 45, 46, 47)}
    assert plan.tensor("head.bias") == {}


def test_tied_tensors_are_cut_under_each_name() -> None:
    model = Tied()
    groups = couple(trace(model, torch.zeros(2, 3, dtype=torch.long)))
    plan = Plan.of(groups, halves(groups), model=model)
    assert plan.tensor("embed.weight") == plan.tensor("head.weight") != {}
    assert plan.tensor("first.0.weight") == plan.tensor("again.0.weight") != {}
    assert {cut.tensor for cut in plan.cuts} == set(dict(model.named_parameters(remove_duplicate=False)))
    assert plan.keep(groups) == halves(groups)
    plan.check(Tied())
    lost = Plan(plan.fingerprint, tuple(cut for cut in plan.cuts if cut.tensor != "head.weight"))
    with pytest.raises(PlanError, match=r"head\.weight axis 1"):
        lost.keep(groups)


def test_a_plan_that_is_read_equals_the_one_that_was_written(net: tuple[Net, Groups, Plan], tmp_path: Path) -> None:
    _, _, plan = net
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["format"] == "surgeon-plan"
    assert written["version"] == 1
    assert written["settings"] == {"ratio": 0.5, "importance": "l2"}
    assert written["inputs"] == {"args": [{"dtype": "float32", "shape": [2, 3, 2, 2]}], "kwargs": {}}
    assert written["cuts"][0].keys() == {"tensor", "axis", "size", "keep"}


def test_a_plan_prints_what_becomes_of_each_tensor(net: tuple[Net, Groups, Plan]) -> None:
    _, _, plan = net
    lines = str(plan).splitlines()
    assert lines[0].endswith("ratio 0.5, importance l2")
    assert any(line.split() == ["depthwise.weight", "axis", "0", "8", "→", "4"] for line in lines)


def test_the_fingerprint_is_of_names_and_shapes() -> None:
    torch.manual_seed(1)
    assert fingerprint(Net()) == fingerprint(Net().double())
    assert fingerprint(Net()) != fingerprint(Net(hidden=9))
    renamed = Net()
    renamed.other = renamed.head
    assert fingerprint(Net()) != fingerprint(renamed)


def test_another_architecture_is_refused(net: tuple[Net, Groups, Plan]) -> None:
    _, groups, plan = net
    plan.check(Net())
    wider = Net(hidden=9)
    with pytest.raises(PlanError, match=r"another architecture: expand\.weight axis 0: 8 → 4, but .*\(9, 12, 1, 1\)"):
        plan.check(wider)
    with pytest.raises(PlanError, match=r"expand\.weight axis 0"):
        plan.keep(grouped(wider))
    with pytest.raises(PlanError, match="has no such tensor"):
        plan.check(nn.Linear(2, 2))
    more = Net()
    more.register_buffer("extra", torch.zeros(1))
    more.head = nn.Linear(12 * 4, 7)  # for other classes
    plan.check(more)
    fewer = Plan(plan.fingerprint, plan.cuts[1:])
    with pytest.raises(PlanError, match=plan.cuts[0].tensor):
        fewer.keep(groups)
    elsewhere = Plan(plan.fingerprint, (*plan.cuts, Cut("head.bias", 0, 3, (0,))))
    with pytest.raises(PlanError, match=r"head\.bias axis 0 of 3.*an output of the model"):
        elsewhere.keep(groups)


@pytest.mark.parametrize("kept", [[], [0, 0], [-1, 0], [99]])
def test_units_that_are_none_are_refused(net: tuple[Net, Groups, Plan], kept: list[int]) -> None:
    _, groups, _ = net
    with pytest.raises(PlanError, match="stem"):
        Plan.of(groups, {groups.groups[0].leaf.id: kept})


def cut(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["cuts"][0].update(changes)


def entry(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.update(changes)


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (entry(format="other"), "not a plan"),
        (without("format"), "not a plan"),
        (entry(version=3), "version 3.*reads up to 2.*update surgeon"),
        (entry(version=0), "version 0"),
        (entry(version="1"), '"version" must be .*, not str'),
        (entry(version=True), '"version" must be .*, not bool'),
        (without("fingerprint"), '"fingerprint" is missing'),
        (entry(fingerprint=7), '"fingerprint" must be .*, not int'),
        (entry(inputs=[]), '"inputs" must be .*, not list'),
        (entry(inputs={"args": []}), '"kwargs" is missing'),
        (entry(settings=None), '"settings" must be .*, not NoneType'),
        (entry(cuts={}), '"cuts" must be .*, not dict'),
        (entry(cuts=[3]), r"cuts\[0\].*int"),
        (cut(keep=[]), "no index is kept"),
        (cut(keep=[1, 0]), "not strictly ascending"),
        (cut(keep=[0, 0]), "repeated"),
        (cut(keep=[0, 12]), "index 12 is out of range for 12"),
        (cut(keep=[-1, 0]), "index -1 is out of range"),
        (cut(keep=[0.5]), "integers only"),
        (cut(keep=[True]), "integers only"),
        (cut(keep="0"), '"keep" must be .*, not str'),
        (cut(tensor=None), r"cuts\[0\]: \"tensor\" must be str"),
        (cut(axis=-1), "no such axis"),
        (cut(size="12"), '"size" must be .*, not str'),
        (lambda data: data["cuts"].append(data["cuts"][0]), "cut twice"),
    ],
)
def test_malformed_plans_are_refused(
    net: tuple[Net, Groups, Plan], tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = tmp_path / "plan.json"
    net[2].save(path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(PlanError, match=message) as caught:
        Plan.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"not JSON", b"[]", b"null", b"\xff\xfe\x00", b"[" * 100_000])
def test_files_that_are_no_plan_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match="not a plan"):
        Plan.load(path)


def test_a_plan_that_was_cut_short_or_is_missing_is_refused(net: tuple[Net, Groups, Plan], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    net[2].save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PlanError, match="cut short"):
        Plan.load(path)
    with pytest.raises(PlanError, match="can't be read"):
        Plan.load(tmp_path / "missing.json")
    with pytest.raises(PlanError, match="can't be read"):
        Plan.load(tmp_path)


def test_an_old_file_survives_what_interrupts_writing(
    net: tuple[Net, Groups, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(OutputError, match="No space left"):
            net[2].save(path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]
    with pytest.raises(OutputError, match="can't be written"):
        net[2].save(tmp_path / "missing" / "plan.json")
    with pytest.raises(OutputError, match="can't be written"):
        net[2].save(path / "plan.json")


def test_inputs_are_rebuilt_as_zeros() -> None:
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    args = (x, [x, 3], (x, None), {"mask": torch.ones(2, dtype=torch.bool)}, "text", 0.5, True)
    plan = Plan("", (), json.loads(json.dumps(describe((args, {"ids": torch.ones(1, dtype=torch.long)})))))
    found, kwargs = plan.example_inputs()
    assert found[0].dtype == torch.bfloat16
    assert found[0].shape == (2, 3)
    assert not found[0].any()
    assert isinstance(found[1], list)
    assert found[1][1] == 3
    assert isinstance(found[2], tuple)
    assert found[2][1] is None
    assert found[3]["mask"].dtype == torch.bool
    assert found[4:] == ("text", 0.5, True)
    assert kwargs["ids"].dtype == torch.long
    with pytest.raises(InvalidInputs, match="slice"):
        Plan("", (), describe(((slice(1),), {}))).example_inputs()


def test_choose_takes_the_best_and_of_equals_the_first(net: tuple[Net, Groups, Plan]) -> None:
    _, groups, _ = net
    group = next(group for group in groups if group.size == 5)
    scores = {g.leaf.id: np.zeros(g.size) for g in groups}
    scores[group.leaf.id] = np.array([1.0, 3.0, 1.0, 1.0, 2.0])
    assert choose(groups, scores, {group.leaf.id: 3}) == {group.leaf.id: (0, 1, 4)}
    assert choose(groups, score(groups), {g.leaf.id: g.size for g in groups}) == {}
