"""Training targets: the chosen text (sft), chosen over rejected (dpo), or full precision's token distribution (distill).

A target is a token to be predicted; its *position* is that of the token before it, from which it is predicted. Tensor names carry their
shape: B rows, T tokens, N targets of all rows, V vocabulary, H hidden width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional as F

from stepmend.models import chat
from stepmend.models.forward import collate, hidden_of, length_groups, likelihoods, states_of
from stepmend.records import Bullet

Span = Literal["step", "prefix", "tail", "whole"]
Weight = Literal["uniform", "low-entropy", "small-margin"]

SAME = {2: 2e-2, 4: 1e-3, 8: 1e-3}
"""How far, as a share, a pair's log-probabilities in one row may be from those of each side alone, by the bytes of a number."""


@dataclass(frozen=True)
class Row:
    """One training text: token ids of question and answer, which tokens are targets, and how many are the question's."""

    ids: tuple[int, ...]
    targets: tuple[bool, ...]
    question: int = 0


@dataclass(frozen=True)
class Pair:
    """Chosen and rejected after the start they share, which is computed once: ``shared + chosen + rejected`` in one row of tokens.

    The rejected tokens do not see the chosen ones. Each side's targets are (place, token) pairs.
    """

    ids: tuple[int, ...]
    shared: int
    split: int
    chosen: tuple[tuple[int, int], ...]
    rejected: tuple[tuple[int, int], ...]


def texts(bullet: Bullet, prefix: str = "quantized") -> tuple[str, str, str]:
    """The text before the step (of the model that ``prefix`` names), full precision's step, and what follows it."""
    if prefix == "quantized":
        return bullet.prefix, bullet.chosen, bullet.continuation
    start, end = bullet.place
    return bullet.solution[:start], bullet.solution[start:end], bullet.solution[end:]


def chosen_row(tokenizer: Any, bullet: Bullet, span: Span, prefix: str = "quantized") -> Row:
    """Prompt, correct start, chosen step and what follows it in full precision; the targets are the tokens of ``span``.

    ``step``: the chosen step. ``prefix``: from the start through it. ``tail``: from it to the end. ``whole``: all of the answer.
    """
    return _row(tokenizer, bullet.question, *texts(bullet, prefix), span)


def rejected_row(tokenizer: Any, bullet: Bullet, span: Span, prefix: str = "quantized") -> Row:
    """The same with the rejected step and what the quantized model wrote after it."""
    return _row(tokenizer, bullet.question, texts(bullet, prefix)[0], bullet.rejected, bullet.rejected_rest, span, ended=not bullet.cut)


def _row(tokenizer: Any, question: str, before: str, step: str, rest: str, span: Span, ended: bool = True) -> Row:
    through, whole = len(before) + len(step), len(before) + len(step) + len(rest)
    start, end = {"step": (len(before), through), "prefix": (0, through), "tail": (len(before), whole), "whole": (0, whole)}[span]
    text = before + step + (rest if end == whole else "")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    prompt, ids = chat.encode(tokenizer, question), list(encoded["input_ids"])
    targets = [b < end and e > start for b, e in encoded["offset_mapping"]]
    if end == whole and ended:
        ids.append(tokenizer.eos_token_id)
        targets.append(True)
    return Row((*prompt, *ids), (False,) * len(prompt) + tuple(targets), len(prompt))


def pack(chosen: Row, rejected: Row) -> Pair:
    """Two rows as one: what they share is in it once."""
    least = min(len(chosen.ids), len(rejected.ids))
    shared = next((i for i in range(least) if chosen.ids[i] != rejected.ids[i]), least)
    split = len(chosen.ids)
    moved = split - shared  # rejected tokens stand so much further back than in a row of their own
    first = [(i - 1, chosen.ids[i]) for i, wanted in enumerate(chosen.targets) if wanted]
    second = [(i - 1 if i <= shared else i - 1 + moved, rejected.ids[i]) for i, wanted in enumerate(rejected.targets) if wanted]
    return Pair((*chosen.ids, *rejected.ids[shared:]), shared, split, tuple(first), tuple(second))


