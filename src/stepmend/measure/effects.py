"""Side effects of restoring: on the questions' text, and on problems that were solved before."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stepmend.arms import FULL
from stepmend.context import Context
from stepmend.facts import Change, Effects
from stepmend.measure import statistics
from stepmend.models import chat, forward
from stepmend.records import Problem, Trace, digest


def effects(
    context: Context, scheme: str, arm: str, right: statistics.Outcomes, test: Sequence[Problem], full: Mapping[str, Trace]
) -> None:
    """Side effects of restoring: the loss on the questions' text, and KL from full precision where both models were right.

    ``right`` says of each test problem whether full precision and the quantized model both solve it.
    """
    made_by = digest(
        "effects-2", context.digest(FULL), context.digest(scheme), context.digest(arm), context.prompt, [p.id for p in test],
        *context.drawing, *context.written_by(FULL, scheme),
    )  # fmt: skip
    if context.finished(Effects, arm, made_by):
        return
    pad = context.tokenizer.pad_token_id
    questions = [chat.encode(context.tokenizer, context.prompt_of(p)) for p in test]
    rows = [[*ids, *full[p.id].tokens] for ids, p in zip(questions, test, strict=True)]
    kept = [i for i in range(len(test)) if right[i] and full[test[i].id].tokens]
    with context.stages.stage(f"{arm}: what else changed", 4, "passes") as tick:
        values: dict[str, Any] = {}
        for name in (arm, scheme):  # the one that is loaded first, and one at a time
            context.unload_except(FULL, name)
            model = context.engine(name).model
            values[f"question {name}"] = np.array(forward.losses(model, questions, [1] * len(questions), pad))
            tick(1)
            chosen = [rows[i] for i in kept]
            kl = forward.divergences(context.engine(FULL).model, model, chosen, [len(questions[i]) for i in kept], pad)
            values[f"kl {name}"] = np.array(kl)
            tick(1)
    changes = {
        key: Change.model_validate(
            {"before": float(values[f"{key} {scheme}"].mean()), "after": float(values[f"{key} {arm}"].mean()), "n": len(change)}
            | {"low": found.low, "high": found.high, "value": found.value}
        )
        for key in ("question", "kl")
        if len(change := values[f"{key} {arm}"] - values[f"{key} {scheme}"]) and (found := statistics.mean(change))
    }
    context.dir.keep(Effects(arm=arm, made_by=made_by, question=changes.get("question"), kl=changes.get("kl")))
