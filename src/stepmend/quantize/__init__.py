"""Quantization of a full-precision parent to a low-bit checkpoint."""
