"""Selection by reconstruction: what the loss of units does once the others make up for it, and widths from that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from surgeon.allocation.choose import choose
from surgeon.allocation.optimal import allocate_by_damage
from surgeon.calibration import fisher
from surgeon.calibration.data import calibrate
from surgeon.calibration.fisher import Sensitivity, backwards, measure
from surgeon.calibration.moments import ENOUGH
from surgeon.cost.cost import Cost
from surgeon.errors import Infeasible, InvalidArgument
from surgeon.frontend.trace import Graph, Inputs, batch_size, trace
from surgeon.groups.coupling import Group, Groups, couple
from surgeon.groups.interpreter import Interpreter
from surgeon.rules import where
from surgeon.scoring.optimal_brain_surgeon import Curve, eliminate, refine
from surgeon.scoring.reconstruction import Selection, reconstruction
from testbed.networks import random_network


def measured(net: nn.Module, x: Tensor) -> tuple[Groups, Sensitivity]:
    groups = couple(trace(net.eval(), x[:2]))
    return groups, measure(groups, calibrate(x, groups.graph, net))


def test_damage_is_the_least_that_a_fit_leaves() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    groups, sensitivity = measured(net, torch.randn(128, 5, dtype=torch.float64))
    curve = eliminate(groups.groups[0], sensitivity)
    (reader,) = sensitivity.readers
    h = reader.moments.covariances()[0][0].numpy()
    h = h + 1e-2 * np.diag(h).mean() * np.eye(6)
    metric = (reader.gradients.products / reader.count * reader.positions)[0].numpy()
    w = net.get_parameter("2.weight").detach().numpy()
    for count in range(1, 6):
        gone, rest = curve.order[:count], np.sort(curve.order[count:])
        # The change of the weights that are left, by the normal equations; those that go are lost whole.
        change = np.zeros_like(w)
        change[:, gone] = -w[:, gone]
        change[:, rest] = w[:, gone] @ h[np.ix_(gone, rest)] @ np.linalg.inv(h[np.ix_(rest, rest)])
        assert curve.damage[count - 1] == pytest.approx(np.trace(metric @ change @ h @ change.T) / 2)


def test_a_unit_that_another_can_stand_in_for_goes_first_and_only_once() -> None:
    first = nn.Linear(5, 6)
    net = nn.Sequential(first, nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        first.weight[4], first.bias[4] = 3 * first.weight[1], 3 * first.bias[1]
    groups, sensitivity = measured(net, torch.randn(256, 5))
    curve = eliminate(groups.groups[0], sensitivity, {reader.layer.node: 1e-6 for reader in sensitivity.readers})
    assert curve.order[0] in (1, 4) and curve.order[1] not in (1, 4)
    assert curve.damage[0] < 1e-3 * curve.damage[1]


class Pooled(nn.Module):
    """Positions that deviate alike, and are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(3, 8), nn.Linear(8, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.down(F.relu(self.up(x)))).mean(1))


def test_damage_is_summed_sample_by_sample() -> None:
    net = Pooled().double()
    x = torch.randn(64, 6, 3, dtype=torch.float64)
    groups, sensitivity = measured(net, x)
    batches = calibrate(x, groups.graph, net).batches
    group = next(group for group in groups if group.size == 8)
    leaf = group.leaf.id
    curve = eliminate(group, sensitivity)
    refined = refine(groups, {leaf: curve}, sensitivity, batches)[leaf]
    (reader,) = (reader for reader in sensitivity.readers if leaf in reader.units)
    mean = reader.moments.means[0][0]
    for width, cut in curve.cuts.items():
        effects = []
        for run in backwards(groups, sensitivity, batches, seed=0):
            rows, slopes = run.input(reader.layer) - mean, run.gradients[reader.layer.node]
            # The gradient of each sample's log-likelihood with regard to the weight, along the change.
            effects += torch.einsum("bpf,bpo,fo->b", rows, slopes, cut.changes[reader.layer.node][0].double()).tolist()
        assert refined.by_width[width - 1] == pytest.approx(np.mean(np.square(effects)) / 2, rel=1e-5)
    assert sorted(curve.cuts) == [2, 4, 6] and (refined.order == curve.order).all()
    assert (np.diff(refined.damage) >= 0).all()


