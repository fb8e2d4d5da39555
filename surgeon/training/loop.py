"""A training loop on Hugging Face Accelerate: the same script runs on one CPU, several GPUs or several machines."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from surgeon.errors import InvalidArgument, WeightsError
from surgeon.frontend.parameters import functions, loader, module_in_place, public
from surgeon.support.arguments import ABOVE_ZERO, POSITIVE, either, flag, function, having, instance
from surgeon.support.arguments import path as is_path
from surgeon.support.files import StrPath, ensure_folder
from surgeon.support.progress import counter
from surgeon.training import checkpoint as checkpoints
from surgeon.training import seeding as randomness
from surgeon.training.distillation import LOSS, Loss


class Scheduler(Protocol):
    """A learning rate scheduler; it is stepped after each optimizer step."""

    def step(self) -> object: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> object: ...


class TrainingHook(Scheduler, Protocol):
    """What takes part in every training step, such as a `surgeon.Pruner`; `step` follows the optimizer's."""

    def regularize(self) -> object:
        """Called after the backward pass, before the gradients are used."""


@dataclass(frozen=True)
class Moment:
    """The state of training after a step, which callbacks get in every process.

    `step` counts from 1, `epoch` from 0. `loss` is that of the whole batch, over all processes; `model` is the one
    passed to `fit`.
    """

    step: int
    epoch: int
    model: nn.Module
    optimizer: Optimizer
    value: Tensor = field(repr=False)

    @property
    def loss(self) -> float:
        return float(self.value)


@dataclass(frozen=True)
class Fitted:
    """What `fit` did: the loss of each step since the start of training, and the step from which it resumed."""

    losses: tuple[float, ...]
    resumed: int = 0

    @property
    def steps(self) -> int:
        """The number of steps in total."""
        return len(self.losses)


Callback = Callable[[Moment], object]

_OPTIMIZER = instance(Optimizer, "a torch.optim.Optimizer or a function that makes one")
_SCHEDULER = having("a learning rate scheduler or a function that makes one", "step", "state_dict", "load_state_dict")
_MAKES = function("a function that makes one, of the model's parameters or of the optimizer", 1)
_OPTIMIZES, _SCHEDULES = (either(_MAKES, ready, callable) for ready in (_OPTIMIZER, _SCHEDULER))


