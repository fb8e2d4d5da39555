"""Pruning inside the user's own training loop: units are masked gradually, and removed at the end."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from surgeon.allocation.allocate import allocate
from surgeon.allocation.choose import choose
from surgeon.cost.cost import Cost
from surgeon.errors import InvalidArgument, NotEquivalent, WeightsError
from surgeon.frontend.ignore import named
from surgeon.frontend.isolation import undisturbed
from surgeon.frontend.parameters import bare_module_in_place, functions, public
from surgeon.frontend.parameters import importance as criterion
from surgeon.groups.analyze import analyze
from surgeon.groups.weights import check_finite
from surgeon.pipeline.options import BY_CONCERN, Select
from surgeon.pipeline.signatures import Selecting, flat
from surgeon.plans.carried import attach
from surgeon.plans.plan import Plan
from surgeon.scoring import GRADIENT_CRITERIA, Criterion, Gradients, score
from surgeon.support.arguments import BUDGETS, choice, instance, mapping
from surgeon.support.progress import stage
from surgeon.surgery.build import carry_out
from surgeon.training import checkpoint
from surgeon.training.distributed import agreed
from surgeon.training.regularizers import Regularizer
from surgeon.training.schedules import SCHEDULE, Schedule, share_at
from surgeon.training.unit_masks import UnitMasks
from surgeon.verification.check import TOLERANCE


@dataclass(frozen=True)
class Decision:
    """What was decided at a step.

    `step` is the number of optimizer steps, `share` the share of the target that was due, `removed` that of the budget
    that is gone, 0 to 1, and `widths` are the units left by group.

    >>> print(Decision(10, share=0.5, removed=0.26, widths={"conv1": 48}))
    step 10: 50.0% of the target, 26.0% of the budget gone, 48 units
    """

    step: int
    share: float
    removed: float
    widths: Mapping[str, int]

    def __str__(self) -> str:
        total = sum(self.widths.values())
        return f"step {self.step}: {self.share:.1%} of the target, {self.removed:.1%} of the budget gone, {total} units"


@public(
    **BY_CONCERN | {"budget": choice(*BUDGETS), "importance": criterion}, model=bare_module_in_place, schedule=SCHEDULE,
    optimizer=instance(torch.optim.Optimizer, "a torch.optim.Optimizer"),
    regularizer=functions("functions as in surgeon.training.regularizers", 1), state=mapping("what state_dict() gave"),
)
class Pruner:
    """Masks units of `model` while the user trains it, and removes them at the end.

    The training loop stays the user's own: call `regularize` after `loss.backward()` and `step` after
    `optimizer.step()`, or let `attach` do both. Whenever the schedule rises, the units are scored, widths are
    allocated, and the least important units are masked, see `UnitMasks`; they stay masked. With several processes
    (`torch.distributed`) scores are averaged, so that all processes mask the same units.

    Args:
        model: any module that `torch.export` can trace; its weights are masked in place. Of one that is wrapped for
            several devices or compiled, `commit` makes a bare one.
        target: the share of the budget to remove in the end, at least 0 and less than 1.
        schedule: a function from the step, 0 before training, to the share of the target that is due: one of
            `surgeon.schedules`, or the user's own.
        importance: the name of a criterion of `surgeon.scoring`; "taylor", "fisher" or "gradient", which use the
            gradients since the last decision; or a function.
        example_inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs; inferred where that is
            safe.
        budget: "macs", "params" or "channels".
        scope, ignore, min_width, align, seed: as for `surgeon.shrink`; `align` and `min_width` are widths in units.
        regularizer: one of `surgeon.training.regularizers`, or several.

    Raises:
        InvalidArgument, InvalidInputs, InvalidModel: bad input.
        TraceError: `torch.export` can't trace the model.
        NothingToPrune, Infeasible: the target can't be met.

    >>> from surgeon import schedules
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> pruner = Pruner(model, 0.5, schedule=schedules.steps(1, 5, 3), importance="taylor", align=1,
    ...                 example_inputs=torch.randn(1, 8))
    >>> for _ in range(6):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(16, 8)).square().mean().backward()
    ...     pruner.regularize()
    ...     optimizer.step()
    ...     _ = pruner.step()
    >>> print(*pruner.history, sep="\\n")
    step 1: 33.3% of the target, 18.8% of the budget gone, 26 units
    step 3: 66.7% of the target, 34.4% of the budget gone, 21 units
    step 5: 100.0% of the target, 50.0% of the budget gone, 16 units
    >>> pruner.commit()[0]
    Linear(in_features=8, out_features=16, bias=True)
    >>> pruner.steps, pruner.done, pruner.notes, len(pruner.plan.tensor("0.weight")[0])
    (6, True, (), 16)

    In a loop of somebody else's, the optimizer calls it; and it is resumed from what `save` wrote:

    >>> import tempfile
    >>> pruner.release()                                       # the model is whole again
    >>> pruner = Pruner(model, 0.5, schedule=schedules.one_shot(2), align=1, example_inputs=torch.randn(1, 8))
    >>> handles = pruner.attach(optimizer)
    >>> for _ in range(2):
    ...     model(torch.randn(16, 8)).square().mean().backward()
    ...     optimizer.step()
    >>> again = Pruner(model, 0.5, schedule=schedules.one_shot(2), align=1, example_inputs=torch.randn(1, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pruner.save(folder)
    ...     again.load(folder)
    >>> again.steps, again.done
    (2, True)
    >>> again.load_state_dict(pruner.state_dict())             # the same, in memory
    """

    @undisturbed()
    @flat(Select, but=("importance",))
    def __init__(
        self,
        model: nn.Module,
        target: float,
        *,
        schedule: Schedule,
        importance: str | Criterion = "magnitude",
        example_inputs: Any = None,
        budget: str = "macs",
        regularizer: Regularizer | Iterable[Regularizer] | None = None,
        **options: Unpack[Selecting],
    ) -> None:
        self.target, self.schedule = target, schedule
        first = share_at(schedule, 0)
        observing = isinstance(importance, str) and importance in GRADIENT_CRITERIA
        if observing and first > 0:
            raise InvalidArgument(
                f"importance={importance!r} is made of gradients, of which there are none at step 0: let the schedule "
                "start at step 1 or later"
            )
        self.regularizers: tuple[Regularizer, ...] = regularizer or ()  # type: ignore[assignment]
        select = Select(importance=importance, **options)
        self.model, self.importance, self.seed = model, importance, select.seed
        self.groups = analyze(model, example_inputs, select.ignore)
        check_finite(self.groups.graph)
        self.cost = Cost(self.groups)
        self._gradients = Gradients(self.groups) if observing else None
        self._options: dict[str, Any] = {
            "budget": budget, "scope": select.scope, "align": select.align, "min_width": select.min_width,
        }
        self._settings = {"budget": budget, **select.settings(), "ignore": named(model, select.ignore)}
        if not observing:
            score(self.groups, importance, self.seed)  # an unknown criterion fails before anything is trained
        uniform = {group.leaf.id: np.ones(group.size) for group in self.groups}
        allocate(self.groups, uniform, self.cost, ratio=self.target, **self._options)  # so does an infeasible target
        self._masks = UnitMasks(model, self.groups)
        self._count, self._share = 0, 0.0
        self._kept: dict[int, tuple[int, ...]] = {}
        self._observed = False
        self._history: list[Decision] = []
        if first > 0:
            self._decide(first)

    @property
    def history(self) -> tuple[Decision, ...]:
        """The decisions so far."""
        return tuple(self._history)

    @property
    def notes(self) -> tuple[str, ...]:
        """Operators in which the masked model differs from what `commit` will make of it, see `UnitMasks`."""
        return self._masks.notes

    @property
    def steps(self) -> int:
        """The number of calls of `step`."""
        return self._count

    @property
    def done(self) -> bool:
        """Whether the whole target is masked."""
        return self._share == 1.0

    @property
    def plan(self) -> Plan:
        """The plan that `commit` would carry out now."""
        settings = {"ratio": self.target, "share": self._share, "schedule": self.schedule, **self._settings}
        return Plan.of(self.groups, self._kept, settings, model=self.model)

    def regularize(self) -> None:
        """Observe the gradients, then add those of the penalties; call it after `loss.backward()` and any unscaling.

        Raises:
            InvalidArgument: the importance needs gradients, and there are none.
        """
        self._observe()
        for regularizer in self.regularizers:
            regularizer(self.groups)

    def step(self) -> Decision | None:
        """Count the step, mask what is due and keep masked units at zero; call it after `optimizer.step()`.

        It must come before the gradients are zeroed. Returns the decision, if one was due.

        Raises:
            InvalidArgument: the importance needs gradients and there were none; or the schedule does not give a share.
        """
        if not self._observed:
            self._observe()
        self._observed = False
        self._count += 1
        share = share_at(self.schedule, self._count)
        if share > self._share:
            return self._decide(share)
        self._masks.enforce()
        return None

    def attach(self, optimizer: torch.optim.Optimizer) -> tuple[RemovableHandle, RemovableHandle]:
        """Let `optimizer.step()` call `regularize` before and `step` after, so that the loop needs no other change.

        The handles' `remove()` undoes it.

        Raises:
            InvalidArgument: `optimizer` is not a torch.optim.Optimizer.
        """
        before = optimizer.register_step_pre_hook(lambda *_: self.regularize())
        return before, optimizer.register_step_post_hook(lambda *_: self._stepped())

    @undisturbed()
    def commit(self, form: str = "auto") -> nn.Module:
        """The masked model physically without its masked units, proved equal to it; it carries its plan.

        The masked model is left as it is, and may be trained further.

        Args:
            form: "module" or "graph" insists on the user's own class, or on a `torch.fx.GraphModule`.

        Raises:
            InvalidArgument: there is no such form.
            InvalidInputs: the masked model does not run on the example inputs any more.
            SurgeryError: the form is "module", and the class can't hold the plan; the message says why.
            NotEquivalent: the result does not compute what the masked model does; please report the network.
        """
        operation, _ = carry_out(self._masks.bare(), self.groups, self._kept, form)
        if not self.notes:
            with stage("verify"):
                deviation = self._masks.deviation(operation.module)
            if not deviation <= TOLERANCE:
                raise NotEquivalent(
                    f"the smaller {type(self.model).__name__} deviates from the masked one by {deviation:.1e} "
                    f"(relative), more than {TOLERANCE:.0e}; please report this network"
                )
        attach(operation.module, self.plan, self.model)
        return operation.module

    def release(self) -> None:
        """Restore every masked unit to its values from before it was masked, and remove all hooks from the model."""
        self._masks.release()

    def state_dict(self) -> dict[str, Any]:
        """All that a pruner with the same arguments needs to continue: plain values and tensors."""
        return {
            "step": self._count,
            "share": self._share,
            "observed": self._observed,
            "masks": self._masks.state_dict(),
            "gradients": self._gradients.state_dict() if self._gradients is not None else {},
            "history": [[d.step, d.share, d.removed, dict(d.widths)] for d in self._history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another pruner stopped; the model's own `load_state_dict` may be called before or after.

        `state` is what its `state_dict` gave.

        Raises:
            InvalidArgument: it is not a mapping.
            WeightsError: the state is of another model, or not of a pruner.
        """
        try:
            count, share, observed = int(state["step"]), float(state["share"]), bool(state["observed"])
            history = [Decision(int(s), float(p), float(r), dict(w)) for s, p, r, w in state["history"]]
            masks, gradients = state["masks"], state["gradients"]
            if self._gradients is not None:
                self._gradients.load_state_dict(gradients)
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"this is not the state of such a pruner: {error}") from error
        self._masks.load_state_dict(masks)
        self._kept = dict(self._masks.keep)
        self._count, self._share, self._observed, self._history = count, share, observed, history

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the state to `folder`, as JSON and safetensors; see `surgeon.training.checkpoint`.

        Raises:
            InvalidArgument: `folder` is not a path.
            OutputError: the folder can't be written; a state that was there is intact.
        """
        checkpoint.write(folder, self.state_dict(), self._count)

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Continue from what `save` wrote to `folder`.

        Raises:
            InvalidArgument: `folder` is not a path.
            WeightsError: the folder holds no such state, or it is broken or of another model.
        """
        state = checkpoint.read(folder)
        if state is None:
            raise WeightsError(f"{os.fspath(folder)} holds no state of a pruner; write one with save")
        self.load_state_dict(state)

    def _stepped(self) -> None:
        self.step()

    def _observe(self) -> None:
        self._observed = True
        if self._gradients is not None and not self.done:
            self._gradients.add()

    def _decide(self, share: float) -> Decision:
        with stage("prune"):
            scores = self._scores()
            tops = {leaf: len(kept) for leaf, kept in self._kept.items()}
            widths = allocate(
                self.groups, scores, self.cost, ratio=self.target * share, ceilings=tops, **self._options
            )
            # Masked units get a score of -1, below every other unit's, so that they are never chosen again.
            self._kept = choose(self.groups, self._with_masked(scores, -1.0), widths)
            self._masks.set(self._kept)
        if self._gradients is not None:
            self._gradients.reset()
        self._share = share
        of = self.cost.of(self._options["budget"])
        removed = 1 - of(widths) / of({})
        decision = Decision(self._count, share, removed, {g.name: widths[g.leaf.id] for g in self.groups})
        self._history.append(decision)
        return decision

    def _scores(self) -> dict[int, np.ndarray]:
        """The scores of the units, the same in all processes; 0 for masked units."""
        if self._gradients is not None and isinstance(self.importance, str):
            scores = self._gradients.scores(self.importance)
        else:
            scores = score(self.groups, self.importance, self.seed)
        return self._with_masked(agreed(scores, next(self.model.parameters()).device), 0.0)

    def _with_masked(self, scores: Mapping[int, np.ndarray], value: float) -> dict[int, np.ndarray]:
        found = {leaf: values.copy() for leaf, values in scores.items()}
        for leaf, kept in self._kept.items():
            gone = np.ones(len(found[leaf]), dtype=bool)
            gone[list(kept)] = False
            found[leaf][gone] = value
        return found

