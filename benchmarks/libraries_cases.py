"""Models of public libraries, and how each library trains them and predicts with them."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from surgeon.support.process_wide import process_wide
from testbed import zoo

STEPS = 2
CLASSES = 5
_SIDE, _OTHER = 256, (224, 320)  # multiples of the encoders' strides
_TOKENS, _OTHER_TOKENS, _VOCABULARY = 64, 48, 1000


@dataclass(frozen=True)
class Case:
    """A model and what its library does with it.

    `train` takes steps by the library's own means. `predict` gives tensors by name for `other`, inputs of another size
    than `inputs`, of the original too. `keep` writes the model by the library's means and gives what these read again,
    where they build a model from its configuration. `part` is the submodule that is cut, the whole model where it is
    empty; `options` are those of `surgeon.shrink`.
    """

    model: nn.Module
    inputs: Any
    other: Any
    train: Callable[[nn.Module], None]
    predict: Callable[[nn.Module, Any], Mapping[str, Tensor]]
    keep: Callable[[nn.Module], nn.Module] | None = None
    part: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)


def _flat(value: Any) -> dict[str, Tensor]:
    """The tensors of an output, by where they are in it."""
    if isinstance(value, Tensor):
        return {"": value}
    items = value.items() if hasattr(value, "items") else enumerate(value)
    return {f"{key}.{name}".rstrip("."): each for key, part in items for name, each in _flat(part).items()}


# segmentation_models_pytorch


def _segmentation(architecture: str, encoder: str, **options: Any) -> Case:
    import segmentation_models_pytorch as smp

    model = smp.create_model(architecture, encoder_name=encoder, encoder_weights=None, classes=CLASSES, **options)

    def train(model: nn.Module) -> None:
        loss, optimizer = smp.losses.DiceLoss("multiclass"), _optimizer(model)
        model.train()
        for _ in range(STEPS):
            found = model(torch.randn(2, 3, _SIDE, _SIDE))
            masks = found[0] if isinstance(found, tuple) else found
            loss(masks, torch.randint(CLASSES, (2, _SIDE, _SIDE))).backward()
            optimizer.step()
            optimizer.zero_grad()

    def predict(model: Any, inputs: Any) -> Mapping[str, Tensor]:
        return _flat(model.predict(*inputs))

    return Case(model.eval(), (torch.randn(1, 3, _SIDE, _SIDE),), (torch.randn(1, 3, *_OTHER),), train, predict)


# Lightning


def _lightning(inner: Callable[[], nn.Module], per_pixel: bool) -> Case:
    import pytorch_lightning
    import torchmetrics

    class Task(pytorch_lightning.LightningModule):
        """Classifies pictures, or their pixels."""

        def __init__(self) -> None:
            super().__init__()
            self.net = inner()
            self.loss = nn.CrossEntropyLoss()
            self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.net(x)
            return found

        def training_step(self, batch: Any, index: int) -> Tensor:
            x, y = batch
            found = self(x)
            loss: Tensor = self.loss(found, y)
            self.accuracy(found, y)
            self.log("loss", loss)
            self.log("accuracy", self.accuracy)
            return loss

        def predict_step(self, batch: Any, index: int) -> Tensor:
            return self(batch)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    def trainer() -> Any:
        return pytorch_lightning.Trainer(
            max_steps=STEPS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )

    def train(model: Any) -> None:
        target = (2, _SIDE, _SIDE) if per_pixel else (2,)
        batches: Any = [(torch.randn(2, 3, _SIDE, _SIDE), torch.randint(CLASSES, target))] * STEPS
        trainer().fit(model, DataLoader(batches, batch_size=None))

    def predict(model: Any, inputs: Any) -> Mapping[str, Tensor]:
        batches: Any = [inputs[0]]
        return _flat(trainer().predict(model, DataLoader(batches, batch_size=None)))

    return Case(Task().eval(), (torch.randn(1, 3, _SIDE, _SIDE),), (torch.randn(1, 3, *_OTHER),), train, predict)


def _resnet() -> nn.Module:
    import torchvision

    return torchvision.models.resnet18(weights=None, num_classes=CLASSES)


def _unet() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet18", encoder_weights=None, classes=CLASSES)


# transformers


def _transformer(
    config: str, task: str, label: Callable[[int], Tensor], scope: str, **options: Any
) -> Case:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    settings = getattr(transformers, config)(vocab_size=_VOCABULARY, num_labels=CLASSES, **options)
    model = getattr(transformers, task)(settings)

    def tokens(length: int) -> dict[str, Tensor]:
        ids = torch.randint(_VOCABULARY, (2, length))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def example() -> dict[str, Tensor]:
        one = {name: value[0] for name, value in tokens(_TOKENS).items()}
        return one | {"labels": label(_TOKENS)}

    return Case(
        model.eval(), tokens(_TOKENS), tokens(_OTHER_TOKENS), partial(_by_trainer, [example() for _ in range(4)]),
        _logits, _written_and_read, options={"scope": scope},
    )


def _pictures(scope: str) -> Case:
    import transformers

    settings: dict[str, Any] = {"image_size": _SIDE, "patch_size": 32, "num_labels": CLASSES, **_BERT}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**settings))
    examples = [{"pixel_values": torch.randn(3, _SIDE, _SIDE), "labels": torch.tensor(1)} for _ in range(4)]
    other = {"pixel_values": torch.randn(1, 3, *_OTHER), "interpolate_pos_encoding": True}
    return Case(
        model.eval(), {"pixel_values": torch.randn(2, 3, _SIDE, _SIDE)}, other, partial(_by_trainer, examples), _logits,
        _written_and_read, options={"scope": scope},
    )


def _one(length: int) -> Tensor:
    return torch.tensor(1)


def _one_each(length: int) -> Tensor:
    return torch.randint(CLASSES, (length,))


def _words(length: int) -> Tensor:
    return torch.randint(_VOCABULARY, (length,))


def _logits(model: nn.Module, inputs: Any) -> Mapping[str, Tensor]:
    model.eval()
    with torch.no_grad():
        return {"logits": model(**inputs).logits}


def _by_trainer(examples: list[dict[str, Tensor]], model: nn.Module) -> None:
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, max_steps=STEPS, per_device_train_batch_size=2, use_cpu=True, report_to=[],
            save_strategy="no", disable_tqdm=True, logging_strategy="no",
        )
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=examples)
        trainer.train()


def _written_and_read(model: Any) -> nn.Module:
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(output_dir=folder, use_cpu=True, report_to=[])
        transformers.Trainer(model=model, args=arguments).save_model(folder)
        read: nn.Module = type(model).from_pretrained(folder)
    return read


# torchvision's detectors


def _detector(name: str, side: int, part: str = "", **options: Any) -> Case:
    from torchvision.models import detection

    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=CLASSES, **options)
    model.eval()

    def train(model: nn.Module) -> None:
        optimizer = _optimizer(model)
        model.train()
        for _ in range(STEPS):
            boxes = torch.tensor([[10.0, 10.0, 90.0, 80.0], [40.0, 30.0, 120.0, 110.0]])
            targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in range(2)]
            sum(model([torch.rand(3, side, side) for _ in range(2)], targets).values()).backward()
            optimizer.step()
            optimizer.zero_grad()

    def predict(model: nn.Module, inputs: Any) -> Mapping[str, Tensor]:
        model.eval()
        with torch.no_grad():
            return _flat(model(*inputs))

    inputs: Any = (torch.randn(2, 3, side, side),) if part else ([torch.rand(3, side, side) for _ in range(2)],)
    other = ([torch.rand(3, side, side * 5 // 4), torch.rand(3, side * 5 // 4, side)],)
    return Case(model, inputs, other, train, predict, part=part)


@process_wide
def with_suppression() -> Any:
    """With a kernel for `torchvision::nms`, written in Python, where torchvision's own extension is not loaded."""
    zoo.define_torchvision_operators()
    from torchvision import extension

    if extension._has_ops():
        yield
        return
    library = torch.library.Library("torchvision", "IMPL")
    library.impl("nms", _suppressed, "CPU")
    has, extension._has_ops = extension._has_ops, lambda: True
    try:
        yield
    finally:
        extension._has_ops = has
        library._destroy()


