"""Drawn text with known right answers: lines for PP-OCRv4's recognizer and classifier, pages for its detector."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import onnx
from PIL import Image, ImageDraw, ImageFont

from benchmarks.job import Arrays, Job, run

FONTS = Path("/usr/share/fonts/truetype/dejavu")
HEIGHT, WIDTH, CLASSIFIED = 48, 320, 192
#: How many lines are tested, and how many calibrate.
TESTED, UNLABELED = 400, 96
#: The side of a page, how many are tested, and by what share of its area over its border a line is shrunk on all sides
#: where the detector is to find it. It was trained with 0.84, of boxes drawn by hand, which are less close to the ink.
SIDE, PAGES, SHRUNK = 320, 100, 0.5


@dataclass(frozen=True)
class Line:
    """A line of text and its picture: (3, height, width), between -1 and 1."""

    text: str
    pixels: np.ndarray


def _words(rng: random.Random, tested: bool) -> Callable[[], str]:
    """What draws one to three words; those that are tested have no words of those that are not."""
    words = sorted({word for text in topics.values() for word in text.split() if word.isascii() and word.isalpha()})
    words = [word for place, word in enumerate(words) if (place % 2 == 0) == tested and len(word) > 2]
    return lambda: " ".join(rng.choices(words, k=rng.randint(1, 3)))


def _fonts(tested: bool) -> list[Path]:
    """Fonts with serifs for what is tested, others for what is not."""
    return sorted(path for path in FONTS.glob("*.ttf") if ("Serif" in path.name) == tested)


def lines(count: int, tested: bool, width: int) -> list[Line]:
    """Drawn lines."""
    rng = random.Random(tested)
    words, fonts = _words(rng, tested), _fonts(tested)
    made: list[Line] = []
    while len(made) < count:
        text = words()
        font = ImageFont.truetype(str(rng.choice(fonts)), 40)
        box = font.getbbox(text)
        image = Image.new("L", (int(box[2]) + 16, 56), rng.randint(200, 255))
        ImageDraw.Draw(image).text((8, 4), text, fill=rng.randint(0, 90), font=font)
        scaled = round(image.width * HEIGHT / image.height)
        if scaled > width:
            continue
        pixels = np.asarray(image.resize((scaled, HEIGHT), Image.Resampling.BILINEAR), np.float64)
        pixels = pixels + np.random.default_rng(len(made)).normal(0, 20, pixels.shape)
        full = np.zeros((3, HEIGHT, width), np.float32)
        full[:, :, :scaled] = np.clip(pixels / 255, 0, 1) * 2 - 1
        made.append(Line(text, full))
    return made


def pages(count: int, tested: bool) -> tuple[np.ndarray, np.ndarray]:
    """Drawn pages, (count, 3, side, side) between -1 and 1, and where text is, (count, side, side), as the detector
    was trained to find it: lines that are shrunk."""
    rng = random.Random(2 + tested)
    words, fonts = _words(rng, tested), _fonts(tested)
    pixels = np.empty((count, 3, SIDE, SIDE), np.float32)
    text_at = np.zeros((count, SIDE, SIDE), bool)
    for page in range(count):
        image = Image.new("L", (SIDE, SIDE), rng.randint(190, 255))
        draw, top = ImageDraw.Draw(image), rng.randint(4, 40)
        while top < SIDE - 44:
            font = ImageFont.truetype(str(rng.choice(fonts)), rng.randint(16, 32))
            text, left = words(), rng.randint(4, 120)
            x0, y0, x1, y1 = (round(side) for side in draw.textbbox((left, top), text, font=font))
            if x1 < SIDE - 4:
                draw.text((left, top), text, fill=rng.randint(0, 110), font=font)
                off = round(SHRUNK * (x1 - x0) * (y1 - y0) / (2 * (x1 - x0 + y1 - y0)))
                text_at[page, y0 + off : y1 - off, x0 + off : x1 - off] = True
            top = y1 + rng.randint(10, 40)
        noisy = np.asarray(image, np.float64) + np.random.default_rng(page).normal(0, 12, (SIDE, SIDE))
        pixels[page] = np.clip(noisy / 255, 0, 1) * 2 - 1
    return pixels, text_at


def distance(one: str, other: str) -> int:
    """How many characters have to be changed, added or taken away."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row, before = [i], row
        for j, b in enumerate(other, 1):
            row.append(min(row[-1] + 1, before[j] + 1, before[j - 1] + (a != b)))
    return row[-1]


def characters(path: Path) -> list[float]:
    """Of each line, the share of its characters that the recognizer reads right."""
    tested = lines(TESTED, True, WIDTH)
    known = {each.key: each.value for each in onnx.load(path).metadata_props}["character"].splitlines()
    alphabet = ["", *known, " "]
    scores = []
    (found,) = run(path, {"x": np.stack([line.pixels for line in tested])})
    for line, steps in zip(tested, found.argmax(-1), strict=True):
        read = "".join(alphabet[step] for place, step in enumerate(steps) if place == 0 or steps[place - 1] != step)
        scores.append(max(0.0, 1 - distance(read, line.text) / len(line.text)))
    return scores


def upright(path: Path) -> list[float]:
    """Of each line, whether it is told which way up it is; every other one is turned."""
    tested = lines(TESTED, True, CLASSIFIED)
    turned = [line.pixels[:, ::-1, ::-1] if place % 2 else line.pixels for place, line in enumerate(tested)]
    (found,) = run(path, {"x": np.stack(turned)})
    return [float(each == place % 2) for place, each in enumerate(found.argmax(-1))]


def overlap(path: Path) -> list[float]:
    """Of each page, how much of what is text or taken for it is both."""
    pixels, text_at = pages(PAGES, True)
    (found,) = run(path, {"x": pixels})
    taken = found[:, 0] > 0.3
    return [float((a & b).sum() / max((a | b).sum(), 1)) for a, b in zip(taken, text_at, strict=True)]


def _unlabeled(width: int, turned: bool) -> Arrays:
    given = np.stack([line.pixels for line in lines(UNLABELED, False, width)])
    if turned:
        given[::2] = given[::2, :, ::-1, ::-1]
    return {"x": given}


JOBS = {
    "recognizer": Job("ch_PP-OCRv4_rec_infer.onnx", characters, lambda: _unlabeled(WIDTH, False)),
    "orientation": Job("ch_ppocr_mobile_v2.0_cls_infer.onnx", upright, lambda: _unlabeled(CLASSIFIED, True)),
    "detector": Job("ch_PP-OCRv4_det_infer.onnx", overlap, lambda: {"x": pages(UNLABELED, False)[0]}),
}
