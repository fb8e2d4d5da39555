"""Compensation: what was removed is taken over by what is left, exactly where that is possible."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from surgeon.calibration.moments import Moments
from surgeon.errors import InvalidArgument, PlanError
from surgeon.frontend.trace import trace
from surgeon.groups.coupling import Groups, couple
from surgeon.plans.plan import Plan
from surgeon.recovery import Recovery, recover


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.one, self.two = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.head = nn.Conv2d(8, 5, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        return self.head(x + self.two(F.relu(self.one(x))))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(10, 5, 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x).relu(), self.b(x)], 1))


class Attention(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.norm, self.embed = nn.LayerNorm(8), nn.Linear(3, 8)
        self.qkv, self.proj = nn.Linear(8, 3 * 4 * 5), nn.Linear(20, 8, bias=bias)
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(self.norm(x)).reshape(-1, 7, 3, 4, 5).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 7, 20)
        return self.head(x + self.proj(y))


class Written(nn.Module):
    """Products with parameters in other words than nn.Linear's."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.up = nn.Linear(3, 8)
        shape = {"einsum": (8, 2, 5), "transposed": (10, 8)}.get(how, (8, 10))
        self.weight, self.bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(x))
        match self.how:
            case "addmm":
                return torch.addmm(self.bias, x, self.weight)
            case "matmul":
                return x @ self.weight + self.bias
            case "transposed":
                return x @ self.weight.t() + self.bias
            case "sliced":
                return torch.cat([F.linear(x, self.weight.t()[:4], self.bias[:4]), x @ self.weight[:, 4:]], 1)
            case _:
                return torch.einsum("bi,ijk->bjk", x, self.weight)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(2, 3, 8)), nn.Parameter(torch.randn(2, 8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(F.relu(torch.bmm(x.transpose(0, 1), self.up)), self.down)


def images() -> Tensor:
    return torch.randn(64, 3, 8, 8, dtype=torch.float64)


def rows() -> Tensor:
    return torch.randn(256, 3, dtype=torch.float64)


def tokens() -> Tensor:
    return torch.randn(64, 7, 3, dtype=torch.float64)


# What is cut, on which inputs: one group after the other loses the second half of its units, twins of the first half.
NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)), rows),
    "no bias": (lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4, bias=False)), rows),
    "conv": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 1, 2, 2)), images),
    "flatten": (lambda: nn.Sequential(nn.Conv2d(3, 4, 7), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)), images),
    "batch norm after": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4)), images
    ),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2)), images),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        ),
        images,
    ),
    "volumes": (
        lambda: nn.Sequential(nn.Unflatten(3, (4, 2)), nn.Conv3d(3, 6, 2), nn.ReLU(), nn.Conv3d(6, 4, (2, 1, 1))),
        images,
    ),
    "signals": (lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 6, 5, 3), nn.ReLU(), nn.Conv1d(6, 4, 3)), images),
    "residual": (Residual, images),
    "concat": (Concat, images),
    "attention": (Attention, tokens),
    "attention, no bias": (lambda: Attention(bias=False), tokens),
    "addmm": (lambda: Written("addmm"), rows),
    "matmul": (lambda: Written("matmul"), rows),
    "transposed": (lambda: Written("transposed"), rows),
    "sliced": (lambda: Written("sliced"), rows),
    "einsum": (lambda: Written("einsum"), rows),
    "experts": (Experts, lambda: torch.randn(128, 2, 3, dtype=torch.float64)),
}


