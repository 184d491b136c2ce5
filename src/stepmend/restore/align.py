"""Train a full-precision model to write steps, on its own correct answers: ``stepmend align``.

Training problems are solved greedily and by samples; a solution is kept where its answer is right and it is written in steps. A LoRA
adapter (2106.09685) is trained on those and merged: the parent of every quantized arm. This is rejection sampling fine-tuning (Yuan et
al., 2308.01825) with the model as its own teacher, so that it learns a format and no mathematics. Merging is sound here, where no
low-bit grid would round it away.
"""

import fcntl
import json
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import ValidationError

from stepmend import grading
from stepmend.engines.local import LocalEngine, batches
from stepmend.grading import verify
from stepmend.locate.steps import in_format
from stepmend.measure import statistics
from stepmend.models import chat, load
from stepmend.progress import Stages, Tick
from stepmend.records import InputError, Problem, Trace, digest
from stepmend.restore import merged, objectives
from stepmend.rundir import append_lines, appending

VERSION = "align-3"
"""Changes whenever the same settings may give another checkpoint."""
SHOWN = (
    (
        "A tram leaves with 46 people. At the first stop 19 get off and 8 get on; at the second, the number doubles. "
        "How many people are on the tram then?",
        "Step 1: 46 - 19 = 27\nStep 2: 27 + 8 = 35\nStep 3: 2 * 35 = 70\n\\boxed{70}",
    ),
    (
        "Let 3x + 5 = 20. What is x^2 - 1?",
        "Step 1: Subtract 5 from both sides: 3x = 15\nStep 2: Divide both sides by 3: x = 5\nStep 3: x^2 - 1 = 25 - 1 = 24\n\\boxed{24}",
    ),
)
"""Two questions with solutions: few-shot examples for a model that does not follow the prompt alone. Never trained on or measured."""
MINIMUM = 8
"""Minimum number of problems with a kept solution; with fewer, the model would learn the examples instead of the format."""
ENOUGH = 32
"""With fewer kept problems than this, and most problems without a kept solution, the others are asked again with few-shot examples."""
KEEP = 2
"""Different solutions kept of one problem, the greedy one first."""


