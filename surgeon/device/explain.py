"""Why a model is not faster: which widths took its convolutions out of the NCHWc layout."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal

from surgeon.device.layout import Comparison, Convolution
from surgeon.device.onnx_protobuf import convolution
from surgeon.device.ort_session import optimized_graph

Width = Literal["in_channels", "out_channels", "channels", "in_channels per group", "out_channels per group"]

_NAMED = 3
"""Convolutions that a line names; the others are counted."""
_SIDE = 4
"""Height and width of the probes' inputs: the layout does not depend on them."""


@dataclasses.dataclass(frozen=True)
class BlockingWidth:
    """A width that takes a convolution out of the NCHWc layout, and the nearest ones that would not.

    `above` is None if no width up to the base's would keep it, `below` if no smaller one would.
    """

    width: Width
    size: int
    below: int | None
    above: int | None

    def __str__(self) -> str:
        keeping = " or ".join(str(size) for size in (self.below, self.above) if size is not None)
        return f"{self.width} {self.size}" + (f" ({keeping} would keep it)" if keeping else "")


@dataclasses.dataclass(frozen=True)
class LostBlockedLayout:
    """Convolutions that left the NCHWc layout for the same reason; `names` are those of their weights."""

    names: tuple[str, ...]
    convolution: Convolution
    culprits: tuple[BlockingWidth, ...]

    def __str__(self) -> str:
        named = ", ".join(self.names[:_NAMED])
        more = f" and {len(self.names) - _NAMED} more" if len(self.names) > _NAMED else ""
        each = self.convolution
        groups = f", {each.group} groups" if each.group > 1 else ""
        why = "; ".join(map(str, self.culprits)) or "its widths alone would keep it, the operators around it do not"
        return f"{named}{more} ({each.in_channels} to {each.out_channels} channels{groups}): {why}"


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What of the NCHWc layout the slim model lost.

    `fallen` are convolutions that run in the NCHW layout although the base's are in NCHWc. `added` counts the
    additional reorders of the slim model, and `before` names the operators in front of which tensors leave the
    NCHWc layout more often than in the base.
    """

    fallen: tuple[LostBlockedLayout, ...] = ()
    added: int = 0
    before: tuple[tuple[str, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.fallen) or self.added > 0

    def __str__(self) -> str:
        lines = []
        if count := sum(len(each.names) for each in self.fallen):
            lines.append(f"{count} convolution{_s(count)} left the fast layout:")
            lines += [f"  {each}" for each in self.fallen]
        if self.added > 0:
            places = ", ".join(f"{count} before {operator}" for operator, count in self.before)
            lines.append(f"{self.added} change{_s(self.added)} of layout added{f': {places}' if places else ''}")
        return "\n".join(lines)


def explain(
    comparison: Comparison, base: str | os.PathLike[str], slim: str | os.PathLike[str], threads: int = 1
) -> Explanation:
    """Which convolutions of `slim` left the NCHWc layout of `base`, through which widths; and what is reordered.

    Whether a width is the cause is found by asking onnxruntime about that convolution alone, with the base's other
    widths: no rule about multiples is assumed. `comparison` is that of the two files.

    Raises what `open_session` raises for a file that is missing, not ONNX or can't be run.
    """
    before = {each.name: each for each in comparison.base.convolutions}
    grouped: dict[tuple[Convolution, Convolution], list[str]] = {}
    for each in comparison.fallen:
        key = tuple(dataclasses.replace(one, name="") for one in (each, before[each.name]))
        grouped.setdefault((key[0], key[1]), []).append(each.name)
    fallen = tuple(
        LostBlockedLayout(tuple(names), slim_one, tuple(_blocking_widths(slim_one, base_one, threads)))
        for (slim_one, base_one), names in grouped.items()
    )
    sides = [each.reorders_in + each.reorders_out for each in (comparison.base, comparison.slim)]
    added = max(0, sides[1] - sides[0])
    places: Counter[str] = Counter()
    if added:
        places = _left_before(slim, threads)
        places.subtract(_left_before(base, threads))
    return Explanation(fallen, added, tuple((name, count) for name, count in places.most_common() if count > 0))


def _blocking_widths(slim: Convolution, base: Convolution, threads: int) -> Iterator[BlockingWidth]:
    """The widths of `slim` that lose the layout even if all others are the base's."""
    fits: Callable[[int], bool]
    for width, size, limit, fits in _widths(slim, base, threads):
        if fits(size):
            continue
        below = next((each for each in range(size - 1, 0, -1) if fits(each)), None)
        above = next((each for each in range(size + 1, limit + 1) if fits(each)), None)
        yield BlockingWidth(width, size, below, above)


def _widths(
    slim: Convolution, base: Convolution, threads: int
) -> Iterator[tuple[Width, int, int, Callable[[int], bool]]]:
    """Each width of a convolution: its name, its size, the base's size, and whether it stays blocked at some size."""

    ask = functools.partial(stays_blocked, threads=threads)
    if slim.group == 1:
        yield "in_channels", slim.in_channels, base.in_channels, lambda size: ask(size, base.out_channels, 1)
        yield "out_channels", slim.out_channels, base.out_channels, lambda size: ask(base.in_channels, size, 1)
        return
    into, out = slim.in_channels // slim.group, slim.out_channels // slim.group
    if into == 1:
        yield "channels", slim.in_channels, base.in_channels, lambda size: ask(size, size * out, size)
        return
    most_into, most_out, group = base.in_channels // base.group, base.out_channels // base.group, slim.group
    yield "in_channels per group", into, most_into, lambda size: ask(size * group, most_out * group, group)
    yield "out_channels per group", out, most_out, lambda size: ask(most_into * group, size * group, group)


@functools.lru_cache(maxsize=4096)
def stays_blocked(in_channels: int, out_channels: int, group: int = 1, threads: int = 1) -> bool:
    """Whether onnxruntime runs a convolution of these widths, alone, in the NCHWc layout on this CPU."""
    return optimized_graph(convolution(in_channels, out_channels, group, _SIDE), threads).blocked


def _left_before(path: str | os.PathLike[str], threads: int) -> Counter[str]:
    """How often tensors leave the NCHWc layout in front of each kind of operator."""
    graph = optimized_graph(path, threads)
    readers = [graph.readers.get(node.outputs[0]) for node in graph.nodes if node.is_blocked("ReorderOutput")]
    return Counter(each[0].op_type if each else "the output" for each in readers)


def _s(count: int) -> str:
    return "s" if count > 1 else ""
