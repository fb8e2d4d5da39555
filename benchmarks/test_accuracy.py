"""The parts of the accuracy benchmark that need no trained network: checkpoints, the peer's landing, the tables."""

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import peers
from benchmarks.accuracy import keys
from benchmarks.accuracy_checkpoint import tensors
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


def test_every_row_has_a_name_of_its_own() -> None:
    assert len(set(keys())) == len(keys())