@public(
    model=module_in_place, loader=loader, loss=LOSS, optimizer=_OPTIMIZES, epochs=POSITIVE, steps=POSITIVE,
    scheduler=_SCHEDULES, resume=flag, split=flag, clip=ABOVE_ZERO, checkpoint=is_path, every=POSITIVE,
    pruner=having(
        "a surgeon.Pruner, or an object with its methods", "regularize", "step", "state_dict", "load_state_dict"
    ),
    callbacks=functions("functions of a Moment", 1),
    accelerator=having("an accelerate.Accelerator", "prepare", "backward", "num_processes"),
)
def fit(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss: Loss,
    optimizer: Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer],
    epochs: int | None = None,
    steps: int | None = None,
    scheduler: Scheduler | Callable[[Optimizer], Scheduler] | None = None,
    pruner: TrainingHook | None = None,
    callbacks: Iterable[Callback] = (),
    clip: float | None = None,
    checkpoint: StrPath | None = None,
    every: int | None = None,
    resume: bool = True,
    seed: int = 0,
    split: bool = True,
    accelerator: Any = None,
) -> Fitted:
    """Train `model` in place.

    Under `accelerate launch` or `torchrun`, the same call trains on several GPUs or machines: each process computes
    its part of every batch, so the batch size is the loader's however many processes there are. A step is

        loss.backward(); pruner.regularize(); optimizer.step(); pruner.step(); scheduler.step()

    Args:
        model: trained in place; on return its modules are in the mode, train or eval, that they were in.
        loader: a DataLoader, or any iterable that yields the batches of an epoch each time it is iterated.
        loss: a function of the model (wrapped, if there are several processes) and a batch that returns the mean loss.
        optimizer: of the model's parameters, or a function that makes one from them.
        epochs, steps: the number of epochs or of optimizer steps to train for; give one of them.
        scheduler: of the optimizer, or a function that makes one from it; stepped after each optimizer step.
        pruner: prunes during training.
        callbacks: each is called with a `Moment` after each step, in every process.
        clip: the maximum L2 norm of all gradients together.
        checkpoint: a folder for the training state, accessible to all machines.
        every: steps between checkpoints; by default one is written at the end of each epoch, and after the last step.
        resume: continue from the checkpoint, if the folder holds one. On one thread, the weights are then bit for bit
            those of an uninterrupted run. With False, training starts from the beginning.
        seed: of the random order of the data, augmentation and dropout. The states of the generators of torch, numpy
            and Python are restored afterwards.
        split: True if the loader yields the whole batch in every process, of which each takes its part; False if it
            already yields each process's own part.
        accelerator: an `accelerate.Accelerator`, for mixed precision and the like.

    Raises:
        InvalidArgument: an argument is out of range, the loader yields no batch, or accelerate is not installed.
        WeightsError: the checkpoint is broken, or belongs to another model or training run.
        OutputError: the checkpoint can't be written.

    Batch norm uses the statistics of each process's part, so with it several processes train slightly differently.

    >>> from torch.nn.functional import mse_loss
    >>> net, batches = nn.Linear(2, 1), [(torch.ones(8, 2), torch.ones(8, 1))] * 4
    >>> done = fit(net, batches, loss=lambda net, batch: mse_loss(net(batch[0]), batch[1]), epochs=5,
    ...            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    >>> done.steps, done.losses[-1] < done.losses[0] / 10
    (20, True)
    """
    if (epochs is None) == (steps is None):
        raise InvalidArgument("give epochs or steps, one of them")
    if checkpoint is not None:
        ensure_folder(checkpoint)
    made = optimizer if isinstance(optimizer, Optimizer) else optimizer(model.parameters())
    _OPTIMIZER("the result of optimizer", made)
    scheduled = scheduler(made) if callable(scheduler) else scheduler
    if scheduled is not None:
        _SCHEDULER("the result of scheduler", scheduled)
    accelerator = accelerator if accelerator is not None else _accelerator()
    _check_accelerator(accelerator)
    state = _State(model, made, scheduled, pruner, seed, accelerator)
    if checkpoint is not None and resume:
        state.load(checkpoint)
    resumed = state.step
    total = steps if steps is not None else (epochs or 0) * (len(loader) if isinstance(loader, Sized) else 0)
    shown = counter("train") if accelerator.is_main_process else nullcontext(lambda done, total: None)
    with randomness.put_back(), _prepared(model, made, accelerator) as (wrapped, used), shown as progress:
        while state.step < steps if steps is not None else state.epoch < (epochs or 0):
            for batch in _epoch(loader, state):
                value = _step(wrapped, used, batch, state, loss, clip, split)
                progress(state.step, total)
                for callback in callbacks:
                    callback(Moment(state.step, state.epoch, model, made, value))
                if state.step == steps:
                    break
                if checkpoint is not None and every is not None and state.step % every == 0:
                    state.save(checkpoint)
            else:
                state.epoch, state.batch = state.epoch + 1, 0
                if checkpoint is not None and every is None and state.step != steps:
                    state.save(checkpoint)
        if checkpoint is not None and state.step > state.saved:
            state.save(checkpoint)
    return Fitted(tuple(state.losses.tolist()), resumed)


