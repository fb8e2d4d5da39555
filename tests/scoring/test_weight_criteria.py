"""Criteria against numbers worked out by hand, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import InvalidArgument, InvalidModel
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import Group, Groups, couple
from surgeon.scoring import CRITERIA, check_finite, register, score


class Residual(nn.Module):
    """Two convolutions whose outputs are added, with a batch norm on one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.a(x))
        return self.head((x + self.b(x)).mean((2, 3)))


class Attention(nn.Module):
    """Four heads of eight, from one fused weight."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 96)
        self.proj = nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.proj(y.transpose(1, 2).reshape(n, length, 32)))


def grouped(model: nn.Module, *shape: int) -> Groups:
    return couple(trace(model.eval(), torch.randn(*shape)))


def residual() -> tuple[Residual, Groups]:
    model = Residual()
    return model, grouped(model, 2, 3, 8, 8)


def only(values: dict[int, np.ndarray]) -> np.ndarray:
    (found,) = values.values()
    return found


def test_magnitude_is_the_mean_of_relative_squares_over_members() -> None:
    model, groups = residual()
    with torch.no_grad():
        model.bn.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 0.0]))

    def squares(tensor: Tensor | None, axis: int) -> Tensor:
        assert tensor is not None
        rows = tensor.detach().double().movedim(axis, 0).reshape(4, -1)
        return rows.square().sum(1)

    parts = [
        squares(model.a.weight, 0),
        squares(model.a.bias, 0),
        squares(model.bn.weight, 0),
        squares(model.b.weight, 0),
        squares(model.b.weight, 1),
        squares(model.head.weight, 1),
    ]  # the batch norm's bias is zero throughout and says nothing
    expected = torch.stack([part / part.mean() for part in parts]).mean(0)
    np.testing.assert_allclose(only(score(groups, "magnitude")), expected, rtol=1e-5)


def test_l1_and_l2_take_all_members_together() -> None:
    model, groups = residual()
    names = dict(model.named_parameters())
    rows = [names[name] for name in ("a.weight", "a.bias", "bn.weight", "bn.bias", "b.weight")]
    columns = [model.b.weight, model.head.weight]
    slices = [[t.detach()[i].double() for t in rows] + [t.detach()[:, i].double() for t in columns] for i in range(4)]
    l1 = [sum(float(part.abs().sum()) for part in unit) for unit in slices]
    l2 = [sum(float(part.square().sum()) for part in unit) ** 0.5 for unit in slices]
    np.testing.assert_allclose(only(score(groups, "l1")), l1, rtol=1e-5)
    np.testing.assert_allclose(only(score(groups, "l2")), l2, rtol=1e-5)


def test_bn_scale_reads_the_batch_norm_and_falls_back_to_magnitude() -> None:
    model, groups = residual()
    with torch.no_grad():
        model.bn.weight.copy_(torch.tensor([0.5, -2.0, 0.0, 1.0]))
    assert only(score(groups, "bn_scale")).tolist() == [0.5, 2.0, 0.0, 1.0]
    plain = grouped(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), 2, 3)
    np.testing.assert_array_equal(only(score(plain, "bn_scale")), only(score(plain, "magnitude")))


def test_fpgm_ranks_the_filter_nearest_to_all_others_last() -> None:
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]]))  # type: ignore[operator]
    values = only(score(grouped(net, 2, 2), "fpgm"))
    np.testing.assert_allclose(values, np.array([6.0, 5.0, 9.0]) / (20 / 3), rtol=1e-6)


def test_lamp_divides_by_what_is_no_smaller() -> None:
    net = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[2.0], [1.0], [3.0]]))  # type: ignore[operator]
        net[1].weight.zero_()  # type: ignore[operator]
    np.testing.assert_allclose(only(score(grouped(net, 2, 1), "lamp")), [4 / 13, 1 / 14, 1.0])


@pytest.mark.parametrize("name", list(CRITERIA))
def test_heads_and_head_sizes_get_a_score_each(name: str) -> None:
    groups = grouped(Attention(), 2, 5, 16)
    values = score(groups, name)
    assert {group.size for group in groups} == {4, 8}
    for group in groups:
        assert values[group.leaf.id].shape == (group.size,)
        assert values[group.leaf.id].min() >= 0


def test_a_zero_head_scores_zero() -> None:
    model = Attention()
    with torch.no_grad():
        model.qkv.weight.view(3, 4, 8, 16)[:, 2] = 0
        model.qkv.bias.view(3, 4, 8)[:, 2] = 0
        model.proj.weight.view(16, 4, 8)[:, 2] = 0
    groups = grouped(model, 2, 5, 16)
    heads = next(group for group in groups if group.size == 4)
    for name in ("magnitude", "l1", "l2", "lamp"):
        values = score(groups, name)[heads.leaf.id]
        assert values[2] == 0
        assert np.delete(values, 2).min() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_reduced_in_float32(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(64, 8, bias=False), nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(100.0)  # type: ignore[operator]  # the sum of squares is 640,000, beyond float16
    groups = couple(trace(model.to(dtype).eval(), torch.zeros(2, 64, dtype=dtype)))
    assert np.isfinite(only(score(groups, "l2"))).all()
    assert only(score(groups, "l2")).min() >= 800


def test_random_depends_on_the_seed_only() -> None:
    _, groups = residual()
    assert only(score(groups, "random", seed=3)).tolist() == only(score(groups, "random", seed=3)).tolist()
    assert only(score(groups, "random", seed=3)).tolist() != only(score(groups, "random", seed=4)).tolist()


def test_scores_follow_weights_that_change_in_place() -> None:
    model, groups = residual()
    before = only(score(groups, "l2"))
    with torch.no_grad():
        model.a.weight.mul_(10)
    assert (only(score(groups, "l2")) > before).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], r"shape \(4,\).*got \(1,\)"),
        ([1.0, float("nan"), 1.0, 1.0], "unit 1 is not finite"),
        ([1.0, 1.0, -0.5, 1.0], r"unit 2 is negative \(-0.5\)"),
        ("none", "expected 4 numbers"),
    ],
)
def test_scores_that_are_none_are_refused(values: object, message: str) -> None:
    _, groups = residual()

    def worth(groups: Groups, group: Group, rng: np.random.Generator) -> object:
        return values

    with pytest.raises(InvalidArgument, match=f"(?s)criterion worth, group .*{message}"):
        score(groups, worth)  # type: ignore[arg-type]


def test_unknown_criteria_and_taken_names_are_refused() -> None:
    _, groups = residual()
    with pytest.raises(InvalidArgument, match="magnitude, l1, l2"):
        score(groups, "taylor")
    with pytest.raises(InvalidArgument, match="function"):
        score(groups, 3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="'l1' already"):
        register("l1")(CRITERIA["l2"])


def test_nan_is_named_and_a_mask_of_infinities_is_not_refused() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(self.fc(x) + self.mask, -1)

    model = Masked()
    graph = trace(model, torch.zeros(4, 4))
    check_finite(graph)
    with torch.no_grad():
        model.fc.weight[1, 2] = torch.inf
    with pytest.raises(InvalidModel, match=r"fc\.weight \(4, 4\) holds NaN or infinity in 1 of 16"):
        check_finite(graph)
    with torch.no_grad():
        model.fc.weight.zero_()
        model.mask[0, 0] = torch.nan  # type: ignore[operator]
    with pytest.raises(InvalidModel, match=r"mask \(4, 4\) holds NaN in 1"):
        check_finite(graph)
