"""One model cut with data: seconds, and memory beyond the model and its inputs; with any checkout of surgeon."""

from __future__ import annotations

import os
import resource
import threading
import time
from pathlib import Path
from typing import Any

import torch

import surgeon
from testbed import zoo

MODELS = {
    "ResNet-50": ("torchvision", "resnet50", None),
    "MobileNetV2": ("torchvision", "mobilenet_v2", None),
    "ConvNeXt-T": ("torchvision", "convnext_tiny", None),
    "ViT-B/16": ("torchvision", "vit_b_16", None),
    "BERT-base, 128 tokens": (
        "transformers", "bert-base",
        {
            "config": "BertConfig", "args": {}, "model": "BertModel", "inputs": {
                "input_ids": {"shape": [2, 128], "dtype": "int64", "below": 30000},
                "attention_mask": {"shape": [2, 128], "dtype": "int64", "below": 2},
            },
        },
    ),
}


def one(name: str, samples: int) -> dict[str, Any]:
    """The row of one model, in this process."""
    library, key, spec = MODELS[name]
    model, inputs = zoo.load(library, key, spec)
    generator = torch.Generator().manual_seed(0)
    if isinstance(inputs, tuple):
        data: Any = torch.randn(samples, *inputs[0].shape[1:], generator=generator)
    else:
        data = {
            "input_ids": torch.randint(30000, (samples, 128), generator=generator),
            "attention_mask": torch.ones(samples, 128, dtype=torch.long),
        }
        inputs = {key: value[:2] for key, value in data.items()}
    before, stop = _resident(), threading.Event()
    peak = [before]

    def watch() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], _resident())

    threading.Thread(target=watch, daemon=True).start()
    start, cpu = time.perf_counter(), time.process_time()
    slim, report = surgeon.shrink(model, 0.5, example_inputs=inputs, data=data, samples=samples, return_report=True)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    stop.set()
    return {
        "seconds": round(seconds, 1), "cpu": round(cpu, 1), "peak_mb": (peak[0] - before) >> 20,
        "model_mb": sum(p.numel() * p.element_size() for p in model.parameters()) >> 20,
        "samples": samples, "threads": torch.get_num_threads(), "form": report.form, "class": type(slim).__name__,
        "stages": {stage: round(spent, 1) for stage, spent in report.seconds.items()},
    }


def _resident() -> int:
    """Bytes of this process in memory; the most so far where the system tells nothing else."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
