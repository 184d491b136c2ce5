"""The table of schemes: the meaning of names such as ``nvfp4`` or ``gptq-w3a16-g128``, where each loads, and whether it suits a model's
widths.

A name reads ``[<method>-]<preset>[-kv8]``, where the preset is one of compressed-tensors', in small letters and with ``-`` for ``_``, and
rounding to the nearest is the method if none is named; or ``<method>-w<bits>a<bits>[-g<group>][-sym|-asym][-kv8]``, where without
``-g`` there is one scale per row (a preset of integers has groups of 128). With zero points (``-asym``) or without (``-sym``): AWQ has them
by itself, as its authors do, the others have not. This module needs no torch.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from stepmend.records import InputError

METHODS: dict[str, str] = {
    "rtn": "rounding to the nearest, uncalibrated: the control",
    "gptq": "error-compensating rounding (Frantar et al., 2210.17323)",
    "awq": "activation-aware scaling, then rounding (Lin et al., 2306.00978)",
    "smoothquant": "difficulty moved from activations to weights (Xiao et al., 2211.10438), then GPTQ",
    "autoround": "rounding learned by signed gradients (Cheng et al., 2309.05516); needs pip install 'stepmend[autoround]'",
}
WIDTHS: dict[str, tuple[tuple[int, int], ...]] = {
    "rtn": ((3, 16), (4, 16), (8, 8), (4, 8)),
    "gptq": ((3, 16), (4, 16), (8, 8), (4, 8)),
    "awq": ((3, 16), (4, 16)),
    "smoothquant": ((8, 8),),
    "autoround": ((2, 16), (3, 16), (4, 16)),
}
"""Method -> supported (weight bits, activation bits)."""
ITERATIONS = 200
"""AutoRound's tuning steps per decoder layer; its default."""
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
class Preset:
    """A preset of compressed-tensors: ``kind`` and bits of weights and activations, and the number of columns that share a scale.

    ``scales`` says what is scaled if it is not a group or a row. ``static`` is whether activations have a scale that is calibrated.
    """

    kind: str
    bits: int
    activations: str
    activation_bits: int
    group: int | None
    scales: str = ""
    static: bool = False
    symmetric: bool = True


FLOATS = {
    "fp8": Preset("fp8", 8, "fp8", 8, None, "the tensor", static=True),
    "fp8-dynamic": Preset("fp8", 8, "fp8", 8, None),
    "fp8-block": Preset("fp8", 8, "fp8", 8, 128, "128 x 128"),
    "nvfp4": Preset("fp4", 4, "fp4", 4, 16, static=True),
    "nvfp4a16": Preset("fp4", 4, "", 16, 16),
    "mxfp4": Preset("fp4", 4, "fp4", 4, 32),
    "mxfp4a16": Preset("fp4", 4, "", 16, 32),
    "mxfp8": Preset("fp8", 8, "fp8", 8, 32),
    "mxfp8a16": Preset("fp8", 8, "", 16, 32),
}
"""Presets with float codes."""
ROWWISE = {"w8a8": Preset("int", 8, "int", 8, None), "int8": Preset("int", 8, "int", 8, None)}
"""Presets of integers with one scale per row."""
PAIRS = (
    (2, 4), (2, 8), (2, 16), (3, 4), (3, 8), (3, 16), (4, 4), (4, 8), (4, 16), (5, 8), (5, 16), (6, 8), (6, 16), (7, 8), (7, 16), (8, 16),
)  # fmt: skip
"""Bits of weights and activations that compressed-tensors has presets of integers for."""
INTEGERS = {f"w{w}a{a}": Preset("int", w, "int" if a < 16 else "", a, 128) for w, a in PAIRS}
PRESETS = {
    **FLOATS, **INTEGERS, **ROWWISE,
    "w4a16-asym": Preset("int", 4, "", 16, 128, symmetric=False),
    "w4afp8": Preset("int", 4, "fp8", 8, 128),
}  # fmt: skip
"""compressed-tensors' presets by the names that they have here."""
AHEAD = {"rtn": (*PRESETS,), "gptq": (*FLOATS, "w4afp8"), "autoround": ("nvfp4", "mxfp4")}
"""Method -> presets that it can be combined with."""