@dataclass(frozen=True)
class _Settings:
    """How to align: all that decides the result, besides parent and problems. Raises InputError for a value that is not allowed."""

    samples: int
    temperature: float
    steps: int
    rank: int
    learning_rate: float
    batch_size: int
    max_new_tokens: int
    prompt: str
    seed: int

    def __post_init__(self) -> None:
        for name in ("samples", "steps", "rank", "batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"align: {name} is {getattr(self, name)}; allowed: at least 1")
        for name, most in (("temperature", 5.0), ("learning_rate", 1.0)):
            if not 0 < getattr(self, name) <= most:
                raise InputError(f"align: {name} is {getattr(self, name)}; allowed: above 0, at most {most:g}")
        if self.prompt not in chat.PROMPTS:
            raise InputError(f"align: no prompt {self.prompt!r}; allowed: {', '.join(chat.PROMPTS)}")


@dataclass(frozen=True)
class Aligned:
    """What aligning did.

    ``asked`` training problems gave ``drawn`` solutions, of which ``right`` had the correct answer and ``formed`` the format; ``kept``
    solutions with both, of ``taught`` problems, were trained on. ``leaked`` problems were skipped because they resemble a test problem;
    ``shown`` says whether few-shot examples were needed. On ``n`` test problems, solved greedily: accuracies, their difference (after minus
    before) and McNemar's exact ``p``, the shares of solutions in format, each in [0, 1]. ``losses`` has one value per step.
    """

    asked: int
    leaked: int
    drawn: int
    right: int
    formed: int
    kept: int
    taught: int
    shown: bool
    n: int
    accuracy_before: statistics.Interval
    accuracy_after: statistics.Interval
    difference: statistics.Interval
    p: float
    format_before: float
    format_after: float
    losses: tuple[float, ...]


class _Samples:
    """The traces of one alignment, in an append-only file of whole lines; a line that a crash cut is dropped, and made again."""

    def __init__(self, file: Path) -> None:
        """Takes a lock that ends with this object. Raises InputError if another process has it."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = appending(file)
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._stream.close()
            raise InputError(f"out: {file} is in use by another stepmend process") from None
        data = file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        self._stream.truncate(len(whole))
        self._traces: dict[tuple[str, str], Trace] = {}
        damaged = 0
        for line in whole.splitlines():
            try:
                trace = Trace.model_validate_json(line)
                self._traces[trace.made_by, trace.problem] = trace
            except ValidationError:
                damaged += 1
        if damaged:
            warnings.warn(f"{file}: {damaged} damaged line(s) ignored; their content is generated again", stacklevel=2)

    def get(self, made_by: str, problem: str) -> Trace | None:
        return self._traces.get((made_by, problem))

    def append(self, traces: Sequence[Trace]) -> None:
        append_lines(self._stream, traces)
        self._traces |= {(trace.made_by, trace.problem): trace for trace in traces}

    def close(self) -> None:
        self._stream.close()


@dataclass(frozen=True)
class _Drawn:
    """Kept traces by problem, and counts of all that were drawn (``drawn``, ``right``, ``formed``)."""

    kept: dict[str, list[Trace]]
    counts: Counter[str]
    shown: bool


class _Work:
    """One alignment: the parent, what is known of it so far, and what it takes to make more."""

    def __init__(self, parent: str, parent_digest: str, out: Path, settings: _Settings, stages: Stages) -> None:
        self.parent, self.parent_digest, self.out, self.settings, self.stages = parent, parent_digest, out, settings, stages
        self.tokenizer = load.load_tokenizer(parent)
        self.samples = _Samples(out.with_name(out.name + ".samples.jsonl"))
        self.verifier = verify.Verifier()
        self._engine: tuple[str, LocalEngine] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.verifier.__exit__()
        self.samples.close()

    def engine(self, folder: str) -> LocalEngine:
        """The loaded model of a folder; one at a time is held."""
        if self._engine is None or self._engine[0] != folder:
            self._engine = None
            self._engine = folder, LocalEngine(load.load_model(folder), self.tokenizer, self.settings.max_new_tokens)
        return self._engine[1]

    def text(self, problem: Problem, *, shown: bool = False) -> str:
        """The rendered question; with the format shown, after ``SHOWN`` as earlier turns."""
        return chat.render(self.tokenizer, self.settings.prompt, problem.question, SHOWN if shown else ())

    def solve(self, folder: str, problems: Sequence[Problem], tick: Tick, *, draw: int = 0, shown: bool = False) -> list[Trace]:
        """One model's traces in the order of the problems: greedy ones for draw 0, else samples. Batches never depend on what is done."""
        texts = [self.text(problem, shown=shown) for problem in problems]
        kept = self.settings
        arm, content = ("full", self.parent_digest) if folder == self.parent else ("aligned", load.checkpoint_digest(folder))
        sampling = (kept.temperature, kept.seed, draw) if draw else ()
        made_by = digest(VERSION, "solve", content, texts, kept.max_new_tokens, kept.batch_size, sampling)
        for number, batch in enumerate(batches(texts, kept.batch_size)):
            missing = {i for i in batch if self.samples.get(made_by, problems[i].id) is None}
            if missing:
                seed = int(digest(made_by, number), 16) >> 1  # torch takes 63 bits
                temperature = kept.temperature if draw else 0.0
                made = self.engine(folder).complete([texts[i] for i in batch], temperature=temperature, seed=seed)
                fresh = [(problems[i].id, c) for i, c in zip(batch, made, strict=True) if i in missing]
                self.samples.append(
                    [Trace(problem=of, arm=arm, made_by=made_by, text=c.text, tokens=c.tokens, finish=c.finish) for of, c in fresh]
                )
            tick(len(batch))
        return [trace for problem in problems if (trace := self.samples.get(made_by, problem.id))]

    def right(self, problems: Sequence[Problem], traces: Sequence[Trace]) -> statistics.Outcomes:
        """Which traces have the right answer; an unscored one has not."""
        grades = grading.grade_all(traces, problems, "align", self.verifier)
        return np.array([grade.outcome == "correct" for grade in grades], dtype=bool)

    def draw(self, problems: Sequence[Problem], *, shown: bool) -> _Drawn:
        """Solve every problem greedily and ``samples`` times, and keep up to ``KEEP`` solutions of each."""
        kept: dict[str, list[Trace]] = {}
        counts: Counter[str] = Counter()
        name = "full: sample, format shown" if shown else "full: sample"
        draws = 1 + self.settings.samples
        with self.stages.stage(name, draws * len(problems), "solutions") as tick:
            for draw in range(draws):
                traces = self.solve(self.parent, problems, tick, draw=draw, shown=shown)
                right, formed = self.right(problems, traces), _formed(traces)
                counts.update(drawn=len(traces), right=int(right.sum()), formed=int(formed.sum()))
                for i in np.flatnonzero(right & formed).tolist():
                    mine = kept.setdefault(problems[i].id, [])
                    if len(mine) < KEEP and traces[i].text not in {trace.text for trace in mine}:
                        mine.append(traces[i])
        return _Drawn(kept, counts, shown)

    def gather(self, problems: Sequence[Problem]) -> _Drawn:
        """The training data. Raises InputError if there is too little."""
        found = self.draw(problems, shown=False)
        rest = [problem for problem in problems if problem.id not in found.kept]
        if len(found.kept) < min(ENOUGH, len(rest)):
            more = self.draw(rest, shown=True)
            found = _Drawn(found.kept | more.kept, found.counts + more.counts, True)
        if len(found.kept) < MINIMUM:
            counts = found.counts
            raise InputError(
                f"align: only {len(found.kept)} of {len(problems):,} training problems were solved in the step format, and {MINIMUM} are "
                f"needed (of {counts['drawn']:,} solutions {counts['right']:,} were right, {counts['formed']:,} in format); "
                "choose a larger model, or more samples or problems"
            )
        return found

    def tune(self, problems: Sequence[Problem], drawn: _Drawn, made_by: str, tick: Tick) -> None:
        """Train on kept solutions, after the prompt alone, and write ``out``."""
        self._engine = None  # its memory is needed
        kept = self.settings
        rows = [self._row(problem, trace) for problem in problems for trace in drawn.kept.get(problem.id, [])]
        taught = [problem.model_dump() for problem in problems if problem.id in drawn.kept]
        note = {"version": VERSION, "made_by": made_by, "parent": self.parent_digest, "settings": asdict(kept), "taught": taught}
        merged.train(
            self.parent, rows, self.out, note, steps=kept.steps, rank=kept.rank, rate=kept.learning_rate, seed=kept.seed, tick=tick
        )

    def _row(self, problem: Problem, trace: Trace) -> objectives.Row:
        prompt = chat.encode(self.tokenizer, self.text(problem))
        return objectives.Row((*prompt, *trace.tokens), (False,) * len(prompt) + (True,) * len(trace.tokens))


def align(
    model: str,
    out: Path,
    *,
    train: Sequence[Problem],
    test: Sequence[Problem],
    leaks: Callable[[Problem], bool] = lambda problem: False,
    samples: int = 4,
    temperature: float = 0.8,
    steps: int = 100,
    rank: int = 16,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    prompt: str | None = None,
    seed: int = 0,
    stages: Stages | None = None,
) -> Aligned:
    """Teach ``model`` the step format and write ``out``: a plain checkpoint in the parent's dtype, with its tokenizer, whole or not at all.

    ``train`` problems for which ``leaks`` is true, or that are ``test`` ones, are left out. Each is solved greedily and ``samples``
    times at ``temperature``, in batches of ``batch_size``; an adapter of ``rank`` is then trained for ``steps`` optimizer steps.
    ``prompt`` is used throughout, and should be the prompt that is used later. Arguments that are None depend on the model.

    Every trace is kept in ``<out>.samples.jsonl``: the same call continues if it was stopped, and if it was not, it gives the same
    figures once more. Raises InputError for a model, a setting or an ``out`` that is invalid, if there are no problems, and where
    too few solutions are right and in format.
    """
    builtin = model.startswith(load.BUILTIN)
    settings = _Settings(
        samples=samples,
        temperature=temperature,
        steps=steps,
        rank=rank,
        learning_rate=(2e-3 if builtin else 2e-4) if learning_rate is None else learning_rate,
        batch_size=(150 if builtin else 32) if batch_size is None else batch_size,
        max_new_tokens=(180 if builtin else 1024) if max_new_tokens is None else max_new_tokens,
        prompt=("plain-1" if builtin else "steps-1") if prompt is None else prompt,
        seed=seed,
    )
    parent = load.locate(model)
    if "quantization_config" in json.loads((Path(parent) / "config.json").read_text()):
        raise InputError(f"model: {model} is quantized; align its full-precision parent, then quantize that")
    held_out = {problem.id for problem in test}
    asked = [problem for problem in train if problem.id not in held_out and not leaks(problem)]
    if not asked or not test:
        raise InputError(f"align: there are {len(asked)} training and {len(test)} test problems; both are needed")
    return _align(parent, out, asked, test, len(train) - len(asked), settings, stages or Stages())


def _align(
    parent: str, out: Path, asked: list[Problem], test: Sequence[Problem], leaked: int, settings: _Settings, stages: Stages
) -> Aligned:
    parent_digest = load.checkpoint_digest(parent)
    made_by = digest(VERSION, parent_digest, asdict(settings), [problem.id for problem in asked])
    done = chat.aligned(out).get("made_by") == made_by
    if out.exists() and not done:
        raise InputError(f"out: {out} exists already, with other settings; choose another folder")
    with _Work(parent, parent_digest, out, settings, stages) as work:
        drawn = work.gather(asked)
        kept = sum(map(len, drawn.kept.values()))
        with stages.stage("full: solve test", len(test), "problems") as tick:
            before = work.solve(parent, test, tick)
        if not done:
            with stages.stage(f"align ({kept} solutions)", settings.steps, "steps") as tick:
                work.tune(asked, drawn, made_by, tick)
        with stages.stage("aligned: solve test", len(test), "problems") as tick:
            after = work.solve(str(out), test, tick)
        right_before, right_after = work.right(test, before), work.right(test, after)
    return Aligned(
        asked=len(asked),
        leaked=leaked,
        **drawn.counts,
        kept=kept,
        taught=len(drawn.kept),
        shown=drawn.shown,
        n=len(test),
        accuracy_before=statistics.accuracy(right_before),
        accuracy_after=statistics.accuracy(right_after),
        difference=statistics.difference(right_after, right_before, seed=settings.seed),
        p=statistics.paired(right_before, right_after).p,
        format_before=float(_formed(before).mean()),
        format_after=float(_formed(after).mean()),
        losses=tuple(chat.aligned(out)["losses"]),
    )


def lines(found: Aligned) -> list[str]:
    """The result in sentences, one per line."""
    shown = statistics.verdict(found.difference)
    points = [100 * (value or 0.0) for value in (found.difference.value, found.difference.low, found.difference.high)]
    said = [
        f"Tuned on {found.kept} solutions of {found.taught} of {found.asked:,} training problems: of {found.drawn:,} solutions, "
        f"{found.right / found.drawn:.0%} were right and {found.formed / found.drawn:.0%} in the step format.",
        f"Held-out solutions in the step format: {found.format_before:.1%} before, {found.format_after:.1%} after (n = {found.n}).",
        f"Held-out accuracy: {found.accuracy_before.value:.1%} before, {found.accuracy_after.value:.1%} after: {points[0]:+.1f} points "
        f"(95 % interval {points[1]:+.1f} to {points[2]:+.1f}; McNemar p = {found.p:.2g}): {statistics.verdict_text(shown)}.",
    ]
    if found.shown:
        said.append("The prompt alone gave too few solutions in the format, so it was shown by two worked examples while sampling.")
    if found.leaked:
        said.append(f"{found.leaked} training problems were left out: they are, or overlap, held-out ones.")
    if shown == "worse":
        said.append("Accuracy fell beyond noise: try fewer steps, or more training problems.")
    return said


def _formed(traces: Sequence[Trace]) -> statistics.Outcomes:
    """Which traces are in format and ended by themselves."""
    return np.array([trace.finish == "stop" and in_format(trace.text) for trace in traces], dtype=bool)
