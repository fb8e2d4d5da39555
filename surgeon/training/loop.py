"""A training loop on Hugging Face Accelerate: the same script on one CPU, several GPUs or several machines."""

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
from surgeon.support.files import StrPath, ensure_folder
from surgeon.support.progress import counter
from surgeon.training import checkpoint as checkpoints
from surgeon.training import seeding as randomness


class Steered(Protocol):
    """What is told of every step, such as a `surgeon.Pruner`."""

    def regularize(self) -> object:
        """After the gradients are there, before they are used."""

    def step(self) -> object:
        """After the weights changed."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> object: ...


class Scheduler(Protocol):
    """A learning rate scheduler of torch; it is stepped after each step."""

    def step(self) -> object: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> object: ...


@dataclass(frozen=True)
class Moment:
    """Where training stands after a step, as callbacks are told, in every process.

    `step` counts from 1, `epoch` from 0. `loss` is that of the whole batch, over all processes; `model` is the one that
    `fit` was given.
    """

    step: int
    epoch: int
    model: nn.Module
    optimizer: Optimizer
    value: Tensor = field(repr=False)

    @property
    def loss(self) -> float:
        """The mean loss of the batch."""
        return float(self.value)


@dataclass(frozen=True)
class Fitted:
    """What `fit` did: the loss of each step from the first one on, and from which step it was resumed."""

    losses: tuple[float, ...]
    resumed: int = 0

    @property
    def steps(self) -> int:
        """The steps in all."""
        return len(self.losses)


Loss = Callable[[nn.Module, Any], Tensor]
Callback = Callable[[Moment], object]


def fit(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss: Loss,
    optimizer: Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer],
    epochs: int | None = None,
    steps: int | None = None,
    scheduler: Scheduler | Callable[[Optimizer], Scheduler] | None = None,
    pruner: Steered | None = None,
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

    Started by `accelerate launch` or `torchrun`, the same call trains on several GPUs or machines: each process
    computes its part of every batch, so that a batch is the loader's batch however many processes there are. A step is

        loss.backward(); pruner.regularize(); optimizer.step(); pruner.step(); scheduler.step()

    Args:
        model: stays the caller's; afterwards its modules are in the mode, train or eval, that they were in.
        loader: batches, anew for each epoch: a DataLoader, or any other iterable.
        loss: from the model, wrapped where there are several processes, and a batch to its mean loss.
        optimizer: of the model's parameters, or a function that makes one from them.
        epochs, steps: how long, the one or the other.
        scheduler: of the optimizer, or a function that makes one from it; stepped after each step.
        pruner: prunes while the model is trained.
        callbacks: each is called with a `Moment` after each step, in every process.
        clip: the norm that the gradients are clipped to.
        checkpoint: a folder for the state of training, which all machines see.
        every: steps between checkpoints; by default there is one at the end of each epoch. The last step has one too.
        resume: go on from the checkpoint, where the folder holds one; on one thread the weights come out as if training
            had never stopped, bit for bit. Without it training starts anew.
        seed: of all that is drawn: the order of a loader, augmentation, dropout. The generators of torch, numpy and
            Python are afterwards as they were.
        split: whether the loader gives the whole batch in every process, of which each takes its part. Where the loader
            gives each process its own part already, False.
        accelerator: an `accelerate.Accelerator`, for mixed precision and the like.

    Raises:
        InvalidArgument: an argument is out of range, the loader gives no batch, or accelerate is missing.
        WeightsError: the checkpoint is broken, or of another model or training.
        OutputError: the checkpoint can't be written.

    Batch norm is computed of each process's part, as everywhere: with it, several processes train slightly differently.

    >>> from torch.nn.functional import mse_loss
    >>> net, batches = nn.Linear(2, 1), [(torch.ones(8, 2), torch.ones(8, 1))] * 4
    >>> done = fit(net, batches, loss=lambda net, batch: mse_loss(net(batch[0]), batch[1]), epochs=5,
    ...            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    >>> done.steps, done.losses[-1] < done.losses[0] / 10
    (20, True)
    """
    _check(model, epochs=epochs, steps=steps, every=every, clip=clip, seed=seed)
    if checkpoint is not None:
        ensure_folder(checkpoint)
    made = optimizer if isinstance(optimizer, Optimizer) else optimizer(model.parameters())
    scheduled = scheduler(made) if callable(scheduler) else scheduler
    accelerator = accelerator if accelerator is not None else _accelerator()
    _check_accelerator(accelerator)
    state = _State(model, made, scheduled, pruner, seed, accelerator)
    if checkpoint is not None and resume:
        state.load(checkpoint)
    resumed = state.step
    total = steps if steps is not None else (epochs or 0) * _length(loader)
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
    """Where training stands: `batch` counts within the epoch, `step` in all; `saved` is the step of the checkpoint."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: Scheduler | None
    pruner: Steered | None
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
        """What has a state of its own, in the order in which it is loaded: masks are there before weights are read."""
        parts = {
            "pruner": self.pruner, "model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler,
            "scaler": self.accelerator.scaler,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def settings(self) -> dict[str, Any]:
        """What a training must share with the one that it goes on with."""
        return {"seed": self.seed, **{name: type(part).__name__ for name, part in self.parts().items()}}

    def save(self, folder: StrPath) -> None:
        """Write the state, from the main process."""
        if self.accelerator.is_main_process:
            place = {"step": self.step, "epoch": self.epoch, "batch": self.batch, "losses": self.losses}
            stored = {name: part.state_dict() for name, part in self.parts().items()}
            checkpoints.write(folder, {"settings": self.settings(), "place": place, **stored}, self.step)
        self.saved = self.step
        self.accelerator.wait_for_everyone()

    def load(self, folder: StrPath) -> None:
        """Go on from the checkpoint in `folder`, where there is one."""
        stored = checkpoints.read(folder)
        if stored is None:
            return
        if (found := stored.get("settings")) != self.settings():
            raise WeightsError(
                f"the checkpoint in {folder} is of another training: {found}, this one is {self.settings()}; "
                "choose another folder, or resume=False"
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
    """One step; the mean loss of the whole batch."""
    accelerator = state.accelerator
    batch, weight = _part(batch, accelerator) if split and accelerator.num_processes > 1 else (batch, 1.0)
    batch = _send(batch, accelerator.device)
    randomness.computing(state.seed, state.step, accelerator.process_index)
    optimizer.zero_grad()
    value = _number(loss(model, batch)) * weight
    accelerator.backward(value)
    if accelerator.scaler is not None:  # what follows reads gradients as they are
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
    """The batches of an epoch that are still to come.

    Those before them are read too and dropped: so what reading draws at random is the same as without an interruption.
    """
    epoch = state.epoch
    randomness.restart(loader, state.seed, epoch)
    randomness.reading(state.seed, epoch, 0)
    batches = iter(loader)
    skipped = state.batch
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
    """A process's part of a batch, and the weight of its mean loss in the mean over processes."""
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
    # A process without a share computes a sample too: the others wait for its gradients, of zero.
    return slice_tensors(batch, slice(start, max(end, start + 1)) if size > start else slice(0, 1)), (
        (end - start) * count / size
    )