@dataclass(frozen=True)
class Scheme:
    """One way to quantize: ``group`` is the number of columns that share a scale, None for one scale per row.

    ``preset`` is the preset's name, empty for a scheme that the other fields define completely.
    """

    name: str
    method: str
    weight_bits: int
    activation_bits: int
    group: int | None
    symmetric: bool
    kv_bits: int | None
    preset: str = ""

    @property
    def of(self) -> Preset:
        """Kinds of weights and activations."""
        kind = "int" if self.activation_bits < 16 else ""
        return PRESETS.get(self.preset) or Preset("int", self.weight_bits, kind, self.activation_bits, self.group, symmetric=self.symmetric)

    @property
    def calibrated(self) -> bool:
        """Whether the scheme needs calibration traces: all except rounding without static scales of activations or of the KV cache."""
        return self.method != "rtn" or self.of.static or self.kv_bits is not None

    @property
    def loads(self) -> str:
        """Where the checkpoint loads: see docs/architecture.md."""
        odd = self.of.kind == "int" and (self.weight_bits not in (4, 8) or self.activation_bits not in (8, 16))
        return "transformers" if odd or self.preset.startswith("mx") else "transformers, vLLM"


def canonical(name: str) -> str:
    """The canonical form of a scheme's name: compressed-tensors writes its presets in capitals, with ``_``."""
    return name.lower().replace("_", "-") if name.isascii() else name


def parse(name: str) -> Scheme:
    """The scheme of a name. Raises InputError, which lists what is allowed."""
    if found := _preset(canonical(name)):
        return found
    match = NAME.fullmatch(canonical(name))
    if match is None or match["method"] not in METHODS:
        made = "; ".join(f"{m}-{{{','.join(f'w{w}a{a}' for w, a in widths)}}}" for m, widths in WIDTHS.items())
        ends = "-g32, -g64 or -g128, -sym or -asym, -kv8"
        raise InputError(
            f"scheme: unknown {name[:40]!r}; allowed: {made}, then {ends}; or {', '.join(FLOATS)}, w4a16, ... ('stepmend schemes')"
        )
    name = match[0]
    widths = (int(match["weights"]), int(match["activations"]))
    group = int(match["group"]) if match["group"] else None
    if widths not in WIDTHS[match["method"]]:
        offered = ", ".join(f"w{w}a{a}" for w, a in WIDTHS[match["method"]])
        raise InputError(f"scheme: {name!r}: {match['method']} is offered as {offered}")
    if group is not None and (group not in GROUPS or widths == (8, 8)):
        raise InputError(
            f"scheme: {name!r}: groups of {', '.join(map(str, GROUPS))} are allowed with a16 and w4a8; w8a8 has one scale per row"
        )
    if match["zeros"] == "asym" and widths[1] != 16:
        raise InputError(f"scheme: {name!r}: zero points (-asym) are allowed only with a16")
    symmetric = match["zeros"] == "sym" if match["zeros"] else match["method"] != "awq"
    return Scheme(name, match["method"], *widths, group, symmetric, 8 if match["kv"] else None)


def _preset(name: str) -> Scheme | None:
    """The scheme of a name that ends in a preset's; None if it does not. Raises InputError for a method that is not offered for it."""
    plain = name.removesuffix("-kv8")
    method, _, preset = ("", "", plain) if plain in PRESETS else plain.partition("-")
    if preset not in PRESETS or (method and preset not in (*FLOATS, "w4afp8")) or (method and method not in METHODS):
        return None
    if preset not in AHEAD.get(method or "rtn", ()):
        offered = "; ".join(f"{one} for {', '.join(names)}" for one, names in AHEAD.items() if one != "rtn")
        raise InputError(f"scheme: {name!r}: {method} is not offered for {preset}; {offered}")
    of = PRESETS[preset]
    kv = 8 if plain != name else None
    return Scheme(name, method or "rtn", of.bits, of.activation_bits, of.group, of.symmetric, kv, preset)


def listing() -> list[Scheme]:
    """The schemes that ``stepmend schemes`` prints: presets; every method, width and group; zero points and KV cache by example."""
    names = [*PRESETS, *(f"{method}-{preset}" for method, presets in AHEAD.items() if method != "rtn" for preset in presets)]
    for method, widths in WIDTHS.items():
        for weights, activations in widths:
            stem = f"{method}-w{weights}a{activations}"
            names += [f"{stem}-g{group}" for group in GROUPS] if (weights, activations) != (8, 8) else [stem]
    same = {f"rtn-{preset}-g128" for preset in INTEGERS} | {"rtn-w8a8"}  # which presets name
    return [
        parse(name)
        for name in [*(name for name in names if name not in same), "gptq-w4a16-g128-asym", "gptq-w4a16-g128-kv8", "smoothquant-w8a8-kv8"]
    ]


