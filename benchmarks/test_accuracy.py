"""The parts of the accuracy benchmark that need no trained network: checkpoints, the peer's landing, the tables."""

import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import peers
from benchmarks.accuracy import keys
from benchmarks.accuracy_checkpoint import tensors
from benchmarks.accuracy_pretrained import CHUNK, reestimate
from benchmarks.accuracy_sounds import RATE, WINDOW, mel, tones
from benchmarks.accuracy_table import table

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
HEAD = MAGIC + b"\x80\x02M\xe9\x03." + b"\x80\x02}."
STORAGE = b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06NtQ"
SHAPE = b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89ccollections\nOrderedDict\n)R"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n((" + STORAGE + SHAPE + b"tR"
CALL = b"cposix\nsystem\nX\x0a\x00\x00\x00touch pwnd\x85R"


def checkpoint(value: bytes) -> bytes:
    """A file of torch before 1.6 that holds `value` as `w`."""
    state = b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01X\x01\x00\x00\x00w" + value + b"s."
    return HEAD + state + b"\x80\x02]X\x01\x00\x00\x000a." + struct.pack("<q6f", 6, *range(6))


def test_a_checkpoint_is_read_without_unpickling(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    path.write_bytes(checkpoint(TENSOR))
    assert {name: value.tolist() for name, value in tensors(path).items()} == {"w": [[0, 1, 2], [3, 4, 5]]}


def test_a_call_in_a_checkpoint_is_refused_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.pth").write_bytes(checkpoint(CALL))
    with pytest.raises(ValueError, match=r"w is no tensor but .*posix system"):
        tensors(Path("bad.pth"))
    assert not Path("pwnd").exists()


def test_an_archived_checkpoint_is_read_without_unpickling(tmp_path: Path) -> None:
    path = tmp_path / "new.pth"
    state = b"\x80\x02}X\x05\x00\x00\x00model}X\x01\x00\x00\x00w" + TENSOR.replace(b"NtQ", b"tQ") + b"ss."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("new/data.pkl", state)
        archive.writestr("new/data/0", struct.pack("<6f", *range(6)))
    assert {name: value.tolist() for name, value in tensors(path, "model").items()} == {"w": [[0, 1, 2], [3, 4, 5]]}
    with pytest.raises(ValueError, match="model is no tensor"):
        tensors(path)


def test_tones_have_the_pitch_that_is_told() -> None:
    sounds, pitches = tones(8, seed=0)
    bins = pitches * WINDOW / RATE
    spectrum = torch.fft.rfft(sounds, 8 * WINDOW).abs()
    for each, where in zip(spectrum, bins, strict=True):
        whole = torch.arange(1, int(WINDOW / 2 / where) + 1) * where * 8
        beside = whole - 4 * where
        assert each[whole.round().long()].sum() > 2 * each[beside.round().long()].sum()


def test_no_tone_is_both_learned_from_and_judged_by() -> None:
    assert not bool(torch.isin(tones(8, seed=0)[1], tones(8, seed=1)[1]).any())


def test_bands_cover_the_spectrum_and_are_ordered() -> None:
    time = torch.arange(RATE) / RATE
    loudest = [int(mel(torch.sin(2 * math.pi * hertz * time)).mean(0).argmax()) for hertz in (200, 1000, 3000, 7000)]
    assert loudest == sorted(set(loudest))


def test_batch_norms_are_reestimated_on_all_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).eval()
    data = 3 + 2 * torch.randn(4 * CHUNK, 2)
    reestimate(model, data)
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.momentum == 0.1 and not any(module.training for module in model.modules())
    assert torch.allclose(norm.get_buffer("running_mean"), data.mean(0), atol=1e-4)


def test_published_networks_are_in_the_table() -> None:
    cut = {"score": 0.9, "macs": 0.75, "seconds": 30.0}
    peer = {"L2": {"error": "fails"}, "FPGM": {"score": 0.5, "macs": 0.75}}
    made = {"original": 1.0, "data": cut, "noise": {"error": "no"}, "plain": {**cut, "score": 0.1}, "peer": peer}
    text = table({"lite0:0.25:0": made})
    assert "| EfficientNet-Lite0 | top-1 | 100.0% | 75% | **90.0%** | 30 | fails | 10.0% | 50.0% (FPGM) |" in text


@pytest.mark.parametrize("power", [1, 2, 4])
@pytest.mark.parametrize("target", [0.5, 0.25, 0.1])
def test_the_peer_lands_at_a_share_of_the_macs(power: int, target: float) -> None:
    made: list[float] = []

    def make(ratio: float) -> nn.Module:
        made.append(ratio)
        model = nn.Identity()
        model.register_buffer("macs", torch.tensor((1 - ratio) ** power))
        return model

    found = peers.land(make, lambda model: float(model.get_buffer("macs")), target)
    assert abs(found.macs / target - 1) <= 0.01
    assert len(made) <= peers.STEPS


def row(accuracy: float) -> dict[str, Any]:
    return {"accuracy": accuracy, "macs": 0.5, "seconds": 3.0, "dense": 0.92, "ratio": 1.8}


def test_seeds_are_averaged_and_what_is_missing_is_left_open() -> None:
    text = table({"free:residual:0.5:0": row(0.90), "free:residual:0.5:1": row(0.91), "fast:residual:0.5:0": row(0.9)})
    cells = "| residual (92.00%) | 50% | – | **90.50% ± 0.50** | 1.50 | 3 | 90.00% | 2.00 | 1.80× | – | – | – | – | – |"
    assert cells in text
    assert "After one epoch" not in text


def test_rows_from_fewer_images_are_not_averaged_with_those_from_more() -> None:
    text = table({"free:residual:0.5:0": row(0.90), "free:residual:0.5:1": {**row(0.91), "images": 1024}})
    assert "| residual (92.00%) | 50% | 1024 | **91.00%** | 1.00 | 3 |" in text


def test_the_agreement_that_is_told_stands_against_the_true_one() -> None:
    made = [{**row(0.9), "predicted": told, "agreement": true} for told, true in ((0.7, 0.6), (0.8, 0.7), (0.9, 0.9))]
    rows: dict[str, Any] = {
        "noise:residual:0.5:0": dict(zip(("plain", "64", "256"), (row(0.1), *made[:2]), strict=True)),
        "fast:residual:0.5:0": {**made[2], "images": 1024},
    }
    text = table(rows)
    assert "| unlabeled images | 1 | 0.0 | – |" in text
    assert "| noise or synthesized | 2 | 10.0 | 1.00 |" in text and "| all | 3 | 6.7 | 1.00 |" in text


def test_every_row_has_a_name_of_its_own() -> None:
    assert len(set(keys())) == len(keys())