def places(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """(row, position) of every target, row by row."""
    return [(r, t - 1) for r, row in enumerate(rows) for t, wanted in enumerate(row.targets) if wanted]


def question_places(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """(row, position) of every token of the questions except first ones, row by row."""
    return [(r, t) for r, row in enumerate(rows) for t in range(row.question - 1)]


def pairs_of(model: Any, pairs: Sequence[Pair], pad: int, *, packed: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-probabilities of chosen and of rejected targets, [B] each; shared prefixes are computed once if ``packed``."""
    sums_of = _sums if packed else _apart
    groups = length_groups([len(pair.ids) for pair in pairs], model.device)
    sums_B2 = torch.cat([sums_of(model, [pairs[i] for i in group], pad) for group in groups])
    back = torch.tensor([i for group in groups for i in group], device=sums_B2.device).argsort()
    return sums_B2[back, 0], sums_B2[back, 1]


def packs(model: Any, pairs: Sequence[Pair], pad: int) -> bool:
    """Whether a model reads both sides of a pair in one row as it reads each alone; tried on the longest pair.

    Recurrent and convolution layers know no mask, and a mask of ours takes the place of a sliding window's.
    """
    longest = [max(pairs, key=lambda pair: len(pair.ids))]
    with torch.no_grad():
        try:
            together = torch.stack(pairs_of(model, longest, pad))
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
            return False  # a model that takes no mask of four dimensions, or no positions
        alone = torch.stack(pairs_of(model, longest, pad, packed=False))
    return bool((together - alone).abs().max() <= SAME[model.dtype.itemsize] * alone.abs().max().clamp(min=1))


def _apart(model: Any, pairs: Sequence[Pair], pad: int) -> torch.Tensor:
    """Both sums of every pair, [B, 2], each side in a row of its own."""
    rows, where, tokens, side_of = list[tuple[int, ...]](), list[tuple[int, int]](), list[int](), list[int]()
    for number, pair in enumerate(pairs):
        moved = pair.split - pair.shared
        rows += [pair.ids[: pair.split], pair.ids[: pair.shared] + pair.ids[pair.split :]]
        for side, targets in enumerate((pair.chosen, pair.rejected)):
            where += [(2 * number + side, place - moved if side and place >= pair.split else place) for place, _ in targets]
            tokens += [token for _, token in targets]
            side_of += [2 * number + side] * len(targets)
    loss_N = likelihoods(model, states_of(model, rows, where, pad), torch.tensor(tokens, device=model.device))
    sums = torch.zeros(2 * len(pairs), device=model.device).index_add(0, torch.tensor(side_of, device=model.device), -loss_N)
    return sums.view(-1, 2)


def _sums(model: Any, pairs: Sequence[Pair], pad: int) -> torch.Tensor:
    """Both sums of every pair, [B, 2], from one pass."""
    ids_BT = collate([pair.ids for pair in pairs], pad, model.device)
    width = ids_BT.shape[1]
    position_BT = torch.arange(width, device=ids_BT.device).repeat(len(pairs), 1)
    seen_B1TT = torch.ones(len(pairs), 1, width, width, dtype=torch.bool, device=ids_BT.device).tril()
    for row, pair in enumerate(pairs):
        position_BT[row, pair.split :] -= pair.split - pair.shared
        seen_B1TT[row, :, pair.split :, pair.shared : pair.split] = False
    where = [(row, place) for row, pair in enumerate(pairs) for place, _ in (*pair.chosen, *pair.rejected)]
    mask_B1TT = torch.zeros(seen_B1TT.shape, dtype=model.dtype, device=ids_BT.device)
    mask_B1TT = mask_B1TT.masked_fill(~seen_B1TT, torch.finfo(model.dtype).min)
    hidden_NH = hidden_of(model, ids_BT, where, attention_mask=mask_B1TT, position_ids=position_BT)
    token_N = torch.tensor([token for pair in pairs for _, token in (*pair.chosen, *pair.rejected)], device=ids_BT.device)
    loss_N = likelihoods(model, hidden_NH, token_N)
    sides = torch.tensor([2 * row + side for row, pair in enumerate(pairs) for side in (0, 1) for _ in (pair.chosen, pair.rejected)[side]])
    sums = torch.zeros(2 * len(pairs), device=ids_BT.device).index_add(0, sides.to(ids_BT.device), -loss_N)
    return sums.view(-1, 2)


def sft(model: Any, rows: Sequence[Row], pad: int) -> torch.Tensor:
    """Mean negative log-likelihood of all targets of these rows: -1/N sum_n log p(token_n), natural log."""
    where = places(rows)
    token_N = torch.tensor([rows[row].ids[place + 1] for row, place in where], device=model.device)
    return likelihoods(model, states_of(model, [row.ids for row in rows], where, pad), token_N).mean()


def distill(student_NV: torch.Tensor, teacher_NV: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of every target, natural log: [N] (as in QAD, 2601.20088)."""
    student, teacher = student_NV.log_softmax(-1), teacher_NV.log_softmax(-1)
    return F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)


def weights(teacher_NV: torch.Tensor, weight: Weight) -> torch.Tensor:
    """How much each target counts, [N], before they are scaled to mean 1.

    ``low-entropy``: exp(-H) of the teacher's distribution, for digits and operators carry the damage (after ReQAT, 2606.15682).
    ``small-margin``: 1 / (1 + m) of the teacher's margin between its first and second token (ours: small margins flip).
    """
    if weight == "uniform":
        return torch.ones_like(teacher_NV[:, 0])
    if weight == "low-entropy":
        teacher = teacher_NV.log_softmax(-1)
        return (teacher.exp() * teacher).sum(-1).exp()
    best_N2 = teacher_NV.topk(2).values
    return 1 / (1 + best_N2[:, 0] - best_N2[:, 1])


def features(student_NH: torch.Tensor, teacher_NH: torch.Tensor) -> torch.Tensor:
    """Squared distance of last hidden states over the teacher's mean square, [N] (FitNets, 1412.6550, at the last layer).

    Hidden states give more information per token than a distribution does, so few bullets are enough.
    """
    return (student_NH.float() - teacher_NH.float()).pow(2).mean(-1) / teacher_NH.float().pow(2).mean()


def dpo(
    chosen_B: torch.Tensor, rejected_B: torch.Tensor, reference_chosen_B: torch.Tensor, reference_rejected_B: torch.Tensor, beta: float
) -> torch.Tensor:
    """Direct preference optimization (Rafailov et al., 2305.18290, equation 7) on summed log-likelihoods, [B] each."""
    gain_B = (chosen_B - reference_chosen_B) - (rejected_B - reference_rejected_B)
    return -F.logsigmoid(beta * gain_B).mean()
