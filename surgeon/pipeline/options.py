"""The options of `shrink`, `plan`, `Pruner` and the command line: the name, type, default, check and help of each.

Users pass them as flat keywords. Internally, they are grouped by concern into frozen values that check themselves: how
much to remove (`Target`), inputs (`Data`), which units may be removed (`Select`), how to make up for them (`Repair`)
and how good the model is at its job (`Job`). `Options` holds all of them; `signatures.py` shows them as keywords.

This file does not import torch, since `surgeon --help` reads it.

>>> Options.of(ratio=0.5, min_width=16).settings()
{'ratio': 0.5, 'budget': 'macs', 'scope': 'global', 'min_width': 16, 'seed': 0}
>>> Select(min_width=-1)
Traceback (most recent call last):
    ...
surgeon.errors.InvalidArgument: min_width=-1: give a share from 0.0 to 1.0, or a width as an integer of at least 1
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    ForwardRef,
    NamedTuple,
    Self,
    TypeAlias,
    get_args,
)

from surgeon.errors import InvalidArgument
from surgeon.support import arguments
from surgeon.support.arguments import (
    ABOVE_ZERO,
    BUDGETS,
    NATURAL,
    OBJECT,
    PART,
    POSITIVE,
    SCOPES,
    SHARE,
    Check,
    MinWidth,
    choice,
    flag,
    function,
    path,
    shown,
    threads_here,
)
from surgeon.support.shapes import shapes as weighted_shapes

if TYPE_CHECKING:
    from surgeon.calibration.job import Score
    from surgeon.calibration.labels import Loss
    from surgeon.device.profile import Profile
    from surgeon.frontend.ignore import Ignored
    from surgeon.scoring import Criterion

Device: TypeAlias = "Profile | str | os.PathLike[str] | None"


@dataclass(frozen=True)
class Option:
    """The check and the help of an option; the command line shows the first sentence of `help`.

    Its public name is `name`, by default that of its field.
    """

    check: Check
    help: str
    name: str = ""

    @property
    def summary(self) -> str:
        """The first sentence of the help."""
        return re.split(r"(?<=\.)\s", self.help)[0]


class Keyword(NamedTuple):
    """An option as a keyword: its field, its type (as a string if that needs torch) and its default."""

    field: str
    type: Any
    default: Any
    option: Option


def _by_torch(name: str, value: Any) -> Any:
    """The check of an option whose values need torch."""
    from surgeon.frontend.parameters import PARAMETERS

    return PARAMETERS[name](name, value)


def _device(name: str, value: Any) -> Any:
    """A profile, or the path of its file."""
    if isinstance(value, str | os.PathLike):
        return path(name, value)
    from surgeon.device.profile import Profile

    if not isinstance(value, Profile):
        raise InvalidArgument(f"{name} is a {type(value).__name__}, neither a surgeon.Profile nor the file of one")
    return value


def keywords(*concerns: type["Concern"]) -> dict[str, Keyword]:
    """The options of these concerns by their public names."""
    found = {}
    for each in (each for concern in concerns for each in fields(concern)):  # type: ignore[arg-type]
        kind, option = get_args(each.type)
        kind = kind.__forward_arg__ if isinstance(kind, ForwardRef) else kind
        found[option.name or each.name] = Keyword(each.name, kind, each.default, option)
    return found


class Concern:
    """Options that belong together. Values other than the defaults are checked on creation, and made plain."""

    def __post_init__(self) -> None:
        for name, each in keywords(type(self)).items():
            value = getattr(self, each.field)
            if value is not each.default:
                object.__setattr__(self, each.field, each.option.check(name, value))

    @classmethod
    def taken_from(cls, given: dict[str, Any]) -> Self:
        """The options of this concern among the keywords `given`, from which they are removed."""
        return cls(**{each.field: given.pop(name) for name, each in keywords(cls).items() if name in given})

    def settings(self) -> dict[str, Any]:
        """The options by name, for the settings of a plan, without those that are not set."""
        found = {name: getattr(self, each.field) for name, each in keywords(type(self)).items()}
        return {name: value for name, value in found.items() if value is not None and value != ()}


@dataclass(frozen=True)
class Target(Concern):
    """How much to remove, or how fast the result must be."""

    ratio: Annotated[float | None, Option(
        SHARE,
        "The share of the budget to remove, at least 0 and less than 1. No less is removed, and at most 2 % of what is "
        "left more, or one step of one group's widths if that is larger.",
    )] = None
    latency_ms: Annotated[float | None, Option(
        ABOVE_ZERO,
        "Instead of a ratio: the milliseconds that the result may take on the device.",
    )] = None
    budget: Annotated[str, Option(
        choice(*BUDGETS, "latency"),
        'What the ratio is a share of: "macs", "params", "channels" or "latency". With "channels", that share of every '
        "group's units is removed. \"latency\" is the time of one run in onnxruntime, of one sample if the batch is "
        "free: widths are chosen by measured times of the operators, the result is measured, and widths are chosen "
        "again until it takes 98 to 100 % of the requested time, or one step of a group's widths less; if none do, "
        "that is an error.",
    )] = "macs"
    device: Annotated[Device, Option(
        _device,
        "For a latency: the profile of the CPU on which the model will run, or its file; by default this CPU is "
        "profiled. For a CPU other than this one, the latency is only predicted, not measured.",
    )] = None
    threads: Annotated[int | None, Option(
        POSITIVE,
        "For a latency: onnxruntime's threads; default: the profile's, or onnxruntime's own, one a physical core. At "
        "most as many as that CPU has. With several, milliseconds are those on the wall, with threads that spin while "
        "they wait, as onnxruntime has it by default; with one, its CPU time.",
    )] = None
    cpu_time: Annotated[bool, Option(
        flag,
        "For a latency with several threads: the CPU time of all together, not the time on the wall.",
    )] = False
    shapes: Annotated[Any, Option(
        weighted_shapes,
        "For a latency: the shape of a run's inputs, like `(8, 3, 224, 224)`, or shapes with weights, like "
        "`[((1, 3, 224, 224), 0.8), ((1, 3, 320, 320), 0.2)]`; of several inputs a shape is a dict by name. "
        "Milliseconds are those of a whole run, of its whole batch, and of several shapes the mean by their weights. "
        "Without, a run is one sample of the shape of example_inputs.",
    )] = ()
    max_params: Annotated[float | None, Option(
        ABOVE_ZERO,
        "For a latency: the maximum number of parameters of the result.",
    )] = None

    def settings(self) -> dict[str, Any]:
        found = super().settings()
        if self.shapes:
            found["shapes"] = {str(each): each.weight for each in self.shapes}
        return {name: value for name, value in found.items() if value is not False}

    @property
    def timed(self) -> bool:
        """Whether the budget is a latency."""
        return self.budget == "latency" or self.latency_ms is not None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latency_ms is not None:
            if self.ratio is not None:
                raise InvalidArgument(f"ratio={self.ratio!r} and latency_ms={self.latency_ms!r}: give one of them")
            if self.budget not in ("macs", "latency"):
                raise InvalidArgument(
                    f"latency_ms={self.latency_ms!r} is a budget of its own; leave budget={self.budget!r} out"
                )
        if self.timed:
            if self.device is None and self.threads is not None:
                threads_here("threads", self.threads)
            return
        for name in ("device", "threads", "cpu_time", "shapes", "max_params"):
            if (value := getattr(self, name)) not in (None, False, ()):
                raise InvalidArgument(
                    f'{name}={shown(value)} is for a latency; ask for budget="latency" or latency_ms='
                )


@dataclass(frozen=True)
class Data(Concern):
    """Inputs for choosing units and fitting layers."""

    source: Annotated[Any, Option(
        _by_torch,
        "Unlabeled inputs, as for inference: a tensor, an iterable of batches such as a DataLoader, a .npy, .npz or "
        ".safetensors file or a folder of them, or for models of timm and torchvision a folder of pictures; read once. "
        "Of a batch, the first entries are the inputs, or of a dict those by their names; the rest, such as labels, is "
        "for the loss. What an attention_mask hides does not count. "
        "With them, the units that the others reconstruct best are removed, widths are chosen by the effect on the "
        "model's output, and the remaining layers are fitted to make up for the loss, without labels or training. "
        "Without any, the same is done on a little noise, of which batch norms take the statistics, in seconds; where "
        'that can\'t be done, the report says why. "noise" takes as many `samples` of it as are given, "synthetic" '
        "inputs generated from the model, as `surgeon.synthesize` does, in minutes.",
        name="data",
    )] = None
    samples: Annotated[int, Option(POSITIVE, "The maximum number of samples of the data to use.")] = 256
    memory: Annotated[float | None, Option(
        PART,
        "The share of the machine's memory that work with data may take beside the model, such as 0.25. By default an "
        "eighth, and at most 2 GiB. With less, the first layers are fitted on fewer of the samples.",
    )] = None
    loss: Annotated["Loss | None", Option(
        function(
            "a function of the model's output and the rest of each batch, such as torch.nn.functional.cross_entropy"
        ),
        "A function of the model's output and of what each batch of the data holds beside the inputs that returns a "
        'scalar. An example is `loss(output, labels)`. "reconstruction" then weights errors by the gradients of this '
        'loss, instead of sampled labels; the criteria "taylor", "fisher" and "gradient" are made of these gradients.',
    )] = None


@dataclass(frozen=True)
class Select(Concern):
    """Which units may be removed, and what ranks them."""

    importance: Annotated["str | Criterion | None", Option(
        _by_torch,
        'What ranks units, by default "reconstruction", on the data or on noise, and "magnitude" where there is '
        "neither. The name of a criterion, or a function like those in `surgeon.scoring`.",
    )] = None
    scope: Annotated[str, Option(
        choice(*SCOPES),
        'Which groups are compared with each other: "global" for all, "local" for none, "isomorphic" for those of the '
        'same structure. "local" removes the same share of each group, "isomorphic" of each structure.',
    )] = "global"
    ignore: Annotated["Ignored | Iterable[Ignored]", Option(
        _by_torch,
        "What to leave alone: module names, globs, modules or parameters.",
    )] = ()
    min_width: Annotated[MinWidth, Option(
        arguments.min_width,
        "The least that is left of a group: a width (16) or a share (0.25), for all groups or by globs of their "
        "names.",
    )] = None
    align: Annotated[int | None, Option(
        POSITIVE,
        "Widths are multiples of this; 1 switches it off. By default 16 for groups at least 32 wide, less for narrower "
        "ones, and less if the budget can't be met otherwise, which the report mentions.",
    )] = None
    seed: Annotated[int, Option(NATURAL, "The seed of criteria that use random numbers.")] = 0


@dataclass(frozen=True)
class Repair(Concern):
    """How data are used to prepare a model for the cut, and to make up for it."""

    project: Annotated[bool, Option(
        flag,
        "Rotate linear streams and attention heads before the cut. As `surgeon.project` does, so that directions are "
        "removed instead of units, if data or noise guide the selection. The rotated model computes the "
        "same; the certificate, and the plan attached to the result, are then of that model.",
    )] = True
    compensate: Annotated[bool, Option(
        flag,
        "Fit layers to make up for the cut, to the data, or to noise if there are none. Without it, and without data, "
        "units are ranked by their weights, and nothing else is done. The certificate is always that of the cut alone.",
    )] = True
    distill: Annotated[bool, Option(
        flag,
        "With data: then fine-tune the fitted layers together by distillation. See `surgeon.recover`.",
    )] = True
    min_agreement: Annotated[float | None, Option(
        PART,
        "Instead of a ratio: the smallest model is returned that keeps so much of the function on held-back inputs. "
        "That is the share that get the same class, or else the mean cosine of outputs; on noise it is only a guess.",
    )] = None


@dataclass(frozen=True)
class Job(Concern):
    """How good the model is at what it is for, as the user's own function tells it."""

    metric: Annotated["Score | None", Option(
        function(
            "a function of a batch of the data and of the list of the model's outputs for it, both in arrays, that "
            "gives a number", 2,
        ),
        "How good the model is at its job: a function of feeds and outputs that gives a number, the higher the better. "
        "The feeds are a batch as the data yield it, labels and all, in arrays; the outputs a list of arrays. It is "
        "called with any number of samples at once, and evaluated before and after, with intervals of 95 %.",
    )] = None
    metric_data: Annotated[Any, Option(
        _by_torch,
        "What the metric is evaluated on, all of it, in the forms of data. By default that is what data hold beyond "
        "`samples`, or all of them where that is not much, which the report says.",
    )] = None
    min_metric: Annotated[float | None, Option(
        PART,
        "Instead of a ratio: the smallest model is returned that keeps this share of the original's metric, such as "
        '0.99. With budget="latency" it is the fastest.',
    )] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("metric_data", "min_metric"):
            if self.metric is None and getattr(self, name) is not None:
                raise InvalidArgument(f"{name} is of a metric; pass metric=, a function of feeds and outputs")


