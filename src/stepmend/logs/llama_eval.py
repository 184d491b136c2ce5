"""llama.cpp's ``llama-eval``: the state file of one run, a JSON object with ``task_states``.

A case whose request failed, or was never sent, is stored there as not correct; here it is unscored.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stepmend.logs import base
from stepmend.logs.base import Fields, Log, Sample
from stepmend.records import InputError


def is_log(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("task_states"), dict)


def read(file: Path, content: dict[str, Any], fields: Fields) -> Log:
    """The outcomes of the cases that were answered; several chunks are several samples of a problem."""
    states = content["task_states"]
    cases = states.get("cases", states)
    if not isinstance(cases, dict) or not cases:
        raise InputError(f"{file}: holds no cases")
    asked: int = 0

    def samples() -> Iterable[tuple[str, str, Sample]]:
        nonlocal asked
        for name, case in cases.items():
            # The task's name ends in the chunk and the problem: gsm8k_000_017.
            parts = str(name).rsplit("_", 2)
            chunk, problem = (parts[1], parts[2]) if len(parts) == 3 else ("1", str(name))
            done = case.get("status") == "ok"
            asked += done
            right, share = base.scored(case.get("correct"), f"{file}, {name}", fields) if done else (None, None)
            yield (
                problem,
                chunk,
                Sample(
                    right,
                    base.spoken(case.get("response"), case.get("reasoning_content")),
                    share=share,
                    gold=base.short(case.get("expected")),
                    prompt=base.digest(case.get("prompt")),
                ),
            )

    found, notes = base.collect(file, samples())
    failed = len(cases) - asked
    more = (f"{failed} of {len(cases)} cases have no answer (pending, or the request failed)",) if failed else ()
    settings = {name: str(value) for name, value in (content.get("sampling_config") or {}).items() if value is not None}
    return Log(file.stem, "llama-eval", content.get("id"), None, "correct", found, (), (*notes, *more), settings)
