"""Weights that a network computes, complex weights, and sums over the edges of a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon

Case = tuple[Callable[[], nn.Module], tuple[Tensor, ...], tuple[Tensor, ...]]


class Net(nn.Module):
    """A network of the given parts, whose forward is a function of it and the inputs."""

    def __init__(self, run: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)
        self.run = run

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self, *inputs)


def convolved(m: Any, x: Tensor, kernels: Tensor, groups: int, bias: Tensor | None = None) -> Tensor:
    """Every sample's own kernels, as a convolution of as many groups."""
    b, _, h, w = x.shape
    return m.o(F.conv2d(x.reshape(1, -1, h, w), kernels, bias, padding=1, groups=groups).view(b, -1, h, w).relu())


def dynamic(m: Any, x: Tensor) -> Tensor:
    """Chen et al., "Dynamic Convolution: Attention over Convolution Kernels", CVPR 2020."""
    x = m.i(x)
    share = m.r(x.mean((2, 3))).softmax(1)
    kernels = torch.einsum("bk,koihw->boihw", share, m.w)
    return convolved(m, x, kernels.reshape(-1, x.shape[1], 3, 3), x.shape[0], (share @ m.b).reshape(-1))


def modulated(m: Any, x: Tensor, z: Tensor) -> Tensor:
    """Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020."""
    x = m.i(x)
    kernels = m.w[None] * m.a(z)[:, None, :, None, None]
    kernels = kernels * torch.rsqrt(kernels.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8)
    return convolved(m, x, kernels.reshape(-1, x.shape[1], 3, 3), x.shape[0])


def depthwise(m: Any, x: Tensor) -> Tensor:
    x = m.i(x)
    b, c = x.shape[:2]
    return convolved(m, x, m.a(x.mean((2, 3))).view(b * c, 1, 3, 3), b * c)


def written_out(m: Any, x: Tensor) -> Tensor:
    """Yang et al., "CondConv", NeurIPS 2019, with the kernels' shape written in the code."""
    x = m.i(x)
    kernels = (m.r(x.mean((2, 3))).sigmoid() @ m.w).view(x.shape[0] * 16, 16, 3, 3)
    return convolved(m, x, kernels, x.shape[0])


def hypernetwork(m: Any, x: Tensor, z: Tensor) -> Tensor:
    h = m.i(x)
    w = m.b(m.a(z).relu()).unflatten(1, (16, 16))
    return m.o(torch.bmm(w, h.unsqueeze(-1)).squeeze(-1).relu())


def fourier(m: Any, x: Tensor) -> Tensor:
    """Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations", ICLR 2021."""
    x = m.i(x)
    f = torch.fft.rfft(x)
    out = torch.zeros(x.shape[0], m.w.shape[1], f.shape[-1], dtype=f.dtype, device=x.device)
    out[:, :, :4] = torch.einsum("bix,iox->box", f[:, :, :4], m.w)
    return m.o((torch.fft.irfft(out, n=x.shape[-1]) + m.k(x)).relu())


def state_space(m: Any, x: Tensor) -> Tensor:
    """Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models", NeurIPS 2022."""
    u = m.i(x).transpose(1, 2)
    n = u.shape[-1]
    poles = -torch.exp(m.p) + 1j * m.p
    powers = torch.exp(poles.unsqueeze(-1) * torch.arange(n, device=x.device) * 0.1)
    kernel = torch.einsum("hn,hnl->hl", torch.view_as_complex(m.c), powers).real
    y = torch.fft.irfft(torch.fft.rfft(u, n=2 * n) * torch.fft.rfft(kernel, n=2 * n), n=2 * n)[..., :n]
    return m.o(y.transpose(1, 2).relu())


def attended(m: Any, x: Tensor, edges: Tensor) -> Tensor:
    """Velickovic et al., "Graph Attention Networks", ICLR 2018."""
    nodes, z = x.shape[0], m.i(x).unflatten(1, (4, 4))
    source, target = edges[0], edges[1]
    a = F.leaky_relu((z * m.s).sum(-1)[source] + (z * m.t).sum(-1).index_select(0, target), 0.2)
    highest = torch.full((nodes, a.shape[1]), -1e9, dtype=a.dtype)
    a = (a - highest.scatter_reduce(0, target[:, None].expand(-1, a.shape[1]), a, "amax")[target]).exp()
    total = a.new_zeros(nodes, a.shape[1]).scatter_add(0, target[:, None].expand_as(a), a)
    messages = z[source] * (a / total[target])[..., None]
    return m.o(torch.zeros_like(z).index_add(0, target, messages).flatten(1).relu())


def edges(nodes: int, count: int) -> Tensor:
    return torch.randint(0, nodes, (2, count), generator=torch.Generator().manual_seed(0))


def images(c: int = 16, **parts: Any) -> dict[str, Any]:
    return {"i": nn.Conv2d(3, c, 1), "o": nn.Conv2d(16, 3, 1), **parts}


I = torch.randn  # noqa: E741  (for the table)
ONE, TWO = (I(2, 3, 6, 6),), (I(3, 3, 8, 6),)
CASES: dict[str, Case] = {
    "dynamic convolution": (
        lambda: Net(dynamic, **images(r=nn.Linear(16, 3), w=I(3, 16, 16, 3, 3), b=I(3, 16))), ONE, TWO),
    "modulated convolution": (
        lambda: Net(modulated, **images(a=nn.Linear(5, 16), w=I(16, 16, 3, 3))), (*ONE, I(2, 5)), (*TWO, I(3, 5))),
    "dynamic depthwise convolution": (lambda: Net(depthwise, **images(a=nn.Linear(16, 144))), ONE, TWO),
    "shape in the code": (
        lambda: Net(written_out, **images(r=nn.Linear(16, 3), w=I(3, 16 * 16 * 9))), ONE, TWO),
    "hypernetwork": (
        lambda: Net(hypernetwork, i=nn.Linear(8, 16), a=nn.Linear(4, 16), b=nn.Linear(16, 256), o=nn.Linear(16, 3)),
        (I(2, 8), I(2, 4)), (I(3, 8), I(3, 4))),
    "Fourier layer": (
        lambda: Net(fourier, i=nn.Conv1d(2, 16, 1), k=nn.Conv1d(16, 16, 1), o=nn.Conv1d(16, 1, 1),
                    w=I(16, 16, 4, dtype=torch.cfloat)), (I(2, 2, 16),), (I(3, 2, 20),)),
    "state space": (
        lambda: Net(state_space, i=nn.Linear(2, 16), o=nn.Linear(16, 2), p=I(16, 4), c=I(16, 4, 2)),
        (I(2, 9, 2),), (I(3, 12, 2),)),
    "graph attention": (
        lambda: Net(attended, i=nn.Linear(5, 16), o=nn.Linear(16, 3), s=I(1, 4, 4), t=I(1, 4, 4)),
        (I(7, 5), edges(7, 20)), (I(11, 5), edges(11, 31))),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_they_are_pruned_run_at_other_sizes_and_train(case: Case) -> None:
    make, first, second = case
    model = make().eval()
    slim, report = surgeon.shrink(model, 0.4, example_inputs=first, align=1, return_report=True)
    assert report.certificate.deviation < 1e-9 and report.macs.after < 0.7 * report.macs.before
    assert slim(*second).shape == model(*second).shape
    slim.train()(*first).square().mean().backward()
    before = slim(*first).detach()
    torch.optim.Adam(slim.parameters(), 0.1).step()
    assert not torch.equal(slim(*first), before)
