"""What tuning moves towards: the chosen text (sft), chosen over rejected (dpo), or full precision's token distribution (distill).

Tensor names carry their shape: B rows, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional as F

from stepmend.models import chat
from stepmend.records import Bullet

Span = Literal["step", "prefix", "tail", "whole"]
DEFAULT_SPAN: dict[str, Span] = {"sft": "whole", "distill": "whole", "dpo": "step"}


@dataclass(frozen=True)
class Row:
    """One training text: token ids of prompt and answer, and which tokens are targets."""

    ids: tuple[int, ...]
    targets: tuple[bool, ...]


def chosen_row(tokenizer: Any, bullet: Bullet, span: Span) -> Row:
    """Prompt, correct prefix, chosen step and what follows it in full precision; the targets are the tokens of ``span``.

    ``step``: the chosen step. ``prefix``: from the start through it. ``tail``: from it to the end. ``whole``: all of the answer.
    """
    return _row(tokenizer, bullet, bullet.chosen, bullet.continuation, span)


def rejected_row(tokenizer: Any, bullet: Bullet, span: Span) -> Row:
    """The same with the rejected step and what the quantized model wrote behind it."""
    return _row(tokenizer, bullet, bullet.rejected, bullet.rejected_rest, span)


def _row(tokenizer: Any, bullet: Bullet, step: str, rest: str, span: Span) -> Row:
    before, through = len(bullet.prefix), len(bullet.prefix) + len(step)
    whole = through + len(rest)
    begin, end = {"step": (before, through), "prefix": (0, through), "tail": (before, whole), "whole": (0, whole)}[span]
    text = bullet.prefix + step + (rest if end == whole else "")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    prompt, ids = chat.encode(tokenizer, bullet.prompt), list(encoded["input_ids"])
    targets = [b < end and e > begin for b, e in encoded["offset_mapping"]]
    if end == whole:
        ids.append(tokenizer.eos_token_id)
        targets.append(True)
    return Row((*prompt, *ids), (False,) * len(prompt) + tuple(targets))


def collate(rows: Sequence[Row], pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B, T], padded on the right, and the mask [B, T-1] of positions whose next token is a target."""
    width = max(len(row.ids) for row in rows)
    ids_BT = torch.tensor([[*row.ids, *[pad] * (width - len(row.ids))] for row in rows], device=device)
    mask_BT = torch.tensor([[*row.targets, *[False] * (width - len(row.ids))] for row in rows], device=device)[:, 1:]
    return ids_BT, mask_BT


def logits_of(model: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    """Float32 logits [B, T-1, V] that predict the next token; right padding is behind everything that a causal model looks at."""
    return model(input_ids=ids_BT, use_cache=False).logits[:, :-1].float()


def log_likelihood(logits_BTV: torch.Tensor, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Summed log-probability of the targets, [B]."""
    losses = F.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none").view_as(mask_BT)
    return -(losses * mask_BT).sum(1)


def sft(student_BTV: torch.Tensor, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of the targets."""
    return -log_likelihood(student_BTV, ids_BT, mask_BT).sum() / mask_BT.sum()


def distill(student_BTV: torch.Tensor, teacher_BTV: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Mean KL divergence, teacher from student, over the targets (natural log; as in QAD, 2601.20088)."""
    student, teacher = student_BTV[mask_BT].log_softmax(-1), teacher_BTV[mask_BT].log_softmax(-1)
    return F.kl_div(student, teacher, log_target=True, reduction="sum") / mask_BT.sum()


def dpo(
    chosen_B: torch.Tensor, rejected_B: torch.Tensor, reference_chosen_B: torch.Tensor, reference_rejected_B: torch.Tensor, beta: float
) -> torch.Tensor:
    """Direct preference optimization (Rafailov et al., 2305.18290, equation 7) on summed log-likelihoods, [B] each."""
    gain_B = (chosen_B - reference_chosen_B) - (rejected_B - reference_rejected_B)
    return -F.logsigmoid(beta * gain_B).mean()
