"""Unlabeled inputs that come with Python packages: crops of photographs, and sentences of documentation."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIZE = 224
#: Pictures of scikit-image and scikit-learn, all that are of something and in color.
PICTURES = {
    "skimage": (
        "data/astronaut.png", "data/chelsea.png", "data/coffee.png", "data/hubble_deep_field.jpg", "data/ihc.png",
        "data/motorcycle_left.png", "data/retina.jpg", "data/rocket.jpg",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}
#: Every so many-th document is held back.
HELD_BACK = 3


def crops(each: int, held_back: bool, seed: int) -> Tensor:
    """`each` square crops of every picture, (N, 3, 224, 224) from -1 to 1, in an order drawn from `seed`.

    They have 0.4 to 1 times the size of the half of the picture that they lie in: the left one, or if they are
    `held_back` the right one, so that no pixel is in both. Half of them are mirrored.
    """
    generator = torch.Generator().manual_seed(2 * seed + held_back)
    made = []
    for package, files in PICTURES.items():
        for file in files:
            picture = Image.open(_folder(package) / file).convert("RGB")
            wide, high = picture.size
            half = wide // 2
            picture = picture.crop((wide - half, 0, wide, high) if held_back else (0, 0, half, high))
            for _ in range(each):
                side = int(min(half, high) * (0.4 + 0.6 * float(torch.rand((), generator=generator))))
                left, top = (int(torch.randint(room - side + 1, (), generator=generator)) for room in (half, high))
                crop = picture.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
                pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1) / 127.5 - 1
                made.append(pixels.flip(2) if torch.rand((), generator=generator) < 0.5 else pixels)
    return torch.stack(made)[torch.randperm(len(made), generator=generator)]


def sentences(held_back: bool) -> list[str]:
    """Sentences of Python's and scikit-learn's own documentation; those held back are of other documents."""
    found = [list(dict.fromkeys(_sentences(text))) for text in _documents()]
    shown = [line for index, lines in enumerate(found) if index % HELD_BACK for line in lines]
    if not held_back:
        return list(dict.fromkeys(shown))
    known = set(shown)
    return list(dict.fromkeys(line for lines in found[::HELD_BACK] for line in lines if line not in known))


def _documents() -> list[str]:
    """The documents in the order of their names."""
    texts = dict(topics)
    for path in (_folder("sklearn") / "datasets" / "descr").glob("*.rst"):
        texts[path.name] = path.read_text(encoding="utf-8")
    return [texts[name] for name in sorted(texts)]


def _sentences(text: str) -> list[str]:
    """Whole sentences of words: neither code nor tables."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.startswith("   ") or "::" in paragraph:
            continue
        for line in re.split(r"(?<=[.!?]) ", " ".join(paragraph.split())):
            letters = sum(letter.isalpha() or letter == " " for letter in line)
            if 40 <= len(line) <= 250 and line[0].isupper() and line[-1] in ".!?" and letters > 0.9 * len(line):
                found.append(line)
    return found


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: pip install 'surgeon[pretrained]'")
    return Path(spec.origin).parent
