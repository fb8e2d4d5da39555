"""A small vision transformer (Dosovitskiy et al., 2020, arXiv:2010.11929)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention with one linear layer for queries, keys and values: (B, N, `dim`) to (B, N, `dim`)."""

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim)
        self.proj = nn.Linear(num_heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens = x.shape[0], x.shape[1]
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, self.num_heads * self.head_dim))


class Layer(nn.Module):
    """Attention and a perceptron, each normalized before and added after: (B, N, `dim`) to (B, N, `dim`)."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads, head_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Patches, learned positions, layers, mean over patches: images (B, 1, 28, 28) to logits (B, `classes`).

    >>> Transformer()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        dim: int = 128,
        depth: int = 4,
        num_heads: int = 8,
        head_dim: int = 16,
        hidden: int = 384,
        patch: int = 4,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, dim, patch, patch)
        self.position = nn.Parameter(torch.zeros(1, (28 // patch) ** 2, dim))
        self.layers = nn.Sequential(*(Layer(dim, num_heads, head_dim, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.layers(x)).mean(1))
