"""The stages in order: what ``stepmend run`` does, and where it resumes.

Every stage reads what is kept, does what is missing, and keeps it. A stage's records carry the digest of all that decided them, so
the same command continues where it was stopped, and nothing old is mixed with anything new.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np

from stepmend import __version__, grading
from stepmend.arms import AGAIN, FULL, Arm, Budget, parse
from stepmend.benchmarks import sources
from stepmend.curate import leakage
from stepmend.engines import budget
from stepmend.engines.base import Completion
from stepmend.engines.local import LocalEngine, complete_all
from stepmend.grading import verify
from stepmend.keeping import Grades, Keeper
from stepmend.locate import completers, faults, judges, locators, reliability
from stepmend.locate.panel import Panel
from stepmend.measure import damage as damages
from stepmend.measure import fitness, statistics
from stepmend.mend import Mend
from stepmend.models import chat, load
from stepmend.progress import Stages, Tick, silent
from stepmend.quantize import run as quantizer
from stepmend.quantize import schemes
from stepmend.recipe import HOW, Recipe
from stepmend.records import Continuation, Fault, Grade, InputError, Judgement, Problem, Trace, digest
from stepmend.rundir import RunDir

CHUNK = 256
"""Regressions that are located at once, and solutions whose margins are read at once."""

LIBRARIES = ("torch", "transformers", "llmcompressor", "compressed-tensors", "peft", "numpy", "scipy")


class Loop:
    """One run over one folder. ``run`` does everything; the other methods are its stages."""

    def __init__(self, recipe: Recipe, out: Path, stages: Stages | None = None) -> None:
        """Raises InputError for a model, scheme or folder that will not do, before any work."""
        self.recipe, self.stages = recipe, stages or Stages()
        self.schemes = [schemes.parse(name) for name in recipe.schemes]
        self.parent = load.locate(recipe.model)
        for scheme in self.schemes:
            quantizer.preflight(self.parent, scheme)
        if recipe.locate.completer:
            completers.check(recipe.locate.completer, plain_http=recipe.locate.plain_http)
        judges.asked(recipe.locate.judges, plain_http=recipe.locate.plain_http)
        self.tokenizer = load.load_tokenizer(self.parent)
        builtin = recipe.model.startswith(load.BUILTIN)
        self.prompt = chat.prompt_for(self.parent, builtin)
        self.max_new_tokens = recipe.measure.max_new_tokens or (180 if builtin else 1024)
        self.reported = sources.Data(recipe.benchmark, recipe.data, recipe.question_field, recipe.answer_field)
        self.tuned = sources.Data(recipe.curate.benchmark, recipe.curate.data) if recipe.curate.benchmark else self.reported
        self._problems: dict[str, list[Problem]] = {}
        self.held_out = leakage.Index(self.problems("test"))
        self.leaks: dict[str, dict[str, int]] = {}
        if taught := [Problem.model_validate(problem) for problem in chat.aligned(self.parent).get("taught", [])]:
            self.leaks["alignment"] = leakage.check_all(taught, self.held_out)[1]
        for split in ("calibration", "curate"):
            self.problems(split)  # what is not there is said before any work
        self.rates = reliability.read(Path(recipe.locate.reliabilities)) if recipe.locate.reliabilities else reliability.DEFAULT
        self.dir = RunDir(out, recipe)
        self.placed = self._place(builtin)
        self.batch_size = self.placed["slots"]
        self.engines: dict[str, LocalEngine] = {}
        self.completer: faults.Completer | None = None
        self.digests: dict[str, str] = {}
        self.graded: dict[tuple[str, str], Grade] = {}
        self.verifier = verify.Verifier()
        self.panel = self._panel() if recipe.locate.judges else None
        self.settings = recipe.locate.model_copy(update={"samples": recipe.locate.samples or (1 if builtin else faults.ALONE)})

    def _place(self, builtin: bool) -> dict[str, Any]:
        """Device, dtype and number of slots: what the run has used before, where it is on the same kind of device; noted with it."""
        measure = self.recipe.measure
        device, dtype = load.placement(self.parent, measure.dtype)
        kept = self.dir.notes().get("placement", {})
        if kept.get("device") == device:
            return kept
        slots = measure.batch_size or (150 if builtin else budget.slots_for(load.config_of(self.parent), self.max_new_tokens, device))
        placed = {"device": device, "dtype": str(dtype).removeprefix("torch."), "slots": slots}
        self.dir.note("placement", **placed)
        return placed

    def _halved(self, count: int) -> None:
        """Fewer slots fit into memory than were planned: from now on, and when the run is resumed, there are no more."""
        self.stages.say(f"  out of memory: {count} solutions at once from here on")
        self.placed["fit"] = count
        self.dir.note("placement", **self.placed)

    def _panel(self) -> Panel:
        """The recipe's judges; what they answer is kept with the run, and not asked again."""
        kept, known = self.recipe.locate, self.dir.load(Judgement)
        asked = judges.asked(kept.judges, plain_http=kept.plain_http)
        return Panel(asked, lambda one: self.dir.append([one]), known, budget=kept.judge_budget, timeout=kept.judge_timeout)

    def run(self) -> None:
        """All stages, for all schemes."""
        self.dir.note("card", **self.card())
        self._say_taught()
        test, calibration = self.problems("test"), self.problems("calibration")
        self.dir.keep_problems([*test, *self.problems("curate")])
        for scheme in self.schemes:
            self.quantize(scheme, calibration)
        full = self.solve(FULL, test, "test")
        fit = fitness.fitness([full[p.id] for p in test], self.outcomes(test, FULL))
        for line in fit.warnings(self.recipe):
            self.stages.say(f"  {line}")
        if self.recipe.measure.noise_floor:
            self.solve(AGAIN, test, "test")
        for scheme in self.schemes:
            self.keep(FULL)
            name = scheme.name
            quantized = self.solve(name, test, "test")
            self.damage(name, test, full)
            self.locate(name, test, full, quantized, "test")
            mend = Mend(self, name)
            why = None if self.recipe.restore.within_noise else fitness.obstacle(fit, mend.loss)
            self.dir.note(f"gate-{name}", why=why)
            if why:
                self.stages.say(f"  {name}: {why}")
                continue
            mend.run(test, full)
        self.locate_alone(test, full)
        if self.panel and self.panel.used:  # else what an earlier call has noted stays
            self.dir.note("judges", **self.panel.tally())

    def _say_taught(self) -> None:
        counts = self.leaks.get("alignment", {"same": 0, "overlap": 0})
        if leaked := counts["same"] + counts["overlap"]:
            self.stages.say(f"  {leaked} problems that the model was aligned on are, or overlap, test problems: align it anew")

    def controls(self, names: Sequence[str], seeds: int, budgets: Sequence[Budget]) -> None:
        """Located bullets against controls, for every scheme that was restored; ``run`` comes first."""
        for scheme in self.schemes:
            restored = str(Arm(scheme.name).restored())
            kept = self.dir.notes().get(f"restore-{restored}", {}).get("kept", True)
            if not kept or not self.folder(restored).exists():
                self.stages.say(f"  {scheme.name}: nothing was restored, so there is nothing to control")
                continue
            Mend(self, scheme.name).controls(names, seeds, budgets, self.problems("test"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        earlier = self.dir.notes().get("seconds", {})
        spent = {name: round(earlier.get(name, 0.0) + seconds, 1) for name, seconds in self.stages.seconds.items()}
        self.dir.note("seconds", **{**earlier, **spent})  # of all calls together
        self.verifier.__exit__()
        self.dir.close()

    def card(self) -> dict[str, object]:
        """What made this run: versions, seeds, digests."""
        return {
            "versions": {"stepmend": __version__, **{name: version(name) for name in LIBRARIES}},
            "model": self.recipe.model,
            "parent": self.digest(FULL),
            "recipe": digest(self.recipe.model_dump()),
            "seed": self.recipe.seed,
            "prompt": self.prompt,
            "grading": grading.VERSION,
            "leakage": self.leaks,
        }

    def problems(self, split: str) -> list[Problem]:
        """The problems of one split, all levels; the same for the same recipe. Raises InputError where there are none."""
        if split not in self._problems:
            self._problems[split] = self._read_problems(split)
        return self._problems[split]

    def _read_problems(self, split: str) -> list[Problem]:
        recipe = self.recipe
        if split == "test":
            return self.reported.measured(recipe.measure.problems, recipe.seed)
        count = recipe.quantize.calibration if split == "calibration" else recipe.curate.problems
        found = self.tuned.problems(split, count, recipe.seed)
        kept, self.leaks[split] = leakage.kept(found, self.held_out)
        return kept

    def problem_ids(self, split: str) -> list[str]:
        return [problem.id for problem in self.problems(split)]

    def folder(self, arm: str) -> Path:
        """Where an arm's checkpoint lies."""
        return self.dir.path / parse(arm).folder if parse(arm).scheme else Path(self.parent)

    def digest(self, arm: str) -> str:
        """The digest of an arm's checkpoint."""
        if arm not in self.digests:
            self.digests[arm] = load.checkpoint_digest(self.folder(arm))
        return self.digests[arm]

    def engine(self, arm: str) -> LocalEngine:
        """The loaded model of an arm; loaded when first asked for."""
        arm = FULL if arm == AGAIN else arm
        if arm not in self.engines:
            model = load.load_model(str(self.folder(arm)), self.placed["dtype"])
            self.engines[arm] = LocalEngine(model, self.tokenizer, self.max_new_tokens, self.batch_size, self._halved)
        return self.engines[arm]

    def generator(self, arm: str, size: int, tick: Tick = silent) -> LocalEngine:
        """``engine`` with ``size`` slots, or as many as have been found to fit; ``tick`` counts the tokens as they are written."""
        return replace(self.engine(arm), slots=min(size, self.placed.get("fit", size)), written=lambda count: tick(0, count))

    def keep(self, *arms: str) -> None:
        """Let go of all loaded models but these; their memory is free at once."""
        for arm in self.engines.keys() - {*arms}:
            del self.engines[arm]
        load.free()

    def prompt_of(self, problem: Problem) -> str:
        return chat.render(self.tokenizer, self.prompt, problem.question)

    def solve(self, arm: str, problems: Sequence[Problem], split: str) -> dict[str, Trace]:
        """The traces of one arm on problems, by problem id, graded while others are generated; kept as they end."""
        texts, ids = [self.prompt_of(problem) for problem in problems], [problem.id for problem in problems]
        size = max(1, min(self.batch_size, len(problems)) * 2 // 3) if arm == AGAIN else self.batch_size
        made_by = digest("solve", arm, self.digest(arm), *self.where(), texts, self.max_new_tokens, size, ids)
        done = {trace.problem: trace for trace in self.dir.load(Trace, made_by)}
        grades = Grades(self.dir, self.verifier, digest("grade", made_by, grading.VERSION), problems)
        with self.stages.stage(f"{arm}: solve {split}", len(problems), "problems", len(done)) as tick, grades:
            grades.add(list(done.values()))
            if len(done) < len(problems):
                with Keeper[Trace](lambda fresh: (self.dir.append(fresh), grades.add(fresh))) as keep:
                    had = {i for i, problem in enumerate(ids) if problem in done}
                    for i, c in self.generator(arm, size, tick).stream(texts, done=had):
                        trace = Trace(problem=ids[i], arm=arm, made_by=made_by, text=c.text, tokens=c.tokens, finish=c.finish)
                        done[trace.problem] = trace
                        keep(trace)
                        tick(1)
        self.dir.settle(Trace, made_by, ids)
        self.graded |= {(arm, grade.problem): grade for grade in grades.settled()}
        return {problem: done[problem] for problem in ids}

    def where(self) -> tuple[str, str]:
        """The kind of device, and the dtype, that decide a completion's last bits."""
        return self.placed["device"], self.placed["dtype"]

    def outcomes(self, problems: Sequence[Problem], arm: str) -> statistics.Outcomes:
        """Right or not, in the order of the problems; an unscored trace is not right."""
        return np.array([self.graded[arm, problem.id].outcome == "correct" for problem in problems], dtype=bool)

    def quantize(self, scheme: schemes.Scheme, calibration: list[Problem]) -> None:
        """The quantized checkpoint of a scheme, calibrated on the parent's own traces."""
        out, note = self.folder(scheme.name), f"quantize-{scheme.name}"
        libraries = [version(name) for name in ("llmcompressor", "compressed-tensors")]
        made_by = digest(
            "quantize", self.digest(FULL), scheme.name, self.prompt, self.recipe.quantize.model_dump(), self.recipe.seed, libraries
        )
        if out.exists() and self.dir.notes().get(note, {}).get("made_by") == made_by:
            return
        traces = self.solve(FULL, calibration, "calibration") if scheme.calibrated else {}
        texts = [self.prompt_of(p) + traces[p.id].text + self.tokenizer.eos_token for p in calibration] if traces else []
        with self.stages.stage(f"{scheme.name}: quantize", 1, "model") as tick:
            begin = time.perf_counter()
            layers = quantizer.quantize(self.parent, scheme, texts, out)
            tick(1)
        facts = {"seconds": time.perf_counter() - begin, "checkpoint": load.checkpoint_digest(out), "layers": layers}
        self.dir.note(note, made_by=made_by, **facts)

    def regressions(self, arm: str, problems: Sequence[Problem]) -> list[Problem]:
        """Problems that full precision solves and the arm does not."""
        full, other = self.outcomes(problems, FULL), self.outcomes(problems, arm)
        return [problem for problem, lost in zip(problems, full & ~other, strict=True) if lost]

    def locate(self, arm: str, problems: Sequence[Problem], full: dict[str, Trace], traces: dict[str, Trace], split: str) -> list[Fault]:
        """The faults of an arm's regressions, in the order of the problems."""
        return self._locate_all(arm, self.regressions(arm, problems), full, traces, split)

    def _locate_all(self, arm: str, lost: Sequence[Problem], full: dict[str, Trace], traces: dict[str, Trace], split: str) -> list[Fault]:
        made_by = self._located_by(arm, lost, full, traces, worked=(worked := split.startswith("curate")))
        done = {fault.problem: fault for fault in self.dir.load(Fault, made_by)}
        quantized = None if arm == FULL else arm
        with self.stages.stage(f"{arm}: locate {split}", len(lost), "failures", len(done)) as tick:
            for start in range(0, len(lost), CHUNK):
                chunk = lost[start : start + CHUNK]
                cases = {p.id: locators.make_case(self.prompt_of(p), traces[p.id], full[p.id]) for p in chunk}
                done = {**done, **self._judged_again([p for p in chunk if p.id in done], cases, done)}
                done = {problem: fault for problem, fault in done.items() if fault}
                missing = [p for p in chunk if p.id not in done]
                if missing:
                    with Keeper[Continuation](self.dir.append) as keep:
                        locator = self.locator(keep, tick)
                        engine = self.engine(quantized) if quantized else None
                        found = locator.locate(missing, [cases[p.id] for p in missing], engine, made_by, worked=worked, alone=not quantized)
                    self.dir.append(found)
                    done |= {fault.problem: fault for fault in found}
                    tick(len(missing))
        self.dir.drop(Continuation)
        return [done[problem.id] for problem in lost]

    def _located_by(self, arm: str, lost: Sequence[Problem], full: dict[str, Trace], traces: dict[str, Trace], *, worked: bool) -> str:
        """The digest of all that decides these faults."""
        kept = self.settings.model_dump(exclude=HOW)
        texts = [(traces[p.id].text, full[p.id].text, p.solution if worked else "") for p in lost]
        sizes = self.max_new_tokens, self.batch_size
        of = self.digest(FULL), self.digest(arm), *self.where(), kept, [p.id for p in lost], texts, *sizes
        rates = self.rates.model_dump_json()
        return digest("locate", faults.VERSION, grading.VERSION, self.recipe.seed, self._completer_digest(), rates, judges.PROMPT, *of)

    def _completer_digest(self) -> str:
        """What names the completer's content; empty where full precision completes."""
        spec = self.settings.completer
        return "" if not spec else spec if completers.is_server(spec) else load.checkpoint_digest(load.locate(spec))

    def _judged_again(
        self, problems: Sequence[Problem], cases: Mapping[str, locators.Case], done: Mapping[str, Fault]
    ) -> dict[str, Fault | None]:
        """Of faults that a judge gave no answer on: those whose votes have changed now; None where the step moves with them."""
        asked = [p for p in problems if self.panel and any(map(judges.Verdict.is_open, done[p.id].votes))]
        if not asked:
            return {}
        found = self.locator().judged_again(asked, [cases[p.id] for p in asked], [done[p.id] for p in asked])
        changed = {p.id: fault for p, fault in zip(asked, found, strict=True) if fault != done[p.id]}
        self.dir.append([fault for fault in changed.values() if fault])
        return changed

    def locator(self, keep: Callable[[Continuation], None] = lambda continuation: None, tick: Tick = silent) -> faults.Locator:
        """What locates, with this run's models, judges and grading; full precision's continuations are kept until all is located."""
        known = {c.key: Completion(c.text, c.tokens, c.finish) for c in self.dir.load(Continuation)}
        return faults.Locator(
            self.settings,
            self.generator(FULL, self.batch_size, tick),
            self.tokenizer,
            lambda asked: grading.arrived(asked, self.verifier),
            self.panel,
            self.recipe.seed,
            self._completer(),
            self.rates,
            known,
            lambda key, c: keep(Continuation(key=key, text=c.text, tokens=c.tokens, finish=c.finish)),
        )

    def _completer(self) -> faults.Completer | None:
        """The recipe's completer; loaded when first asked for."""
        if self.settings.completer and not self.completer:
            spec, plain_http = self.settings.completer, self.settings.plain_http
            self.completer = completers.make(spec, self.max_new_tokens, self.batch_size, self.placed["dtype"], plain_http=plain_http)
        return self.completer

    def locate_alone(self, problems: Sequence[Problem], full: dict[str, Trace]) -> None:
        """Faults of full precision's own failures, a fixed random part of them where they are many.

        It rescues itself by samples, as there is no better model to do it.
        """
        right = self.outcomes(problems, FULL)
        failed = [problem for problem, solved in zip(problems, right, strict=True) if not solved]
        drawn = sorted(random.Random(self.recipe.seed).sample(range(len(failed)), min(len(failed), self.recipe.locate.own_failures)))
        self._locate_all(FULL, [failed[i] for i in drawn], full, full, "own failures")

    def damage(self, arm: str, problems: Sequence[Problem], full: dict[str, Trace]) -> None:
        """What quantization did to the margins of full precision's own tokens, over all its traces of these problems."""
        made_by = digest(
            "damage", self.digest(FULL), self.digest(arm), *self.where(), self.prompt, self.max_new_tokens, [p.id for p in problems]
        )
        if self.dir.notes().get(f"damage-{arm}", {}).get("made_by") == made_by:
            return
        found, kinds = [], []
        with self.stages.stage(f"{arm}: margins", len(problems), "solutions") as tick:
            for begin in range(0, len(problems), CHUNK):
                part = problems[begin : begin + CHUNK]
                prompts, traces = [self.prompt_of(p) for p in part], [full[p.id] for p in part]
                found += locators.margins_of(prompts, traces, self.engine(FULL), self.engine(arm))
                kinds += [[damages.kind(self.tokenizer.decode([token])) for token in trace.tokens] for trace in traces]
                tick(len(part))
        self.dir.note(f"damage-{arm}", made_by=made_by, **damages.damage([m.full for m in found], [m.quantized for m in found], kinds))


def quantize_alone(model: str, scheme: schemes.Scheme, out: Path, samples: int, data: sources.Data) -> None:
    """What ``stepmend quantize`` does: calibrate on the model's own traces of calibration problems, and write ``out``.

    Problems that are, or overlap, those that a run would report are left out, where these can be had.
    """
    parent = load.locate(model)
    quantizer.preflight(parent, scheme)
    tokenizer = load.load_tokenizer(parent)
    builtin = model.startswith(load.BUILTIN)
    texts = []
    if scheme.calibrated:
        found = data.problems("calibration", samples, 0)
        with suppress(InputError):  # a folder may hold training problems alone
            found, _ = leakage.kept(found, leakage.Index(data.measured(None, 0)))
        prompt = chat.prompt_for(parent, builtin)
        prompts = [chat.render(tokenizer, prompt, problem.question) for problem in found]
        completions = complete_all(LocalEngine(load.load_model(parent), tokenizer, 180 if builtin else 1024), prompts, 32)
        texts = [p + c.text + tokenizer.eos_token for p, c in zip(prompts, completions, strict=True)]
    quantizer.quantize(parent, scheme, texts, out)
