"""Formats that are not restored: why, and what to do instead."""

AGAIN = "take a compressed-tensors, AWQ or GPTQ checkpoint of the model, or a GGUF file, or make one with 'stepmend quantize'"

WHY = {
    "bitsandbytes": "its scales are quantized again, and no file holds codes with scales of their own",
    "fp8": "FP8 weights are no integer codes",
    "fbgemm-fp8": "FP8 weights are no integer codes",
    "modelopt": "ModelOpt's FP8 and NVFP4 weights are no integer codes",
    "modelopt-fp4": "NVFP4 weights are no integer codes",
    "mxfp4": "MXFP4 weights are no integer codes",
    "mxfp8": "MXFP8 weights are no integer codes",
    "fp-quant": "FP4 weights are no integer codes",
    "nvfp4": "NVFP4 weights are no integer codes",
    "auto-round": "AutoRound's own format is not read; AutoRound also exports in the formats of GPTQ, AWQ and llm-compressor",
    "intel/auto-round": "AutoRound's own format is not read; AutoRound also exports in the formats of GPTQ, AWQ and llm-compressor",
}
"""Method -> why it is refused."""


def refusal(method: str) -> str:
    """One line of what a format is, why it is not restored, and what to do."""
    return f"{method[:80]!r} is not restored ({WHY.get(method, 'no layout that is known here')}); {AGAIN}"