def _send(batch: Any, device: torch.device) -> Any:
    from accelerate.utils import send_to_device

    return send_to_device(batch, device)


@contextmanager
def _prepared(model: nn.Module, optimizer: Optimizer, accelerator: Any) -> Iterator[tuple[nn.Module, Any]]:
    """The model in train mode and wrapped as the hardware needs it; afterwards it is as it was, but for the weights."""
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
        raise InvalidArgument(f'fit trains with accelerate: pip install "surgeon[train]" ({error})') from error
    # told so, it lets processes without an accelerator train together; else each would train for itself
    return Accelerator(cpu=not torch.accelerator.is_available())


def _length(loader: Iterable[Any]) -> int:
    return len(loader) if isinstance(loader, Sized) else 0


def _check_weights(folder: StrPath, model: nn.Module, stored: Mapping[str, Any]) -> None:
    held = {name: _text(value) for name, value in model.state_dict().items()}
    found = {name: _text(value) for name, value in stored.items()}
    for name in (*held, *found):
        if held.get(name) != found.get(name):
            raise WeightsError(
                f"the checkpoint in {folder} is of another model: {name} is {found.get(name, 'missing')} there and "
                f"{held.get(name, 'missing')} in the model; choose another folder, or resume=False"
            )


def _check(model: Any, **numbers: Any) -> None:
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"model is a {type(model).__name__}, not a torch.nn.Module")
    if (numbers["epochs"] is None) == (numbers["steps"] is None):
        raise InvalidArgument("give epochs or steps, one of them")
    for name in ("epochs", "steps", "every", "seed"):
        value, least = numbers[name], 0 if name == "seed" else 1
        if value is not None and (type(value) is not int or value < least):
            raise InvalidArgument(f"{name}={value!r}: give an integer of at least {least}")
    clip = numbers["clip"]
    if clip is not None and not clip > 0:
        raise InvalidArgument(f"clip={clip!r}: give a norm above 0")


def _check_accelerator(accelerator: Any) -> None:
    if accelerator.gradient_accumulation_steps != 1:
        raise InvalidArgument("gradient_accumulation_steps must be 1 here; take larger batches on more processes")
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise InvalidArgument(
            f"{started} processes were started, but the accelerator knows of {accelerator.num_processes}: "
            "on CPUs make it with accelerate.Accelerator(cpu=True), before anything else of accelerate is used"
        )


def _number(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        held = f"{_text(value)} without a gradient" if isinstance(value, Tensor) else _text(value)
        raise InvalidArgument(f"loss(model, batch) gave {held}; it must give one number to go back from, as a tensor")
    return value.reshape(())


def _text(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
