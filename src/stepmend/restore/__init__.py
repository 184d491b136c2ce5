"""Tune the quantized model on bullets, on its own low-bit weights, and export what was trained."""
