"""Data as users have them: what is read of it, what is refused, why, and what is left behind."""

from __future__ import annotations

import multiprocessing
from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import surgeon
from surgeon.calibration.data import Calibration, Reader, calibrate
from surgeon.errors import InvalidArgument, InvalidInputs
from surgeon.frontend.trace import trace

NET = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
IMAGES = trace(NET, torch.zeros(2, 3, 8, 8))


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 8), nn.Linear(8, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Tensor:
        return (self.out(self.embed(input_ids)) * attention_mask[..., None]).mean(1)


TEXT = Text()
TOKENS = trace(TEXT, {"input_ids": torch.ones(2, 6).long(), "attention_mask": torch.ones(2, 6).long()})


class Rows(Dataset[Any]):
    """Samples with labels, that counts what is read of it; from `broken` on they can't be read."""

    def __init__(self, count: int = 100, broken: int | None = None) -> None:
        self.count, self.read, self.broken = count, 0, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.broken is not None and index >= self.broken:
            raise OSError("no such picture")
        self.read += 1
        return torch.randn(3, 8, 8), index % 5


class Stream(IterableDataset[Any]):
    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            self.read += 1
            yield torch.randn(3, 8, 8)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape or (32, 3, 8, 8))


def tokens(length: int = 6, **others: Any) -> dict[str, Any]:
    mask = torch.ones(8, length, dtype=torch.long)
    return {"input_ids": torch.randint(0, 20, (8, length)), "attention_mask": mask, **others}


def read(data: Any, **options: Any) -> Calibration:
    return calibrate(data, IMAGES, NET, **options)


def refilled() -> Iterator[Tensor]:
    memory = torch.zeros(16, 3, 8, 8)
    for index in range(4):
        yield memory.fill_(index)


# What is given, and how many samples of it are used.
TAKEN: dict[str, tuple[Callable[[], Any], int]] = {
    "double precision": (lambda: images().double(), 32),
    "half precision": (lambda: images().half(), 32),
    "channels last in memory": (lambda: images().to(memory_format=torch.channels_last), 32),
    "with gradients": (lambda: images().requires_grad_(), 32),
    "one sample repeated": (lambda: images(1, 3, 8, 8).expand(32, 3, 8, 8), 32),
    "arrays": (lambda: [images(8, 3, 8, 8).double().numpy()] * 4, 32),
    "a ragged last batch": (lambda: images(70, 3, 8, 8).split(32), 70),
    "several sizes": (lambda: [images(8, 3, 8 + size, 9) for size in (0, 4, 2)], 24),
    "lists": (lambda: [[images(8, 3, 8, 8)]] * 2, 16),
    "zip": (lambda: zip(images(3, 8, 3, 8, 8), torch.zeros(3, 8), strict=True), 24),
    "map": (lambda: map(images, [8] * 3, [3] * 3, [8] * 3, [8] * 3), 24),
    "an iterator of a loader": (lambda: iter(DataLoader(Rows(), batch_size=8)), 100),
    "labels as a tensor of a single number": (lambda: [(images(8, 3, 8, 8), torch.tensor(3))], 8),
    "the same memory again": (refilled, 64),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_holds_batches_is_taken(name: str) -> None:
    data, samples = TAKEN[name]
    found = read(data())
    assert found.samples == samples
    assert all(args[0].dtype == torch.float32 and not args[0].requires_grad for args, _ in found.batches)


def test_a_loader_may_fill_the_same_memory_again() -> None:
    values = torch.cat([args[0] for args, _ in read(refilled()).batches])[:, 0, 0, 0]
    assert values.unique().tolist() == [0.0, 1.0, 2.0, 3.0]


# What is given, and what the error says: the reason, and then the remedy.
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "bytes": (lambda: (images() * 255).byte(), r"torch.uint8, where .* torch.float32; .*\(x.float\(\) / 255 - mean\)"),
    "channels last": (lambda: images(32, 8, 8, 3), r"has shape \(32, 8, 8, 3\).*x.movedim\(-1, 1\)"),
    "gray": (lambda: images(32, 1, 8, 8), r"\(32, 1, 8, 8\); expected \(batch, 3, 8, 8\): .* to have 3 channels"),
    "too large a number": (lambda: images().double() * 1e300, "holds numbers that torch.float32 does not have"),
    "NaN": (lambda: [images(), images().fill_(torch.nan)], "batch 1 of data.*NaN.*remove those samples"),
    "single samples": (lambda: [images(3, 8, 8)] * 5, "a single sample.*DataLoader"),
    "a data set of samples": (lambda: TensorDataset(images()), "a single sample.*DataLoader"),
    "a loader without batches": (lambda: DataLoader(Stream(), batch_size=None), "a single sample.*DataLoader"),
    "no batch": (lambda: DataLoader(TensorDataset(images(0, 3, 8, 8))), "data is empty"),
    "labels first": (lambda: [(torch.zeros(8).long(), images(8, 3, 8, 8))], "torch.int64, where"),
    "nested tuples": (lambda: [((images(),), torch.zeros(32))], "is a tuple.*none of them nested: unpack it"),
    "loaders": (lambda: [DataLoader(Rows(), batch_size=8)], "is a DataLoader.*give the loader itself"),
    "a loader in a dict": (lambda: {"train": DataLoader(Rows())}, "a dict of 'train' without"),
    "another name": (lambda: [{"image": images()}], "a dict of 'image' without.*name every input"),
    "names": (lambda: ["cat.png", "dog.png"], "is a str.*the folder's"),
    "pictures": (lambda: [Image.new("RGB", (8, 8))], "is a Image.*or give the folder"),
    "numbered batches": (lambda: enumerate([images()]), "is a int; give a tensor"),
    "nothing in a list": (lambda: [None], "is a NoneType; give a tensor"),
    "what can't be read": (lambda: DataLoader(Rows(broken=20), batch_size=8), "batch 2 .* can't be read: OSError"),
    "another byte order": (lambda: np.zeros((8, 3, 8, 8), ">f4"), "another byte order.*astype"),
    "objects": (lambda: np.array([None] * 3, dtype=object), "array of object"),
    "a function": (lambda: refilled, "data is a function"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_told(name: str) -> None:
    data, message = REFUSED[name]
    with pytest.raises((InvalidInputs, InvalidArgument), match=message):
        read(data())


def hidden(sample: int) -> dict[str, Any]:
    batch = tokens()
    batch["attention_mask"][sample] = 0
    return batch


# Batches of tokens, and what the error says.
WRONG_TOKENS: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown ids": (lambda: [tokens(), tokens(input_ids=torch.full((8, 6), 20))],
                    "batch 1 .*input_ids holds 20, where .* rows 0 to 19; use the tokenizer"),
    "negative ids": (lambda: [tokens(input_ids=torch.full((8, 6), -100))], "input_ids holds -100"),
    "ids as fractions": (lambda: [tokens(input_ids=torch.rand(8, 6))], "give whole numbers"),
    "nothing but padding": (lambda: [hidden(3)], "hides every position of 1 samples, .* sample 3: .*leave them out"),
    "lists": (lambda: [{"input_ids": [[1, 2]], "attention_mask": [[1, 1]]}], 'is a list.*return_tensors="pt"'),
    "no mask": (lambda: [{"input_ids": torch.ones(8, 6).long()}], "without 'attention_mask'"),
    "a shorter mask": (lambda: [tokens(attention_mask=torch.ones(8, 5).long())], r"attention_mask has shape \(8, 5\)"),
}


