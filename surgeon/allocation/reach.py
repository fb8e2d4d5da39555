"""How much of a budget can be removed under the user's options, and the error for asking more."""

from __future__ import annotations

from collections.abc import Mapping

from surgeon.allocation.limits import allowed, floors, held_up
from surgeon.cost.alignment import FINENESS, NARROW, Alignment
from surgeon.cost.cost import Cost
from surgeon.cost.target import Target, percent, rounded_down
from surgeon.errors import Infeasible
from surgeon.groups.coupling import Groups
from surgeon.support.arguments import MinWidth

_LISTED = 6


def lowest(
    alignment: Alignment, align: int | None, min_width: MinWidth, tops: Mapping[int, int] | None = None
) -> dict[int, int]:
    """The least width of each leaf that `align` and `min_width` allow; where `align` is None, at any width."""
    held, steps = floors(alignment.groups, min_width), alignment.steps(align, FINENESS[-1])
    full = {group.leaf.id: group.size for group in alignment.groups}
    return {leaf: allowed((tops or full)[leaf], steps[leaf], held.get(leaf, 1))[0] for leaf in full}


def check_reach(
    target: Target, alignment: Alignment, align: int | None, min_width: MinWidth, tops: Mapping[int, int]
) -> None:
    """Check that a budget can be met: costs fall with every width, so it must be met at the least widths.

    Raises:
        Infeasible: not even the least widths remove what is asked; the message says what the nearest budgets are.
    """
    least = lowest(alignment, align, min_width, tops)
    if target.whole and target.unused(least) >= 0:
        return
    cost, budget = target.cost, target.budget
    reachable = target.removed(least)
    if not target.whole:
        raise Infeasible(
            f"removing {percent(target.ratio)} of the {budget} is out of reach: the model has no {budget}. "
            "Remedy: choose another budget.", reachable=0.0,
        )
    lines = [f"  {line}" for line in cost.explain(budget, least, _LISTED)]
    lines += held_up(alignment.groups, floors(alignment.groups, min_width))
    freed = {
        "align=1": target.removed(lowest(alignment, 1, min_width, tops)),
        "no min_width=": target.removed(lowest(alignment, align, None, tops)),
    }
    more = [f"{name} allows {rounded_down(share)}" for name, share in freed.items() if share > reachable + 1e-9]
    remedy = ", ".join(["lower the ratio", *more, "or relax ignore="])
    raise Infeasible(
        f"removing {percent(target.ratio)} of the {budget} is out of reach: at most {percent(reachable)} can go, with "
        f"every group at its least width. What holds the rest:\n"
        + "\n".join(lines)
        + f"\nThe nearest ratio that can be met is {rounded_down(reachable)}; none above it can. Remedy: {remedy}.",
        reachable=reachable,
    )


def off_default(alignment: Alignment, widths: Mapping[int, int]) -> dict[str, int]:
    """The default step, by name, of the groups whose widths are not multiples of it."""
    found = {}
    for group in alignment.groups:
        width, step = widths.get(group.leaf.id, group.size), alignment.step(group, None, NARROW)
        if width < group.size and width % step:
            found[group.name] = step
    return found


def outlook(
    groups: Groups, cost: Cost, widths: Mapping[int, int], *, budget: str, ratio: float, align: int | None,
    min_width: MinWidth,
) -> tuple[float, dict[str, int]]:
    """The share of the budget that can be removed at most, and the groups with widths between the default's steps."""
    alignment, target = Alignment(groups, cost), Target(cost, budget, ratio)
    possible = target.removed(lowest(alignment, align, min_width))
    return possible, off_default(alignment, widths) if align is None else {}
