"""Photographs for nudenet's YOLOv8: how far the smaller file's boxes are those of the original."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.job import Arrays, Job, run

SIDE, TESTED, UNLABELED = 320, 150, 96
#: Boxes of a picture that are compared: the surest, of those that are at all sure.
MOST, SURE = 10, 0.05


def photographs(folder: Path, count: int, tested: bool) -> np.ndarray:
    """Parts of pictures, (count, 3, side, side) from 0 to 1; every other picture of a folder is for testing."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    paths = [path for path in paths[tested::2] if path.stat().st_size > 20_000]
    made, rng = [], np.random.default_rng(tested)
    for place in range(count):
        with Image.open(paths[place % len(paths)]) as opened:
            opened.draft("RGB", (2 * SIDE, 2 * SIDE))
            picture = opened.convert("RGB")
        side = int(min(picture.size) * rng.uniform(0.5, 1))
        left, top = (int(rng.integers(size - side + 1)) for size in picture.size)
        part = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        made.append(np.asarray(part, np.float32).transpose(2, 0, 1) / 255)
    return np.stack(made)


def boxes(found: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The kind and the corners of the surest boxes in an output (4 + kinds, places), none over another of its kind."""
    sure, kinds = found[4:].max(0), found[4:].argmax(0)
    center, half = found[:2].T, found[2:4].T / 2
    corners = np.concatenate([center - half, center + half], 1)
    kept: list[tuple[int, np.ndarray]] = []
    for at in np.argsort(-sure)[:200]:
        if sure[at] < SURE or len(kept) == MOST:
            break
        if all(kind != kinds[at] or shared(box, corners[at]) < 0.45 for kind, box in kept):
            kept.append((int(kinds[at]), corners[at]))
    return kept


def shared(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    both = float(np.prod(np.maximum(high - low, 0)))
    areas = [float(np.prod(box[2:] - box[:2])) for box in (one, other)]
    return both / max(sum(areas) - both, 1e-9)


def agreeing(folder: Path, original: Path) -> Callable[[Path], list[float]]:
    """Of each picture, the share of boxes of both files that the other one has too: of its kind, over it by half."""
    def score(path: Path) -> list[float]:
        pictures = photographs(folder, TESTED, True)
        scores = []
        for want, have in zip(*(run(each, {"images": pictures})[0] for each in (original, path)), strict=True):
            wanted, had = boxes(want), boxes(have)
            pairs = [
                any(kind == other and shared(box, place) >= 0.5 for other, place in those)
                for these, those in ((wanted, had), (had, wanted)) for kind, box in these
            ]
            if wanted:
                scores.append(float(np.mean(pairs)))
        return scores

    return score


def jobs(folder: Path, original: Path) -> dict[str, Job]:
    def unlabeled() -> Arrays:
        return {"images": photographs(folder, UNLABELED, False)}

    return {"boxes": Job("320n.onnx", agreeing(folder, original), unlabeled)}