@dataclass(frozen=True)
class Options:
    """All options of one run, by concern; combinations of options from several concerns are checked here."""

    target: Target
    data: Data = Data()
    select: Select = Select()
    repair: Repair = Repair()
    job: Job = Job()

    @classmethod
    def of(cls, **given: Any) -> "Options":
        """The options from flat keywords.

        Raises:
            InvalidArgument: a value is invalid, or two options can't be combined.
        """
        made = cls(
            Target.taken_from(given), Data.taken_from(given), Select.taken_from(given), Repair.taken_from(given),
            Job.taken_from(given),
        )
        if given:
            raise TypeError(f"there is no option {next(iter(given))!r}")
        return made

    def __post_init__(self) -> None:
        target = self.target
        given = {"min_agreement": self.repair.min_agreement, "min_metric": self.job.min_metric}
        asked = [f"{name}={least!r}" for name, least in given.items() if least is not None]
        if target.latency_ms is None and target.ratio is None and not asked:
            raise InvalidArgument("give the ratio to remove, latency_ms, min_agreement, or min_metric")
        if asked and (target.latency_ms is not None or target.ratio is not None or len(asked) > 1):
            others = "" if len(asked) == 1 else " and min_agreement"
            raise InvalidArgument(f"{asked[-1]} is a target of its own; leave ratio, latency_ms{others} out")
        if self.target.timed and (align := self.select.align) is not None:
            raise InvalidArgument(
                f"align={align!r}: for a latency, the device decides which widths are fast; leave align= out"
            )
        if self.target.timed and (scope := self.select.scope) != "global":
            raise InvalidArgument(
                f"scope={scope!r}: for a latency, all groups are compared with each other; leave scope= out"
            )

    def of_ratio(self, target: Target) -> "Options":
        """The same for a target with a ratio, in place of one that bisects ratios."""
        return replace(
            self, target=target, repair=replace(self.repair, min_agreement=None),
            job=replace(self.job, min_metric=None),
        )

    def settings(self) -> dict[str, Any]:
        """The options that determine a plan, by name, without those that are not set and without the data."""
        samples = {} if self.data.source is None else {"samples": self.data.samples}
        return self.target.settings() | samples | self.select.settings()


CONCERNS: Final = (Target, Data, Select, Repair, Job)
#: The checks for `public` on a `flat` function, whose options are checked when their concerns are created.
BY_CONCERN: Final = dict.fromkeys(keywords(*CONCERNS), OBJECT)
