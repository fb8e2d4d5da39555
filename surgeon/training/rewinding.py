"""What happens to the surviving weights: they are kept, rewound to an earlier state, or reinitialized."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from surgeon.errors import InvalidArgument, WeightsError
from surgeon.frontend.parameters import TENSORS, bare_module_in_place, module_in_place, public
from surgeon.plans.carried import plan_of
from surgeon.plans.plan import PLAN, Plan


@public(slim=bare_module_in_place, plan=PLAN, earlier=TENSORS)
@torch.no_grad()
def rewind(slim: nn.Module, earlier: Mapping[str, Tensor], plan: Plan | None = None) -> None:
    """Set the weights of a smaller model, in place, to those that the full model had earlier in training.

    Frankle & Carbin, "The Lottery Ticket Hypothesis", 2019, arXiv:1803.03635; Renda et al., "Comparing Rewinding and
    Fine-tuning in Neural Network Pruning", 2020, arXiv:2003.02389.

    Args:
        slim: what `surgeon.shrink`, `Plan.apply` or `Pruner.commit` returned.
        earlier: the full model's `state_dict()` at that point, copied, since training changes tensors in place. By
            name, tensors of the full model's shapes.
        plan: by default the one attached to `slim`.

    Raises:
        InvalidArgument: `slim` carries no plan.
        WeightsError: a tensor is missing, or its shape is not the one that the plan cuts. Nothing was changed.

    >>> import surgeon
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> earlier = {name: value.clone() for name, value in net.state_dict().items()}
    >>> _ = nn.init.normal_(net[0].weight)
    >>> slim = surgeon.shrink(net, 0.5, example_inputs=torch.randn(1, 8))
    >>> rewind(slim, earlier)
    >>> kept = slim.surgeon_plan.tensor("0.weight")[0]
    >>> torch.equal(slim[0].weight, earlier["0.weight"][list(kept)])
    True
    """
    plan = plan_of(slim, plan)
    if plan is None:
        raise InvalidArgument(f"{type(slim).__name__} carries no plan of what was cut; pass plan=")
    state = slim.state_dict()
    values = {name: _cut(name, earlier.get(name), value, plan) for name, value in state.items()}
    for name, value in values.items():
        state[name].copy_(value)


def _cut(name: str, earlier: Tensor | None, now: Tensor, plan: Plan) -> Tensor:
    if earlier is None:
        raise WeightsError(f"the earlier state has no {name}; give the state_dict() of the whole model")
    value = earlier.detach()
    for axis, keep in plan.tensor(name).items():
        if axis >= value.dim() or keep[-1] >= value.shape[axis]:
            raise WeightsError(
                f"{name} was {tuple(value.shape)} earlier, and the plan cuts position {keep[-1]} of axis {axis}; "
                "give the state_dict() of the whole model"
            )
        value = value.index_select(axis, torch.tensor(keep, device=value.device))
    if value.shape != now.shape:
        raise WeightsError(
            f"{name} was {tuple(earlier.shape)} earlier, of which the plan leaves {tuple(value.shape)}, but it is "
            f"{tuple(now.shape)} in the smaller model"
        )
    return value


@public(model=module_in_place)
@torch.no_grad()
def reinitialize(model: nn.Module, seed: int = 0) -> None:
    """Reinitialize all parameters of `model`, in place, from the random `seed`.

    Modules with `reset_parameters` call it, which also resets batch norm statistics. A parameter of any other module,
    such as a position embedding, is drawn from a normal distribution with its current mean and standard deviation.

    The states of torch's generators are restored.

    Liu et al., "Rethinking the Value of Network Pruning", 2019, arXiv:1810.05270.

    Raises:
        InvalidArgument: `model` is not a module, or `seed` is not an integer of at least 0.

    >>> first, second = nn.Linear(2, 3), nn.Linear(2, 3)
    >>> reinitialize(first, seed=1)
    >>> reinitialize(second, seed=1)
    >>> torch.equal(first.weight, second.weight)
    True
    """
    devices = list({value.device for value in model.parameters() if value.is_cuda})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
                continue
            for parameter in module.parameters(recurse=False):
                wide = parameter.double()
                deviation = float(wide.std(correction=0)) if parameter.numel() else 0.0
                parameter.copy_(torch.randn_like(wide) * deviation + wide.mean())
