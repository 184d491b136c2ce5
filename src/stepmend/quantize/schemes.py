"""The table of schemes: what a name such as ``gptq-w3a16-g128`` means, where it loads, and whether it suits a model's widths.

A name reads ``<method>-w<bits>a<bits>[-g<group>][-sym|-asym][-kv8]``; without ``-g`` there is one scale a row. With zero points
(``-asym``) or without (``-sym``): AWQ has them by itself, as its authors do, the others have not. This module needs no torch.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepmend.records import InputError

METHODS: dict[str, str] = {
    "rtn": "rounding to the nearest, uncalibrated: the control",
    "gptq": "error-compensating rounding (Frantar et al., 2210.17323)",
    "awq": "activation-aware scaling, then rounding (Lin et al., 2306.00978)",
    "smoothquant": "difficulty moved from activations to weights (Xiao et al., 2211.10438), then GPTQ",
}
WIDTHS: dict[str, tuple[tuple[int, int], ...]] = {
    "rtn": ((3, 16), (4, 16), (8, 8)),
    "gptq": ((3, 16), (4, 16), (8, 8)),
    "awq": ((3, 16), (4, 16)),
    "smoothquant": ((8, 8),),
}
"""Method -> (weight bits, activation bits) that it is offered in."""
SCALED = ("awq", "smoothquant")
"""Methods that scale layers before they round them."""

GROUPS = (32, 64, 128)
WHOLE = 16
"""Bits of a module that is not quantized."""
NUMBER = "[1-9][0-9]{0,3}"
NAME = re.compile(
    rf"(?P<method>[a-z]+)-w(?P<weights>{NUMBER})a(?P<activations>{NUMBER})(-g(?P<group>{NUMBER}))?(-(?P<zeros>sym|asym))?(?P<kv>-kv8)?"
)


@dataclass(frozen=True)
class Scheme:
    """One way to quantize: ``group`` is the number of columns that share a scale, None for one scale a row."""

    name: str
    method: str
    weight_bits: int
    activation_bits: int
    group: int | None
    symmetric: bool
    kv_bits: int | None

    @property
    def calibrated(self) -> bool:
        """Whether anything is estimated from calibration traces: all but weight-only rounding."""
        return self.method != "rtn" or self.kv_bits is not None

    @property
    def loads(self) -> str:
        """Where the checkpoint loads: tried, see docs/architecture.md."""
        if self.weight_bits == 3:
            return "transformers"
        return "transformers, vLLM"


def parse(name: str) -> Scheme:
    """The scheme of a name. Raises InputError that lists what is allowed."""
    match = NAME.fullmatch(name)
    allowed = "; ".join(f"{m}-{{{','.join(f'w{w}a{a}' for w, a in widths)}}}" for m, widths in WIDTHS.items())
    if match is None or match["method"] not in METHODS:
        ends = "-g32, -g64 or -g128 and -sym or -asym for a16, and -kv8 for all"
        raise InputError(f"scheme: unknown {name!r}; allowed: {allowed}; then {ends} ('stepmend schemes')")
    widths = (int(match["weights"]), int(match["activations"]))
    group = int(match["group"]) if match["group"] else None
    if widths not in WIDTHS[match["method"]]:
        offered = ", ".join(f"w{w}a{a}" for w, a in WIDTHS[match["method"]])
        raise InputError(f"scheme: {name!r}: {match['method']} is offered as {offered}")
    if group is not None and (group not in GROUPS or widths[1] != 16):
        raise InputError(f"scheme: {name!r}: groups of {', '.join(map(str, GROUPS))} with a16; a8 has one scale a row")
    if match["zeros"] == "asym" and widths[1] != 16:
        raise InputError(f"scheme: {name!r}: zero points (-asym) with a16 only")
    symmetric = match["zeros"] == "sym" if match["zeros"] else match["method"] != "awq"
    return Scheme(name, match["method"], *widths, group, symmetric, 8 if match["kv"] else None)


def listing() -> list[Scheme]:
    """The schemes that ``stepmend schemes`` prints: every method, width and group; zero points and KV cache by example."""
    names = []
    for method, widths in WIDTHS.items():
        for weights, activations in widths:
            stem = f"{method}-w{weights}a{activations}"
            names += [f"{stem}-g{group}" for group in GROUPS] if activations == 16 else [stem]
    return [parse(name) for name in [*names, "gptq-w4a16-g128-asym", "gptq-w4a16-g128-kv8", "smoothquant-w8a8-kv8"]]


def check_widths(scheme: Scheme, linears: dict[str, tuple[int, int]]) -> None:
    """Before work starts: whether the group divides the columns of every linear layer.

    ``linears`` maps a layer's name to (rows, columns). Raises InputError that names a layer and the groups that would do.
    """
    if scheme.group is None:
        return
    for name, (_, columns) in linears.items():
        if columns % scheme.group:
            fit = [g for g in GROUPS if all(c % g == 0 for _, c in linears.values())]
            instead = f"groups of {', '.join(map(str, fit))} do" if fit else "no offered group does: leave out -g for one scale a row"
            raise InputError(f"scheme: {scheme.name}: groups of {scheme.group} do not divide the {columns} columns of {name}; {instead}")


def recipe_of(
    scheme: Scheme,
    left_alone: Sequence[str] = ("lm_head",),
    scaled: Sequence[tuple[str, Sequence[str]]] = (),
    wide: Mapping[str, int] | None = None,
) -> list[Any]:
    """The llm-compressor modifiers of a scheme, but for the modules ``left_alone``. A KV-cache scheme sits on the weights' modifier.

    ``scaled`` are AWQ's and SmoothQuant's mappings: a layer, and those that make up for what it is divided by. ``wide`` names modules that
    have more bits than the scheme's; those of 16 are left alone.
    """
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    shape = {"strategy": "group", "group_size": scheme.group} if scheme.group else {"strategy": "channel"}
    wide = wide or {}

    def group(bits: int, targets: list[str]) -> QuantizationScheme:
        weights = QuantizationArgs(num_bits=bits, type="int", symmetric=scheme.symmetric, **shape)  # pyright: ignore
        return QuantizationScheme(targets=targets, weights=weights, input_activations=inputs)

    inputs = None
    if scheme.activation_bits == 8:
        inputs = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True)  # pyright: ignore
    more = sorted({*wide.values()} - {WHOLE})  # before all other layers: the first target that fits is taken
    groups = {f"group_{i}": group(bits, [name for name, of in wide.items() if of == bits]) for i, bits in enumerate(more)}
    groups[f"group_{len(more)}"] = group(scheme.weight_bits, ["Linear"])
    common: dict[str, Any] = {
        "config_groups": groups,
        "ignore": [*left_alone, *(name for name, of in wide.items() if of == WHOLE)],
    }
    if scheme.kv_bits:
        common["kv_cache_scheme"] = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="tensor", dynamic=False)  # pyright: ignore
    match scheme.method:
        case "rtn":
            return [QuantizationModifier(**common)]
        case "gptq":
            return [GPTQModifier(**common)]
        case "awq":
            return [AWQModifier(mappings=[AWQMapping(name, list(others)) for name, others in scaled]), QuantizationModifier(**common)]
        case _:
            pairs: list[Any] = [(list(others), name) for name, others in scaled]
            return [SmoothQuantModifier(smoothing_strength=0.5, mappings=pairs), GPTQModifier(**common)]
