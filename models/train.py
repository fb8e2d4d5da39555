"""Train a reference network: `python -m models.train residual -o models/weights/residual.safetensors`.

One thread, so that the same seed gives the same weights on the same machine. The accuracy is that of the last
epoch; the test images choose nothing.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import accuracy, build, data, names


@dataclass(frozen=True)
class Recipe:
    """The optimizer, the peak of its one-cycle learning rate, its weight decay, epochs and number type."""

    optimizer: str
    rate: float
    decay: float
    epochs: int
    bfloat16: bool


# bfloat16 is twice as fast on a CPU that knows it, but for the gradient of strided depthwise convolutions.
RECIPES = {
    "residual": Recipe("sgd", 0.1, 5e-4, 8, True),
    "depthwise": Recipe("sgd", 0.1, 2e-4, 10, False),
    "transformer": Recipe("adamw", 1.5e-3, 5e-2, 7, True),
}
BATCH = 128
SMOOTHING = 0.05
# Pixels by which an image is shifted at most.
SHIFT = 2


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each of `images` (B, 1, H, W) shifted by up to `SHIFT` pixels and, half of the time, mirrored."""
    count, _, height, width = images.shape
    padded = F.pad(images, (SHIFT,) * 4, value=-data.MEAN / data.STD).squeeze(1)
    top = torch.randint(0, 2 * SHIFT + 1, (count, 1, 1), generator=generator)
    left = torch.randint(0, 2 * SHIFT + 1, (count, 1, 1), generator=generator)
    mirrored = torch.rand((count, 1, 1), generator=generator) < 0.5
    rows = top + torch.arange(height).view(1, -1, 1)
    columns = torch.arange(width).view(1, 1, -1)
    columns = left + torch.where(mirrored, width - 1 - columns, columns)
    return padded[torch.arange(count).view(-1, 1, 1), rows, columns].unsqueeze(1)


def batches(images: Tensor, labels: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order, in full batches of `BATCH`."""
    order = torch.randperm(len(images), generator=generator)
    for start in range(0, len(order) - BATCH + 1, BATCH):
        chosen = order[start : start + BATCH]
        yield augment(images[chosen], generator), labels[chosen]


def optimizer_for(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay falls on matrices and kernels only, not on norms and biases."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": recipe.decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=recipe.rate)


def fit(model: nn.Module, recipe: Recipe, images: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
    """Train `model` in place on `images` (N, 1, 28, 28) and `labels` (N,); progress on stderr."""
    generator = torch.Generator().manual_seed(seed)
    # The layout in which convolutions are fastest on a CPU.
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = optimizer_for(model, recipe)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, total_steps=epochs * steps, pct_start=0.2, cycle_momentum=False
    )
    started = time.monotonic()
    for epoch in range(epochs):
        total = torch.zeros(())
        for step, (inputs, targets) in enumerate(batches(images, labels, generator), 1):
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            # On a CPU the bfloat16 gradient of fused attention takes longer than all the rest.
            with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
                logits = model(inputs)
            loss = F.cross_entropy(logits.float(), targets, label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
            if step % 50 == 0 or step == steps:
                print(
                    f"\repoch {epoch + 1}/{epochs}  batch {step}/{steps}  loss {total.item() / step:.4f}  "
                    f"{time.monotonic() - started:.0f} s",
                    end="\n" if step == steps else "",
                    file=sys.stderr,
                    flush=True,
                )


def write(path: Path, content: bytes) -> None:
    """Replace `path` whole, so that an interruption leaves the old file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.train", description="Train a reference network.")
    parser.add_argument("name", choices=names())
    parser.add_argument("--epochs", type=int, help="passes over the images (default: as in the recipe)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=data.TRAIN_FOLDER, help="of the training images")
    parser.add_argument("--limit", type=int, help="train on the first so many images only")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the safetensors file to write")
    options = parser.parse_args()
    recipe = RECIPES[options.name]
    epochs = recipe.epochs if options.epochs is None else options.epochs
    try:
        images, labels = data.load_train(options.folder, options.limit)
        test_images, test_labels = data.load_test()
    except ValueError as error:
        parser.error(str(error))
    if epochs < 1 or len(images) < BATCH:
        parser.error(f"at least 1 epoch and {BATCH} images are needed, not {epochs} and {len(images)}")
    if not options.output.parent.is_dir():
        parser.error(f"the folder {options.output.parent} does not exist")

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    model = build(options.name)
    fit(model, recipe, images, labels, epochs, options.seed)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    share = accuracy(model, test_images, test_labels)
    facts = {
        "network": options.name,
        "accuracy": share,
        "epochs": epochs,
        "seed": options.seed,
        "images": len(images),
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
    }
    write(options.output, save({name: value.contiguous() for name, value in model.state_dict().items()}))
    write(options.output.with_suffix(".json"), (json.dumps(facts, indent=2) + "\n").encode())
    print(f"{options.name}: {share:.2%} of {len(test_images)} test images, written to {options.output}")


if __name__ == "__main__":
    main()
