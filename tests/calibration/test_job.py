"""A metric of the user's: what it is called with, on which samples, and how sure it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from surgeon.calibration.job import Metric
from surgeon.errors import InvalidArgument, InvalidInputs
from surgeon.frontend.trace import trace


class Net(nn.Module):
    """The sum of what is put in; `state` is not by samples."""

    def __init__(self, state: bool = False) -> None:
        super().__init__()
        self.layer, self.state = nn.Linear(4, 1, bias=False), state
        with torch.no_grad():
            self.layer.weight.fill_(1.0)

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        return (y, y.sum(0, keepdim=True).expand(5, 1)) if self.state else y


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def right(feeds: Any, outputs: list[np.ndarray]) -> float:
    x, labels = (feeds["x"], feeds["label"]) if isinstance(feeds, dict) else feeds
    assert len(x) == len(labels)
    return float(((outputs[0][:, 0] > 0) == labels).mean())


def metric(function: Any, data: Any, net: nn.Module | None = None, source: Any = None, samples: int = 8) -> Metric:
    net = net or Net()
    return Metric(function, data, trace(net, torch.zeros(2, 4)), net, source, samples)


def half(net: Net) -> Net:
    """A net that looks at half of what is put in."""
    made = Net(net.state)
    with torch.no_grad():
        made.layer.weight[:, :2] = 0
    return made


X = rows(100)
LABEL = (X.sum(1) > 0).long()
FORMS: dict[str, Any] = {
    "a dict": {"x": X, "label": LABEL},
    "batches": [(X[:30], LABEL[:30]), (X[30:], LABEL[30:])],
    "arrays": [{"label": LABEL[:99].numpy(), "x": X[:99].numpy()}, {"label": LABEL[99:].numpy(), "x": X[99:].numpy()}],
    "lists": [{"x": X, "label": LABEL.tolist()}],
}


@pytest.mark.parametrize("form", FORMS)
def test_samples_are_told_apart_whatever_the_form_of_the_batches(form: str) -> None:
    found = metric(right, FORMS[form]).report(half(Net()))
    assert (found.count, found.by, found.before.value) == (100, "samples", 1.0)
    share = float(((X[:, 2:].sum(1) > 0).long() == LABEL).float().mean())
    assert found.after.value == pytest.approx(share) and found.kept is not None
    assert found.kept.value == pytest.approx(share) and found.before.low == found.before.high == 1.0
    assert found.after.low is not None and found.after.low < share < (found.after.high or 0.0)


def test_batches_are_drawn_where_outputs_are_not_by_samples() -> None:
    net = Net(state=True)
    found = metric(right, FORMS["batches"], net).report(half(net))
    assert (found.count, found.by) == (4, "batches")  # not more than a few samples run at once
    share = float(((X[:, 2:].sum(1) > 0).long() == LABEL).float().mean())
    assert found.after.value == pytest.approx(share)


def test_what_belongs_to_a_batch_alone_is_not_mixed_up() -> None:
    seen = []

    def score(feeds: Any, outputs: list[np.ndarray]) -> float:
        seen.append((feeds["of"], len(feeds["x"])))
        return 1.0

    assert metric(score, [{"x": X[:5], "of": "a"}, {"x": X[5:9], "of": "b"}]).report(Net()).by == "batches"
    assert set(seen) == {("a", 5), ("b", 4)}


def test_data_beyond_those_that_calibrate() -> None:
    counts = []

    def score(feeds: Any, outputs: list[np.ndarray]) -> float:
        counts.append(len(feeds))
        return 1.0

    net = Net()
    assert metric(score, None, net, X, 40).report(net).count == 36 and not metric(score, None, net, X, 40)._notes
    few = metric(score, None, net, X, 96)
    assert few.report(net).count == 100 and "pass others as metric_data=" in str(few.report(net))
    assert set(counts) == {36, 100}


@pytest.mark.parametrize(("data", "source", "message"), [
    (None, None, "and there are none; pass metric_data="),
    (None, "noise", "'noise' is made up"),
    ("synthetic", X, "'synthetic' is made up"),
    (None, iter([X]), "data= are read once; pass metric_data="),
])
def test_data_that_tell_nothing(data: Any, source: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        metric(right, data, source=source)


@pytest.mark.parametrize(("function", "message"), [
    (lambda feeds, outputs: None, "gives None; let it give a number"),
    (lambda feeds, outputs: float("nan"), "gives nan; let it give a finite number"),
    (lambda feeds: 1.0, "can't be called with"),
])
def test_functions_that_give_no_number(function: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        metric(function, {"x": X, "label": LABEL})


def test_no_share_of_less_than_nothing() -> None:
    made = metric(lambda feeds, outputs: np.array([-1.0]), X)
    assert made.report(Net()).kept is None
    with pytest.raises(InvalidArgument, match="gives -1 for the original, of which no share can be told"):
        made.share(Net())


def test_draws_that_give_no_number_do_not_count() -> None:
    def correlation(feeds: Any, outputs: list[np.ndarray]) -> float:
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(np.corrcoef(feeds[:, 0], outputs[0][:, 0])[0, 1])

    found = metric(correlation, X[:3]).report(half(Net()))
    assert found.before.low is not None and -1 <= found.before.low <= (found.before.high or 2.0) <= 1


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(InvalidInputs, match="batch 0 of metric_data, input x has shape"):
        metric(right, [torch.zeros(3, 5)])
