"""Whether every budget is met or refused, and whether what is refused can't be met.

    python -m benchmarks.budgets

Each network is asked to lose each ratio of its MACs, of its parameters and of its channels, in every scope. Met means
that what is left is at most what the ratio leaves, and less by 2 % of it at most, or that no group can take one more
unit. Small networks are held against all combinations of widths, large ones against the solver's cheapest. The table
goes to `benchmarks/results/budgets.md`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import models
from surgeon.allocation.allocate import allocate
from surgeon.cost.cost import Cost
from surgeon.errors import Infeasible
from surgeon.groups.analyze import analyze
from surgeon.groups.coupling import Groups
from surgeon.scoring.registry import score_groups
from surgeon.solver.factors import polynomial_factors
from surgeon.solver.solve import cheapest
from surgeon.support.arguments import BUDGETS, SCOPES
from testbed import zoo

RESULTS = Path(__file__).parent / "results" / "budgets.md"
RATIOS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.97, 0.98, 0.99, 0.9999)
FEW = 3_000_000
"""All combinations of widths are looked at where there are no more than this."""

_CLOSE = 0.02
_ROUNDING = 1e-8


class Shortcut(nn.Module):
    """A stem, and a block that is added to what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 32, 3, padding=1), nn.Conv2d(32, 24, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) to (N, 10)."""
        x = self.stem(x).relu()
        return self.head((x + self.b(self.a(x).relu())).mean((2, 3)))


class Attention(nn.Module):
    """Patches, one block of attention with four heads of eight and a perceptron, and a head: a tiny ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 32, 4, 4), nn.LayerNorm(32)
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 16, 16) to (N, 10)."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).reshape(x.shape[0], 16, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], 16, 32)
        x = x + self.proj(y)
        return self.head((x + self.down(self.up(x).relu())).mean(1))


class Recurrent(nn.Module):
    """An LSTM and a perceptron on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.up, self.head = nn.LSTM(6, 20, batch_first=True), nn.Linear(20, 30), nn.Linear(30, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 7, 6) to (N, 4)."""
        return self.head(self.up(self.lstm(x)[0][:, -1]).relu())


def _perceptron(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _convolutions(*layers: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def _zoo(name: str) -> tuple[nn.Module, Tensor]:
    model, inputs = zoo.load("torchvision", name)
    assert isinstance(inputs, tuple)
    return model, inputs[0]


Built = tuple[nn.Module, Tensor]
NETWORKS: dict[str, Callable[[], Built]] = {
    "perceptron": lambda: (_perceptron(16, 64, 48, 32, 10), torch.randn(2, 16)),
    "narrow perceptron": lambda: (_perceptron(5, 3, 2, 1, 6, 2), torch.randn(2, 5)),
    "convolutions": lambda: (
        _convolutions(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), width=32),
        torch.randn(2, 3, 12, 12),
    ),
    "shortcut": lambda: (Shortcut(), torch.randn(2, 3, 8, 8)),
    "depthwise": lambda: (
        _convolutions(
            nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 40, 1),
            nn.Conv2d(40, 40, 3, groups=40), nn.Conv2d(40, 24, 1), width=24,
        ),
        torch.randn(2, 3, 12, 12),
    ),
    "grouped": lambda: (
        _convolutions(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 64, 3, groups=4), nn.Conv2d(64, 20, 1), width=20),
        torch.randn(2, 3, 8, 8),
    ),
    "tiny ViT": lambda: (Attention(), torch.randn(2, 3, 16, 16)),
    "LSTM": lambda: (Recurrent(), torch.randn(2, 7, 6)),
    "models.residual": lambda: (models.load("residual"), torch.randn(2, 1, 28, 28)),
    "models.depthwise": lambda: (models.load("depthwise"), torch.randn(2, 1, 28, 28)),
    "models.transformer": lambda: (models.load("transformer"), torch.randn(2, 1, 28, 28)),
    "wide perceptron": lambda: (_perceptron(784, 1024, 512, 256, 10), torch.randn(2, 784)),
    "resnet18": partial(_zoo, "resnet18"),
    "mobilenet_v2": partial(_zoo, "mobilenet_v2"),
}


@dataclass
class Row:
    """What came of the ratios of one network, budget and scope."""

    network: str
    budget: str
    scope: str
    possible: float
    proof: str
    close: int = 0
    stepped: int = 0
    refused: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unused: float = 0.0
    seconds: float = 0.0


