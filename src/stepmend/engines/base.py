"""Text-generation engines: the protocols that stages use, whichever library or server implements them. Imports no torch.

Every engine implements ``generate``; few implement ``score``. Implementations: ``local.LocalEngine`` (transformers,
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
    """A model's continuation of one text: the new text, its token ids, and whether it ended by itself or was cut off."""

    text: str
    tokens: tuple[int, ...]
    finish: Literal["stop", "length"]


@dataclass(frozen=True)
class Scored:
    """A model's own choice at each token position of a text (``tokens``), and the ``margins`` of the requested tokens.

    A margin is a token's logit minus the best other logit at the same prefix (natural-log units, float32).
    """

    tokens: tuple[int, ...]
    margins: tuple[float, ...]


class Engine(Protocol):
    """Completes rendered texts. An engine chooses its own batches; results do not depend on how the work is divided."""

    @property
    def identity(self) -> str:
        """Identifies the model and where it runs; part of digests."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """Tokens after which a completion is cut off."""
        ...

    def generate(
        self, texts: Sequence[str], *, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Completion]]:
        """Complete rendered texts; yields (index, completion) as completions finish.

        Args:
            texts: All texts of this task; equal texts are sampled independently.
            temperature: 0 for greedy decoding.
            top_p: Nucleus sampling (Holtzman et al., 1904.09751).
            seed: Random seed; a text's n-th completion depends only on the seed, not on the other texts.
            done: Indices of texts that are completed already.
        """
        ...


@runtime_checkable
class Scorer(Protocol):
    """An engine that also scores existing texts, teacher-forced."""

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        ...

    def score(self, rows: Sequence[Sequence[int]], starts: Sequence[int], asked: Sequence[Sequence[int]] | None = None) -> list[Scored]:
        """Score row ``i`` of token ids from position ``starts[i]`` on; margins are those of the tokens ``asked[i]``, or of the model's own
        choices."""
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
