"""Tune the quantized model's own low-bit weights on bullets, and export the result."""
