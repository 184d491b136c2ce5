"""How many layers of a scheme hold codes, were restored, and were left alone and why: what quantizing and restoring noted of them."""

from typing import Any

from stepmend.facts import Quantized
from stepmend.report.summary import Found, tuning

EXPERTS = "experts in one tensor"
"""Why layers that hold codes are not restored: transformers holds them in one tensor (``models.check``)."""


def layers(found: Found, scheme: str) -> dict[str, Any] | None:
    """Counts of a scheme's layers; None for runs of versions that noted none.

    ``codes`` linear layers hold codes. Of these the codes of ``solved`` and the scales of ``rescaled`` were changed by restoring, and
    ``untuned`` could not be; ``adapted`` have an adapter; ``norms`` norms were changed; these five are None where nothing was restored.
    ``dense`` are the modules left in full precision, by reason. ``text`` says all of it.
    """
    quantized, restored = found.facts.get(Quantized, scheme), tuning(found, scheme).layers
    made: dict[str, Any] = dict(quantized.layers) if quantized else {}
    if "codes" not in made:
        return None
    dense = {why: count for why, count in made["left alone"].items() if why != EXPERTS}
    counts = {name: restored.get(name) for name in ("solved", "rescaled", "untuned", "norms", "adapted")}
    return {"codes": made["codes"], **counts, "dense": dense, "text": _text(made["codes"], counts, dense)}


def _text(codes: int, counts: dict[str, int | None], dense: dict[str, int]) -> str:
    parts = [f"{codes} linear layers hold codes"]
    if counts["solved"] is not None:
        parts.append(f"restoring changed the codes of {counts['solved']}, the scales of {counts['rescaled']}, and {counts['norms']} norms")
    if counts["adapted"]:
        parts.append(f"{counts['adapted']} have an adapter")
    if counts["untuned"]:
        parts.append(f"codes and scales of {counts['untuned']} stay as they were quantized ({EXPERTS})")
    left = ", ".join(f"{count} ({why})" for why, count in dense.items())
    return "; ".join([*parts, f"left in full precision: {left}" if left else "none is left in full precision"]) + "."