def halved(net: nn.Module, x: Tensor, twins: bool = True) -> tuple[Groups, list[dict[int, range]]]:
    """The groups of `net`, and a choice for each: the first half. With `twins` the second half writes the same."""
    groups = couple(trace(net, x[:2]))
    for group in groups if twins else ():
        half = group.size // 2
        for member in group.members:
            tensor = groups.graph.tensor(member.tensor)
            # Of a matrix the second axis reads, but for these, which are multiplied from the other side.
            if tensor.dim() > 1 and member.axis != (2 if member.tensor == "up" else 0):
                continue
            for units in groups.space.units(groups.tensors[member.tensor][member.axis], group.leaf):
                places = torch.as_tensor(units)
                for unit in range(half):
                    twin = tensor.detach().index_select(member.axis, (places == unit).nonzero().flatten())
                    with torch.no_grad():
                        tensor.index_copy_(member.axis, (places == unit + half).nonzero().flatten(), twin)
    # What a query is multiplied by is a key, not a parameter that could make up for it.
    return groups, [{group.leaf.id: range(group.size // 2)} for group in groups if group.size % 2 == 0]


def randomised(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    return net.double().eval()


def restores(name: str, form: str) -> None:
    build, draw = NETWORKS[name]
    net, x = randomised(build()), draw()
    groups, choices = halved(net, x)
    assert choices
    for keep in choices:
        plan = Plan.of(groups, keep, model=net)
        slim = plan.apply(net, x[:2], form=form)
        recovered, report = recover(net, slim, plan, x, ridge=1e-10, return_report=True)
        assert isinstance(recovered, fx.GraphModule) is isinstance(slim, fx.GraphModule)
        wanted = net(x)
        assert (slim(x) - wanted).abs().max() > 1e-2
        torch.testing.assert_close(recovered(x), wanted, rtol=1e-6, atol=1e-6)
        assert report.after < 1e-6 < report.before


@pytest.mark.parametrize("name", NETWORKS)
def test_what_the_rest_can_take_over_is_restored(name: str) -> None:
    restores(name, "auto")


@pytest.mark.parametrize("name", ["batch norm after", "residual"])
def test_graphs_are_restored(name: str) -> None:
    restores(name, "graph")


def test_constants_go_into_the_bias() -> None:
    first = nn.Linear(3, 6)
    net = nn.Sequential(first, nn.ReLU(), nn.Linear(6, 4)).double()
    with torch.no_grad():
        first.weight[3:] = 0
        first.bias[3:] = torch.tensor([1.0, 2.0, 3.0])
    x = rows()
    groups = couple(trace(net, x))
    plan = Plan.of(groups, {groups.groups[0].leaf.id: range(3)}, model=net)
    slim = plan.apply(net, x)
    recovered = recover(net, slim, plan, x)
    torch.testing.assert_close(recovered(x), net(x))
    # The bias alone had to change.
    torch.testing.assert_close(recovered.state_dict()["2.weight"], slim.state_dict()["2.weight"])


def test_a_layer_that_does_not_get_better_keeps_its_weights() -> None:
    # Removed units that are independent of the kept ones: all that 14 samples can tell of them is noise.
    first = nn.Linear(40, 40, bias=False)
    net = nn.Sequential(first, nn.Linear(40, 4, bias=False))
    with torch.no_grad():
        first.weight.copy_(torch.eye(40))
    x = torch.randn(16, 40)
    groups = couple(trace(net, x))
    plan = Plan.of(groups, {groups.groups[0].leaf.id: range(12)}, model=net)
    slim = plan.apply(net, x)
    recovered, report = recover(net, slim, plan, x, ridge=0, return_report=True)
    assert [(layer.change, layer.kept) for layer in report.layers] == [("nothing", False)]
    assert report.layers[0].before == report.layers[0].after
    assert same(recovered, slim)
    assert "nothing" in str(report)


@pytest.mark.parametrize("seed", range(3))
def test_no_layer_and_no_output_gets_worse(seed: int) -> None:
    torch.manual_seed(seed)
    net = randomised(Residual())
    groups, choices = halved(net, images(), twins=False)
    keep = {leaf: units for choice in choices for leaf, units in choice.items()}
    plan = Plan.of(groups, keep, model=net)
    _, report = recover(net, plan.apply(net, images()), plan, images(), return_report=True)
    assert all(layer.after <= layer.before for layer in report.layers)
    assert report.after <= report.before


def residual(seed: int = 0) -> tuple[nn.Module, nn.Module, Plan]:
    torch.manual_seed(seed)
    net = randomised(Residual())
    groups, choices = halved(net, images(), twins=False)
    plan = Plan.of(groups, choices[0], model=net)
    return net, plan.apply(net, images()), plan


def same(a: nn.Module, b: nn.Module) -> bool:
    b_state = b.state_dict()
    return all(torch.equal(value, b_state[name]) for name, value in a.state_dict().items())


def test_neither_model_is_touched_and_modes_stay() -> None:
    net, slim, plan = residual()
    slim.train()
    slim.get_submodule("bn").eval()
    before = copy.deepcopy(net), copy.deepcopy(slim)
    recovered = recover(net, slim, plan, images())
    assert same(net, before[0]) and same(slim, before[1]) and not same(recovered, slim)
    assert recovered.training and recovered.get_submodule("one").training and not recovered.get_submodule("bn").training
    assert not {id(p) for p in recovered.parameters()} & {id(p) for p in slim.parameters()}


def test_nothing_cut_is_nothing_changed() -> None:
    net = randomised(Residual())
    plan = Plan.of(couple(trace(net, images()[:2])), {}, model=net)
    assert same(recover(net, copy.deepcopy(net), plan, images()), net)


def test_parts_can_be_switched_off() -> None:
    net, slim, plan = residual()
    parameters = {name for name, _ in slim.named_parameters()}

    def changed(**switches: bool) -> set[str]:
        state = recover(net, slim, plan, images(), **switches).state_dict()
        return {name for name, value in slim.state_dict().items() if not torch.equal(value, state[name])}

    assert changed(compensate=False, batch_norm=False) == set()
    assert not changed(compensate=False) & parameters
    assert changed(batch_norm=False) <= parameters and changed(batch_norm=False)


def test_batch_norm_alone_gets_back_scale_and_shift() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)).eval()
    groups = couple(trace(net, torch.randn(2, 3, 5, 5)))
    plan = Plan.of(groups, {groups.groups[0].leaf.id: range(6)}, model=net)
    x = torch.randn(64, 3, 5, 5)
    recovered = recover(net, plan.apply(net), plan, x, compensate=False)
    for statistic in (torch.mean, torch.std):
        torch.testing.assert_close(
            statistic(recovered(x), (0, 2, 3)), statistic(net(x), (0, 2, 3)), rtol=1e-4, atol=1e-4
        )


def test_half_precision_stays_half() -> None:
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    groups = couple(trace(net.bfloat16(), x := torch.randn(64, 6).bfloat16()))
    plan = Plan.of(groups, {groups.groups[0].leaf.id: range(10)}, model=net)
    recovered, report = recover(net, plan.apply(net, x), plan, x, return_report=True)
    assert recovered[2].weight.dtype == torch.bfloat16
    assert report.after < report.before


def test_a_layer_that_is_used_twice_is_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(F.relu(self.up(self.down(F.relu(self.up(x))))))

    net, x = Twice(), torch.randn(64, 3)
    groups = couple(trace(net, x))
    plan = Plan.of(groups, {groups.groups[0].leaf.id: range(4)}, model=net)
    slim = plan.apply(net, x)
    recovered, report = recover(net, slim, plan, x, return_report=True)
    assert report.layers == () and same(recovered, slim)


def test_wrong_arguments_are_told() -> None:
    net, slim, plan = residual()
    with pytest.raises(InvalidArgument, match="ridge=-1"):
        recover(net, slim, plan, images(), ridge=-1)
    with pytest.raises(InvalidArgument, match="samples=0"):
        recover(net, slim, plan, images(), samples=0)
    with pytest.raises(PlanError, match="another architecture"):
        recover(nn.Linear(2, 2), slim, plan, images())
    with pytest.raises(PlanError, match=r"has shape \(8, 3, 3, 3\) in slim, where the plan leaves \(4, 3, 3, 3\)"):
        recover(net, net, plan, images())


def test_the_report_prints_a_line_a_layer() -> None:
    net, slim, plan = residual()
    _, report = recover(net, slim, plan, images(), return_report=True)
    assert isinstance(report, Recovery)
    text = str(report)
    assert "64 samples" in text and "conv2d in head" in text and "1 batch norms" in text


def test_few_rows_do_not_promise_what_they_cannot_keep() -> None:
    """Of 60 rows, any output can be made up from 50 inputs that have nothing to do with it; on other rows it fails."""
    generator = torch.Generator().manual_seed(0)
    rows, others = torch.randn(1, 60, 100, generator=generator), torch.randn(1, 2000, 100, generator=generator)
    matrix = torch.randn(1, 100, 3, generator=generator)
    moments = Moments()
    moments.add(rows[:, :, :50], rows @ matrix)
    fitted, shift = moments.solve(matrix[:, :50], ridge=1e-2)
    wanted = (others @ matrix).double()
    least = float((others[:, :, 50:] @ matrix[:, 50:]).square().mean())
    found = float((others[:, :, :50].double() @ fitted + shift - wanted).square().mean())
    assert found < 2.5 * least  # 4.3 times with the same ridge as for many rows