def check_widths(scheme: Scheme, linears: dict[str, tuple[int, int]]) -> None:
    """Before work starts: whether the group divides the columns of every linear layer.

    ``linears`` maps a layer's name to (rows, columns). Raises InputError, which names a layer and the groups that would do.
    """
    if scheme.group is None:
        return
    for name, (_, columns) in linears.items():
        if columns % scheme.group:
            fit = [g for g in GROUPS if all(c % g == 0 for _, c in linears.values())]
            instead = f"groups of {', '.join(map(str, fit))} do" if fit else "no offered group does: leave out -g for one scale a row"
            if scheme.preset in FLOATS:
                instead = "this format has no other; fp8-dynamic has one scale a row"
            raise InputError(f"scheme: {scheme.name}: groups of {scheme.group} do not divide the {columns} columns of {name}; {instead}")


def recipe_of(
    scheme: Scheme,
    left_alone: Sequence[str] = ("lm_head",),
    scaled: Sequence[tuple[str, Sequence[str]]] = (),
    wide: Mapping[str, int] | None = None,
) -> list[Any]:
    """The llm-compressor modifiers of a scheme, except the modules ``left_alone``. A KV-cache scheme sits on the weights' modifier.

    ``scaled`` are AWQ's and SmoothQuant's mappings: a layer, and those that make up for what it is divided by. ``wide`` names modules that
    have more bits than the scheme's; those of 16 are left alone.
    """
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    wide = wide or {}
    more = sorted({*wide.values()} - {WHOLE})  # before all other layers: the first target that fits is taken
    groups = {f"group_{i}": _group(scheme, [name for name, of in wide.items() if of == bits], bits) for i, bits in enumerate(more)}
    groups[f"group_{len(more)}"] = _group(scheme, ["Linear"])
    whole = [name for name, bits in wide.items() if bits == WHOLE]
    common: dict[str, Any] = {"config_groups": groups, "ignore": [*left_alone, *whole]}
    if scheme.kv_bits:
        common["kv_cache_scheme"] = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="tensor", dynamic=False)  # pyright: ignore
    match scheme.method:
        case "rtn":
            return [QuantizationModifier(**common)]
        case "gptq":
            return [GPTQModifier(**common)]
        case "awq":
            return [AWQModifier(mappings=[AWQMapping(name, list(others)) for name, others in scaled]), QuantizationModifier(**common)]
        case "autoround":
            return [_autoround(scheme, common)]
        case _:
            pairs: list[Any] = [(list(others), name) for name, others in scaled]
            return [SmoothQuantModifier(smoothing_strength=0.5, mappings=pairs), GPTQModifier(**common)]


def _group(scheme: Scheme, targets: list[str], bits: int | None = None) -> Any:
    """compressed-tensors' own scheme of the layers ``targets``, as wide as the scheme says or with ``bits`` instead."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, preset_name_to_scheme

    if scheme.preset and bits is None:
        return preset_name_to_scheme(scheme.preset.replace("-", "_"), targets)
    shape = {"strategy": "group", "group_size": scheme.group} if scheme.group else {"strategy": "channel"}
    weights = QuantizationArgs(num_bits=bits or scheme.weight_bits, type="int", symmetric=scheme.symmetric, **shape)  # pyright: ignore
    inputs = None
    if scheme.activation_bits == 8:
        inputs = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True)  # pyright: ignore
    return QuantizationScheme(targets=targets, weights=weights, input_activations=inputs)


def _autoround(scheme: Scheme, common: dict[str, Any]) -> Any:
    """llm-compressor's AutoRound. It knows FP4 by the preset's name alone; compiling takes longer than small models are tuned."""
    from llmcompressor.modifiers.autoround import AutoRoundModifier

    if scheme.preset:
        named = {key: value for key, value in common.items() if key != "config_groups"}
        common = {**named, "scheme": scheme.preset.upper(), "targets": ["Linear"]}
    return AutoRoundModifier(iters=ITERATIONS, enable_torch_compile=False, **common)


def check_installed(scheme: Scheme) -> None:
    """Raises InputError, with what to do, if the package of a method is not there."""
    if scheme.method == "autoround" and not find_spec("auto_round"):
        raise InputError(f"scheme: {scheme.name} needs AutoRound: pip install 'stepmend[autoround]'")
