"""The loss by quantization: paired outcomes, their statistics, and margins."""
