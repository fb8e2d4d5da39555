"""The path that onnxruntime takes through an operator, by a device's rules, and the widths that keep it fast."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from surgeon.device.profile import Profile
from surgeon.latency.operators import Operator
from surgeon.latency.ort_layout import Paths, passes
from surgeon.latency.width_grid import MOST_STEPS, fast_widths
from testbed.latency_tools import RULES

PATHS = Paths(dataclasses.replace(Profile.here(), block=16, rules=RULES))
NOWHERE = Paths(Profile.here())
FLAT = {"kernel": [3, 3]}


def operator(kind: str, *dims: Any, reads: int = 1, **static: Any) -> Operator:
    """An operator that stands in no graph."""
    nodes: Any = tuple(range(reads))
    return Operator(kind, kind, static or FLAT, dims, nodes, nodes[0], ())


# (kind, sizes, whether it works on blocks)
FITS: list[tuple[str, tuple[int, ...], bool]] = [
    ("conv", (64, 64), True), ("conv", (64, 63), True), ("conv", (62, 64), False), ("conv", (3, 64), True),
    ("conv", (15, 64), True), ("conv", (17, 64), False), ("conv", (20, 64), True),
    ("depthwise", (64,), True), ("depthwise", (62,), False),
    ("grouped", (64, 64, 16), True), ("grouped", (64, 64, 8), False), ("grouped", (64, 72, 16), False),
    ("pool", (32,), True), ("pool", (24,), False),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "dims", "fits"), FITS)
def test_sizes_decide_about_blocks(kind: str, dims: tuple[int, ...], fits: bool) -> None:
    some = operator(kind)
    assert bool(PATHS.fits(some, dims)) is fits
    assert bool(NOWHERE.fits(some, dims)) is False
    arrays = [np.array([size, size]) for size in dims]
    np.testing.assert_array_equal(PATHS.fits(some, arrays), [fits, fits])
    assert not PATHS.fits(operator(kind, kernel=[3]), dims).any()
    assert not PATHS.fits(operator(kind, kernel=[3, 3, 3]), dims).any()


def test_few_channels_are_read_in_the_plain_layout_and_written_in_blocks() -> None:
    path = PATHS.of(operator("conv", reads=2), (7, 32), [False, True])
    assert (path.fast, path.reads, path.writes) == (True, (False, True), True)
    assert PATHS.of(operator("conv"), (16, 32), [True]).reads == (True,)


def test_side_by_side_stays_in_blocks_if_every_part_does() -> None:
    concat = operator("concat", reads=2)
    assert PATHS.of(concat, (1000, 32, 16), [True, True]).writes
    assert not PATHS.of(concat, (1000, 32, 16), [True, False]).writes
    assert not PATHS.of(concat, (1000, 32, 20), [True, True]).writes


@pytest.mark.parametrize("kind", ["pointwise", "batch_norm"])
def test_what_stands_alone_stays_in_blocks_if_the_device_said_so(kind: str) -> None:
    alone = operator(kind, reads=2, chain=[])
    known = Paths(dataclasses.replace(Profile.here(), block=16, rules=RULES | {passes(alone): 1}))
    assert known.of(alone, (1, 20, 8, 8), [True, True]).reads == (True, True)
    assert not known.of(alone, (1, 20, 8, 8), [True, False]).fast
    assert not PATHS.of(alone, (1, 20, 8, 8), [True, True]).fast


def test_other_operators_read_the_plain_layout() -> None:
    path = PATHS.of(operator("linear"), (1, 64, 64), [True])
    assert (path.fast, path.reads, path.writes) == (False, (False,), False)


LEAF = {(0,): 1.0}
CONST = {(): 64.0}
# (operators that a leaf is read by, its size, its fast widths)
WIDTHS: list[tuple[list[Operator], int, tuple[int, ...]]] = [
    ([operator("conv", LEAF, CONST)], 64, (16, 32, 48, 64)),
    ([operator("conv", LEAF, CONST)], 72, (16, 32, 48, 64, 72)),
    ([operator("conv", CONST, LEAF)], 24, (4, 8, 12)),
    ([operator("conv", LEAF, CONST)], 24, (4, 8, 12, 16, 20, 24)),
    ([operator("depthwise", LEAF)], 6, (2, 4, 6)),
    ([operator("conv", {(0,): 4.0}, CONST)], 16, (4, 8, 12, 16)),
    ([operator("linear", CONST, {(0,): 64.0}, CONST)], 6, (1, 2, 3, 4, 5, 6)),
    ([operator("linear", LEAF, CONST, CONST)], 5, (1, 2, 3, 4, 5)),
    ([operator("attention", LEAF, CONST, CONST, CONST, CONST)], 3, (1, 2, 3)),
    ([operator("grouped", {(0,): 32.0}, CONST, LEAF)], 32, (16, 32)),
    ([operator("grouped", {(0,): 4.0}, {(0,): 4.0}, {(): 4.0})], 4, (1, 2, 3, 4)),
    ([operator("grouped", CONST, {(0,): 4.0}, {(): 16.0})], 64, (16, 32, 48, 64)),
    ([operator("concat", {(0,): 49.0}, LEAF, CONST)], 64, (16, 32, 48, 64)),
    ([operator("copy", {(0,): 49.0})], 4, (1, 2, 3, 4)),
    ([], 3, (1, 2, 3)),
    ([operator("conv", LEAF, CONST)], 1, (1,)),
]


@pytest.mark.parametrize(("readers", "size", "widths"), WIDTHS)
def test_fast_widths_fill_blocks(readers: list[Operator], size: int, widths: tuple[int, ...]) -> None:
    found = fast_widths(0, size, readers, PATHS)
    assert found[: len(widths)] == widths
    assert found[-1] == size


@pytest.mark.parametrize("size", [1, 17, 100, 768, 1000, 4096, 5000])
def test_fast_widths_are_not_too_many(size: int) -> None:
    found = fast_widths(0, size, [operator("conv", LEAF, CONST)], PATHS)
    assert len(found) <= MOST_STEPS + 1
    assert list(found) == sorted(set(found))
    assert found[-1] == size


def test_without_blocks_every_width_is_as_good() -> None:
    assert fast_widths(0, 5, [operator("conv", LEAF, CONST)], NOWHERE) == (1, 2, 3, 4, 5)
