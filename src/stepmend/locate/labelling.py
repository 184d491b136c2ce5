"""Runs locators on labelled solutions. Results are saved immediately, so the same call resumes after it was killed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from stepmend import grading
from stepmend.arms import FULL
from stepmend.engines import budget
from stepmend.engines.base import Completion
from stepmend.engines.local import LocalEngine
from stepmend.grading import verify
from stepmend.keeping import Keeper
from stepmend.keys import HOW, Locate
from stepmend.locate import completers, faults, judges, labelled, reliability
from stepmend.locate.bench import Solution
from stepmend.locate.labelled import Labelled, Log
from stepmend.locate.panel import Panel
from stepmend.locate.reliability import Reliabilities
from stepmend.models import chat, load
from stepmend.progress import Stages, Tick, silent
from stepmend.records import Continuation, Fault, InputError, Judgement, Trace, digest

CHUNK = 64
"""Solutions per chunk; a kill loses no finished chunk, and no completion."""
MODEL = frozenset({"rescue", "margins", "solution"})
"""Locators that need the full-precision model."""


@dataclass(frozen=True)
class Setup:
    """The locators to run, and their models.

    Attributes:
        settings: The locators and their settings, as in a recipe.
        model: The full-precision checkpoint; None if no locator needs one.
        quantized: The checkpoint that wrote the solutions; None without the locator margins.
        rates: How reliable each locator is.
        max_new_tokens: Maximum tokens of a continuation; None: as in a run.
        slots: Continuations generated in parallel; None: as in a run.
        seed: Of sampled continuations.
    """

    settings: Locate
    model: str | None = None
    quantized: str | None = None
    rates: Reliabilities = field(default_factory=lambda: reliability.DEFAULT)
    max_new_tokens: int | None = None
    slots: int | None = None
    seed: int = 0


def run(solutions: Sequence[Solution], setup: Setup, out: Path, stages: Stages) -> tuple[list[Labelled], list[Fault]]:
    """The solutions as located, and their faults; everything is kept in the folder ``out``, and not made again.

    Raises InputError if a model is missing or damaged, or if rescue is used on solutions without a correct answer.
    """
    needed = MODEL & {*setup.settings.locators}
    if needed and setup.model is None:
        raise InputError(f"bench: {', '.join(sorted(needed))} needs --model")
    if {"rescue", "solution"} & needed and (bare := sum(not s.answer for s in solutions)):
        raise InputError(f"bench: {bare} of {len(solutions)} solutions have no right answer; give the benchmark's own file with --problems")
    log = Log(out)
    with verify.Verifier() as verifier:
        runner = _Runner(setup, log, stages, verifier)
        ready = runner.labelled(solutions)
        return ready, runner.located(ready)


@dataclass
class _Runner:
    setup: Setup
    log: Log
    stages: Stages
    verifier: verify.Verifier

    def __post_init__(self) -> None:
        setup = self.setup
        self.builtin = bool(setup.model and setup.model.startswith(load.BUILTIN))
        samples = setup.settings.samples or (1 if self.builtin else faults.ALONE)
        self.settings = setup.settings.model_copy(update={"samples": samples})
        self.parent = load.locate(setup.model) if setup.model else None
        self.tokenizer = load.load_tokenizer(self.parent) if self.parent else None
        self.form = chat.form_of(self.tokenizer, self.parent, builtin=self.builtin) if self.parent else None
        config = load.config_of(self.parent) if self.parent else None
        self.tokens = setup.max_new_tokens or chat.tokens_for(self.form or chat.Form("steps-1"), config, builtin=self.builtin)
        self.engines: dict[str, LocalEngine] = {}

    def engine(self, model: str, tick: Tick = silent) -> LocalEngine:
        """A checkpoint, loaded on first use; ``tick`` counts the tokens as they are generated."""
        if model not in self.engines:
            loaded = load.load_model(load.locate(model))
            slots = self.setup.slots or budget.slots_for(loaded.config, self.tokens, loaded.device.type)
            self.engines[model] = LocalEngine(loaded, self.tokenizer, self.tokens, slots)
        return replace(self.engines[model], written=lambda count: tick(0, count))

    def labelled(self, solutions: Sequence[Solution]) -> list[Labelled]:
        """The solutions as the locators see them."""
        if not self.form:
            return [Labelled.of(solution) for solution in solutions]
        prompts = [self.form.render(self.tokenizer, solution.problem) for solution in solutions]
        end = [] if self.tokenizer is None else [self.tokenizer.eos_token_id]
        tokens = [(*chat.encode(self.tokenizer, s.text), *([] if s.cut_off else end)) for s in solutions]
        full = self._solved(prompts) if "solution" in self.settings.locators or self.settings.samples == 1 else [None] * len(prompts)
        return [Labelled.of(*of) for of in zip(solutions, prompts, tokens, full, strict=True)]

    def _solved(self, prompts: Sequence[str]) -> list[Trace | None]:
        """Full precision's own greedy solutions of the prompts."""
        assert self.setup.model
        keys = [digest("solution", load.checkpoint_digest(str(self.parent)), prompt, self.tokens) for prompt in prompts]
        kept = {c.key: c for c in self.log.load(Continuation)}
        done = {i for i, key in enumerate(keys) if key in kept}
        with self.stages.stage("full precision: solve", len(prompts), "problems", len(done)) as tick:
            if len(done) < len(prompts):
                with Keeper[Continuation](self.log.append) as keep:
                    for i, c in self.engine(self.setup.model, tick).generate(prompts, done=done):
                        kept[keys[i]] = Continuation(key=keys[i], text=c.text, tokens=c.tokens, finish=c.finish)
                        keep(kept[keys[i]])
                        tick(1)
        found = [kept[key] for key in keys]
        return [Trace(problem="", arm=FULL, made_by="", text=c.text, tokens=c.tokens, finish=c.finish) for c in found]

    def located(self, ready: Sequence[Labelled]) -> list[Fault]:
        """The faults, in the order of the solutions; those that are kept are not made again."""
        made_by = self._made_by()
        kept = {fault.problem: fault for fault in self.log.load(Fault) if fault.made_by == made_by}
        kept = {problem: fault for problem, fault in kept.items() if not any(map(judges.Verdict.is_open, fault.votes))}
        missing = [one for one in ready if one.problem.id not in kept]
        with self.stages.stage("locate", len(ready), "solutions", len(ready) - len(missing)) as tick, self._locator(tick) as locator:
            for start in range(0, len(missing), CHUNK):
                chunk = missing[start : start + CHUNK]
                quantized = self.engine(self.setup.quantized) if self.setup.quantized and "margins" in self.settings.locators else None
                found = locator.locate(
                    [one.problem for one in chunk], [one.case for one in chunk], quantized, made_by, worked=True, alone=False
                )
                self.log.append(found)
                kept |= {fault.problem: fault for fault in found}
                tick(len(chunk))
        return [kept[one.problem.id] for one in ready]

    def _made_by(self) -> str:
        """The digest of all inputs of a fault, besides its solution."""
        of = [load.checkpoint_digest(load.locate(model)) if model else "" for model in (self.setup.model, self.setup.quantized)]
        settings = self.settings.model_dump(exclude=HOW)
        rates = self.setup.rates.model_dump_json()
        return digest("bench", faults.VERSION, grading.VERSION, judges.PROMPT, *of, settings, rates, self.setup.seed, self.tokens)

    @contextmanager
    def _locator(self, tick: Tick) -> Iterator[faults.Locator]:
        known = {c.key: Completion(c.text, c.tokens, c.finish) for c in self.log.load(Continuation)}
        spec, plain_http = self.settings.completer, self.settings.plain_http
        completer = completers.make(spec, self.tokens, self.setup.slots, plain_http=plain_http) if spec else None
        needs = MODEL & {*self.settings.locators}
        with Keeper[Continuation](self.log.append) as keep:
            yield faults.Locator(
                self.settings,
                self.engine(self.setup.model, tick) if self.setup.model and needs else None,
                self.tokenizer,
                labelled.arrive(self.verifier),
                self._panel(),
                self.setup.seed,
                completer,
                self.setup.rates,
                known,
                lambda key, c: keep(Continuation(key=key, text=c.text, tokens=c.tokens, finish=c.finish)),
                self.form.opening if self.form else "",
            )

    def _panel(self) -> Panel | None:
        """The judges; their answers are saved, and no question is asked twice."""
        asked = judges.asked(self.settings.judges, plain_http=self.settings.plain_http)
        if not asked:
            return None
        budget, timeout = self.settings.judge_budget, self.settings.judge_timeout
        return Panel(asked, lambda one: self.log.append([one]), self.log.load(Judgement), budget=budget, timeout=timeout)