def _suppressed(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """The places of the boxes that overlap no better one by more than the threshold, the best first."""
    from torchvision.ops import box_iou

    left, kept = scores.argsort(descending=True, stable=True), []
    while left.numel():
        kept.append(left[0])
        left = left[1:][box_iou(boxes[left[:1]], boxes[left[1:]])[0] <= threshold]
    return torch.stack(kept) if kept else left


_FEW = {"detections_per_img": 20, "score_thresh": 0.0}
_FPN = {"min_size": 192, "max_size": 256, "topk_candidates": 50, **_FEW}
_BERT = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}

CASES: Mapping[str, Callable[[], Case]] = {
    **{
        f"smp:{architecture}/{encoder}": partial(_segmentation, architecture, encoder)
        for architecture, encoder in (
            ("unet", "resnet18"), ("unetplusplus", "resnet18"), ("deeplabv3plus", "resnet18"), ("fpn", "resnet18"),
            ("pspnet", "resnet18"), ("manet", "resnet18"), ("unet", "mobilenet_v2"), ("unet", "timm-efficientnet-b0"),
            ("deeplabv3plus", "mobilenet_v2"), ("fpn", "tu-resnet18"), ("manet", "mobilenet_v2"),
            ("linknet", "resnet18"), ("pan", "resnet18"), ("upernet", "resnet18"), ("segformer", "mit_b0"),
        )
    },
    "smp:unet/resnet18, scse": partial(_segmentation, "unet", "resnet18", decoder_attention_type="scse"),
    "smp:unet/resnet18, classes too": partial(
        _segmentation, "unet", "resnet18", aux_params={"classes": CLASSES, "dropout": 0.2}
    ),
    "lightning:resnet18": partial(_lightning, _resnet, False),
    "lightning:smp.Unet": partial(_lightning, _unet, True),
    **{
        f"transformers:{task}{f', scope {scope}' if scope else ''}": partial(
            _transformer, config, task, label, scope or "global", **options
        )
        for scope in ("", "local")  # which leaves equal layers equal, so that a configuration can tell their widths
        for config, task, label, options in (
            ("BertConfig", "BertForSequenceClassification", _one, _BERT),
            ("BertConfig", "BertForMaskedLM", _words, _BERT),
            ("BertConfig", "BertForTokenClassification", _one_each, _BERT),
            ("GPT2Config", "GPT2LMHeadModel", _words, {"n_embd": 256, "n_layer": 4, "n_head": 4}),
        )
    },
    "transformers:ViTForImageClassification": partial(_pictures, "global"),
    "transformers:ViTForImageClassification, scope local": partial(_pictures, "local"),
    **{
        f"torchvision:{name}{f', its {part}' if part else ''}": partial(_detector, name, side, part, **options)
        for name, side, part, options in (
            ("retinanet_resnet50_fpn", 192, "", _FPN), ("retinanet_resnet50_fpn", 192, "backbone", _FPN),
            ("fcos_resnet50_fpn", 192, "", _FPN), ("fcos_resnet50_fpn", 192, "backbone", _FPN),
            ("ssd300_vgg16", 300, "", {"topk_candidates": 50, **_FEW}),
            ("ssdlite320_mobilenet_v3_large", 320, "", {"topk_candidates": 50, **_FEW}),
        )
    },
}
