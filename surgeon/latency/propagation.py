"""The steps of a run: which layout each tensor is in, NCHW or NCHWc, and where onnxruntime reorders it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from surgeon.cost.cost import Cost
from surgeon.groups.coupling import Groups
from surgeon.ir.polynomial import Terms
from surgeon.latency.operators import Operator, operators
from surgeon.latency.ort_layout import DECIDED, STANDING, Path, Paths
from surgeon.latency.sample_points import sizes_at
from surgeon.latency.symbolic_sizes import Sizes, source


@dataclass(frozen=True)
class Reorder:
    """A tensor that is reordered to the NCHWc layout, or from it, for an operator."""

    label: str
    shape: tuple[Terms, ...]


@dataclass(frozen=True)
class Step:
    """An operator on the path that it takes, after the reorders for it.

    The last step of a run may have no operator: it reorders the model's results to the NCHW layout.
    """

    operator: Operator | None
    fast: bool
    reorders: tuple[Reorder, ...]


@dataclass(frozen=True)
class Network:
    """The operators of a model in the order in which they run, the values that it returns, and the shapes of tensors
    that can be reordered."""

    operators: tuple[Operator, ...]
    results: tuple[fx.Node, ...]
    shapes: Mapping[fx.Node, tuple[Terms, ...]]

    @classmethod
    def of(cls, groups: Groups, cost: Cost, batch: int = 1) -> Network:
        """The network of a graph, without the views of tensors that are never in the NCHWc layout."""
        every = operators(groups, cost, batch)
        may = {operator.writes for operator in every if operator.kind in (*DECIDED, *STANDING, "concat")}
        found = tuple(o for o in every if o.kind != "view" or o.reads[0] in may)
        results = tuple(source(node) for node in groups.graph.output.all_input_nodes)
        sizes, read = Sizes(groups, cost, batch), {*results, *(read for operator in found for read in operator.reads)}
        return cls(found, results, {node: sizes.of(node) for node in read})

    def steps(self, widths: Mapping[int, int], paths: Paths, ends: Mapping[Operator, bool]) -> Iterator[Step]:
        """The steps at these widths of all leaves.

        `ends` has the operators that can run in the NCHWc layout, and says whether their results are then in it.
        """
        layouts: dict[fx.Node, bool] = {}
        reordered: set[tuple[fx.Node, bool]] = set()

        def reorders(label: str, reads: Sequence[fx.Node], wanted: Sequence[bool]) -> Iterator[Reorder]:
            for read, wants in zip(reads, wanted, strict=True):
                if layouts.get(read, False) != wants and (read, wants) not in reordered:
                    reordered.add((read, wants))
                    yield Reorder(f"layout of {label}", self.shapes[read])

        for operator in self.operators:
            given = [layouts.get(read, False) for read in operator.reads]
            path = Path(False, (False,) * len(given), False)
            result: list[Reorder] = []
            if operator in ends:
                path = paths.of(operator, sizes_at(operator, widths), given)
                if operator.kind in DECIDED and path.fast and not (ends[operator] and all(given[1:])):
                    # The elementwise operators after it run in the NCHW layout, and read their other tensors in it.
                    path = Path(True, (path.reads[0], *(False for _ in path.reads[1:])), False)
                    result = [Reorder(f"layout of {operator.label}", operator.result)] if ends[operator] else []
            yield Step(operator, path.fast, (*reorders(operator.label, operator.reads, path.reads), *result))
            layouts[operator.writes] = path.writes
        if last := tuple(reorders("the result", self.results, [False for _ in self.results])):
            yield Step(None, False, last)
