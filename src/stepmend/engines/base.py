"""What writes and reads solutions: the protocols that stages ask, whichever library or server answers. Imports no torch.

``generate`` is what every engine has, ``score`` what few have. Implementations: ``local.LocalEngine`` (transformers,
in this process; both), ``vllm.VLLMEngine`` (vLLM, in this process) and ``openai.ServerEngine`` (any OpenAI-compatible server).
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from stepmend.records import InputError, digest

SEEDS = 1 << 31
"""Servers take seeds below this."""


@dataclass(frozen=True)
class Completion:
    """What a model wrote behind one text: the new text, its token ids, and whether it ended by itself or was cut off."""

    text: str
    tokens: tuple[int, ...]
    finish: Literal["stop", "length"]


@dataclass(frozen=True)
class Scored:
    """What a model would have written at each place of a text: ``tokens``, and the ``margins`` of the tokens asked about.

    A margin is a token's logit minus the best other logit at the same prefix (natural-log units, float32).
    """

    tokens: tuple[int, ...]
    margins: tuple[float, ...]


class Engine(Protocol):
    """Completes rendered texts. An engine decides its own batches; results do not depend on how the work is cut."""

    @property
    def identity(self) -> str:
        """What names the model and where it runs: it goes into digests."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """Tokens after which a completion is cut off."""
        ...

    def generate(
        self, texts: Sequence[str], *, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Completion]]:
        """Complete rendered texts; yields (index, completion) as they end.

        Args:
            texts: All texts of this piece of work; equal ones are sampled apart.
            temperature: 0 for the likeliest token at each place.
            top_p: Tokens are drawn from the likeliest ones that together have this probability (Holtzman et al., 1904.09751).
            seed: Of the random numbers; a text's n-th completion is the same for the same seed, whatever else is asked for.
            done: Indices of texts that need no completion any more.
        """
        ...


@runtime_checkable
class Scorer(Protocol):
    """An engine that also scores texts that are written already, teacher-forced."""

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        ...

    def score(self, rows: Sequence[Sequence[int]], begins: Sequence[int], asked: Sequence[Sequence[int]] | None = None) -> list[Scored]:
        """Of row ``i`` of token ids, the places from ``begins[i]`` on; margins are those of ``asked[i]``, or of the model's own choices."""
        ...


def scorer(engine: Engine) -> Scorer:
    """The engine, where it scores. Raises InputError if it does not."""
    if not isinstance(engine, Scorer):
        raise InputError(f"engine: {engine.identity} cannot score; margins need an engine that can (transformers)")
    return engine


def seeded(texts: Sequence[str], seed: int, done: Collection[int]) -> list[tuple[int, str, int]]:
    """The texts that are not ``done``: index, text and a seed, which differs for the n-th of equal texts and depends on nothing else."""
    times: Counter[str] = Counter()
    asked: list[tuple[int, str, int]] = []
    for i, text in enumerate(texts):
        times[text] += 1
        if i not in done:
            asked.append((i, text, int(digest(seed, times[text], text), 16) % SEEDS))
    return asked
