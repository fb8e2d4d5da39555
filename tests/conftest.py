"""What every test stands on: one thread, a fixed seed, no network, and a torchvision that imports."""

import os
from collections.abc import Iterator

# huggingface_hub reads it when it is imported, so it is set before anything can import that
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch

from testbed import zoo

torch.set_num_threads(1)

# torchvision's import fails next to a CPU build of torch until nms and qnms have a name. The models that the
# benchmarks run on need the same, and an operator can be named only once: so theirs is the one place.
zoo.define_torchvision_operators()


@pytest.fixture(autouse=True, scope="session")
def measured_with_one_thread() -> Iterator[None]:
    """Unless a test asks for more: on the wall, whatever else runs on this machine would be measured too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("surgeon.device.clock.usual_threads", lambda: 1)
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
