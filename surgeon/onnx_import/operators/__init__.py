"""The table of operators: one function for each operator of ONNX, a family of operators a file."""

from surgeon.onnx_import.operators import (  # noqa: F401  (each fills the table when it is imported)
    attention,
    control,
    convolution,
    elementwise,
    generating,
    indexing,
    integers,
    microsoft,
    normalization,
    pooling,
    products,
    quantized,
    recurrent,
    reduction,
    resizing,
    sequences,
    shaping,
    sizes,
    slicing,
)
