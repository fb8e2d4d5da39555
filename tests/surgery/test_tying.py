"""Classes whose code derives one width from another: they keep the plan, made again with these widths tied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon
from surgeon.errors import SurgeryError
from surgeon.groups.analyze import analyze
from surgeon.surgery.code import Code
from surgeon.surgery.meanings import understood
from surgeon.surgery.tying import ties_of

IMAGE = torch.randn(2, 3, 8, 8)
TOKENS = torch.randn(2, 6, 8)


class Shuffle(nn.Module):
    """A unit whose input is split in halves, one of which passes by."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 1)
        self.branch = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 1))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.stem(x).chunk(2, dim=1)
        return self.head(torch.cat((one, self.branch(other)), dim=1).mean((2, 3)))


class C2f(nn.Module):
    """A block that joins halves and what was computed of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 1)
        self.inner = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        self.last = nn.Conv2d(64, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        parts.extend(each(parts[-1]).relu() for each in self.inner)
        return self.head(self.last(torch.cat(parts, 1)).mean((2, 3)))


class Res2(nn.Module):
    """A block that splits its channels into equal parts, of a width that it keeps as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 12
        self.first = nn.Conv2d(3, 36, 1)
        self.convs = nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1) for _ in range(2))
        self.last = nn.Conv2d(36, 20, 1)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.first(x).relu(), self.width, 1)
        done = [conv(part) for conv, part in zip(self.convs, parts, strict=False)]
        return self.head(self.last(torch.cat([*done, parts[2]], 1)).mean((2, 3)))


class Attention(nn.Module):
    """Attention on a stream whose width its code divides by the number of heads."""

    def __init__(self, scaled: bool = False) -> None:
        super().__init__()
        self.heads, self.scaled = 8, scaled
        self.embed, self.norm = nn.Linear(8, 32), nn.LayerNorm(32)
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scale = (c // self.heads) ** -0.5 if self.scaled else 0.3
        mixed = ((q * scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, n, c))
        return self.head((x + self.mlp(x)).mean(1))


class Multihead(nn.Module):
    """torch's own attention in a residual stream."""

    def __init__(self, weights: bool = False) -> None:
        super().__init__()
        self.weights = weights
        self.embed = nn.Linear(8, 32)
        self.attention = nn.MultiheadAttention(32, 8, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=self.weights)[0]
        return self.head((x + self.mlp(x)).mean(1))


class Whole(nn.Module):
    """torch's own transformer, which knows its width by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 32), nn.Linear(32, 5)
        self.transformer = nn.Transformer(32, 4, 1, 1, 64, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(4)
        return self.head(self.transformer(self.embed(x), self.embed(x[:, :4]), tgt_mask=mask, tgt_is_causal=True))


class InBatch(nn.Module):
    """Attention with the heads in the batch, so that no operator is given their number alone."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.dim = 8, 4
        self.embed, self.qkv, self.proj = nn.Linear(8, 32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).transpose(0, 1)
        n, b, _ = x.shape
        q, k, v = (t.reshape(n, b * self.heads, self.dim).transpose(0, 1) for t in self.qkv(x).chunk(3, -1))
        mixed = torch.bmm(torch.bmm(q * self.dim**-0.5, k.transpose(1, 2)).softmax(-1), v)
        x = x + self.proj(mixed.transpose(0, 1).reshape(n, b, self.heads * self.dim))
        return self.head((x + self.mlp(x)).mean(0))


class Grouped(nn.Module):
    """Grouped queries: two of each for a key, and as many keys, in numbers that only their names tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.keys, self.times = 8, 2, 2
        self.embed = nn.Linear(8, 32)
        self.q, self.k, self.v = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16)
        self.o = nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 5)

    def repeated(self, x: Tensor) -> Tensor:
        b, keys, n, dim = x.shape
        if self.times == 1:
            return x
        return x[:, :, None].expand(b, keys, self.times, n, dim).reshape(b, keys * self.times, n, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, -1, self.dim).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, self.repeated(k), self.repeated(v), scale=0.3)
        x = x + self.o(mixed.transpose(1, 2).reshape(b, n, -1))
        return self.head((x + self.mlp(x)).mean(1))


class Equal(nn.Module):
    """As many heads as each has units, next to other equal numbers, as in a small GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.dim, self.context = 8, 8, 8
        self.embed, self.attention, self.proj = nn.Linear(8, 48), nn.Linear(48, 192), nn.Linear(64, 48)
        self.mlp = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 48))
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        q, k, v = self.attention(x).split(self.heads * self.dim, dim=-1)
        q, k, v = (each.view(b, n, self.heads, self.dim).transpose(1, 2) for each in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2)
        x = x + self.proj(mixed.reshape(b, n, self.heads * self.dim))
        return self.head((x + self.mlp(x)).mean(1))


