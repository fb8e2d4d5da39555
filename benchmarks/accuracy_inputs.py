"""Unlabeled inputs that come with packages: crops of photographs, and sentences of documentation.

Debian's plasma-workspace-wallpapers, lomiri-wallpapers-16.04, lomiri-wallpapers-20.04, ukui-wallpapers and
mate-backgrounds hold most of the photographs.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.accuracy_networks import folder

MOST = 1024
"""Pixels of a side to read of a picture."""
#: Pictures of scikit-image and scikit-learn, all that are of something and in color.
PICTURES = {
    "skimage": (
        "data/astronaut.png", "data/chelsea.png", "data/coffee.png", "data/hubble_deep_field.jpg", "data/ihc.png",
        "data/motorcycle_left.png", "data/retina.jpg", "data/rocket.jpg",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}
#: Every so many-th picture and document is held back.
HELD_BACK = 3


def crops(count: int, held_back: bool, seed: int, size: int = 224) -> Tensor:
    """Square crops of pictures, (count, 3, size, size) from -1 to 1, as many of each, in an order drawn from `seed`.

    They have 0.4 to 1 times the size of the picture, every third of which is `held_back`, and half of them are
    mirrored.
    """
    generator = torch.Generator().manual_seed(2 * seed + held_back)
    chosen = [file for index, file in enumerate(pictures()) if (index % HELD_BACK == 0) == held_back]
    made = []
    for place, file in enumerate(chosen):
        image = Image.open(file)
        image.draft("RGB", (MOST, MOST))  # a JPEG is decoded at about this size
        picture = image.convert("RGB")
        wide, high = picture.size
        for _ in range(len(range(place, count, len(chosen)))):
            side = int(min(wide, high) * (0.4 + 0.6 * float(torch.rand((), generator=generator))))
            left, top = (int(torch.randint(room - side + 1, (), generator=generator)) for room in (wide, high))
            crop = picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
            pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1) / 127.5 - 1
            made.append(pixels.flip(2) if torch.rand((), generator=generator) < 0.5 else pixels)
    return torch.stack(made)[torch.randperm(len(made), generator=generator)]


def pictures() -> list[Path]:
    """Photographs of Python's packages, and of the desktop's (XDG_DATA_DIRS): the largest of each folder of sizes.

    Where a package has many sizes of one picture, they lie in a folder of their own, beside no others.
    """
    found = [folder(package) / file for package, files in PICTURES.items() for file in files]
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    for place in (Path(each) / kind for each in shared.split(":") for kind in ("wallpapers", "backgrounds")):
        files = sorted(place.rglob("*.jpg"))
        sized = {file: file.stem.replace("x", "").isdigit() for file in files}
        largest: dict[Path, Path] = {}
        for file in (file for file in files if sized[file]):
            beside = largest.get(file.parent, file)
            largest[file.parent] = max(beside, file, key=lambda each: each.stat().st_size)
        found += [file for file in files if not sized[file] and file.stem != "screenshot"]
        found += [file for where, file in largest.items() if where.name != "images_dark"]
    return found


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
    for path in (folder("sklearn") / "datasets" / "descr").glob("*.rst"):
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
