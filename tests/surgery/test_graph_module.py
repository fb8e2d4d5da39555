"""A smaller model that is a graph: what of the original's class, modules and habits it keeps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon
from surgeon.errors import SurgeryError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(self.norm(x)).relu()


class Classifier(nn.Module):
    classes: ClassVar[list[str]] = ["cat", "dog"]

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.blocks = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Sequential(Block(), Block())
        self.last, self.spare = nn.Linear(16 * 4, 2), nn.Linear(3, 3)
        self.width, self.options = 16, {"name": "small", "mean": (0.5, 0.5)}

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.adaptive_avg_pool2d(self.blocks(self.act(self.first(x))), 2).view(-1, 64))

    def predict(self, x: Tensor) -> list[str]:
        return [self.classes[index] for index in self(x).argmax(1)]

    def features(self, x: Tensor) -> Tensor:
        return self.blocks(self.first(x))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def slim() -> Any:
    torch.manual_seed(0)
    return surgeon.shrink(Classifier().eval(), 0.5, example_inputs=X, form="graph", align=1)


def copies(model: Any) -> Iterator[Any]:
    yield model
    yield copy.deepcopy(model)


def test_methods_and_properties_of_the_class_are_reached(slim: Any) -> None:
    for model in copies(slim):
        assert model.device == torch.device("cpu")
        assert model.classes is Classifier.classes and model.options == {"name": "small", "mean": (0.5, 0.5)}
        assert model.predict(X) == [Classifier.classes[index] for index in slim(X).argmax(1)]


def test_what_is_gone_is_named_with_the_remedy(slim: Any) -> None:
    for model in copies(slim):
        for name in ("width", "spare"):
            with pytest.raises(AttributeError, match=rf'{name} of Classifier is gone in a graph.*form="module"'):
                getattr(model, name)
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = model.nothing
        with pytest.raises(SurgeryError, match=r"no forward of its own in a graph.*call the whole"):
            model.features(X)
        with pytest.raises(TypeError, match="not iterable"):
            list(model.blocks)


def test_modules_stand_under_their_names(slim: Any) -> None:
    assert type(slim.blocks[1].mix) is nn.Conv2d and slim.blocks[0].norm.num_features < 16
    assert "(blocks): Part(" in str(slim)
    seen: list[str] = []
    model = copy.deepcopy(slim)
    model.blocks[1].mix.register_forward_hook(lambda *_: seen.append("mix"))
    model(X)
    assert seen == ["mix"]


def test_the_tools_of_torch_take_it(slim: Any) -> None:
    expected = slim(X)
    model = copy.deepcopy(slim)
    with torch.no_grad():
        model.first.weight.zero_()
    model.load_state_dict(slim.state_dict())
    assert torch.equal(model(X), expected)
    torch.testing.assert_close(torch.export.export(slim, (X,)).module()(X), expected)
    torch.testing.assert_close(torch.compile(slim, backend="eager")(X), expected)
    again = surgeon.shrink(slim, 0.3, example_inputs=X, align=1)
    assert again.first.out_channels < slim.first.out_channels and again.predict(X)
    with pytest.raises(AttributeError, match="spare of Classifier"):
        _ = again.spare


class Sequence(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], given: bool) -> None:
        super().__init__()
        self.embed, self.given = nn.Embedding(20, 8), given
        self.rnn: Any = kind(8, 16, num_layers=2, dropout=0.5, batch_first=True)  # type: ignore[call-arg, arg-type]
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        zero = torch.ones(2, x.shape[0], 16)
        state = (zero, zero) if isinstance(self.rnn, nn.LSTM) else zero
        y, state = self.rnn(self.embed(x), state if self.given else None)
        return self.last(y), (state[1] if isinstance(self.rnn, nn.LSTM) else state).sum(-1)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_keep_their_dropout(kind: type[nn.RNNBase], given: bool) -> None:
    x = torch.randint(0, 20, (2, 5))
    slim = surgeon.shrink(Sequence(kind, given).eval(), 0.3, example_inputs=x, form="graph")
    assert type(slim.rnn) is kind and slim.rnn.hidden_size < 16 and type(slim.embed) is nn.Embedding
    assert torch.equal(slim(x)[0], slim(x)[0])
    slim.train()
    assert not torch.equal(slim(x)[0], slim(x)[0])


def test_parameters_that_a_swapped_forward_encloses_train_on() -> None:
    model: Any = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    layer = model[0]
    layer.forward = lambda x: F.linear(x, layer.weight, layer.bias) * 0.5
    x = torch.randn(3, 6)
    slim = surgeon.shrink(model, 0.5, example_inputs=x)
    assert slim.get_parameter("0.weight").shape == (16, 6)
    slim(x).sum().backward()
    assert slim.get_parameter("0.weight").grad is not None
