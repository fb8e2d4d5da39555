"""Changes of a model's tensors, made at double precision, and written once when all are made."""

from __future__ import annotations

import torch
from torch import Tensor

from surgeon.calibration.parameter_slots import Slot


class Draft:
    """The new contents of tensors, which stay unchanged until `write`.

    >>> layer = torch.nn.Linear(1, 2, bias=False)
    >>> draft = Draft()
    >>> draft.tensor(layer.weight).fill_(3.0).dtype, layer.weight.max().item() < 3
    (torch.float64, True)
    >>> draft.write()
    >>> layer.weight.tolist()
    [[3.0], [3.0]]
    """

    def __init__(self) -> None:
        self._drafts: dict[int, tuple[Tensor, Tensor]] = {}

    def tensor(self, tensor: Tensor) -> Tensor:
        """The draft of a tensor, to change in place; floating ones are at double precision."""
        if id(tensor) not in self._drafts:
            value = tensor.detach()
            copy = value.double() if value.is_floating_point() else value
            self._drafts[id(tensor)] = (tensor, copy.clone(memory_format=torch.contiguous_format))
        return self._drafts[id(tensor)][1]

    def read(self, slot: Slot) -> Tensor:
        return self.tensor(slot.tensor).flatten()[slot.places]

    def set(self, slot: Slot, value: Tensor) -> None:
        self.tensor(slot.tensor).flatten()[slot.places.flatten()] = value.double().flatten()

    def write(self) -> None:
        with torch.no_grad():
            for tensor, draft in self._drafts.values():
                tensor.copy_(draft)
