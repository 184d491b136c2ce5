"""A run's solutions as logs of other tools, for their viewers: Inspect's JSON, and Every Eval Ever's records.

``stepmend compare`` on two of them says what the run says. Formats: ``EvalLog`` of inspect_ai (https://inspect.aisi.org.uk/eval-logs.html),
and ``eval.schema.json`` with ``instance_level_eval.schema.json`` of https://github.com/evaleval/every_eval_ever, version 0.3.0.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from stepmend.arms import parse
from stepmend.facts import Card, Placement
from stepmend.measure import statistics
from stepmend.records import Grade, InputError, Problem, Trace, digest
from stepmend.report.summary import Found
from stepmend.rundir import make_folder

Tool = Literal["inspect", "every-eval-ever"]
SCORER = "stepmend"
INSPECT_VERSION = 2
EEE_VERSION = "0.3.0"


@dataclass(frozen=True)
class ArmLog:
    """What a log needs of one arm; ``made`` is when its solutions were last written."""

    name: str
    found: Found
    made: datetime

    @property
    def file(self) -> str:
        """The name of its files, without a suffix."""
        return parse(self.name).folder

    @property
    def model(self) -> str:
        """The model's name, as PROVIDER/NAME: which checkpoint it came from, and which arm it is."""
        base = re.split(r"[/:\\]", self.found.recipe.model.rstrip("/\\"))[-1] or "model"
        return f"stepmend/{base}-{self.name}"

    @property
    def task(self) -> str:
        return self.found.recipe.benchmark

    @cached_property
    def solved(self) -> list[tuple[Problem, Trace, Grade]]:
        """Every held-out problem with its solutions, one or several, and their grades."""
        return self.found.solutions(self.name)

    @property
    def correct(self) -> int:
        return sum(grade.outcome == "correct" for _, _, grade in self.solved)

    @property
    def placement(self) -> dict[str, str]:
        """Where it was computed: device and dtype, where the run kept them."""
        kept = self.found.facts.get(Placement)
        return {"device": kept.device, "dtype": kept.dtype} if kept else {}

    @property
    def versions(self) -> dict[str, str]:
        kept = self.found.facts.get(Card)
        return kept.versions if kept else {}


def write(found: Found, folder: Path, tool: Tool, out: Path) -> list[Path]:
    """Write every measured arm of the run in ``folder`` into a new folder, whole or not at all; returns the logs, full precision first.

    Raises InputError where ``out`` exists.
    """
    if out.exists() or out.is_symlink():
        raise InputError(f"export: {out} exists already; choose another folder with --out")
    made = _made(folder)
    arms = [ArmLog(name, found, made) for name in found.arms]

    def fill(part: Path) -> None:
        for arm in arms:
            for name, content in FILES[tool](arm).items():
                (part / name).write_text(content, encoding="utf-8")

    make_folder(out, fill)
    return [out / (arm.file + LOG[tool]) for arm in arms]


