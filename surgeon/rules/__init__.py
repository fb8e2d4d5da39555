"""Axis rules for ATen operators, a family a file."""

from surgeon.rules import (  # noqa: F401  (importing a family registers its rules)
    contraction,
    indexing,
    layout,
    normalization,
    pointwise,
    pooling,
    recurrence,
    scripted,
    segments,
    spectral,
)
from surgeon.rules.base import (
    RULES,
    Axes,
    Context,
    Kept,
    RuleDoesNotApply,
    RuleFailure,
    Typed,
    arguments,
    example_arguments,
    example_number,
    failed,
    find,
    is_random,
    rule,
    size_of,
    where,
)

__all__ = [
    "RULES", "Axes", "Context", "Kept", "RuleDoesNotApply", "RuleFailure", "Typed", "arguments", "example_arguments",
    "example_number", "failed", "find",
    "is_random", "rule", "size_of", "where",
]
