"""Float codes of compressed-tensors checkpoints, dequantized to the compute dtype.

The library makes FP4 and MX weights bfloat16 whatever the model's dtype is, and such a model fails in its first layer. Here they are made
in the dtype asked for, by the library's own dequantization.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


@contextmanager
def made_in(dtype: Any) -> Iterator[None]:
    """Inside, FP4 codes and MX scales are unpacked to ``dtype``; if that is none (``auto``), to bfloat16."""
    import torch
    from compressed_tensors.compressors.mxfp8 import base as mxfp8
    from compressed_tensors.compressors.nvfp4 import base as nvfp4

    unpack, powers = nvfp4.unpack_fp4_from_uint8, mxfp8.decompress_mx_scale
    if isinstance(dtype, torch.dtype):
        nvfp4.unpack_fp4_from_uint8 = partial(unpack, dtype=dtype)
        mxfp8.decompress_mx_scale = lambda scale: powers(scale).to(dtype)
    try:
        yield
    finally:
        nvfp4.unpack_fp4_from_uint8, mxfp8.decompress_mx_scale = unpack, powers


def floats(model: Any) -> None:
    """Make a model dense that holds FP4 or MX codes; others are left to compressed-tensors, which does it in the first forward pass."""
    from compressed_tensors.offload import remove_dispatch

    schemes = (getattr(module, "quantization_scheme", None) for module in model.modules())
    weights = [scheme.weights for scheme in schemes if scheme is not None and scheme.weights is not None]
    if hasattr(model, "ct_decompress_hook") and any(one.type == "float" and one.strategy in ("group", "tensor_group") for one in weights):
        with made_in(model.dtype):
            model.hf_quantizer.compressor.decompress_model(model)
        remove_dispatch(model)
