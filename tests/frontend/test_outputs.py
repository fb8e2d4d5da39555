"""Models whose outputs are objects of their own classes, or that hand on a cache of keys and values."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon

X = torch.randn(2, 16)


@dataclass(frozen=True)
class Scores:
    logits: Tensor
    features: Tensor | None = None
    kind: str = "raw"


@dataclass(slots=True)
class Slotted:
    logits: Tensor


class Plain:
    def __init__(self, logits: Tensor) -> None:
        self.logits, self.note, self.deep = logits, object(), {"more": [logits + 1]}


class Named(dict[str, Any]):
    """A dict of a class of its own."""


class Net(nn.Module):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.make = nn.Linear(16, 32), nn.Linear(32, 3), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.b(self.a(x).relu()))


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "frozen dataclass": (Scores, lambda y: y.logits),
    "dataclass with slots": (Slotted, lambda y: y.logits),
    "plain object": (Plain, lambda y: y.deep["more"][0]),
    "dict of a class": (lambda y: Named(a=y, b=3), lambda y: y["a"]),
    "namespace": (lambda y: types.SimpleNamespace(a=y, n=3), lambda y: y.a),
    "distribution": (lambda y: torch.distributions.Normal(y, y.exp()), lambda y: y.loc),
    "in containers": (lambda y: {"all": [Scores(y, y + 1), None, 3]}, lambda y: y["all"][0].features),
}


@pytest.mark.parametrize("form", ["module", "graph"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_objects_that_hold_tensors(name: str, form: Any) -> None:
    make, read = OUTPUTS[name]
    model = Net(make).eval()
    slim, report = surgeon.shrink(model, 0.5, example_inputs=X, form=form, return_report=True)
    assert report.form == form
    assert report.certificate.deviation < 1e-6
    assert slim.get_parameter("a.weight").shape == (16, 16)
    for x in (X, torch.randn(5, 16)):
        y = slim(x)
        assert type(y) is type(model(x))
        assert read(y).shape == (len(x), 3)


def test_what_an_object_holds_is_an_output() -> None:
    """Its tensors keep all of their channels, as those of any output."""

    class Features(Net):
        def forward(self, x: Tensor) -> Any:
            h = self.a(x).relu()
            return Scores(self.b(h), h)

    groups = surgeon.inspect(Features(Scores).eval(), X)
    assert [(pin.tensor, pin.axis) for pin in groups.pinned if "output" in pin.reason][:1] == [("a.weight", 0)]
    assert not groups.groups


@dataclass
class Batch:
    x: Tensor
    scale: float = 2.0


@pytest.mark.parametrize("form", ["module", "graph"])
def test_inputs_in_an_object(form: Any) -> None:
    class Takes(Net):
        def forward(self, x: Any) -> Any:
            return super().forward(x.x * x.scale)

    model = Takes(lambda y: y).eval()
    slim = surgeon.shrink(model, 0.5, example_inputs=(Batch(X),), form=form)
    assert slim(Batch(torch.randn(5, 16))).shape == (5, 3)


class Cache:
    """Keys of all steps so far."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None

    def update(self, keys: Tensor) -> Tensor:
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys], 1)
        return self.keys


class Configuration:
    def __init__(self) -> None:
        self.use_cache = True


class Attention(nn.Module):
    """Hands on its keys, if its configuration says so, as the models of transformers do."""

    def __init__(self, config: Configuration) -> None:
        super().__init__()
        self.config, self.q, self.k, self.o = config, nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Any:
        keys = self.k(x)
        if self.config.use_cache:
            cache = cache or Cache()
            keys = cache.update(keys)
        y = self.o(F.softmax(self.q(x) @ keys.transpose(1, 2), -1) @ keys)
        return {"y": y, "cache": cache} if cache is not None else {"y": y}


@pytest.mark.parametrize("data", [None, [torch.randn(8, 5, 16)]])
def test_a_cache_is_no_output(data: Any) -> None:
    model: Any = nn.Sequential(Attention(Configuration())).eval()
    x = torch.randn(2, 5, 16)
    slim: Any = surgeon.shrink(model, 0.4, example_inputs=x, data=data, align=1)
    assert type(slim) is nn.Sequential
    part: Any = slim[0]
    assert part.k.out_features < 32
    found = slim(x)
    assert found["cache"].keys.shape == (2, 5, part.k.out_features)
    later = part(torch.randn(2, 1, 16), found["cache"])
    assert later["cache"].keys.shape[1] == 6
    assert part.config.use_cache and model[0].config.use_cache
    assert part.config is not model[0].config
