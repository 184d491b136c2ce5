"""What quantization cost: paired outcomes, their statistics, and margins."""