@pytest.mark.parametrize("name", WRONG_TOKENS)
def test_what_is_wrong_with_tokens_is_told(name: str) -> None:
    data, message = WRONG_TOKENS[name]
    with pytest.raises(InvalidInputs, match=message):
        calibrate(data(), TOKENS, TEXT)


@pytest.mark.parametrize("batch", [
    tokens(), UserDict(tokens()), tokens(labels=torch.zeros(8), text=["a"] * 8), tokens(length=4),
    tokens(attention_mask=torch.ones(8, 6)), tokens(attention_mask=torch.ones(8, 6, dtype=torch.bool)),
    tuple(tokens().values()),
])
def test_dicts_of_tokens(batch: Any) -> None:
    found = calibrate([batch] * 3, TOKENS, TEXT)
    assert found.samples == 24
    assert all(leaf.dtype == torch.long for each in found.batches for leaf in pytree.tree_leaves(each))


@pytest.mark.parametrize("data", [DataLoader(Rows(10**6), batch_size=32), DataLoader(Stream(), batch_size=32)])
def test_no_more_of_a_million_is_read_than_needed(data: Any) -> None:
    assert read(data).samples == 256
    assert data.dataset.read == 256


def test_no_more_of_a_million_rows_is_looked_at_than_needed(tmp_path: Any) -> None:
    # 1.5 GB, if it was read
    rows = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float64, (10**6, 3, 8, 8))
    labels = np.zeros(10**6)
    found = calibrate([(rows, labels)], IMAGES, NET, labeled=True)
    assert found.samples == 256
    assert sum(len(rest) for (rest,) in found.rest) == 256


@pytest.mark.parametrize("data", [Rows(), Rows(broken=20), TensorDataset(images(32, 1, 8, 8))])
def test_the_processes_of_a_loader_end(data: Any) -> None:
    kept = None
    try:
        read(DataLoader(data, batch_size=8, num_workers=1), samples=16)
        read(DataLoader(data, batch_size=8, num_workers=1))
    except InvalidInputs as error:
        kept = error  # with its traceback, which holds the iterator
    assert not multiprocessing.active_children(), kept


def test_the_processes_of_a_loader_that_keeps_them_stay() -> None:
    loader = DataLoader(Rows(16), batch_size=8, num_workers=1, persistent_workers=True)
    read(loader)
    assert multiprocessing.active_children()
    assert len(list(loader)) == 2
    del loader


def test_inputs_follow_the_model_to_its_device() -> None:
    elsewhere = nn.Linear(3, 2, device="meta")
    (found,), _ = Reader(trace(nn.Linear(3, 2), torch.zeros(2, 3)), elsewhere).inputs([torch.ones(2, 3)])
    assert found.device.type == "meta"


def losses(output: Tensor, labels: Tensor) -> Tensor:
    assert output.shape == (len(labels), 2) and labels.dtype == torch.long
    return F.cross_entropy(output, labels)


def named(output: Tensor, rest: dict[str, Any]) -> Tensor:
    assert set(rest) == {"labels", "name"} and len(rest["name"]) == len(output)
    return F.cross_entropy(output, rest["labels"])


@pytest.mark.parametrize("loss", [None, losses, named])
def test_labels_are_used_where_a_loss_is_given(loss: Any) -> None:
    labels = torch.arange(16) % 2
    batch: Any = (images(16, 3, 8, 8), labels)
    if loss is named:
        batch = {"input": batch[0], "labels": labels, "name": ["picture"] * 16}
    slim = surgeon.shrink(
        NET, 0.3, example_inputs=images(2, 3, 8, 8), data=[batch] * 2, loss=loss, compensate=False
    )
    assert slim(images(1, 3, 8, 8)).shape == (1, 2)