def test_a_large_model_is_run_for_fewer_labels_and_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)), torch.randn(128, 6)
    groups, _ = measured(net, x)
    data = calibrate(x, groups.graph, net)
    batches = data.batches
    asked: list[int] = []

    def likelihoods(outputs: list[Tensor], number: int, generator: torch.Generator) -> Iterator[Tensor]:
        torch.testing.assert_close(outputs[0], net(batches[number][0][0]))  # the labels of this batch
        asked.append(number)
        yield F.log_softmax(outputs[0], 1)[:, 0].sum()

    monkeypatch.setattr(fisher, "OPERATIONS", 0.0)
    sensitivity = fisher.measure(groups, data, likelihoods=likelihoods)
    assert (sensitivity.draws, asked) == (1, [0, 2])
    assert sensitivity.samples == sum(len(batches[place][0][0]) for place in asked)
    assert sensitivity.readers[0].moments.count >= ENOUGH * 10 > sensitivity.samples  # the others have rows too
    curves = {groups.groups[0].leaf.id: eliminate(groups.groups[0], sensitivity)}
    refine(groups, curves, sensitivity, batches, operations=0.0, fewest=64)
    assert asked == [0, 2, 0, 2] and len(batches) == 5


class Stream(nn.Module):
    """A group with readers of every kind, and heads and head size that attention itself reads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.qkv, self.proj = nn.Linear(8, 3 * 2 * 4), nn.Linear(8, 8)
        self.mix, self.head = nn.Conv1d(8, 6, 3, padding=1, groups=2), nn.Linear(6 * 5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(x).reshape(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 5, 8))
        return self.head(self.mix(x.transpose(1, 2)).relu().flatten(1))


def test_every_reader_counts() -> None:
    net = Stream()
    groups, sensitivity = measured(net, torch.randn(64, 5, 3))
    by_name = {reader.layer.weight.name: reader for reader in sensitivity.readers}
    assert set(by_name) == {"qkv.weight", "proj.weight", "mix.weight", "head.weight"}
    # Groups by the first tensor that they are in; every unit has as many inputs as every other.
    for group in groups:
        readers = [reader for reader in sensitivity.readers if group.leaf.id in reader.units]
        loose = [one for one in sensitivity.loose if group.leaf.id in one.energy]
        assert readers or loose
        for reader in readers:
            counts = np.bincount(reader.units[group.leaf.id].flatten() + 1, minlength=group.size + 1)[1:]
            assert (counts == counts[0]).all() and counts[0] > 0
        assert all((one.energy[group.leaf.id] > 0).all() for one in loose)
    flattened = by_name["head.weight"].units
    assert any((units[0, :10] == torch.tensor([0] * 5 + [1] * 5)).all() for units in flattened.values())


def test_curves_rise_and_agree_with_scores() -> None:
    net, x = Stream(), torch.randn(64, 5, 3)
    groups = couple(trace(net, x[:2]))
    found = reconstruction(net, groups, calibrate(x, groups.graph, net))
    for group in groups:
        damage, scores = found.damages[group.leaf.id], found.scores[group.leaf.id]
        assert damage.shape == scores.shape == (group.size,)
        assert damage[-1] == 0 and (np.diff(damage) <= 1e-12).all() and (scores >= 0).all()
        kept = choose(groups, found.scores, {group.leaf.id: group.size - 1})[group.leaf.id]
        assert set(range(group.size)) - set(kept) == {int(scores.argmin())}
    assert choose(groups, found.scores, {group.leaf.id: group.size for group in groups}) == {}
    again = reconstruction(net, groups, calibrate(x, groups.graph, net))
    assert all((again.scores[leaf] == scores).all() for leaf, scores in found.scores.items())


@pytest.mark.parametrize("seed", [0, 2, 7, 21])
def test_any_network_is_judged(seed: int) -> None:
    net, inputs = random_network(seed)
    groups = couple(trace(net, inputs))
    found = reconstruction(net, groups, calibrate([inputs] * 4, groups.graph, net))
    assert set(found.scores) == {group.leaf.id for group in groups}
    assert all(np.isfinite(scores).all() and (scores >= 0).all() for scores in found.scores.values())


def test_the_best_widths_are_found() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    groups = couple(trace(net, torch.zeros(2, 4)))
    cost = Cost(groups)
    a, b = (group.leaf.id for group in groups)
    damages = {a: np.array([9.0, 5, 3, 2, 0.5, 0]), b: np.array([8.0, 7, 3, 1, 0])}
    widths = allocate_by_damage(groups, damages, cost, ratio=0.5)
    assert cost.macs(widths) <= 0.5 * cost.macs({})
    best = min(
        damages[a][i - 1] + damages[b][j - 1]
        for i, j in product(range(1, 7), range(1, 6)) if cost.macs({a: i, b: j}) <= 0.5 * cost.macs({})
    )
    assert damages[a][widths[a] - 1] + damages[b][widths[b] - 1] == best
    stepped = allocate_by_damage(groups, damages, cost, ratio=0.5, steps={a: 3}, min_width={"2": 3})
    assert stepped[a] in (3, 6) and stepped[b] >= 3
    with pytest.raises(Infeasible):
        allocate_by_damage(groups, damages, cost, ratio=0.5, min_width=1.0)
    with pytest.raises(InvalidArgument, match="no group is named"):
        allocate_by_damage(groups, damages, cost, ratio=0.5, min_width={"nothing": 4})


def test_a_selection_keeps_its_scores_to_itself() -> None:
    found = Selection({0: np.array([1.0, 0.0])}, {0: np.array([1.0, 0.0])}, 8)
    assert repr(found) == "Selection(samples=8)"


def test_what_noise_says_of_how_units_covary_is_believed_less_in_each_further_layer() -> None:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(3 if not place else 6, 6, 3), nn.BatchNorm2d(6), nn.ReLU()) for place in range(3)]
    net = nn.Sequential(*blocks, nn.Conv2d(6, 2, 1)).eval()
    for block in blocks:
        block.get_buffer("1.running_mean").normal_()
    seen: dict[str, float] = {}

    def watched(group: Group, sensitivity: Sensitivity, ridges: Mapping[fx.Node, float], ranked: bool) -> Curve:
        seen.update({where(node): ridge for node, ridge in ridges.items()})
        return eliminate(group, sensitivity, ridges, ranked)

    x = torch.randn(2, 3, 12, 12)
    groups = couple(trace(net, x))
    for data, believed in (("noise", [0.2, 0.3, 0.4]), (x, [])):
        seen.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("surgeon.scoring.reconstruction.eliminate", watched)
            reconstruction(net, groups, calibrate(data, groups.graph, net, 8))
        assert sorted(seen.values()) == pytest.approx(believed)


def test_rows_that_are_lacking_are_taken_from_no_more_batches_than_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(512, 4)
    groups = couple(trace(net, x[:2]))
    ran: list[int] = []

    def watched(graph: Graph, *batches: Inputs) -> Interpreter:
        ran.append(sum(map(batch_size, batches)))
        return Interpreter(graph, *batches)

    monkeypatch.setattr(fisher, "Interpreter", watched)
    monkeypatch.setattr(fisher, "OPERATIONS", 0.0)
    data = calibrate(x.split(8), groups.graph, net, 512)
    (reader,) = measure(groups, data, fewest=16).readers
    needed = ENOUGH * 8  # rows, of which each sample has one
    assert needed <= reader.moments.count <= sum(ran) <= 16 + fisher.SPARSE * needed < 512
