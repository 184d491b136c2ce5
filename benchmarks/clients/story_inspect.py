"""The same problems as an Inspect task; run by benchmarks/clients/run.py in a venv of its own."""

from inspect_ai import Task, task  # pyright: ignore[reportMissingImports]
from inspect_ai.dataset import FieldSpec, json_dataset  # pyright: ignore[reportMissingImports]
from inspect_ai.scorer import pattern  # pyright: ignore[reportMissingImports]
from inspect_ai.solver import generate  # pyright: ignore[reportMissingImports]


@task(version=1)
def story(problems: str = "problems.jsonl") -> Task:
    """Solve, and find the boxed answer."""
    fields = FieldSpec(input="question", target="answer", id="id", metadata=["level"])
    return Task(dataset=json_dataset(problems, fields), solver=generate(), scorer=pattern(r"\\boxed\{([^}]*)\}"))
