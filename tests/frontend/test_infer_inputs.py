"""Example inputs, inferred where a configuration or the first layer tells them."""

import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import InvalidArgument, InvalidInputs
from surgeon.frontend.infer_inputs import infer


class Configured(nn.Module):
    """A network that runs on one size of image only, and states it as timm's models do."""

    def __init__(self, side: int, **stated: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4 * side * side, 2)
        for name, value in stated.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


class Words(nn.Module):
    """A language model with a table of positions, whose first registered layer is the head."""

    def __init__(self, positions: int = 16) -> None:
        super().__init__()
        self.head = nn.Linear(6, 10, bias=False)
        self.positions = nn.Parameter(torch.zeros(positions, 6))
        self.embedding = nn.Embedding(10, 6)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids) + self.positions[: ids.shape[1]])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class Config:
    """What a Hugging Face configuration says, less what is of no interest here."""

    is_encoder_decoder = False

    def __init__(self, **said: object) -> None:
        vars(self).update(said)


class Keyword(nn.Module):
    """A network in the manner of Hugging Face: it names its main input, and may know dummy inputs."""

    main_input_name: str

    def __init__(self, name: str, layer: nn.Module, **said: object) -> None:
        super().__init__()
        self.main_input_name, self.layer, self.config = name, layer, Config(**said)

    def forward(
        self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None, input_values: Tensor | None = None
    ) -> Tensor:
        given = {"input_ids": input_ids, "pixel_values": pixel_values, "input_values": input_values}
        return self.layer(given[self.main_input_name])


class Dummy(Keyword):
    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        return {"input_ids": torch.ones(3, 5, dtype=torch.int64), "labels": torch.ones(3)}


class Counting(nn.Module):
    """Counts its runs in a buffer, in eval mode too."""

    runs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("runs", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.layer(x) + torch.rand(1)


def flat(side: int, channels: int = 3) -> nn.Module:
    """A network that runs on images of this side only."""
    return nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * side * side, 2))


def pooled(kind: type[nn.Module], pool: nn.Module, channels: int) -> nn.Module:
    return nn.Sequential(kind(channels, 4, 3), pool, nn.Flatten(), nn.Linear(4, 2))


# model, shapes of the positional inputs
POSITIONAL = [
    ("convolution", pooled(nn.Conv2d, nn.AdaptiveAvgPool2d(1), 3), [(2, 3, 224, 224)]),
    ("five channels", pooled(nn.Conv2d, nn.AdaptiveAvgPool2d(1), 5), [(2, 5, 224, 224)]),
    ("gray", pooled(nn.Conv2d, nn.AdaptiveAvgPool2d(1), 1), [(2, 1, 28, 28)]),
    ("flattened at 32", flat(32), [(2, 3, 32, 32)]),
    ("flattened at 64, gray", flat(64, 1), [(2, 1, 64, 64)]),
    ("clip", pooled(nn.Conv3d, nn.AdaptiveAvgPool3d(1), 3), [(2, 3, 8, 112, 112)]),
    ("signal", pooled(nn.Conv1d, nn.AdaptiveAvgPool1d(1), 2), [(2, 2, 256)]),
    ("linear", nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), [(2, 7)]),
    ("recurrent", Recurrent(), [(2, 8, 5)]),
    ("embedding behind a linear layer", Words(), [(2, 16)]),
    ("short table of positions", Words(8), [(2, 8)]),
    ("pretrained_cfg", Configured(40, pretrained_cfg={"input_size": (3, 40, 40)}), [(2, 3, 40, 40)]),
    ("default_cfg", Configured(40, default_cfg=Config(input_size=(3, 40, 40))), [(2, 3, 40, 40)]),
    ("a cfg that does not hold", Configured(32, pretrained_cfg={"input_size": (3, 40, 40)}), [(2, 3, 32, 32)]),
    ("image_size", Configured(40, image_size=40), [(2, 3, 40, 40)]),
    ("img_size", Configured(40, img_size=(40, 40)), [(2, 3, 40, 40)]),
]

# model, shapes of the keyword inputs
KEYWORD = [
    ("dummy_inputs", Dummy("input_ids", nn.Embedding(4, 3)), {"input_ids": (2, 5)}),
    ("input_ids", Keyword("input_ids", nn.Embedding(4, 3), vocab_size=4), {"input_ids": (2, 8)}),
    (
        "pixel_values",
        Keyword("pixel_values", flat(40, 2), image_size=40, num_channels=2),
        {"pixel_values": (2, 2, 40, 40)},
    ),
    ("input_values", Keyword("input_values", nn.Linear(16000, 2)), {"input_values": (2, 16000)}),
]


@pytest.mark.parametrize(("model", "shapes"), [pytest.param(*row[1:], id=row[0]) for row in POSITIONAL])
def test_positional_inputs(model: nn.Module, shapes: list[tuple[int, ...]]) -> None:
    args, kwargs = infer(model)
    assert ([tuple(value.shape) for value in args], kwargs) == (shapes, {})
    model.eval()(*args)


@pytest.mark.parametrize(("model", "shapes"), [pytest.param(*row[1:], id=row[0]) for row in KEYWORD])
def test_keyword_inputs(model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    args, kwargs = infer(model)
    assert (args, {name: tuple(value.shape) for name, value in kwargs.items()}) == ((), shapes)
    model.eval()(**kwargs)


def test_inputs_have_the_models_precision() -> None:
    args, _ = infer(nn.Linear(3, 2).to(torch.bfloat16))
    assert args[0].dtype == torch.bfloat16


def test_the_model_is_left_as_it_is() -> None:
    model = Counting()
    before = torch.random.get_rng_state()
    infer(model)
    assert model.runs.item() == 0
    assert model.training
    assert torch.equal(before, torch.random.get_rng_state())


def test_two_calls_give_the_same() -> None:
    model = nn.Linear(3, 2)
    assert torch.equal(infer(model)[0][0], infer(model)[0][0])


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.layer(left) + self.layer(right)


# model, what the message must say
REFUSED = [
    ("two inputs", Pair(), r"Pair could not be inferred.*missing a required argument: 'right'.*left: .*right: "),
    ("no layer", nn.ReLU(), r"no layer that tells its input.*pass example_inputs="),
    ("a size that none has", flat(31), r"an input \(2, 3, 224, 224\) for the first convolution: .*\n  and \d+ more"),
    ("time first", nn.LSTM(3, 4), r"pass example_inputs="),
]


@pytest.mark.parametrize(("model", "message"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
def test_what_can_not_be_inferred_is_asked_for(model: nn.Module, message: str) -> None:
    with pytest.raises(InvalidInputs, match=f"(?s){message}"):
        infer(model)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="model is a function, not a torch"):
        infer(flat)  # type: ignore[arg-type]