def least_left(cost: Cost, budget: str) -> tuple[float, str]:
    """The least that any widths leave of a budget, and how that is known."""
    leaves = list(cost.sizes)
    combinations = math.prod(cost.sizes.values())
    if combinations <= FEW:
        axes = dict(zip(leaves, np.ix_(*(np.arange(1, size + 1) for size in cost.sizes.values())), strict=True))
        total = np.zeros(tuple(cost.sizes.values()))
        for share in cost.shares(budget):
            for monomial, factor in share.terms.items():
                total = total + factor * math.prod((axes[leaf] for leaf in monomial), start=np.ones(1))
        return float(total.min()), f"all {combinations:,}"
    widths = {leaf: sorted({1, *range(8, size, 8), size})[:16] for leaf, size in cost.sizes.items()}
    factors = [each for share in cost.shares(budget) for each in polynomial_factors(share.terms, share.label)]
    return cost.of(budget)(cheapest(widths, factors)), "bound"


def least_step(cost: Cost, budget: str, widths: Mapping[int, int]) -> float:
    """What one more unit of one group costs, of that group where it costs least but not nothing."""
    of = cost.of(budget)
    steps = (of({**widths, leaf: width + 1}) - of(widths) for leaf, width in widths.items() if width < cost.sizes[leaf])
    return min((step for step in steps if step > 0), default=0.0)


def measure(name: str, groups: Groups, cost: Cost, scores: Mapping[int, np.ndarray], budget: str, scope: str) -> Row:
    """All ratios of one network, budget and scope."""
    whole, (least, proof) = cost.of(budget)({}), least_left(cost, budget)
    row = Row(name, budget, scope, 1 - least / whole, proof)
    started = time.perf_counter()
    for ratio in RATIOS:
        limit = (1 - ratio) * whole
        try:
            widths = allocate(groups, scores, cost, budget=budget, ratio=ratio, scope=scope)
        except Infeasible as error:
            row.refused.append(ratio)
            nearest = float(str(error).partition("ratio that can be met is ")[2].partition(";")[0])
            if least <= limit or not row.possible - 0.011 * (1 - row.possible) - 1e-4 <= nearest <= row.possible:
                row.wrong.append(f"{ratio}: refused, nearest {nearest}")
            elif nearest > 0:
                allocate(groups, scores, cost, budget=budget, ratio=nearest, scope=scope)
            continue
        left = cost.of(budget)(widths)
        if left > limit * (1 + _ROUNDING):
            row.wrong.append(f"{ratio}: {left / limit:.4f} of the limit")
        elif left >= (1 - _CLOSE) * limit:
            row.close += 1
        elif limit - left < least_step(cost, budget, widths):
            row.stepped += 1
        else:
            row.wrong.append(f"{ratio}: {left / limit:.4f} of the limit, and a group could take one more unit")
        row.unused = max(row.unused, 1 - left / limit)
    row.seconds = time.perf_counter() - started
    return row


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        f"Each row is one network, budget and scope at the ratios {', '.join(f'{ratio:g}' for ratio in RATIOS)}. "
        "Possible: what can go at most, by all combinations of widths, or by the solver's cheapest widths. Within 2 %: "
        "of what is to be left. By a step: no group can take one more unit. Refused: with a nearest ratio, "
        "which was then asked for and met. Wrong: neither met nor rightly refused. Unused: the most that was left "
        "unused of what the ratio leaves.",
        "",
        "| network | budget | scope | possible | by | within 2 % | by a step | refused | wrong | unused | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        refused = ", ".join(f"{ratio:g}" for ratio in row.refused) or "none"
        wrong = "; ".join(row.wrong) or "none"
        lines.append(
            f"| {row.network} | {row.budget} | {row.scope} | {row.possible:.4%} | {row.proof} | {row.close} | "
            f"{row.stepped} | {refused} | {wrong} | {row.unused:.1%} | {row.seconds:.1f} |"
        )
    count = sum(len(row.wrong) for row in rows)
    total = len(rows) * len(RATIOS)
    lines += ["", f"**{count} of {total} budgets were neither met nor rightly refused.**"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command."""
    rows = []
    for name, build in NETWORKS.items():
        torch.manual_seed(0)
        model, inputs = build()
        groups = analyze(model.eval(), inputs, ())
        cost, scores = Cost(groups), score_groups(model, groups, "magnitude", None, None, 0)
        for budget in BUDGETS:
            for scope in SCOPES if budget != "channels" else SCOPES[:1]:
                rows.append(measure(name, groups, cost, scores, budget, scope))
                sys.stdout.write(f"{rows[-1]}\n")
                sys.stdout.flush()
    RESULTS.write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
