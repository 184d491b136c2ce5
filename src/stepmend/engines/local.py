"""Generation and teacher-forced scoring in this process, with transformers.

Tensor names carry their shape: B rows, T tokens, V vocabulary.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch

from stepmend.engines import slots as cache
from stepmend.engines import ways
from stepmend.engines.base import Completion, Scored
from stepmend.engines.decode import Decoder, Row
from stepmend.models import chat, forward

LOGITS = 1 << 26
"""Maximum number of logits in memory while scoring (256 MiB in float32), for texts of any length and any vocabulary."""
TOKENS = 8192
"""Maximum number of tokens, padding included, in a scoring pass over several texts."""


@dataclass(frozen=True)
class LocalEngine:
    """One loaded model. Its completion of a text does not depend on the other texts, or if ``batched``, only on the fixed batch.

    ``halved`` is called with the new number of slots where memory runs out, ``written`` with the numbers of tokens as they are written;
    ``kept`` is the decoder's.
    """

    model: Any
    tokenizer: Any
    max_new_tokens: int
    slots: int = 32
    halved: Callable[[int], None] = lambda count: None
    written: Callable[[int], None] = lambda count: None
    kept: list[cache.Slots] = field(default_factory=list, repr=False, compare=False)

    @property
    def identity(self) -> str:
        """The model's folder or name, its dtype and the kind of device."""
        return f"{self.model.config._name_or_path} {self.model.dtype} {self.model.device.type}"

    @property
    def batched(self) -> bool:
        """Whether the model decodes in fixed batches, because its attention is not plain, causal and full."""
        return not cache.supported(self.model)

    def generate(
        self, texts: Sequence[str], *, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Completion]]:
        """See ``base.Engine``."""
        if self.batched:
            yield from self._generate_batches(texts, temperature, top_p, seed, done)
            return
        times: Counter[str] = Counter()
        rows = []
        for i, text in enumerate(texts):
            times[text] += 1
            if i not in done:
                rows.append(Row(i, chat.encode(self.tokenizer, text), f"{seed} {times[text]} {text}"))
        rows.sort(key=lambda row: (-len(row.ids), row.ids, row.index))
        decoder = Decoder(self.model, self.ends, self.max_new_tokens, temperature, self.halved, self.written, self.kept, top_p)
        for row in decoder.run(rows, self.slots):
            yield row.index, self._completion(row.tokens)

    def complete(self, texts: Sequence[str], *, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> list[Completion]:
        """``generate``, in the order of the texts."""
        found = dict(self.generate(texts, temperature=temperature, top_p=top_p, seed=seed))
        return [found[i] for i in range(len(texts))]

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a text."""
        ends = self.model.generation_config.eos_token_id
        return frozenset([ends] if isinstance(ends, int) else ends or [self.tokenizer.eos_token_id])

    def _generate_batches(
        self, texts: Sequence[str], temperature: float, top_p: float, seed: int, done: Collection[int]
    ) -> Iterator[tuple[int, Completion]]:
        """Batches of all texts, so that each is the same whatever is done; those with nothing left to do are left out.

        The n-th ones of equal texts are in batches of their own, which are the same however many there are in all.
        """
        for number, batch in enumerate(batches_of(texts, self.slots)):
            if not all(i in done for i in batch):
                made = self.generate_batch([texts[i] for i in batch], temperature=temperature, top_p=top_p, seed=seed + number)
                self.written(sum(len(one.tokens) for one in made))
                yield from ((i, one) for i, one in zip(batch, made, strict=True) if i not in done)

    def generate_batch(self, texts: Sequence[str], *, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> list[Completion]:
        """Complete texts as one batch with the model's own ``generate``, one by one where padding would be read."""
        way = ways.way_of(self.model)
        if not way.padded and len(texts) > 1:
            return [self.generate_batch([text], temperature=temperature, top_p=top_p, seed=seed + i)[0] for i, text in enumerate(texts)]
        inputs = self.tokenizer(list(texts), return_tensors="pt", padding=True, add_special_tokens=False).to(self.model.device)
        # Plainly greedy, whatever the checkpoint asks for: a penalty would make margins and traces two different models.
        plain = {"do_sample": False, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "max_new_tokens": self.max_new_tokens}
        if temperature:
            plain |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": top_p}
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(seed)
            out = self.model.generate(**inputs, **plain, pad_token_id=self.tokenizer.pad_token_id, **dict(way.options))
        return [self._completion(row) for row in out[:, inputs["input_ids"].shape[1] :].tolist()]

    def score(self, rows: Sequence[Sequence[int]], starts: Sequence[int], asked: Sequence[Sequence[int]] | None = None) -> list[Scored]:
        """Teacher-forced passes over rows of token ids; row ``i`` is scored from position ``starts[i]`` on.

        The margins are those of the tokens ``asked[i]``, one per position, or of the model's own choices. Rows of similar length form a
        batch of at most ``TOKENS`` tokens; logits are computed in chunks and not kept.
        """
        found: dict[int, Scored] = {}
        for group in groups([len(row) for row in rows], self.model.device):
            # Place t is predicted from t - 1.
            counts = [len(rows[i]) - starts[i] for i in group]
            where = [(r, starts[i] - 1 + t) for r, (i, count) in enumerate(zip(group, counts, strict=True)) for t in range(count)]
            if not where:
                found |= {i: Scored((), ()) for i in group}
                continue
            asked_N = torch.tensor([token for i in group for token in asked[i]], device=self.model.device) if asked else None
            ids_BT = forward.collate([rows[i] for i in group], self.tokenizer.pad_token_id or 0, self.model.device)
            with torch.inference_mode():
                tokens, margins = self._choices(forward.hidden_of(self.model, ids_BT, where), asked_N)
            ends = list(accumulate(counts))
            for i, count, end in zip(group, counts, ends, strict=True):
                found[i] = Scored(tuple(tokens[end - count : end]), tuple(margins[end - count : end]))
        return [found[i] for i in range(len(rows))]

    def _choices(self, hidden_NH: torch.Tensor, asked_N: torch.Tensor | None) -> tuple[list[int], list[float]]:
        """The model's choice at each position, and the margin of the requested token there (by default the choice)."""
        choices, margins = [], []
        size = max(1, LOGITS // self.model.config.get_text_config().vocab_size)
        for start in range(0, len(hidden_NH), size):
            logits_NV = forward.head_of(self.model, hidden_NH[start : start + size])
            best_N2, choice_N2 = logits_NV.topk(2)
            token_N = choice_N2[:, 0] if asked_N is None else asked_N[start : start + size]
            mine_N = logits_NV.gather(-1, token_N[:, None])[:, 0]
            other_N = torch.where(choice_N2[:, 0] == token_N, best_N2[:, 1], best_N2[:, 0])
            choices += choice_N2[:, 0].tolist()
            margins += (mine_N - other_N).tolist()
        return choices, margins

    def _completion(self, row: Sequence[int]) -> Completion:
        length = next((i + 1 for i, token in enumerate(row) if token in self.ends), None)
        tokens = tuple(row[:length])
        return Completion(chat.decode(self.tokenizer, tokens), tokens, "stop" if length else "length")


def _times(texts: Sequence[str]) -> list[list[int]]:
    """Indices of the texts: first of each text's first occurrence, then of each second one, and so on."""
    times: Counter[str] = Counter()
    groups: list[list[int]] = []
    for i, text in enumerate(texts):
        if times[text] == len(groups):
            groups.append([])
        groups[times[text]].append(i)
        times[text] += 1
    return groups


def batches_of(texts: Sequence[str], size: int) -> Iterator[list[int]]:
    """Indices of the texts in an engine's batches: those of each text's first occurrence, then of each second one, and so on."""
    for group in _times(texts):
        for batch in batches([texts[i] for i in group], size):
            yield [group[i] for i in batch]


def groups(lengths: Sequence[int], device: torch.device) -> Iterator[list[int]]:
    """Indices of rows that are scored in one pass."""
    for group in forward.length_groups(lengths, device):
        size = max(1, TOKENS // max(1, lengths[group[0]]))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def batches(texts: Sequence[str], size: int) -> Iterator[list[int]]:
    """Indices of ``texts`` in batches of similar length, longest first, so that a batch that does not fit memory fails at once."""
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i))
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]


def complete_all(engine: LocalEngine, texts: Sequence[str], size: int, *, temperature: float = 0.0, seed: int = 0) -> list[Completion]:
    """Complete many texts, ``size`` in parallel; returns the completions in the order of the texts."""
    return replace(engine, slots=size).complete(texts, temperature=temperature, seed=seed)
