"""Unsupported formats: why, and what to do instead."""

AGAIN = "take a compressed-tensors, AWQ or GPTQ checkpoint of the model, or a GGUF file, or make one with 'stepmend quantize'"

OTHER = "this layout is not read; llm-compressor's is, which writes the same numbers"
WHY = {
    "bitsandbytes": "its scales are quantized again, and no file holds codes with scales of their own",
    "fp8": OTHER,
    "fbgemm-fp8": OTHER,
    "modelopt": OTHER,
    "modelopt-fp4": OTHER,
    "mxfp4": OTHER,
    "mxfp8": OTHER,
    "fp-quant": OTHER,
    "nvfp4": OTHER,
    "auto-round": "AutoRound's own format is not read; AutoRound also exports in the formats of GPTQ, AWQ and llm-compressor",
    "intel/auto-round": "AutoRound's own format is not read; AutoRound also exports in the formats of GPTQ, AWQ and llm-compressor",
}
"""Method -> why it is refused."""


def refusal(method: str) -> str:
    """One line of what a format is, why it is not restored, and what to do."""
    return f"{method[:80]!r} is not restored ({WHY.get(method, 'no layout that is known here')}); {AGAIN}"