CASES = {
    "shuffle": (Shuffle, IMAGE), "C2f": (C2f, IMAGE), "res2": (Res2, IMAGE), "C // heads": (Attention, TOKENS),
    "its scale": (lambda: Attention(scaled=True), TOKENS), "multihead": (Multihead, TOKENS),
    "heads in the batch": (InBatch, TOKENS), "transformer": (Whole, TOKENS),
    "multihead with weights": (lambda: Multihead(weights=True), TOKENS),
    "grouped queries": (Grouped, TOKENS), "equal numbers": (Equal, TOKENS),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", CASES)
def test_a_class_that_derives_widths_is_kept(name: str) -> None:
    make, inputs = CASES[name]
    model = make().eval()
    slim, report = surgeon.shrink(model, 0.5, example_inputs=inputs, return_report=True)
    assert type(slim) is type(model), report.form_reason
    assert report.reached >= 0.5
    assert slim(inputs).shape == model(inputs).shape
    assert slim.train()(inputs).requires_grad


@pytest.mark.parametrize("name", ["shuffle", "C // heads"])
def test_a_plan_holds_what_shrink_does(name: str) -> None:
    make, inputs = CASES[name]
    model = make().eval()
    slim = surgeon.plan(model, 0.5, example_inputs=inputs).apply(model)
    other = surgeon.shrink(model, 0.5, example_inputs=inputs, project=False)
    assert type(slim) is type(model)
    assert [p.shape for p in slim.parameters()] == [p.shape for p in other.parameters()]


def test_what_it_cost_is_told() -> None:
    slim, report = surgeon.shrink(
        Shuffle().eval(), 0.5, example_inputs=IMAGE, return_report=True, compensate=False
    )
    assert "chunk" in report.form_reason and "keep the same share" in report.form_reason
    assert "the damage is" in report.form_reason
    assert surgeon.shrink(Shuffle().eval(), 0.5, example_inputs=IMAGE, form="graph") is not slim


@pytest.mark.parametrize("options", [{"scope": "local"}, {"budget": "channels"}, {"budget": "params", "align": 4}])
def test_other_budgets_keep_the_ties(options: Any) -> None:
    model = Attention().eval()
    slim = surgeon.shrink(model, 0.4, example_inputs=TOKENS, form="module", **options)
    assert slim.embed.out_features % slim.heads == 0
    assert slim.qkv.out_features == 3 * slim.embed.out_features


def test_insisting_on_the_class_names_what_stands_in_the_way() -> None:
    with pytest.raises(SurgeryError, match=r"derives widths from one another.*out of reach"):
        surgeon.shrink(
            Attention(scaled=True).eval(), 0.5, example_inputs=TOKENS, form="module", min_width={"embed": 32}
        )


def test_ties_are_the_weakest_that_the_code_allows() -> None:
    groups = analyze(Attention().eval(), TOKENS)
    names = groups.names
    ties = ties_of(understood(Code(Attention().eval(), groups)))
    assert len(ties.classes) == 1 and len(ties.held) == 1
    assert "embed" in {names[leaf] for leaf in ties.classes[0]}


class Constant(nn.Module):
    """A size written in the code itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(3, 16, 3, stride=2), nn.Linear(144, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(self.conv(x).view(-1, 144)).relu())


def test_a_size_in_the_code_holds_its_group_only() -> None:
    slim, report = surgeon.shrink(Constant().eval(), 0.3, example_inputs=IMAGE, return_report=True)
    assert type(slim) is Constant, report.form_reason
    assert slim.conv.out_channels == 16 and slim.fc.out_features < 32


class Shifted(nn.Module):
    """Attention in an image that is shifted by as many positions as there are heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.proj = nn.Conv2d(3, 24, 1), nn.Linear(24, 72), nn.Linear(24, 24)
        self.up, self.down, self.head = nn.Linear(24, 48), nn.Linear(48, 24), nn.Linear(24, 5)
        self.heads, self.shift = 3, [3, 3]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(x, (-self.shift[0], -self.shift[1]), (1, 2)).reshape(b, h * w, c)
        q, k, v = self.qkv(y).reshape(b, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = (q * (c // self.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(b, h * w, c)).view(b, h, w, c)
        x = x + torch.roll(y, (self.shift[0], self.shift[1]), (1, 2))
        return self.head((x + self.down(self.up(x).relu())).mean((1, 2)))


def test_numbers_that_are_equal_to_a_width_stay_and_heads_go_with_the_stream() -> None:
    slim, report = surgeon.shrink(Shifted().eval(), 0.5, example_inputs=IMAGE, align=1, return_report=True)
    assert (report.form, slim.shift, slim.heads, slim.stem.out_channels) == ("module", [3, 3], 2, 16)
    assert "2 groups keep the same share and 1 group stays whole" in report.form_reason


class EqualSizes(nn.Module):
    """torch's own attention, with as many heads as each is wide."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 64)
        self.layer = nn.TransformerEncoderLayer(64, 8, dim_feedforward=32, batch_first=True)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)))


def test_the_code_of_a_class_is_run_once_for_all_that_is_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    run = Code.__init__

    def counted(self: Code, *args: Any) -> None:
        runs.append(args)
        run(self, *args)

    monkeypatch.setattr(Code, "__init__", counted)
    _, report = surgeon.shrink(EqualSizes().eval(), 0.5, example_inputs=TOKENS, return_report=True)
    assert "derives widths from one another" in report.form_reason  # built twice, and read in between
    assert len(runs) == 1
