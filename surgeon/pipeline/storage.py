"""A smaller model on disk: a folder with its plan, its weights and a description.

`plan.json` is the plan. `weights.safetensors` holds the tensors of `state_dict`, each once; its metadata has the
SHA-256 of `plan.json`. `model.json` is

    {"format": "surgeon-model", "version": 1, "form": "module", "tied": {"head.weight": "embed.weight"},
     "made": {"by": "torchvision:resnet18", "arguments": {}}, "structure": "9f86…", "training": false}

where `form` is "module" or "graph", and `tied` maps each further name of a tensor to the name under which it is stored.
`made` says how the original was made, where that is known, `structure` is a digest of classes and of plain values on
modules (`surgeon.frontend.structure`), and `training` the mode. Tensors that the model holds as plain attributes are
stored beside those of `state_dict`, under "attribute:" and a name. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from surgeon.errors import InvalidArgument, InvalidModel, SurgeonError, WeightsError
from surgeon.frontend.isolation import undisturbed
from surgeon.frontend.notes import note
from surgeon.frontend.parameters import public
from surgeon.frontend.recipes import Recipe
from surgeon.frontend.trace import trace_inputs
from surgeon.frontend.wrappers import within_its_wrapper
from surgeon.pipeline import making
from surgeon.pipeline.plain_tensors import PREFIX, plain_tensors
from surgeon.pipeline.refit import refit
from surgeon.pipeline.replay import build
from surgeon.plans.carried import MAKER, form_of, left, plan_of
from surgeon.plans.plan import PLAN as IS_PLAN
from surgeon.plans.plan import Plan, together
from surgeon.support.documents import Document
from surgeon.support.files import StrPath, find, marks, replace_many
from surgeon.support.opening import Unfit
from surgeon.support.safetensors_io import check_header, write_tensors

PLAN = "plan.json"
WEIGHTS = "weights.safetensors"
MODEL = "model.json"
FORMAT = "surgeon-model"
VERSION = 1
ATTEMPTS = 20
"""How often reading is tried in a folder that is being replaced."""
LISTED = 8
"""The number of tensors that an error names before it counts the rest."""
_DOCUMENT = Document("saved model", FORMAT, VERSION, WeightsError, "save the model again")


@public(plan=IS_PLAN, factory=making.factory)
@undisturbed()
def save(model: nn.Module, folder: StrPath, plan: Plan | None = None, *, factory: str | None = None) -> None:
    """Write a smaller model to `folder`, which is created if it is missing.

    The three files are replaced together or not at all, and other files in `folder` are left as they are: see
    `surgeon.support.files.replace_many`.

    Args:
        model: what `shrink`, `sweep` or `Plan.apply` returned, trained further or not, and as often as wanted.
        folder: where to.
        plan: what was removed; by default what is attached to the model.
        factory: how the original was made, as "package.module:function"; by default what can be told of a model of
            torchvision, timm or transformers.

    Raises:
        InvalidArgument: `model` is not a module, or carries no plan.
        InvalidModel: its `state_dict` holds something other than dense tensors.
        OutputError: `folder` can't be written; what was there is intact.

    >>> import os, tempfile
    >>> from surgeon.pipeline.shrink import shrink
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(shrink(net, 0.5, example_inputs=torch.zeros(1, 8)), folder)
    ...     print(sorted(os.listdir(folder)))
    ['model.json', 'plan.json', 'weights.safetensors']
    """
    plan = plan_of(model, plan)
    if plan is None:
        raise InvalidArgument(
            f"{type(model).__name__} carries no plan, so it could not be rebuilt from the folder; "
            "save what surgeon.shrink or Plan.apply returned, or pass plan="
        )
    tensors, tied = _state(model)
    with replace_many(folder) as scratch:
        plan.save(scratch / PLAN)
        metadata = {"plan": _digest(scratch / PLAN)}  # a single entry, as safetensors does not keep their order
        write_tensors(scratch / WEIGHTS, tensors, metadata)
        head = {"format": FORMAT, "version": VERSION, "form": form_of(model), "tied": tied}
        meta = {**head, **making.described(model, plan, factory)}
        (scratch / MODEL).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


@within_its_wrapper("fresh_model")
@public(factory=making.factory)
@undisturbed()
def load(folder: StrPath, fresh_model: nn.Module | None = None, *, factory: str | None = None) -> nn.Module:
    """The smaller model that was saved in `folder`, rebuilt from a model of the original architecture.

    If the folder is replaced meanwhile, the result is either the old or the new model.

    Args:
        folder: what `save` wrote.
        fresh_model: with any weights; it is left as it is, and the result has its device and dtypes. It can be left
            out where the folder names a model of torchvision, timm or transformers: the result then has the mode and
            dtype that it was saved with.
        factory: instead of `fresh_model`, what imports and makes it: "package.module:function", "timm:NAME" or
            "torchvision:NAME". A factory that only the folder names is not called: it may come from a stranger.

    Raises:
        InvalidArgument: `folder` is not a folder that `save` wrote, `fresh_model` is not a module, or it is needed.
        PlanError: the plan is malformed, or of another architecture than `fresh_model`.
        WeightsError: a tensor is missing, extra, or of another shape or dtype than the plan leaves; or the weights
            file is truncated, not a safetensors file, or belongs to another plan.

    >>> import tempfile
    >>> from surgeon.pipeline.shrink import shrink
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> fresh = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(shrink(net, 0.5, example_inputs=torch.zeros(1, 8)), folder)
    ...     print(load(folder, fresh)[2])
    Linear(in_features=16, out_features=4, bias=True)
    """
    if fresh_model is not None and factory is not None:
        raise InvalidArgument("give either fresh_model or factory=, not both")
    path, names = Path(folder), (MODEL, PLAN, WEIGHTS)
    for _ in range(ATTEMPTS):
        before = marks(path, names)
        try:
            slim = _load(path, fresh_model, factory)
        except (SurgeonError, OSError, RuntimeError):  # RuntimeError: torch's, if a file changed while it was copied
            if marks(path, names) == before:
                raise
        else:
            if marks(path, names) == before:
                return slim
    raise WeightsError(f"{path} was replaced by another process {ATTEMPTS} times while it was read; read it later")


def _load(path: Path, fresh_model: nn.Module | None, factory: str | None) -> nn.Module:
    if missing := [name for name in (MODEL, PLAN, WEIGHTS) if not find(path, name).is_file()]:
        lacking = ", no ".join(missing)
        raise InvalidArgument(f"{path} is not a folder that surgeon.save wrote: it has no {lacking}")
    meta = _read_meta(find(path, MODEL))
    form, tied, recipe = meta["form"], meta["tied"], making.recipe_of(meta, find(path, MODEL))
    plan = Plan.load(find(path, PLAN))
    stored = _read_header(path)
    own = fresh_model
    if own is None:
        own = making.fresh(recipe, factory, plan, stored.floating(), stored.path.stat().st_size)
    slim = _rebuilt(plan, own, form, stored, tied)
    _retie(slim, tied)
    _check(stored, tied, slim)
    _copy(stored, tied, slim)
    _copy_plain(stored, slim)
    if fresh_model is None:
        slim.train(meta.get("training") is True)
        if factory is None and recipe is not None:
            making.require_same(meta, slim, recipe)
    if factory is not None or (recipe is not None and not recipe.known):
        note(slim, MAKER, Recipe(factory) if factory is not None else recipe)
    return slim


def _rebuilt(
    plan: Plan, fresh_model: nn.Module, form: str, stored: _Header, tied: Mapping[str, str]
) -> nn.Module:
    """The smaller model, not yet with the stored weights; these decide on sizes that the plan does not tell."""
    shapes = {**stored.shapes, **{name: stored.shapes[first] for name, first in tied.items() if first in stored.shapes}}
    model = refit(fresh_model, plan, shapes)
    if model is fresh_model:
        return build(plan, model, form)
    with suppress(SurgeonError):  # where it does not run with these sizes, they are found misshapen below
        inputs = together(left(plan, fresh_model)).example_inputs()
        if trace_inputs(model, inputs).dynamic == trace_inputs(fresh_model, inputs).dynamic:
            return build(plan, model, form)
    return build(plan, fresh_model, form)


@dataclass(frozen=True)
class _Header:
    """The shapes and types in a weights file, by tensor name; the shapes of `plain` attributes apart."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, str]
    plain: Mapping[str, tuple[int, ...]]

    def floating(self) -> list[torch.dtype]:
        """The types of the floating tensors."""
        known = [_KINDS[kind] for kind in self.kinds.values() if kind in _KINDS]
        return [kind for kind in known if kind.is_floating_point]


