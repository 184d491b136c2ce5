"""The run card: what it takes to make the page again."""

from dataclasses import dataclass
from typing import Any

from stepmend.engines import named
from stepmend.facts import Control, Quantized, Tuned
from stepmend.report import layers, summary
from stepmend.report.summary import Found


@dataclass(frozen=True)
class RunCard:
    """``kept`` is what the run noted of itself; layers by scheme; seconds and checkpoints by stage and arm; ``engines`` in words."""

    kept: dict[str, Any]
    layers: dict[str, str]
    seconds: dict[str, float]
    checkpoints: dict[str, str]
    engines: str
    recipe: dict[str, Any]


def figures(found: Found) -> RunCard:
    """The card; controls are left out of it, they have their own table."""
    controls = found.facts.all(Control)
    kinds = (("quantize", found.facts.all(Quantized)), ("restore", found.facts.all(Tuned)))
    made = {f"{stage}-{arm}": fact for stage, of in kinds for arm, fact in of.items() if arm not in controls}
    return RunCard(
        summary.card(found),
        layers={scheme: of["text"] for scheme in found.recipe.low_bit if (of := layers.layers(found, scheme))},
        seconds={name: round(fact.seconds, 1) for name, fact in made.items() if fact.seconds is not None},
        checkpoints={name: fact.checkpoint for name, fact in made.items() if fact.checkpoint},
        engines=named.described(found.recipe.measure.engines, found.arms),
        recipe=found.recipe.model_dump(mode="json"),
    )


def lines(of: RunCard) -> list[str]:
    """Which engines wrote what, where others than the first did."""
    return [of.engines] if of.engines else []
