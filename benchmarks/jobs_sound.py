"""Speech that espeak-ng speaks, in noise: frames for silero's detector, and clips for DNSMOS, which judges quality."""

from __future__ import annotations

import functools
import io
import random
import subprocess
import wave
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from scipy.signal import resample_poly
from scipy.stats import spearmanr

from benchmarks.job import Arrays, Job, run

RATE = 16_000
#: A frame of the detector, and what it hears again of the frame before; frames of a clip, and how many are tested.
FRAME, BEFORE, FRAMES, CLIPS = 512, 64, 160, 60
#: What is fitted on: clips of frames. They are calls of the file, one after the other.
UNLABELED = 24
#: Samples of a clip that is judged, and how many are tested and fitted on.
JUDGED, JUDGED_CLIPS, JUDGED_UNLABELED = 144_160, 100, 96
#: espeak-ng's voices of those clips that are tested, and of the others.
VOICES = {True: ("en-us+f2", "en-gb+m3", "de+f3", "es+m2"), False: ("en+m1", "fr+f1", "it+m4", "en-us+f4")}
_STATE = {name: np.zeros((1, 1, 128), np.float32) for name in ("h", "c")}


@functools.cache
def spoken(seed: int, tested: bool) -> np.ndarray:
    """A sentence at 16 kHz, at most 1 in magnitude."""
    rng = random.Random(2 * seed + tested)
    text = sorted(topics.values())[rng.randrange(len(topics))]
    words = [word for word in text.split() if word.isalpha()] or ["nothing"]
    said = " ".join(words[at] for at in sorted(rng.sample(range(len(words)), min(len(words), rng.randint(3, 7)))))
    voice, speed = rng.choice(VOICES[tested]), str(rng.randint(130, 190))
    command = ["espeak-ng", "--stdout", "-v", voice, "-s", speed, said]
    heard = subprocess.run(command, check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(heard)) as file:
        rate, sound = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), np.int16)
    found: np.ndarray = resample_poly(sound / 32768, RATE, rate).astype(np.float32)
    return found / max(float(np.abs(found).max()), 1e-6)


def _noise(rng: np.random.Generator, count: int) -> np.ndarray:
    """Noise, white to brown, of power 1."""
    spectrum = np.fft.rfft(rng.normal(size=count)) / np.maximum(np.arange(count // 2 + 1), 1) ** rng.uniform(0, 0.8)
    made: np.ndarray = np.fft.irfft(spectrum, count)
    return made / made.std()


def frames(seed: int, tested: bool) -> tuple[np.ndarray, np.ndarray]:
    """A clip as the detector hears it, (frames, 64 + 512), and in which frames somebody speaks."""
    rng = np.random.default_rng(2 * seed + tested)
    clean, at = np.zeros(FRAMES * FRAME, np.float32), int(rng.integers(RATE // 4, RATE))
    while at < len(clean):
        said = spoken(int(rng.integers(200)), tested)[: len(clean) - at]
        clean[at : at + len(said)] = said * rng.uniform(0.2, 0.6)
        at += len(said) + int(rng.integers(RATE // 3, 2 * RATE))
    loud = np.sqrt((clean.reshape(FRAMES, FRAME) ** 2).mean(1))
    speech = loud > 0.03 * loud.max()
    power = float(np.sqrt((clean[np.repeat(speech, FRAME)] ** 2).mean()))
    heard = (clean + _noise(rng, len(clean)) * power * 10 ** (-rng.uniform(8, 20) / 20)).astype(np.float32)
    padded = np.concatenate([np.zeros(BEFORE, np.float32), heard])
    return np.stack([padded[place * FRAME : place * FRAME + BEFORE + FRAME] for place in range(FRAMES)]), speech


def detected(path: Path) -> list[float]:
    """Of each clip, the share of frames in which the detector is right."""
    scores = []
    for seed in range(CLIPS):
        heard, speech = frames(seed, True)
        found = run(path, {"input": heard}, _STATE, FRAMES)[0]
        scores.append(float(((found > 0.5) == speech).mean()))
    return scores


def clip(seed: int, tested: bool) -> tuple[np.ndarray, float]:
    """Nine seconds of speech in noise, and how many decibels louder the speech is."""
    rng = np.random.default_rng(1000 + 2 * seed + tested)
    clean, at = np.zeros(JUDGED, np.float32), 0
    while at < len(clean):
        said = spoken(int(rng.integers(200)), tested)[: len(clean) - at]
        clean[at : at + len(said)] = said * 0.4
        at += len(said) + RATE // 3
    louder = float(rng.uniform(-5, 35))
    heard = clean + _noise(rng, len(clean)) * float(clean.std()) * 10 ** (-louder / 20)
    return (heard / max(1.0, float(np.abs(heard).max()))).astype(np.float32), louder


def judged(path: Path) -> list[tuple[float, float]]:
    """Of each clip, the overall quality that DNSMOS gives, and how much louder the speech is."""
    clips = [clip(seed, True) for seed in range(JUDGED_CLIPS)]
    found = run(path, {"input_1": np.stack([heard for heard, _ in clips])}, together=4)[0]
    return [(float(quality[2]), louder) for quality, (_, louder) in zip(found, clips, strict=True)]


def ranked(scores: np.ndarray) -> float:
    """Spearman's correlation of pairs."""
    return float(spearmanr(scores[:, 0], scores[:, 1]).statistic)


def _unlabeled_frames() -> Arrays:
    return {"input": np.concatenate([frames(seed, False)[0] for seed in range(UNLABELED)])}


def _unlabeled_clips() -> Arrays:
    return {"input_1": np.stack([clip(seed, False)[0] for seed in range(JUDGED_UNLABELED)])}


JOBS = {
    "speech": Job(
        "silero_vad_16k_sequence.onnx", detected, _unlabeled_frames, _STATE, samples=UNLABELED * FRAMES,
        measured=FRAMES,
    ),
    "quality": Job("dnsmos_models/sig_bak_ovr.onnx", judged, _unlabeled_clips, summary=ranked),
}
