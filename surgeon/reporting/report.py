"""The report on a run, as a table and as JSON."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from surgeon.cost.target import percent
from surgeon.groups.coupling import Pinned, without_place
from surgeon.support.arguments import COMMON, checked
from surgeon.support.files import StrPath, write_text

FORMAT = "surgeon-report"
VERSION = 1
ROWS = 16
"""The number of groups in the table; the JSON has them all."""
PINNED = "docs/pinned.md"
"""The page that says of every reason for a pin what to do."""
REASONS = 5
"""The number of reasons for pinning in the table, the most frequent first."""


@dataclass(frozen=True)
class Change:
    """A quantity before and after."""

    before: int
    after: int

    @property
    def removed(self) -> float:
        """The share that was removed, 0 to 1.

        >>> Change(8, 6).removed
        0.25
        """
        return 1 - self.after / self.before if self.before else 0.0


@dataclass(frozen=True)
class Report:
    """What `shrink` did to a model.

    `model` is the name of its class. `form` says whether the result is the user's own class ("module") or a GraphModule
    ("graph"), `form_reason` why. `requested`, `possible` and `reached` are the shares of `budget` that were requested,
    that could be removed at most under the given options (None if unknown), and that were removed, 0 to 1. `macs` are
    the multiply-accumulates of one sample, `params` the numbers of parameters, before and after. `pinned` lists the
    axes that can't be cut, each with the reason. `groups` maps the name of each group of coupled units to its width
    before and after; `unaligned` maps the groups that are not aligned by default, in order to meet the budget, to their
    default alignment. `certificate` is the result of verification, `inputs` says which of their sizes are free and what
    fixes the others, `configuration` what became of the configurations that the model holds, such as Hugging Face's,
    `latency` is the requested and measured latency, `recovery` the layers that were fitted after the cut, `agreement`
    how much of the function is kept, `metric` how good the model is at its job, before and after, `notes` what layers
    were fitted on or why none was, `basis` the groups that were rotated before the cut, `exports` and `benchmark` the
    results of export and benchmark, if they ran. `seconds` is the time of each stage. `command` and `date` say how and
    when it was written, where the command line did it.

    >>> import tempfile
    >>> report = Report("Net", "module", "", "macs", requested=0.5, reached=0.49, macs=Change(100, 51),
    ...                 params=Change(10, 6), groups={"conv1": Change(8, 5)}, possible=0.97)
    >>> print(report)
    Net: 49.0 % of macs removed (50.0 % asked, 97.0 % possible), module
             before  after  removed
    MACs        100     51   49.0 %
    params       10      6   40.0 %
    conv1         8      5   37.5 %
    >>> json.loads(report.to_json())["macs"]
    {'before': 100, 'after': 51}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report.save(f"{folder}/report.json")
    """

    model: str
    form: Literal["module", "graph"]
    form_reason: str
    budget: str
    requested: float
    reached: float
    macs: Change
    params: Change
    groups: Mapping[str, Change]
    possible: float | None = None
    unaligned: Mapping[str, int] = field(default_factory=dict)
    pinned: tuple[Pinned, ...] = ()
    certificate: object = None
    inputs: tuple[str, ...] = ()
    configuration: tuple[str, ...] = ()
    latency: object = None
    recovery: object = None
    agreement: object = None
    metric: object = None
    notes: tuple[str, ...] = ()
    basis: object = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    exports: Mapping[str, object] = field(default_factory=dict)
    benchmark: object = None
    command: str = ""
    date: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self._headline())
        table = Table(box=None, pad_edge=False)
        table.add_column("")
        for name in ("before", "after", "removed"):
            table.add_column(name, justify="right")
        for name, change in (("MACs", self.macs), ("params", self.params)):
            table.add_row(name, *_cells(change))
        changed = {name: change for name, change in self.groups.items() if change.after != change.before}
        for name, change in [*changed.items()][:ROWS]:
            table.add_row(Text(name), *_cells(change))
        yield table
        for line in self._notes(len(changed)):
            yield Text(line)

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=110, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())

    def _repr_html_(self) -> str:
        """The report in a notebook: what was removed, the widths, and the text of all else, folded."""
        rows = [("MACs", self.macs), ("parameters", self.params), *(
            (name, change) for name, change in self.groups.items() if change.after != change.before
        )]
        cells = "".join(
            f"<tr><td>{html.escape(name)}</td>" + "".join(f"<td style='text-align:right'>{cell}</td>" for cell in each)
            + "</tr>"
            for name, change in rows for each in [_cells(change)]
        )
        rest = html.escape("\n".join(self._notes(len(rows) - 2)))
        return (
            f"<b>{html.escape(self._headline())}</b><table><tr><th></th><th>before</th><th>after</th><th>removed</th></tr>"
            f"{cells}</table><details><summary>certificate, pins, stages</summary><pre>{rest}</pre></details>"
        )

    def to_json(self) -> str:
        """The report as JSON text: an object with `format`, `version` and this class's fields."""
        return document(FORMAT, **{each.name: getattr(self, each.name) for each in dataclasses.fields(self)})

    @checked(COMMON)
    def save(self, path: StrPath) -> None:
        """Write `to_json` to `path`, atomically.

        Raises:
            InvalidArgument: `path` is not a path.
            OutputError: `path` can't be written.
        """
        write_text(path, self.to_json() + "\n")

    def _headline(self) -> str:
        why = f" ({self.form_reason})" if self.form_reason else ""
        asked = f"{_percent(self.requested)} asked"
        if self.possible is not None:
            asked += f", {_percent(self.possible)} possible"
        share = f"{_percent(self.reached)} of {self.budget} removed ({asked})"
        return f"{self.model}: {share}, {self.form}{why}"

    def _notes(self, changed: int) -> list[str]:
        lines = []
        if changed > ROWS:
            lines.append(f"and {changed - ROWS} more groups")
        if changed < len(self.groups):
            lines.append(f"not cut: {len(self.groups) - changed} of {len(self.groups)} groups")
        if self.unaligned:
            named = [f"{name} {self.groups[name].after} ({step})" for name, step in self.unaligned.items()]
            more = f" and {len(named) - REASONS} more" if len(named) > REASONS else ""
            lines.append(
                "to meet the budget, widths are not multiples of the default alignment (in parentheses): "
                + ", ".join(named[:REASONS]) + more
            )
        if self.pinned:
            reasons = Counter(without_place(pin.reason) for pin in self.pinned)
            lines.append(f"pinned: {len(self.pinned)} axes (every reason, and what to do: {PINNED})")
            ranked = reasons.most_common()
            lines += [f"  {count:4} {reason}" for reason, count in ranked[:REASONS]]
            if rest := ranked[REASONS:]:
                lines.append(f"  {sum(count for _, count in rest):4} for {len(rest)} other reasons")
        lines += [f"input {line}" for line in self.inputs]
        lines += self.configuration
        parts = [self.latency, self.recovery, self.agreement, self.metric, self.basis, self.certificate]
        parts += [*self.exports.values(), self.benchmark]
        lines += [str(found) for found in parts if found is not None]
        lines += self.notes
        if self.seconds:
            taken = (f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
            lines.append("seconds: " + ", ".join(taken))
        return lines


def _cells(change: Change) -> tuple[str, str, str]:
    return f"{change.before:,}", f"{change.after:,}", _percent(change.removed)


def _percent(share: float) -> str:
    return percent(share, " ")


def document(name: str, **parts: object) -> str:
    """JSON text in the format `name`: an object with `format`, `version` and the parts.

    >>> document("surgeon-recovery", exports={"slim": Path("slim.onnx")}).replace("\\n", "")
    '{ "format": "surgeon-recovery", "version": 1, "exports": {  "slim": "slim.onnx" }}'
    """
    return json.dumps({"format": name, "version": VERSION, **_plain(parts)}, indent=1, allow_nan=False)


def _plain(value: object) -> Any:
    """`value` in JSON's types; objects of other types become strings."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case tuple() | list() | set() | frozenset():
            return [_plain(item) for item in value]
        case Path():
            return str(value)
    if dataclasses.is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    return str(value)
