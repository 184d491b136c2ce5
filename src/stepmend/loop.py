"""The stages in order: what ``stepmend run`` does, and where it resumes.

Every stage reads what is kept, does what is missing, and keeps it. A stage's records carry the digest of all that decided them, so
the same command continues where it was stopped, and nothing old is mixed with anything new.
"""

import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Self

import numpy as np

from stepmend import curate, grading
from stepmend.benchmarks import sources, story
from stepmend.engines.local import LocalEngine, batches, complete_all
from stepmend.grading import verify
from stepmend.locate import locators, steps, taxonomy
from stepmend.measure import statistics
from stepmend.models import chat, load
from stepmend.progress import Stages
from stepmend.quantize import run as quantizer
from stepmend.quantize import schemes
from stepmend.recipe import Recipe
from stepmend.records import AGAIN, Bullet, Fault, Grade, Problem, Trace, digest
from stepmend.restore import tune
from stepmend.rundir import RunDir

CHUNK = 64
"""Regressions that are located at once, and kept at once."""

LIBRARIES = ("stepmend", "torch", "transformers", "llmcompressor", "compressed-tensors", "peft", "numpy", "scipy")


class Loop:
    """One run over one folder. ``run`` does everything; the other methods are its stages."""

    def __init__(self, recipe: Recipe, out: Path, stages: Stages | None = None) -> None:
        """Raises InputError for a model, scheme or folder that will not do, before any work."""
        self.recipe, self.stages = recipe, stages or Stages()
        self.schemes = [schemes.parse(name) for name in recipe.schemes]
        self.parent = load.locate(recipe.model)
        for scheme in self.schemes:
            quantizer.preflight(self.parent, scheme)
        self.tokenizer = load.load_tokenizer(self.parent)
        builtin = recipe.model.startswith(load.BUILTIN)
        self.prompt = "plain-1" if builtin else "steps-1"
        self.max_new_tokens = recipe.measure.max_new_tokens or (180 if builtin else 1024)
        self.batch_size = recipe.measure.batch_size or (150 if builtin else 32)
        self.reported = sources.Data(recipe.benchmark, recipe.data, recipe.question_field, recipe.answer_field)
        self.tuned = sources.Data(recipe.curate.benchmark, recipe.curate.data) if recipe.curate.benchmark else self.reported
        self._problems: dict[str, list[Problem]] = {}
        for split in ("test", "calibration", "curate"):
            self.problems(split)  # what is not there is said before any work
        self.dir = RunDir(out, recipe)
        self.engines: dict[str, LocalEngine] = {}
        self.digests: dict[str, str] = {}
        self.graded: dict[tuple[str, str], Grade] = {}
        self.verifier = verify.Verifier()

    def run(self) -> None:
        """All stages, for all schemes."""
        self.dir.note("card", **self.card())
        test, calibration = self.problems("test"), self.problems("calibration")
        self.dir.keep_problems([*test, *self.problems("curate")])
        for scheme in self.schemes:
            self.quantize(scheme, calibration)
        full = self.solve("full", test, "test")
        if self.recipe.measure.noise_floor:
            self.solve(AGAIN, test, "test")
        for scheme in self.schemes:
            self.engines = {arm: engine for arm, engine in self.engines.items() if arm == "full"}
            name = scheme.name
            quantized = self.solve(name, test, "test")
            self.locate(name, test, full, quantized, "test")
            pair = statistics.paired(*(self.outcomes(test, arm) for arm in ("full", name)))
            if (pair.p >= 0.05 or pair.only_first <= pair.only_second) and not self.recipe.restore.within_noise:
                self.stages.say(f"  {name}: no loss beyond noise (McNemar p = {pair.p:.2g}); nothing to restore")
                continue
            bullets = self.curate(name, test)
            if not bullets:
                self.stages.say(f"  {name}: no regression was found among the curate problems; nothing to restore")
                continue
            self.restore(name, bullets)
            restored = self.solve(f"{name}+restored", test, "test")
            self.locate(f"{name}+restored", test, full, restored, "test")
        self.locate_alone(test, full)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.verifier.__exit__()
        self.dir.close()

    def card(self) -> dict[str, object]:
        """What made this run: versions, seeds, digests."""
        return {
            "versions": {name: version(name) for name in LIBRARIES},
            "model": self.recipe.model,
            "parent": self.digest("full"),
            "recipe": digest(self.recipe.model_dump()),
            "seed": self.recipe.seed,
            "prompt": self.prompt,
            "grading": grading.VERSION,
        }

    def problems(self, split: str) -> list[Problem]:
        """The problems of one split, all levels; the same for the same recipe. Raises InputError where there are none."""
        if split not in self._problems:
            self._problems[split] = self._read_problems(split)
        return self._problems[split]

    def _read_problems(self, split: str) -> list[Problem]:
        recipe = self.recipe
        asked = recipe.measure.problems
        if split == "test":
            count = (asked or 300) * len(story.LEVELS) if recipe.benchmark == "story" else asked
            return self.reported.problems("test", count, recipe.seed)
        count = recipe.quantize.calibration if split == "calibration" else recipe.curate.problems
        held_out = {problem.id for problem in self.problems("test")}
        return [problem for problem in self.tuned.problems(split, count, recipe.seed) if problem.id not in held_out]

    def folder(self, arm: str) -> Path:
        """Where an arm's checkpoint lies."""
        return Path(self.parent) if arm in ("full", AGAIN) else self.dir.path / arm.replace("+", "-")

    def digest(self, arm: str) -> str:
        """The digest of an arm's checkpoint."""
        if arm not in self.digests:
            self.digests[arm] = load.checkpoint_digest(self.folder(arm))
        return self.digests[arm]

    def engine(self, arm: str) -> LocalEngine:
        """The loaded model of an arm; loaded when first asked for."""
        arm = "full" if arm == AGAIN else arm
        if arm not in self.engines:
            self.engines[arm] = LocalEngine(load.load_model(str(self.folder(arm))), self.tokenizer, self.max_new_tokens)
        return self.engines[arm]

    def prompt_of(self, problem: Problem) -> str:
        return chat.render(self.tokenizer, self.prompt, problem.question)

    def solve(self, arm: str, problems: Sequence[Problem], split: str) -> dict[str, Trace]:
        """The traces of one arm on problems, by problem id, graded; batches are fixed, so a resumed run writes what a whole one does."""
        texts = [self.prompt_of(problem) for problem in problems]
        size = max(1, self.batch_size * 2 // 3) if arm == AGAIN else self.batch_size
        made_by = digest("solve", arm, self.digest(arm), self.prompt, self.max_new_tokens, size, [p.id for p in problems])
        done = {trace.problem: trace for trace in self.dir.load(Trace, made_by)}
        with self.stages.stage(f"{arm}: solve {split}", len(problems), "problems") as tick:
            for batch in batches(texts, size):
                missing = [i for i in batch if problems[i].id not in done]
                if missing:
                    found = dict(zip(batch, self.engine(arm).complete([texts[i] for i in batch]), strict=True))
                    fresh = [
                        Trace(
                            problem=problems[i].id,
                            arm=arm,
                            made_by=made_by,
                            text=found[i].text,
                            tokens=found[i].tokens,
                            finish=found[i].finish,
                        )
                        for i in missing
                    ]
                    self.dir.append(fresh)
                    done |= {trace.problem: trace for trace in fresh}
                tick(len(batch))
        traces = {problem.id: done[problem.id] for problem in problems}
        self.grade(problems, traces, digest("grade", made_by, grading.VERSION))
        return traces

    def grade(self, problems: Sequence[Problem], traces: dict[str, Trace], made_by: str) -> None:
        """Grade what is not graded yet."""
        done = {grade.problem: grade for grade in self.dir.load(Grade, made_by)}
        missing = [p for p in problems if p.id not in done]
        fresh = grading.grade_all([traces[p.id] for p in missing], missing, made_by, self.verifier)
        self.dir.append(fresh)
        self.graded |= {(grade.arm, grade.problem): grade for grade in [*done.values(), *fresh]}

    def outcomes(self, problems: Sequence[Problem], arm: str) -> statistics.Outcomes:
        """Right or not, in the order of the problems; an unscored trace is not right."""
        return np.array([self.graded[arm, problem.id].outcome == "correct" for problem in problems], dtype=bool)

    def quantize(self, scheme: schemes.Scheme, calibration: list[Problem]) -> None:
        """The quantized checkpoint of a scheme, calibrated on the parent's own traces."""
        out, note = self.folder(scheme.name), f"quantize-{scheme.name}"
        libraries = [version(name) for name in ("llmcompressor", "compressed-tensors")]
        made_by = digest(
            "quantize", self.digest("full"), scheme.name, self.prompt, self.recipe.quantize.model_dump(), self.recipe.seed, libraries
        )
        if out.exists() and self.dir.notes().get(note, {}).get("made_by") == made_by:
            return
        traces = self.solve("full", calibration, "calibration") if scheme.calibrated else {}
        texts = [self.prompt_of(p) + traces[p.id].text + self.tokenizer.eos_token for p in calibration] if traces else []
        with self.stages.stage(f"{scheme.name}: quantize", 1, "model") as tick:
            begin = time.perf_counter()
            quantizer.quantize(self.parent, scheme, texts, out)
            tick(1)
        self.dir.note(note, made_by=made_by, seconds=time.perf_counter() - begin, checkpoint=load.checkpoint_digest(out))

    def regressions(self, arm: str, problems: Sequence[Problem]) -> list[Problem]:
        """Problems that full precision solves and the arm does not."""
        full, other = self.outcomes(problems, "full"), self.outcomes(problems, arm)
        return [problem for problem, lost in zip(problems, full & ~other, strict=True) if lost]

    def locate(self, arm: str, problems: Sequence[Problem], full: dict[str, Trace], traces: dict[str, Trace], split: str) -> list[Fault]:
        """The faults of an arm's regressions, in the order of the problems."""
        lost = self.regressions(arm, problems)
        kept = self.recipe.locate.model_dump()
        made_by = digest("locate", self.digest("full"), self.digest(arm), kept, [p.id for p in lost], self.max_new_tokens, self.batch_size)
        done = {fault.problem: fault for fault in self.dir.load(Fault, made_by)}
        with self.stages.stage(f"{arm}: locate {split}", len(lost), "failures") as tick:
            for begin in range(0, len(lost), CHUNK):
                chunk = lost[begin : begin + CHUNK]
                if any(p.id not in done for p in chunk):
                    faults = self._locate_chunk(arm, chunk, full, traces, made_by)
                    self.dir.append([fault for fault in faults if fault.problem not in done])
                    done |= {fault.problem: fault for fault in faults}
                tick(len(chunk))
        return [done[problem.id] for problem in lost]

    def _locate_chunk(
        self, arm: str, chunk: Sequence[Problem], full: dict[str, Trace], traces: dict[str, Trace], made_by: str
    ) -> list[Fault]:
        cases = [locators.make_case(self.prompt_of(p), traces[p.id], full[p.id]) for p in chunk]
        reference, size = self.engine("full"), self.batch_size
        asked = self.recipe.locate.locators

        def arrives(index: int, text: str, finished: bool) -> bool:
            found = grading.extract(text, loose=finished)
            return grading.judge([found], [chunk[index].answer], grading.kind_of(chunk[index].benchmark), self.verifier)[0][0] == "correct"

        rescued = locators.by_rescue(cases, reference, arrives, size) if "rescue" in asked else [None] * len(cases)
        margins = locators.margins_of(cases, reference, self.engine(arm), 16)
        faults = []
        for case, rescue, margin in zip(cases, rescued, margins, strict=True):
            spans = chat.token_spans(self.tokenizer, case.trace.tokens)
            votes = {
                "equations": locators.by_equations(case),
                "rescue": rescue.vote if rescue else None,
                "margins": locators.by_margins(case, margin, spans),
            }
            faults.append(self._fault(case, [v for name in asked if (v := votes[name])], rescue, margin, spans, made_by))
        return faults

    def _fault(
        self,
        case: locators.Case,
        votes: list,
        rescue: locators.Rescued | None,
        margins: locators.Margins,
        spans: list[tuple[int, int]],
        made_by: str,
    ) -> Fault:
        step = locators.vote(votes)
        trace = case.trace
        place = case.spans[step] if step is not None else None
        chosen = continuation = None
        if rescue and rescue.completion is not None and step is not None and rescue.vote.step == step:
            first = steps.split(rescue.completion)
            chosen = rescue.completion[: first[0][1]] if first else None
            continuation = rescue.completion[len(chosen or "") :] if first else None
        frontier = None
        if place is not None:
            inside = [
                i
                for i, (begin, end) in enumerate(spans)
                if place[0] <= begin < end <= place[1] or begin == end == place[1] == len(trace.text)
            ]
            frontier = next((i for i in inside if margins.full[i] > 0 >= margins.quantized[i]), None)
        return Fault(
            problem=trace.problem,
            arm=trace.arm,
            made_by=made_by,
            step=step,
            steps=len(case.spans),
            span=place,
            votes=tuple(votes),
            error_class=taxonomy.classify(trace, trace.text[slice(*place)] if place else "", chosen, continuation),
            frontier=frontier,
            reference=self.tokenizer.decode([margins.reference[frontier]]) if frontier is not None else None,
            margins=tuple(round(m, 3) for m in margins.quantized),
            token_ends=tuple(end for _, end in spans),
            chosen=chosen,
            continuation=continuation,
        )

    def locate_alone(self, problems: Sequence[Problem], full: dict[str, Trace]) -> None:
        """Faults of full precision's own failures, as far as equations tell: there is no better model to rescue it."""
        made_by = digest("locate-alone", self.digest("full"), [p.id for p in problems])
        done = {fault.problem for fault in self.dir.load(Fault, made_by)}
        right = self.outcomes(problems, "full")
        faults = []
        for problem in [p for p, solved in zip(problems, right, strict=True) if not solved and p.id not in done]:
            trace = full[problem.id]
            case = locators.make_case(self.prompt_of(problem), trace, trace)
            vote = locators.by_equations(case)
            span = case.spans[vote.step] if vote.step is not None else None
            error_class = taxonomy.classify(trace, trace.text[slice(*span)] if span else "", None, None)
            faults.append(
                Fault(
                    problem=problem.id,
                    arm="full",
                    made_by=made_by,
                    step=vote.step,
                    steps=len(case.spans),
                    span=span,
                    error_class=error_class,
                    votes=(vote,),
                )
            )
        self.dir.append(faults)

    def curate(self, arm: str, test: list[Problem]) -> list[Bullet]:
        """Bullets at the faults of curate problems, which are solved round by round until there are enough."""
        pool = self.problems("curate")
        made_by = digest("curate", self.digest("full"), self.digest(arm), self.prompt, self.recipe.model_dump(), [p.id for p in test])
        if self.dir.notes().get(f"curate-{arm}", {}).get("made_by") == made_by:
            return self.dir.load(Bullet, made_by)
        bullets: list[Bullet] = []
        leaked, faults, traces, solved = 0, [], {}, 0
        for begin in range(0, len(pool), self.recipe.curate.round):
            part = pool[begin : begin + self.recipe.curate.round]
            label = f"curate {begin + 1}-{begin + len(part)}"
            full, quantized = self.solve("full", part, label), self.solve(arm, part, label)
            faults += self.locate(arm, part, full, quantized, label)
            traces |= quantized
            solved = begin + len(part)
            bullets, leaked = curate.curate(
                {p.id: p for p in pool},
                {p.id: self.prompt_of(p) for p in pool},
                traces,
                faults,
                test,
                limit=self.recipe.curate.bullets,
                made_by=made_by,
            )
            if len(bullets) == self.recipe.curate.bullets:
                break
        have = {bullet.problem for bullet in self.dir.load(Bullet, made_by)}
        self.dir.append([bullet for bullet in bullets if bullet.problem not in have])
        self.dir.note(f"curate-{arm}", made_by=made_by, bullets=len(bullets), leaked=leaked, problems=solved)
        return bullets

    def restore(self, name: str, bullets: list[Bullet]) -> None:
        """The restored checkpoint of a scheme."""
        out, note = self.folder(f"{name}+restored"), f"restore-{name}"
        made_by = digest(
            "restore", self.digest(name), self.recipe.restore.model_dump(), self.recipe.seed, [b.model_dump() for b in bullets]
        )
        if out.exists() and self.dir.notes().get(note, {}).get("made_by") == made_by:
            return
        with self.stages.stage(f"{name}: restore ({len(bullets)} bullets)", self.recipe.restore.steps, "steps") as tick:
            begin = time.perf_counter()
            tuned = tune.restore(self.parent, self.folder(name), bullets, self.recipe.restore, out, seed=self.recipe.seed, tick=tick)
        self.dir.note(
            note,
            made_by=made_by,
            seconds=time.perf_counter() - begin,
            checkpoint=load.checkpoint_digest(out),
            export_error=tuned.export_error,
            losses=[round(loss, 5) for loss in tuned.losses],
        )


def quantize_alone(model: str, scheme: schemes.Scheme, out: Path, samples: int, data: sources.Data) -> None:
    """What ``stepmend quantize`` does: calibrate on the model's own traces of calibration problems, and write ``out``."""
    parent = load.locate(model)
    quantizer.preflight(parent, scheme)
    tokenizer = load.load_tokenizer(parent)
    builtin = model.startswith(load.BUILTIN)
    texts = []
    if scheme.calibrated:
        found = data.problems("calibration", samples, 0)
        prompts = [chat.render(tokenizer, "plain-1" if builtin else "steps-1", problem.question) for problem in found]
        completions = complete_all(LocalEngine(load.load_model(parent), tokenizer, 180 if builtin else 1024), prompts, 32)
        texts = [p + c.text + tokenizer.eos_token for p, c in zip(prompts, completions, strict=True)]
    quantizer.quantize(parent, scheme, texts, out)