@dataclass
class _State:
    """The state of training: `batch` counts within the epoch, `step` in total; `saved` is the checkpoint's step."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: Scheduler | None
    pruner: TrainingHook | None
    seed: int
    accelerator: Any
    step: int = 0
    epoch: int = 0
    batch: int = 0
    saved: int = 0
    earlier: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    recent: list[Tensor] = field(default_factory=list)

    @property
    def losses(self) -> Tensor:
        """The loss of each step so far, (steps,)."""
        if self.recent:
            self.earlier = torch.cat([self.earlier, torch.stack(self.recent).double().cpu()])
            self.recent = []
        return self.earlier

    def parts(self) -> dict[str, Any]:
        """All that has a state, in loading order: masks before weights."""
        parts = {
            "pruner": self.pruner, "model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler,
            "scaler": self.accelerator.scaler,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def settings(self) -> dict[str, Any]:
        """What must match for a training run to be resumed."""
        return {"seed": self.seed, **{name: type(part).__name__ for name, part in self.parts().items()}}

    def save(self, folder: StrPath) -> None:
        """Write a checkpoint, from the main process."""
        if self.accelerator.is_main_process:
            place = {"step": self.step, "epoch": self.epoch, "batch": self.batch, "losses": self.losses}
            stored = {name: part.state_dict() for name, part in self.parts().items()}
            checkpoints.write(folder, {"settings": self.settings(), "place": place, **stored}, self.step)
        self.saved = self.step
        self.accelerator.wait_for_everyone()

    def load(self, folder: StrPath) -> None:
        """Continue from the checkpoint in `folder`, if there is one."""
        stored = checkpoints.read(folder)
        if stored is None:
            return
        if (found := stored.get("settings")) != self.settings():
            raise WeightsError(
                f"the checkpoint in {folder} is of another training run: it has {found}, this one {self.settings()}; "
                "choose another folder, or pass resume=False"
            )
        for name, part in self.parts().items():
            if name == "model":
                _check_weights(folder, part, stored[name])
            part.load_state_dict(stored[name])
        place = stored["place"]
        self.step, self.epoch, self.batch = place["step"], place["epoch"], place["batch"]
        self.saved = self.step
        self.earlier = place["losses"]


def _step(
    model: nn.Module, optimizer: Any, batch: Any, state: _State, loss: Loss, clip: float | None, split: bool
) -> Tensor:
    """Perform one step; the mean loss of the whole batch."""
    from accelerate.utils import send_to_device

    accelerator = state.accelerator
    batch, weight = _part(batch, accelerator) if split and accelerator.num_processes > 1 else (batch, 1.0)
    batch = send_to_device(batch, accelerator.device)
    randomness.computing(state.seed, state.step, accelerator.process_index)
    optimizer.zero_grad()
    value = _number(loss(model, batch)) * weight
    accelerator.backward(value)
    if accelerator.scaler is not None:  # regularizers and clipping need the true gradients
        accelerator.unscale_gradients(optimizer)
    if state.pruner is not None:
        state.pruner.regularize()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    if state.pruner is not None:
        state.pruner.step()
    if state.scheduler is not None:
        state.scheduler.step()
    state.step, state.batch = state.step + 1, state.batch + 1
    whole: Tensor = accelerator.reduce(value.detach(), reduction="mean")
    state.recent.append(whole)
    return whole


def _epoch(loader: Iterable[Any], state: _State) -> Iterator[Any]:
    """The remaining batches of an epoch.

    Those before them are read too and dropped, so that reading draws the same random numbers as without interruption.
    """
    epoch, skipped = state.epoch, state.batch
    randomness.restart(loader, state.seed, epoch)
    randomness.reading(state.seed, epoch, 0)
    batches = iter(loader)
    for index in itertools.count():
        randomness.reading(state.seed, epoch, index)
        try:
            batch = next(batches)
        except StopIteration:
            break
        if index >= skipped:
            yield batch
    if index == 0:
        raise InvalidArgument(
            f"the loader gives no batch in epoch {epoch}: it is empty, or an iterator that can be read only once; "
            "give a DataLoader or a list"
        )


def _part(batch: Any, accelerator: Any) -> tuple[Any, float]:
    """This process's part of a batch, and the weight of its mean loss in the mean over processes."""
    from accelerate.utils import find_batch_size, slice_tensors

    try:
        size = find_batch_size(batch)
    except (TypeError, ValueError, IndexError) as error:
        raise InvalidArgument(
            f"a batch of type {type(batch).__name__} can't be divided among processes: {error}; give tensors, or "
            "lists and dicts of them, or let the loader give each process its part and pass split=False"
        ) from error
    count, index = accelerator.num_processes, accelerator.process_index
    start, end = size * index // count, size * (index + 1) // count
    # Even a process without samples computes one, with weight 0: the others wait for its gradients.
    part = slice(start, max(end, start + 1)) if size > start else slice(0, 1)
    return slice_tensors(batch, part), (end - start) * count / size


@contextmanager
def _prepared(model: nn.Module, optimizer: Optimizer, accelerator: Any) -> Iterator[tuple[nn.Module, Any]]:
    """The model in train mode and wrapped for the hardware; on exit everything but its weights is restored."""
    modes = [(module, module.training) for module in model.modules()]
    own = set(vars(model))
    model.train()
    try:
        yield accelerator.prepare(model, optimizer)
    finally:
        for module, mode in modes:
            module.training = mode
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        for name in {"_is_accelerate_prepared", "_original_forward", "forward"} - own:
            vars(model).pop(name, None)


def _accelerator() -> Any:
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise InvalidArgument(f'fit trains with accelerate: pip install "model-surgeon[train]" ({error})') from error
    # Without cpu=True, processes without a GPU would each train on their own instead of together.
    return Accelerator(cpu=not torch.accelerator.is_available())


def _check_weights(folder: StrPath, model: nn.Module, stored: Mapping[str, Any]) -> None:
    held = {name: _text(value) for name, value in model.state_dict().items()}
    found = {name: _text(value) for name, value in stored.items()}
    for name in (*held, *found):
        if held.get(name) != found.get(name):
            raise WeightsError(
                f"the checkpoint in {folder} is of another model: {name} is {found.get(name, 'missing')} there and "
                f"{held.get(name, 'missing')} in the model; choose another folder, or pass resume=False"
            )


def _check_accelerator(accelerator: Any) -> None:
    if accelerator.gradient_accumulation_steps != 1:
        raise InvalidArgument(
            "accelerator has gradient_accumulation_steps above 1, but fit takes an optimizer step for every batch; "
            "set it to 1, and use larger batches or more processes instead"
        )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise InvalidArgument(
            f"{started} processes were started, but the accelerator knows of {accelerator.num_processes}: on CPUs, "
            "create it as accelerate.Accelerator(cpu=True) before using anything else from accelerate"
        )


def _number(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        held = f"{_text(value)} without a gradient" if isinstance(value, Tensor) else _text(value)
        raise InvalidArgument(f"loss(model, batch) returned {held}; it must return a scalar tensor with a gradient")
    return value.reshape(())


def _text(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
