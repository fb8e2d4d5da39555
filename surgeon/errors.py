"""The errors that surgeon raises. Each message names the place, the shapes and the remedy."""

from __future__ import annotations


class SurgeonError(Exception):
    """Base class of every error that surgeon raises on purpose.

    >>> import surgeon, torch
    >>> try:
    ...     surgeon.shrink(torch.nn.Linear(8, 4), 0.5, example_inputs=torch.randn(1, 8))
    ... except SurgeonError as error:
    ...     print(type(error).__name__)
    NothingToPrune
    """


def first_line(error: BaseException) -> str:
    """What an error says, as one line: others quote it.

    >>> first_line(ValueError("no such size\\nat …")), first_line(KeyError())
    ('no such size', 'KeyError')
    """
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


class InvalidArgument(SurgeonError, ValueError):
    """An argument is out of range, of the wrong type, or names nothing in the model.

    >>> import surgeon, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    >>> surgeon.shrink(net, 50, example_inputs=torch.randn(1, 8))
    Traceback (most recent call last):
        ...
    surgeon.errors.InvalidArgument: ratio=50: give the share of the budget to remove, ...; 50 % are 0.5
    """


class InvalidModel(SurgeonError, ValueError):
    """The model holds something that can't be pruned safely, such as NaN in a weight.

    >>> import surgeon, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    >>> _ = net[0].weight.data.fill_(float("nan"))
    >>> surgeon.shrink(net, 0.5, example_inputs=torch.randn(1, 8))
    Traceback (most recent call last):
        ...
    surgeon.errors.InvalidModel: ...
    """


class TraceError(SurgeonError):
    """`torch.export` could not trace the model with the given example inputs.

    >>> import surgeon, torch
    >>> class Either(torch.nn.Module):
    ...     def forward(self, x):
    ...         return x if x.sum() > 0 else -x                    # which one depends on the values
    >>> surgeon.inspect(Either(), torch.randn(1, 8))
    Traceback (most recent call last):
        ...
    surgeon.errors.TraceError: ...
    """


class InvalidInputs(SurgeonError, ValueError):
    """The example inputs do not fit the model, or could not be inferred.

    >>> import surgeon, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    >>> surgeon.inspect(net, torch.randn(1, 3))
    Traceback (most recent call last):
        ...
    surgeon.errors.InvalidInputs: ...
    """


class NothingToPrune(SurgeonError):
    """Every axis of the model is pinned.

    >>> import surgeon, torch
    >>> surgeon.shrink(torch.nn.Linear(8, 4), 0.5, example_inputs=torch.randn(1, 8))
    Traceback (most recent call last):
        ...
    surgeon.errors.NothingToPrune: ...
    """


class Infeasible(SurgeonError):
    """The budget can't be met; the message says how far pruning could go and what holds the rest.

    `message` names the nearest that can be met; `reachable` is the share of the budget, 0 to 1, that could be removed,
    where it is known.

    >>> import surgeon, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    >>> try:
    ...     surgeon.shrink(net, 0.9, min_width=0.5, example_inputs=torch.randn(1, 8))
    ... except Infeasible as error:
    ...     print(error.reachable)
    0.5
    """

    def __init__(self, message: str, reachable: float | None = None) -> None:
        super().__init__(message)
        self.reachable = reachable


class PlanError(SurgeonError, ValueError):
    """A plan is malformed, of a newer version, or of another architecture.

    >>> import surgeon, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    >>> plan = surgeon.plan(net, 0.5, example_inputs=torch.randn(1, 8))
    >>> plan.apply(torch.nn.Sequential(torch.nn.Linear(8, 16)))
    Traceback (most recent call last):
        ...
    surgeon.errors.PlanError: the plan is of another architecture: ...
    """


class WeightsError(SurgeonError, ValueError):
    """A weights file has missing, extra or misshapen tensors.

    >>> import surgeon, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    >>> slim = surgeon.shrink(net, 0.5, example_inputs=torch.randn(1, 8))
    >>> surgeon.training.rewind(slim, {"0.weight": torch.zeros(3, 8)})
    Traceback (most recent call last):
        ...
    surgeon.errors.WeightsError: ...
    """


class SurgeryError(SurgeonError):
    """The smaller model could not be built; nothing was changed.

    >>> import surgeon, torch
    >>> class Halves(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.first, self.second = torch.nn.Linear(8, 32), torch.nn.Linear(16, 4)
    ...     def forward(self, x):
    ...         return self.second(self.first(x).relu().view(-1, 2, 16).sum(1))
    >>> surgeon.shrink(Halves(), 0.5, example_inputs=torch.randn(1, 8), form="module")
    Traceback (most recent call last):
        ...
    surgeon.errors.SurgeryError: ...
    """


class NotEquivalent(SurgeonError):
    """The smaller model is not the original less the removed units.

    >>> import surgeon, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    >>> plan = surgeon.plan(net, 0.5, example_inputs=torch.randn(1, 8))
    >>> slim = plan.apply(net)
    >>> _ = slim[0].weight.data.mul_(2)
    >>> surgeon.verify(net, slim, plan)
    Traceback (most recent call last):
        ...
    surgeon.errors.NotEquivalent: ...
    """


class ExportError(SurgeonError):
    """The ONNX file could not be written, or does not compute what PyTorch computes.

    >>> import surgeon, tempfile, torch
    >>> net = torch.nn.Linear(64, 64)
    >>> with tempfile.TemporaryDirectory() as folder:              # to be equal to 1e-30, which no float32 can
    ...     surgeon.export(net, f"{folder}/net.onnx", example_inputs=torch.randn(1, 64), tolerance=1e-30)
    Traceback (most recent call last):
        ...
    surgeon.errors.ExportError: ...
    """


class BenchmarkError(SurgeonError):
    """A latency could not be measured.

    >>> import onnx, surgeon, tempfile
    >>> from onnx.helper import make_graph, make_model, make_node, make_tensor_value_info
    >>> x, y = (make_tensor_value_info(name, 1, [1, 8]) for name in "xy")
    >>> graph = make_graph([make_node("Unknown", ["x"], ["y"], domain="example.com")], "net", [x], [y])
    >>> with tempfile.TemporaryDirectory() as folder:              # an operator that onnxruntime does not have
    ...     onnx.save(make_model(graph), f"{folder}/net.onnx")
    ...     surgeon.benchmark(f"{folder}/net.onnx", f"{folder}/net.onnx")
    Traceback (most recent call last):
        ...
    surgeon.errors.BenchmarkError: ...
    """


class ProfileError(SurgeonError, ValueError):
    """A device profile is missing, malformed, of a newer version, or of another CPU than what it is joined with.

    >>> import surgeon
    >>> surgeon.Profile.load("gone.json")
    Traceback (most recent call last):
        ...
    surgeon.errors.ProfileError: ...
    """


class OutputError(SurgeonError, OSError):
    """A file or folder could not be written; what was there before is intact.

    >>> import surgeon
    >>> surgeon.Profile.here().save("/dev/null/profile.json")
    Traceback (most recent call last):
        ...
    surgeon.errors.OutputError: ...
    """
