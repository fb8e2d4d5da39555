"""Sounds: tones of a known pitch, made up of harmonics, and speech of many voices, by `espeak-ng`."""

from __future__ import annotations

import io
import math
import shutil
import subprocess
import wave
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

RATE = 16_000
"""Samples a second."""
WINDOW = 1024
"""Samples that a pitch is found in."""
LOWEST, HIGHEST = 50.0, 1500.0
#: Formants of a vocal tract, in Hz, are drawn from these ranges.
FORMANTS = ((250.0, 900.0), (800.0, 2500.0), (2200.0, 3500.0))

#: The languages of the voices, each of which speaks with every variant.
LANGUAGES = ("en-us", "en-gb", "de", "fr-fr", "es", "it", "pt-br", "pl", "nl", "sv", "cs", "fi")
VARIANTS = ("m1", "m3", "m5", "m7", "f1", "f2", "f4", "klatt2", "croak", "whisper")
#: Every so many-th voice is held back.
HELD_BACK = 3
#: A voice's spectrogram is cut into pieces of so many frames, 10 ms apart, of so many channels.
FRAMES, CHANNELS, HOP, SPECTRUM = 160, 40, 160, 400
LOUDNESS = 10 ** (-30 / 20)


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Windows (count, 1024) of harmonic sounds in noise, of mean 0 and spread 1, and their pitches in Hz, (count,).

    Half of them have a spectrum that only falls, half of them have formants as a voice has.
    """
    generator = torch.Generator().manual_seed(seed)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    pitches = torch.exp(between(math.log(LOWEST), math.log(HIGHEST), count))
    time = torch.arange(WINDOW, dtype=torch.float64) / RATE
    made = torch.zeros(count, WINDOW, dtype=torch.float64)
    for index, pitch in enumerate(pitches.tolist()):
        harmonics = pitch * torch.arange(1, int(0.45 * RATE / pitch) + 1, dtype=torch.float64)
        size = harmonics ** -float(between(0.5, 2.0))
        if index % 2:
            for low, high in FORMANTS:
                size = size * (0.1 + torch.exp(-(((harmonics - float(between(low, high))) / 150) ** 2)))
        phases = between(0.0, 2 * math.pi, len(harmonics), 1)
        made[index] = (size[:, None] * torch.sin(2 * math.pi * harmonics[:, None] * time + phases)).sum(0)
    noise = torch.randn(made.shape, generator=generator, dtype=torch.float64)
    made = made / made.std(1, keepdim=True) + 10 ** (-between(10.0, 40.0, count, 1) / 20) * noise
    made = made - made.mean(1, keepdim=True)
    return (made / made.std(1, keepdim=True)).float(), pitches.float()


def voices(sentences: Sequence[str], held_back: bool, seed: int) -> Tensor:
    """Spectrograms (N, 160, 40) of two sentences by each voice, or by those that are `held_back`, in a random order.

    Raises:
        SystemExit: espeak-ng is not installed.
    """
    speaker = shutil.which("espeak-ng")
    if speaker is None:
        raise SystemExit("these voices are espeak-ng's: apt-get install espeak-ng")
    generator = torch.Generator().manual_seed(2 * seed + held_back)
    every = [f"{language}+{variant}" for language in LANGUAGES for variant in VARIANTS]
    chosen = [voice for index, voice in enumerate(every) if (index % HELD_BACK == 0) == held_back]
    pieces = []
    for voice in chosen:
        lines = torch.randint(len(sentences), (2,), generator=generator).tolist()
        pitch, speed = (int(torch.randint(*room, (), generator=generator)) for room in ((20, 80), (130, 200)))
        command = [speaker, "--stdout", "-v", voice, "-p", str(pitch), "-s", str(speed)]
        spoken = subprocess.run(
            [*command, " ".join(sentences[line] for line in lines)], capture_output=True, check=True
        ).stdout
        sound = mel(_samples(spoken))
        pieces += [sound[at : at + FRAMES] for at in range(0, len(sound) - FRAMES + 1, FRAMES)]
    return torch.stack(pieces)[torch.randperm(len(pieces), generator=generator)]


def _samples(file: bytes) -> Tensor:
    """A mono WAV file as samples at `RATE`, no quieter than `LOUDNESS`."""
    header = 44  # espeak-ng writes to a pipe, so that the header does not tell the length
    with wave.open(io.BytesIO(file)) as read:
        rate = read.getframerate()
    found = torch.frombuffer(bytearray(file[header:]), dtype=torch.int16).float() / 2**15
    found = F.interpolate(found[None, None], size=len(found) * RATE // rate, mode="linear")[0, 0]
    return found * max(1.0, LOUDNESS / float(found.square().mean().sqrt()))


def mel(sound: Tensor) -> Tensor:
    """The power of samples (N,) in bands that are even in pitch as it is heard, (frames, 40): librosa's spectrogram."""
    window = torch.hann_window(SPECTRUM)
    found = torch.stft(sound, SPECTRUM, HOP, window=window, pad_mode="constant", return_complex=True).abs().square()
    return (_bands() @ found).t().contiguous()


def _bands() -> Tensor:
    """Triangles of equal area over the frequencies of a spectrum, by Slaney's scale: (40, 201)."""
    step = math.log(6.4) / 27  # linear up to 1 kHz, logarithmic from there on
    edges = torch.linspace(0, 15 + math.log(RATE / 2 / 1000) / step, CHANNELS + 2, dtype=torch.float64)
    hertz = torch.where(edges < 15, edges * 200 / 3, 1000 * torch.exp(step * (edges - 15)))
    ramps = hertz[:, None] - torch.linspace(0, RATE / 2, SPECTRUM // 2 + 1, dtype=torch.float64)
    width = hertz.diff()[:, None]
    bands = torch.minimum(-ramps[:-2] / width[:-1], ramps[2:] / width[1:]).clamp(min=0)
    return (bands * 2 / (hertz[2:] - hertz[:-2])[:, None]).float()
