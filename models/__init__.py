"""Small reference networks in plain torch, with weights trained on Fashion-MNIST by `models.train`.

The repository has them in `models/`, an installed surgeon as `surgeon.reference`: one copy, which knows itself by
relative names alone, so that a user's own `models` neither hides it nor is hidden.
"""

from pathlib import Path

import torch
from safetensors.torch import load_model
from torch import Tensor, nn

from .data import load_test
from .depthwise import Depthwise
from .residual import Residual
from .transformer import Transformer

UNLABELED = 512
"""How many images `images` gives."""
WEIGHTS = Path(__file__).parent / "weights"
NETWORKS: dict[str, type[nn.Module]] = {
    "residual": Residual,
    "depthwise": Depthwise,
    "transformer": Transformer,
}


def names() -> tuple[str, ...]:
    """The networks that `load` knows.

    >>> names()
    ('residual', 'depthwise', 'transformer')
    """
    return tuple(NETWORKS)


def build(name: str) -> nn.Module:
    """The network `name` with fresh random weights, in train mode. Raises ValueError for an unknown name."""
    if name not in NETWORKS:
        raise ValueError(f"no network is called {name!r}; there are {', '.join(NETWORKS)}")
    return NETWORKS[name]()


def load(name: str) -> nn.Module:
    """The network `name` with its trained weights, in eval mode, for images as from `models.data.load_test`.

    Raises ValueError for an unknown name, or where the weights are missing.

    >>> load("residual").training
    False
    """
    model = build(name)
    path = WEIGHTS / f"{name}.safetensors"
    if not path.is_file():
        raise ValueError(f"{path} is missing; train it with: python -m models.train {name} -o {path}")
    load_model(model, path)
    return model.eval()


def example() -> tuple[nn.Module, Tensor]:
    """The residual network and two images, for commands that take `package.module:NAME` as a model.

    >>> model, images = example()
    >>> model(images).shape
    torch.Size([2, 10])
    """
    return load("residual"), load_test(2)[0]


def images() -> Tensor:
    """Unlabeled images, (512, 1, 28, 28), for commands that take `package.module:NAME` as data: the last test images.

    >>> images().shape
    torch.Size([512, 1, 28, 28])
    """
    return load_test()[0][-UNLABELED:]


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 500) -> float:
    """The share (0 to 1) of `images` (N, 1, 28, 28) that `model`, in eval mode, classifies as `labels` (N,).

    The model's mode is put back afterwards. Raises ValueError where there is no image, or not a label each.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(f"accuracy needs images and a label for each: {len(images)} images, {len(labels)} labels")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            right = sum(
                int((model(part).argmax(1) == truth).sum())
                for part, truth in zip(images.split(batch), labels.split(batch), strict=True)
            )
    finally:
        for module, mode in modes:
            module.training = mode
    return right / len(images)
