"""The callback of Lightning does what the calls in a plain loop do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from surgeon.errors import InvalidArgument
from surgeon.training import schedules
from surgeon.training.pruner import Pruner

pl = pytest.importorskip("pytorch_lightning")

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning gives advice as warnings


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 2))


def data() -> DataLoader[tuple[Tensor, ...]]:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=4)


def pruner_of(model: nn.Module, end: int = 4) -> Pruner:
    return Pruner(
        model, 0.5, schedule=schedules.steps(1, end, 3), importance="taylor", example_inputs=torch.randn(2, 6), align=1
    )


def trainer(callback: Any, folder: Path, **options: Any) -> Any:
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback], default_root_dir=folder, **options,
    )


def module_of(model: nn.Module) -> Any:
    class Module(pl.LightningModule):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    return Module()


def test_it_prunes_as_a_plain_loop_does(tmp_path: Path) -> None:
    from surgeon.training.lightning import PruningCallback

    plain = net()
    expected = pruner_of(plain)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for x, y in list(data())[:6]:
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        expected.regularize()
        optimizer.step()
        expected.step()
    model = net()
    found = pruner_of(model)
    trainer(PruningCallback(found), tmp_path, max_steps=6).fit(module_of(model), data())
    assert found.history == expected.history and found.done and found.steps == 6
    for a, b in zip(found.commit().parameters(), expected.commit().parameters(), strict=True):
        assert torch.equal(a, b)


def test_gradients_that_are_accumulated_are_one_step(tmp_path: Path) -> None:
    from surgeon.training.lightning import PruningCallback

    model = net()
    pruner = pruner_of(model)
    trainer(PruningCallback(pruner), tmp_path, max_epochs=1, accumulate_grad_batches=2).fit(module_of(model), data())
    assert pruner.steps == 5


def test_a_checkpoint_of_lightning_has_the_pruner_s_state(tmp_path: Path) -> None:
    from surgeon.training.lightning import PruningCallback

    whole, half, rest = net(), net(), net()
    pruners = [pruner_of(model, 15) for model in (whole, half, rest)]
    trainer(PruningCallback(pruners[0]), tmp_path, max_epochs=2).fit(module_of(whole), data())
    stopped = trainer(PruningCallback(pruners[1]), tmp_path, max_epochs=1)
    stopped.fit(module_of(half), data())
    stopped.save_checkpoint(tmp_path / "half.ckpt")
    resumed = trainer(PruningCallback(pruners[2]), tmp_path, max_epochs=2)
    resumed.fit(module_of(rest), data(), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    assert pruners[2].history == pruners[0].history
    for a, b in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(a, b)


def test_refused(tmp_path: Path) -> None:
    from surgeon.training.lightning import PruningCallback

    with pytest.raises(InvalidArgument, match=r"takes a surgeon\.Pruner, not a Sequential"):
        PruningCallback(net())  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="the pruner's Sequential is not a part of the Module"):
        trainer(PruningCallback(pruner_of(net())), tmp_path, max_steps=1).fit(module_of(net()), data())
