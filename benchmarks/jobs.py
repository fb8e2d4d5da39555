"""Published ONNX files at the jobs that they were trained for, right answers known, before and after.

    pip download --no-deps -d WHEELS rapidocr-onnxruntime==1.4.4
    python -m benchmarks.jobs WHEELS

Lines of text are drawn with DejaVu's fonts (Debian's fonts-dejavu), words of Python's own documentation. The recognizer
of PP-OCRv4 reads them, judged by the characters that are right; the classifier tells whether they stand upright. Each
file is made smaller without data and with 96 unlabeled lines, of other fonts and words than those that are tested, and
its speed is measured with one thread. A line of JSON a row goes to `benchmarks/results/jobs.jsonl`, the table to
`jobs.md`.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image, ImageDraw, ImageFont

import surgeon
from benchmarks.onnx_files import found
from benchmarks.rows import append, command, last, publish, to_run
from surgeon.errors import SurgeonError, first_line

RESULTS = Path(__file__).parent / "results"
ROWS, TABLE = RESULTS / "jobs.jsonl", RESULTS / "jobs.md"
FONTS = Path("/usr/share/fonts/truetype/dejavu")
HEIGHT, WIDTH, CLASSIFIED = 48, 320, 192
#: How many lines are tested, and how many calibrate.
TESTED, UNLABELED = 400, 96
RATIOS = (0.3, 0.4, 0.5)


@dataclass(frozen=True)
class Line:
    """A line of text and its picture: (3, height, width), between -1 and 1."""

    text: str
    pixels: np.ndarray


def lines(count: int, tested: bool, width: int) -> list[Line]:
    """Drawn lines: those that are tested have serifs, and none of the words of those that are not."""
    rng = random.Random(tested)
    words = sorted({word for text in topics.values() for word in text.split() if word.isascii() and word.isalpha()})
    words = [word for place, word in enumerate(words) if (place % 2 == 0) == tested and len(word) > 2]
    fonts = sorted(path for path in FONTS.glob("*.ttf") if ("Serif" in path.name) == tested)
    made: list[Line] = []
    while len(made) < count:
        text = " ".join(rng.choices(words, k=rng.randint(1, 3)))
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


def distance(one: str, other: str) -> int:
    """How many characters have to be changed, added or taken away."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row, before = [i], row
        for j, b in enumerate(other, 1):
            row.append(min(row[-1] + 1, before[j] + 1, before[j - 1] + (a != b)))
    return row[-1]


def run(path: Path, inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: part})[0] for part in np.array_split(inputs, len(inputs) // 16)])


def characters(path: Path, tested: Sequence[Line]) -> list[float]:
    """Of each line, the share of its characters that the recognizer reads right."""
    known = {each.key: each.value for each in onnx.load(path).metadata_props}["character"].splitlines()
    alphabet = ["", *known, " "]
    scores = []
    for line, steps in zip(tested, run(path, np.stack([line.pixels for line in tested])).argmax(-1), strict=True):
        read = "".join(alphabet[step] for place, step in enumerate(steps) if place == 0 or steps[place - 1] != step)
        scores.append(max(0.0, 1 - distance(read, line.text) / len(line.text)))
    return scores


def upright(path: Path, tested: Sequence[Line]) -> list[float]:
    """Of each line, whether it is told which way up it is; every other one is turned."""
    turned = [line.pixels[:, ::-1, ::-1] if place % 2 else line.pixels for place, line in enumerate(tested)]
    found_ = run(path, np.stack(turned)).argmax(-1)
    return [float(each == place % 2) for place, each in enumerate(found_)]


@dataclass(frozen=True)
class Job:
    file: str
    width: int
    score: Callable[[Path, Sequence[Line]], list[float]]
    turned: bool


JOBS = {
    "recognizer": Job("ch_PP-OCRv4_rec_infer.onnx", WIDTH, characters, False),
    "orientation": Job("ch_ppocr_mobile_v2.0_cls_infer.onnx", CLASSIFIED, upright, True),
}


def mean(scores: Sequence[float]) -> list[float]:
    """The mean in percent, and half of its 95 % interval."""
    return [round(100 * float(np.mean(scores)), 2), round(196 * float(np.std(scores)) / len(scores) ** 0.5, 2)]


def measure(job: Job, path: Path, ratio: float, data: bool, folder: Path) -> dict[str, Any]:
    """The row of a file, made smaller."""
    torch.manual_seed(0)
    tested = lines(TESTED, True, job.width)
    given = np.stack([line.pixels for line in lines(UNLABELED, False, job.width)])
    if job.turned:
        given[::2] = given[::2, :, ::-1, ::-1]
    inputs = {"x": torch.from_numpy(given[:1].copy())}
    net = surgeon.load_onnx(path)
    start = time.perf_counter()
    slim = surgeon.shrink(net, ratio, data=torch.from_numpy(given) if data else None, example_inputs=inputs)
    made = surgeon.export(slim, folder / "slim.onnx", example_inputs=inputs)
    seconds = time.perf_counter() - start
    verdict = surgeon.benchmark(path, made.path, feeds={"x": given[:1]})
    return {
        "before": mean(job.score(path, tested)), "after": mean(job.score(made.path, tested)),
        "own file": made.original is not None, "bytes": [path.stat().st_size, made.bytes],
        "ms": [verdict.base.low, verdict.slim.low], "ratio": [verdict.ratio.low, verdict.ratio.value,
                                                              verdict.ratio.high], "seconds": round(seconds, 1),
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines_ = [
        f"`python -m benchmarks.jobs`: {TESTED} lines that are drawn, {UNLABELED} unlabeled ones where there are data; "
        "shares in percent with the half of their 95 % interval; one thread.\n",
        "| job, MACs removed, data | right before | after | ms before | after | speed-up | bytes | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in sorted(rows.items()):
        if "refused" in row:
            lines_.append(f"| {name} | refused: {row['refused']} | | | | | | |")
            continue
        low, value, high = row["ratio"]
        before, after = (f"{share:.2f} ± {half:.2f}" for share, half in (row["before"], row["after"]))
        lines_.append(
            f"| {name} | {before} | {after} | {row['ms'][0]:.2f} | {row['ms'][1]:.2f} | "
            f"{value:.2f} ({low:.2f}–{high:.2f}) | {row['bytes'][0]:,} → {row['bytes'][1]:,} | {row['seconds']} |"
        )
    return "\n".join(lines_) + "\n"


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("places", nargs="*", type=Path, help="wheels, .onnx files, and folders of them")
    given = parser.parse_args()
    rows = last(ROWS, "row")
    every = {
        f"{name}, {ratio:.0%}, {'96 lines' if data else 'none'}": (name, ratio, data)
        for name in JOBS for ratio in RATIOS for data in (True, False)
    }
    if not given.table:
        with tempfile.TemporaryDirectory() as folder:
            files = {path.name: path for _, path in found(given.places, Path(folder))}
            for label in to_run(every, given.only, given.redo, rows):
                name, ratio, data = every[label]
                try:
                    row = measure(JOBS[name], files[JOBS[name].file], ratio, data, Path(folder))
                except SurgeonError as error:
                    row = {"refused": first_line(error)}
                append(ROWS, {"row": label, **row})
    publish(table(last(ROWS, "row")), TABLE)


if __name__ == "__main__":
    main()
