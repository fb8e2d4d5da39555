"""Products of matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from surgeon.onnx_import.running import Operator
from surgeon.onnx_import.table import MICROSOFT, operator


@operator("MatMul")
def matmul(o: Operator, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@operator("FusedMatMul", domain=MICROSOFT)
def fused_matmul(o: Operator, a: Tensor, b: Tensor) -> Tensor:
    a = a.transpose(-1, -2) if o.get("transA", 0) else a
    b = b.transpose(-1, -2) if o.get("transB", 0) else b
    made = torch.matmul(a, b)
    return made if o.get("alpha", 1.0) == 1.0 else made * o.get("alpha", 1.0)


@operator("Gemm")
def gemm(o: Operator, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    if a.dim() != 2 or b.dim() != 2:
        raise ValueError("Gemm takes matrices")
    alpha, beta = o.get("alpha", 1.0), o.get("beta", 1.0)
    a = a.t() if o.get("transA", 0) else a
    weight = b if o.get("transB", 0) else b.t()
    if alpha == 1 and beta == 1 and (c is None or (c.dim() == 1 and c.shape[0] == weight.shape[0])):
        return F.linear(a, weight, c)
    made = F.linear(a, weight)
    made = made if alpha == 1 else made * alpha
    return made if c is None else made + (c if beta == 1 else c * beta)


@operator("Einsum")
def einsum(o: Operator, *values: Tensor) -> Tensor:
    equation = str(o.get("equation", "")).replace(" ", "")
    if not equation or not all(c.isalpha() or c in ",.->" for c in equation):
        raise ValueError(f"the equation {equation[:40]!r}")
    return torch.einsum(equation, *values)


@operator("Det")
def det(o: Operator, x: Tensor) -> Tensor:
    return torch.linalg.det(x)
