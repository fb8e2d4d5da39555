"""A Lightning callback that prunes. Lightning is an extra: `pip install "model-surgeon[lightning]"`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from surgeon.errors import InvalidArgument
from surgeon.training.pruner import Pruner

_missing = ""
_Callback: Any = object
try:
    _Callback = import_module("pytorch_lightning").Callback
except (ImportError, RuntimeError) as error:  # not installed, or it imports a torchvision that does not fit torch
    _missing = str(error)


class PruningCallback(_Callback):
    """Calls a pruner in Lightning's loop, before and after each optimizer step.

    Create the pruner before `trainer.fit`, from the module to prune: the LightningModule or a part of it. Commit it
    afterwards. Its state is saved in Lightning's checkpoints.

        pruner = surgeon.Pruner(module.net, 0.5, schedule=schedule, example_inputs=x)
        Trainer(callbacks=[PruningCallback(pruner)]).fit(module, loader)
        slim = pruner.commit()

    Raises:
        InvalidArgument: `pruner` is not a `surgeon.Pruner`, or its module is not part of what is trained; or Lightning
            is not installed.
    """

    def __init__(self, pruner: Pruner) -> None:
        if _missing:
            raise InvalidArgument(
                f'PruningCallback is one of Lightning: pip install "model-surgeon[lightning]" ({_missing})'
            )
        super().__init__()
        if not isinstance(pruner, Pruner):
            raise InvalidArgument(f"PruningCallback takes a surgeon.Pruner, not a {type(pruner).__name__}")
        self.pruner = pruner
        self._steps = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if not any(module is self.pruner.model for module in pl_module.modules()):
            raise InvalidArgument(
                f"the pruner's {type(self.pruner.model).__name__} is not a part of the {type(pl_module).__name__} that "
                "is trained; make the pruner from the module itself"
            )
        self._steps = trainer.global_step

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.pruner.regularize()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > self._steps:  # otherwise gradients are still being accumulated
            self._steps = trainer.global_step
            self.pruner.step()

    def state_dict(self) -> dict[str, Any]:
        return self.pruner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pruner.load_state_dict(state_dict)