def _state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors to store by name, and the further names of tied ones."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    plain = {f"{PREFIX}{name}": value for name, value in plain_tensors(model).items()}
    for name, value in (model.state_dict(keep_vars=True) | plain).items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_meta:
            kind = value.layout if isinstance(value, Tensor) else type(value).__name__
            where = " on the meta device" if isinstance(value, Tensor) and value.is_meta else ""
            raise InvalidModel(f"{name} is a {kind}{where}; only dense tensors with values can be stored")
        identity = _identity(value)
        if identity in first and value.numel():
            if name not in plain:
                tied[name] = first[identity]
            continue
        first[identity] = name
        dense = value.detach().cpu().contiguous()
        # safetensors refuses overlapping tensors, and would store the whole memory behind a view.
        storage = dense.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != dense.numel() * dense.element_size():
            dense = dense.clone()
        storages.add(dense.untyped_storage().data_ptr())
        tensors[name] = dense
    return tensors, tied


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors only if they are the same view of the same memory."""
    storage = tensor.untyped_storage().data_ptr()
    return storage, tensor.device, tensor.storage_offset(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_meta(path: Path) -> dict[str, Any]:
    """The description, whose `form` and `tied` are checked."""
    meta: dict[str, Any] = _DOCUMENT.read(path)
    tied = meta.get("tied")
    if not isinstance(tied, dict) or not all(isinstance(name, str) for name in tied.values()):
        raise WeightsError(f"{path}: tied is {tied!r}, not an object of tensor names")
    if meta.get("form") not in ("module", "graph"):
        raise WeightsError(f"{path}: form is {meta.get('form')!r}, neither module nor graph")
    return meta


def _read_header(folder: Path) -> _Header:
    path = find(folder, WEIGHTS)
    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            plain = {name: shapes.pop(name) for name in slices if name.startswith(PREFIX)}
            kinds = {name: str(part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError, Unfit) as error:
        raise WeightsError(f"{path} is not a complete safetensors file: {error}; save the model again") from error
    digest = _digest(find(folder, PLAN))
    if metadata.get("plan", digest) != digest:
        raise WeightsError(
            f"{path} was not saved with the plan beside it, which may make other cuts; save the model again"
        )
    return _Header(path, shapes, kinds, plain)


def _retie(slim: nn.Module, tied: Mapping[str, str]) -> None:
    """Tie tensors that were tied when they were saved, but are separate in `slim`."""
    state = slim.state_dict(keep_vars=True)
    for name, first in tied.items():
        a, b = state.get(name), state.get(first)
        if a is None or b is None or a is b:
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            raise WeightsError(
                f"{name} was tied to {first} when it was saved, but here they are {a.dtype} {list(a.shape)} and "
                f"{b.dtype} {list(b.shape)}; build fresh_model as the saved model was built"
            )
        path, _, leaf = name.rpartition(".")
        owner = slim.get_submodule(path)
        table: dict[str, Any] = owner._parameters if leaf in owner._parameters else owner._buffers
        table[leaf] = b


def _check(stored: _Header, tied: Mapping[str, str], slim: nn.Module) -> None:
    """Compare names, shapes and types before any value is read."""
    state = {k: v for k, v in slim.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    if meta := [name for name, value in state.items() if value.is_meta]:
        raise InvalidArgument(
            f"fresh_model has tensors on the meta device ({_names(meta)}), which hold no values; "
            "call fresh_model.to_empty(device='cpu') first"
        )
    named = {name: stored.shapes.get(tied.get(name, name)) for name in state}
    faults = []
    if missing := [name for name, found in named.items() if found is None]:
        faults.append(f"missing: {_names(missing)}")
    if extra := [name for name in (*stored.shapes, *tied) if name not in state]:
        faults.append(f"extra: {_names(extra)}")
    faults += [
        f"misshapen: {name} is {list(found)} in the file, and {list(state[name].shape)} after the plan's cuts"
        for name, found in named.items()
        if found is not None and found != tuple(state[name].shape)
    ][:LISTED]
    kinds = {name: _KINDS.get(stored.kinds.get(tied.get(name, name), "")) for name in state}
    faults += [
        f"of another type: {name} is {kinds[name]} in the file, and {value.dtype} in the model; "
        f"call fresh_model.to({kinds[name]}) first"
        for name, value in state.items()
        if named[name] is not None and kinds[name] is not None and kinds[name] != value.dtype
    ][:1]
    if faults:
        kind = type(slim).__name__
        listed = "\n  ".join(faults)
        raise WeightsError(
            f"{stored.path} does not hold the weights of this {kind}; build it as the saved one was:\n  {listed}"
        )


_KINDS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip


def _copy(stored: _Header, tied: Mapping[str, str], slim: nn.Module) -> None:
    copied: dict[int, str] = {}
    try:
        with safe_open(stored.path, framework="pt") as file, torch.no_grad():
            for name, target in slim.state_dict(keep_vars=True).items():
                source = tied.get(name, name)
                earlier = copied.setdefault(id(target), source)
                if earlier == source:
                    target.copy_(file.get_tensor(source))
                elif not torch.equal(file.get_tensor(source), file.get_tensor(earlier)):
                    raise WeightsError(
                        f"{stored.path}: {source} and {earlier} have different values, "
                        "but fresh_model ties them; build it as the saved model was built"
                    )
    except SafetensorError as error:
        raise WeightsError(f"{stored.path} can't be read: {error}") from error


def _copy_plain(stored: _Header, slim: nn.Module) -> None:
    """Copy the tensors of plain attributes; those that the fresh model does not have come about when it is called."""
    with safe_open(stored.path, framework="pt") as file, torch.no_grad():
        for name, target in plain_tensors(slim).items():
            if stored.plain.get(f"{PREFIX}{name}") == tuple(target.shape):
                target.copy_(file.get_tensor(f"{PREFIX}{name}"))


def _names(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