def eval_records(found: Found, folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Every Eval Ever's figures of some arms, by file name: without their solutions, and so without any problem's text."""
    arms = [ArmLog(name, found, _made(folder)) for name in names]
    return {f"{arm.file}.json": _every_eval_ever(arm)[f"{arm.file}.json"] for arm in arms}


def _made(folder: Path) -> datetime:
    """When a run's solutions were last written; the beginning of time where they are there no more."""
    file = folder / "traces.jsonl"
    return datetime.fromtimestamp(file.stat().st_mtime if file.exists() else 0, UTC)


def _inspect(arm: ArmLog) -> dict[str, str]:
    """Inspect's log of an arm: one JSON file."""
    samples = [_inspect_sample(arm, *one) for one in arm.solved]
    value = arm.correct / len(samples)
    score = {"name": SCORER, "scorer": SCORER, "metrics": {"accuracy": {"name": "accuracy", "value": value}}}
    name = digest(arm.task, arm.model, arm.made.isoformat())
    log = {
        "version": INSPECT_VERSION,
        "status": "success",
        "eval": {
            "task": arm.task,
            "task_id": name,
            "eval_id": name,
            "run_id": name,
            "created": arm.made.isoformat(timespec="seconds"),
            "model": arm.model,
            "model_args": arm.placement,
            "dataset": {"name": arm.task, "samples": len(arm.found.test)},
            "config": {"epochs": arm.found.samples},
            "packages": arm.versions,
            "metadata": {"arm": arm.name},
            "scorers": [{"name": SCORER}],
        },
        "plan": {"name": "plan", "steps": [{"solver": "generate"}]},
        "results": {"total_samples": len(samples), "completed_samples": len(samples), "scores": [score]},
        "samples": samples,
    }
    return {arm.file + LOG["inspect"]: json.dumps(log, ensure_ascii=False, indent=1) + "\n"}


def _inspect_sample(arm: ArmLog, problem: Problem, trace: Trace, grade: Grade) -> dict[str, Any]:
    answer = {"role": "assistant", "content": trace.said, "source": "generate", "model": arm.model}
    choice = {"message": answer, "stop_reason": "max_tokens" if trace.finish == "length" else "stop"}
    return {
        "id": problem.id,
        "epoch": trace.sample + 1,
        "input": problem.question,
        "target": problem.answer,
        "messages": [{"role": "user", "content": problem.question, "source": "input"}, answer],
        "output": {"model": arm.model, "choices": [choice], "completion": trace.said},
        "scores": {
            SCORER: {
                "value": {"correct": "C", "wrong": "I", "unscored": "N"}[grade.outcome],
                "answer": grade.extracted,
                "explanation": grade.reason,
            }
        },
        "metadata": _about(problem, trace),
    }


def _every_eval_ever(arm: ArmLog) -> dict[str, str]:
    """Every Eval Ever's two files of an arm: its figures, and a line for each solution. They belong together by ``evaluation_id``.

    The figures do not name the other file: the format allows its place in that project's own collection only.
    """
    stamp = f"{arm.made.timestamp():.0f}"
    name = f"{arm.task}/{arm.model}/{stamp}"
    lines = "".join(json.dumps(_instance(arm, name, *one), ensure_ascii=False) + "\n" for one in arm.solved)
    share, k = statistics.accuracy(arm.found.outcomes(arm.name)), arm.found.samples
    method = "Wilson" if k == 1 else f"bootstrap over problems, {k} solutions of each"
    interval = {"lower": share.low, "upper": share.high, "confidence_level": statistics.LEVEL, "method": method}
    result = {
        "evaluation_result_id": name,
        "evaluation_name": arm.task,
        "source_data": {"dataset_name": arm.task, "source_type": "other"},
        "metric_config": {
            "metric_id": "accuracy",
            "metric_name": "Accuracy" if k == 1 else f"avg@{k}",
            "metric_kind": "accuracy",
            "metric_unit": "proportion",
            "evaluation_description": "Share of problems whose final answer is right; what could not be scored counts as wrong.",
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": 0.0,
            "max_score": 1.0,
        },
        "score_details": {"score": share.value, "uncertainty": {"confidence_interval": interval, "num_samples": len(arm.solved)}},
    }
    whole = {
        "schema_version": EEE_VERSION,
        "evaluation_id": name,
        "evaluation_timestamp": stamp,
        "retrieved_timestamp": stamp,
        "source_metadata": {
            "source_name": "stepmend",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "other",
        },
        "eval_library": {"name": "stepmend", "version": arm.versions.get("stepmend", "unknown")},
        "model_info": {
            "name": arm.name,
            "id": arm.model,
            "additional_details": {"deployment_type": "self_deployed", "model_availability": "unknown", **arm.placement},
        },
        "evaluation_results": [result],
    }
    return {arm.file + LOG["every-eval-ever"]: lines, f"{arm.file}.json": json.dumps(whole, ensure_ascii=False, indent=1) + "\n"}


def _instance(arm: ArmLog, name: str, problem: Problem, trace: Trace, grade: Grade) -> dict[str, Any]:
    asked = {"raw": problem.question, "reference": [problem.answer]}
    answer = {"turn_idx": 0, "source": "output.raw", "extracted_value": grade.extracted, "extraction_method": SCORER, "is_terminal": True}
    reason = {"reason": grade.reason} if grade.reason else {}
    return {
        "schema_version": EEE_VERSION,
        "evaluation_id": name,
        "evaluation_result_id": name,
        "model_id": arm.model,
        "evaluation_name": arm.task,
        "sample_id": problem.id,
        # Their recipe for it: one problem has one hash, whichever model solved it.
        "sample_hash": hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest(),
        "interaction_type": "single_turn",
        "input": asked,
        "output": {"raw": [trace.said]},
        "answer_attribution": [answer] if grade.extracted is not None else [],
        "evaluation": {"score": float(grade.outcome == "correct"), "is_correct": grade.outcome == "correct"},
        # The format has no place for what nobody could score, and none for how a text finished.
        "metadata": {**_about(problem, trace), "outcome": grade.outcome, "finish_reason": trace.finish, **reason},
    }


def _about(problem: Problem, trace: Trace) -> dict[str, str]:
    subject = {"subject": problem.subject} if problem.subject else {}
    sample = {"sample": str(trace.sample + 1)} if trace.sample else {}
    return {"level": problem.level, **subject, "output_tokens": str(len(trace.tokens)), **sample}


LOG: dict[Tool, str] = {"inspect": ".json", "every-eval-ever": "_samples.jsonl"}
"""How the name of a log of solutions ends."""
FILES: dict[Tool, Callable[[ArmLog], dict[str, str]]] = {"inspect": _inspect, "every-eval-ever": _every_eval_ever}
"""What an arm is in each format: the content of its files, by name."""
