"""The reasons for units that are those of a state, or that run in train mode alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon


class Stream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.wide, self.out = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> Any:
        y, state = self.layer(x, state)
        return self.out(self.wide(y).relu()), state


class Inside(nn.Module):
    """Keeps the state to itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)[0]


X = torch.randn(2, 5, 8)


def test_a_state_is_told_from_other_outputs() -> None:
    for inputs, verb in (((X, (torch.zeros(1, 2, 16),) * 2), "takes and gives back"), (X, "gives back")):
        groups = surgeon.inspect(Stream().eval(), inputs)
        reasons = {pin.tensor: pin.reason for pin in groups.pinned if pin.axis == (pin.tensor == "layer.weight_hh_l0")}
        assert f"a state that the model {verb} (to cut it, prune" in reasons["layer.weight_hh_l0"]
        assert reasons["out.bias"] == "an output of the model"


def test_the_remedy_works() -> None:
    slim = surgeon.shrink(Inside(Stream()), 0.4, example_inputs=X, align=1, compensate=False).model
    width = slim.layer.hidden_size
    assert type(slim) is Stream and width < 16
    _, state = slim(X)
    assert slim(X, state)[1][0].shape == (1, 2, width)


class Detector(nn.Module):
    """Gives losses in training, and has a part for these alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3)
        self.out, self.auxiliary = nn.Linear(24, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        h = self.a(x).relu()
        y = self.out(self.b(h).relu().mean((2, 3)))
        if not self.training:
            return {"scores": y.softmax(1), "labels": y.argmax(1)}
        assert target is not None, "targets are missing"
        return {"loss": F.cross_entropy(y, target), "other": F.cross_entropy(self.auxiliary(h.mean((2, 3))), target)}


def test_parts_that_run_in_training_alone_need_targets() -> None:
    images, target = torch.randn(2, 3, 10, 10), torch.tensor([0, 3])
    for train in (True, False):
        model = Detector().train(train)
        slim = surgeon.shrink(model, 0.4, example_inputs=(images, target), align=1, compensate=False)
        assert type(slim) is Detector and slim.training is train
        assert slim.auxiliary.in_features == slim.a.out_channels < 16
        slim.train()(images, target)["other"].backward()
        assert set(slim.eval()(images)) == {"scores", "labels"}
    slim, report = surgeon.shrink(Detector(), 0.4, example_inputs=images, align=1, return_report=True, compensate=False)
    assert report.form == "graph"
    assert "its train mode does not run on the example inputs (targets are missing)" in report.form_reason
