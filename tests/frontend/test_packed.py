"""Recurrent layers on packed sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import surgeon
from surgeon.errors import SurgeryError
from surgeon.frontend.stand_ins import as_traced

LENGTHS = torch.tensor([7, 4, 5])


class Net(nn.Module):
    def __init__(self, layer: Any, batch_first: bool, ordered: bool, **options: Any) -> None:
        super().__init__()
        self.up = nn.Linear(8, 24)
        self.layer = layer(24, 16, batch_first=batch_first, **options)
        width = self.layer.proj_size or 16
        self.down = nn.Linear(2 * width if self.layer.bidirectional else width, 3)
        self.batch_first, self.ordered = batch_first, ordered

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        packed = pack_padded_sequence(self.up(x).relu(), lengths.cpu(), self.batch_first, self.ordered)
        y, state = self.layer(packed)
        padded, _ = pad_packed_sequence(y, self.batch_first, padding_value=-1.0)
        return self.down(padded), state[0] if isinstance(state, tuple) else state


OPTIONS: dict[str, dict[str, Any]] = {
    "LSTM": {"layer": nn.LSTM, "batch_first": True, "ordered": False},
    "both ways": {"layer": nn.LSTM, "batch_first": False, "ordered": False, "bidirectional": True, "num_layers": 2},
    "GRU, in order": {"layer": nn.GRU, "batch_first": True, "ordered": True},
    "projected": {"layer": nn.LSTM, "batch_first": True, "ordered": False, "num_layers": 2, "proj_size": 12},
    "plain": {"layer": nn.RNN, "batch_first": False, "ordered": False, "bias": False},
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", OPTIONS)
def test_they_are_traced_as_what_they_compute(name: str) -> None:
    model = Net(**OPTIONS[name]).eval()
    x = torch.randn(3, 7, 8) if model.batch_first else torch.randn(7, 3, 8)
    lengths = LENGTHS.sort(descending=True).values if model.ordered else LENGTHS
    wanted = model(x, lengths)
    with as_traced(model):
        found = model(x, lengths)
    for a, b in zip(wanted, found, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert "forward" not in vars(model.layer)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", OPTIONS)
def test_they_are_pruned(name: str) -> None:
    model = Net(**OPTIONS[name]).eval()
    x = torch.randn(3, 7, 8) if model.batch_first else torch.randn(7, 3, 8)
    lengths = LENGTHS.sort(descending=True).values if model.ordered else LENGTHS
    slim, report = surgeon.shrink(model, 0.2, example_inputs=(x, lengths), align=1, return_report=True)
    assert report.form == "module"
    assert report.certificate.deviation < 1e-6
    assert slim.layer.input_size < 24
    shorter = x[:, :5] if model.batch_first else x[:5]
    assert slim(shorter, lengths.clamp(max=5))[0].shape == model(shorter, lengths.clamp(max=5))[0].shape


def test_on_data() -> None:
    class Last(Net):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            y, _ = self.layer(pack_padded_sequence(self.up(x).relu(), lengths, self.batch_first, self.ordered))
            return self.down(pad_packed_sequence(y, self.batch_first)[0])

    model = Last(nn.LSTM, True, False).eval()
    data = [(torch.randn(16, 7, 8), torch.randint(3, 8, (16,)).clamp(min=7)) for _ in range(2)]
    slim, report = surgeon.shrink(
        model, 0.3, example_inputs=(data[0][0][:3], data[0][1][:3]), data=data, distill=False, return_report=True
    )
    assert type(slim) is Last
    assert report.recovery.after <= report.recovery.before


def test_no_graph_holds_them() -> None:
    model = Net(**OPTIONS["LSTM"]).eval()
    with pytest.raises(SurgeryError, match="packed sequences"):
        surgeon.shrink(model, 0.2, example_inputs=(torch.randn(3, 7, 8), LENGTHS), form="graph")


def test_what_reads_lengths_is_loaded_without_example_inputs(tmp_path: Path) -> None:
    model, x = Net(**OPTIONS["LSTM"]).eval(), torch.randn(3, 7, 8)
    slim = surgeon.shrink(model, 0.4, example_inputs=(x, LENGTHS))
    surgeon.save(slim, tmp_path)
    again = surgeon.load(tmp_path, Net(**OPTIONS["LSTM"]).eval())
    assert all(torch.equal(a, b) for a, b in zip(again(x, LENGTHS), slim(x, LENGTHS), strict=True))
