"""What a sweep removed, as a value and as a table."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from surgeon.sparsity.removable import Found


@dataclass(frozen=True)
class SweepReport:
    """What `surgeon.sweep` did.

    `model` is the name of its class. `groups` has an entry for each group of coupled units; `params_before` and
    `params_after` count parameters, `deviation` is the largest relative deviation of an output, in float64, and `form`
    is "module" (the user's own class) or "graph".

    >>> report = SweepReport("Net", "module", (), params_before=100, params_after=80, deviation=0.0)
    >>> report.removed, report.constant, report.unread, report.left
    (0, 0, 0, {})
    >>> json.loads(report.to_json())["params_after"]
    80
    """

    model: str
    form: Literal["module", "graph"]
    groups: tuple[Found, ...]
    params_before: int
    params_after: int
    deviation: float

    @property
    def removed(self) -> int:
        """The number of removed units."""
        return sum(group.size - group.kept for group in self.groups)

    @property
    def constant(self) -> int:
        """The number of removed units without input, which were constant."""
        return sum(group.constant for group in self.groups)

    @property
    def unread(self) -> int:
        """The number of removed units with inputs but without output, which nothing reads."""
        return sum(group.unread for group in self.groups)

    @property
    def left(self) -> dict[str, int]:
        """The number of dead units that were left, by the reason why."""
        return dict(sum((Counter(group.left) for group in self.groups), Counter()))

    def to_json(self) -> str:
        """All fields by their names, and the counts, as JSON."""
        groups = [{**vars(group), "left": dict(group.left)} for group in self.groups]
        totals = {"removed": self.removed, "constant": self.constant, "unread": self.unread, "left": self.left}
        return json.dumps({**vars(self), **totals, "groups": groups}, ensure_ascii=False)

    def __str__(self) -> str:
        head = (
            f"{self.model}: {self.removed} dead units removed ({self.constant} without input, {self.unread} without "
            f"output), parameters {self.params_before:,} → {self.params_after:,}, outputs equal to {self.deviation:.0e}"
        )
        if not self.removed:
            head = f"{self.model}: no unit is dead; this is a copy"
        rows = [g for g in self.groups if g.kept < g.size]
        wide = max((len(g.name) for g in rows), default=0)
        lines = [
            f"{g.name:<{wide}}  {g.size:>5} → {g.kept:<5}  without input {g.constant}, without output {g.unread}"
            for g in rows
        ]
        return "\n".join([head, *lines, *(f"left: {count} ({reason})" for reason, count in self.left.items())])
