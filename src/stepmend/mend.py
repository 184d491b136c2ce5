"""The loop's second half: from bullets to restored models, their controls, and what restoring did elsewhere.

Every model that is tuned is an arm: the restored model, that of a later round, or a control. A control's checkpoint is measured and
then removed: what is kept of it is its records.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from stepmend import curate, grading
from stepmend.arms import FULL, Arm, Budget
from stepmend.curate import Solved, controls
from stepmend.locate import faults
from stepmend.measure import behaviour, statistics
from stepmend.models import chat, forward, load
from stepmend.recipe import Restore
from stepmend.records import Bullet, Fault, Problem, Trace, digest
from stepmend.restore import tune
from stepmend.restore.validation import Solution
from stepmend.rundir import make_folder

if TYPE_CHECKING:
    from stepmend.loop import Loop


def solutions(solved: Solved) -> tuple[Solution, Solution]:
    """A problem's solutions as full precision and as the low-bit model wrote them."""
    first, second = (Solution(solved.problem.id, solved.prompt, trace.tokens) for trace in (solved.full, solved.quantized))
    return first, second


def odd(trace: Trace) -> bool:
    """Whether a solution was cut off, or loops at its end."""
    return trace.finish == "length" or behaviour.loops(trace.text)


def refused(facts: dict[str, Any]) -> str:
    """Why a restored checkpoint was not accepted, from what was noted of it."""
    if of := facts.get("endings"):  # counted only where KL was better
        return f"more held-out solutions are cut off or loop ({of['lost']} new, {of['gained']} fewer, p = {of['p']:.2g})"
    return "no state was better on held-out problems"


class Mend:
    """What a loop does with the faults of one scheme."""

    def __init__(self, loop: "Loop", scheme: str) -> None:
        self.loop, self.scheme = loop, scheme

    def run(self, test: Sequence[Problem], full: dict[str, Trace]) -> None:
        """Bullets, the restored model, and its measurement; as many rounds as the recipe asks for."""
        loop, bullets, arm = self.loop, [], self.scheme
        for number in range(1, loop.recipe.restore.rounds + 1):
            fresh = self.bullets(arm)
            if not fresh:
                loop.stages.say(f"  {arm}: no regression was found among the curate problems; nothing to restore")
                return
            bullets = [*fresh, *bullets][: loop.recipe.curate.bullets]
            base, arm = arm, str(Arm(self.scheme).restored(number))
            self.restore(base, arm, bullets, loop.recipe.restore, loop.recipe.seed, self.held_out(base))
            if not self.accepted(base, arm):
                return
            restored = loop.solve(arm, test, "test")
            loop.locate(arm, test, full, restored, "test")
            self.effects(arm, test, full)

    def loss(self) -> statistics.Paired:
        """Full precision paired with the quantized model on the first round of curate problems: what decides whether it is restored."""
        part = [solved.problem for solved in next(self.rounds(self.scheme)).values()]
        return statistics.paired(*(self.loop.outcomes(part, arm) for arm in (FULL, self.scheme)))

    def rounds(self, arm: str) -> Iterator[dict[str, Solved]]:
        """The curate problems as full precision and an arm solve them, round by round."""
        loop, pool, size = self.loop, self.loop.problems("curate"), self.loop.recipe.curate.round
        for begin in range(0, len(pool), size):
            part = pool[begin : begin + size]
            label = f"curate {begin + 1}-{begin + len(part)}"
            full, low = loop.solve(FULL, part, label), loop.solve(arm, part, label)
            yield {p.id: Solved(p, loop.prompt_of(p), full[p.id], low[p.id]) for p in part}

    def bullets(self, arm: str) -> list[Bullet]:
        """Bullets at the faults of an arm on curate problems, which are solved round by round until there are enough."""
        loop = self.loop
        made_by = digest(
            "curate", grading.VERSION, faults.VERSION, arm, loop.digest(FULL), loop.digest(arm), loop.prompt,
            loop.recipe.model_dump(exclude={"measure": {"margin"}}), loop.problem_ids("test"),
        )  # fmt: skip
        note = f"curate-{arm}"
        if loop.dir.notes().get(note, {}).get("made_by") == made_by:
            return loop.dir.load(Bullet, made_by)
        solved: dict[str, Solved] = {}
        located: list[Fault] = []
        bullets: list[Bullet] = []
        for part in self.rounds(arm):
            begin, solved = len(solved) + 1, solved | part
            full, low = {p: s.full for p, s in part.items()}, {p: s.quantized for p, s in part.items()}
            taught = [s.problem for s in part.values() if s.problem.id not in self._held]
            located += loop.locate(arm, taught, full, low, f"curate {begin}-{len(solved)}")
            bullets = curate.curate(solved, located, limit=loop.recipe.curate.bullets, made_by=made_by)
            if len(bullets) == loop.recipe.curate.bullets:
                break
        have = {bullet.problem for bullet in loop.dir.load(Bullet, made_by)}
        loop.dir.append([bullet for bullet in bullets if bullet.problem not in have])
        loop.dir.note(note, made_by=made_by, bullets=len(bullets), problems=len(solved))
        return bullets

    @property
    def _held(self) -> set[str]:
        """Ids of the curate problems that are held out for validation: the first ones, of which no bullet is made."""
        pool, count = self.loop.problems("curate"), self.loop.recipe.restore.validation
        return {problem.id for problem in pool[: min(count, len(pool) // 4)]}

    def held_out(self, arm: str) -> list[Solution]:
        """The solutions of held-out problems, as full precision and as the arm wrote them."""
        held, found = self._held, list[Solution]()
        for part in self.rounds(arm) if held else ():
            mine = [solved for problem, solved in part.items() if problem in held]
            found += [solution for solved in mine for solution in solutions(solved)]
            if len(found) >= 2 * len(held):
                break
        return found

    def anchors(self, bullets: Sequence[Bullet], recipe: Restore) -> list[Solution]:
        """Both models' solutions of curate problems, taught beside the bullets, at most as many as the recipe says.

        Full precision's distributions are taught, not its answers: on a solution that is wrong they are as much to be restored.
        """
        if recipe.objective != "distill" and "codes" not in recipe.kinds:
            return []
        taken, found = self._held | {bullet.problem for bullet in bullets}, dict[Solution, None]()
        for part in self.rounds(self.scheme) if recipe.anchors else ():
            free = [solved for problem, solved in part.items() if problem not in taken]
            found |= dict.fromkeys(solution for solved in free for solution in solutions(solved))
            if len(found) >= recipe.anchors:
                break
        return list(found)[: recipe.anchors]

    def restore(
        self, base: str, arm: str, bullets: Sequence[Bullet], recipe: Restore, seed: int, held_out: Sequence[Solution] = (),
        rates: dict[str, float] | None = None,
    ) -> None:  # fmt: skip
        """The checkpoint of ``arm``: that of ``base``, restored on bullets; without ``held_out`` at the rates given, and in any case."""
        loop, out, note = self.loop, self.loop.folder(arm), f"restore-{arm}"
        anchors = self.anchors(bullets, recipe)
        texts = [(one.problem, one.tokens) for one in (*anchors, *held_out)]
        of = loop.digest(base), recipe.model_dump(), tune.rate_of(recipe), rates, seed, [b.model_dump() for b in bullets], texts
        made_by = digest("restore", tune.VERSION, *of)
        if out.exists() and loop.dir.notes().get(note, {}).get("made_by") == made_by:
            return
        loop.keep()  # memory is needed
        given: dict[str, Any] = {"seed": seed, "anchors": anchors, "held_out": held_out, "rates": rates, "say": loop.stages.say}
        with loop.stages.stage(f"{arm}: tune ({len(bullets)} bullets)", recipe.steps, "steps") as tick:
            begin = time.perf_counter()
            tuned = tune.restore(loop.parent, loop.folder(base), list(bullets), recipe, out, tick=tick, **given)
        if tuned.chosen_change is not None and tuned.chosen_change < 0:
            loop.stages.say(f"  {arm}: the chosen steps lost {-tuned.chosen_change:.3f} nats a token; raise restore.keep_chosen")
        facts = {key: value for key, value in asdict(tuned).items() if key not in ("losses", "verdict")}
        loop.dir.note(
            note,
            made_by=made_by,
            seconds=time.perf_counter() - begin,
            checkpoint=load.checkpoint_digest(out),
            bullets=len(bullets),
            anchors=len(anchors),
            losses=[round(loss, 5) for loss in tuned.losses],
            verdict=asdict(tuned.verdict) if tuned.verdict else None,
            **facts,
        )

    def accepted(self, base: str, arm: str) -> bool:
        """Whether the restored checkpoint is better on held-out problems, and no more of its solutions of them end oddly.

        Where it is not, its folder holds the quantized checkpoint, unchanged, and the run says so.
        """
        loop, note = self.loop, f"restore-{arm}"
        facts, held = loop.dir.notes()[note], [p for p in loop.problems("curate") if p.id in self._held]
        if facts["kept"] and held:
            before, after = loop.solve(base, held, "held out"), loop.solve(arm, held, "held out")
            counts = statistics.paired(*(np.array([not odd(of[p.id]) for p in held]) for of in (before, after)))
            worse = counts.p < 0.05 and counts.only_first > counts.only_second
            facts |= {"endings": {"lost": counts.only_first, "gained": counts.only_second, "p": counts.p, "n": counts.n}}
            if worse:
                make_folder(loop.folder(arm), lambda part: shutil.copytree(loop.folder(base), part, dirs_exist_ok=True) and None)
                facts |= {"kept": False, "checkpoint": load.checkpoint_digest(loop.folder(arm))}
            loop.dir.note(note, **facts)
        if not facts["kept"]:
            loop.stages.say(f"  {arm}: {refused(facts)}; the quantized model is returned unchanged")
        return facts["kept"]

    def effects(self, arm: str, test: Sequence[Problem], full: dict[str, Trace]) -> None:
        """What restoring did elsewhere: the loss on the questions' text, and KL from full precision where both models were right."""
        loop, note = self.loop, f"effects-{arm}"
        made_by = digest("effects-2", loop.digest(FULL), loop.digest(self.scheme), loop.digest(arm), loop.prompt, [p.id for p in test])
        if loop.dir.notes().get(note, {}).get("made_by") == made_by:
            return
        pad, right = loop.tokenizer.pad_token_id, loop.outcomes(test, FULL) & loop.outcomes(test, self.scheme)
        questions = [chat.encode(loop.tokenizer, loop.prompt_of(p)) for p in test]
        rows = [[*ids, *full[p.id].tokens] for ids, p in zip(questions, test, strict=True)]
        kept = [i for i in range(len(test)) if right[i] and full[test[i].id].tokens]
        with loop.stages.stage(f"{arm}: what else changed", 4, "passes") as tick:
            values: dict[str, Any] = {}
            for name in (arm, self.scheme):  # the one that is loaded first, and one at a time
                loop.keep(FULL, name)
                model = loop.engine(name).model
                values[f"question {name}"] = np.array(forward.losses(model, questions, [1] * len(questions), pad))
                tick(1)
                chosen = [rows[i] for i in kept]
                kl = forward.divergences(loop.engine(FULL).model, model, chosen, [len(questions[i]) for i in kept], pad)
                values[f"kl {name}"] = np.array(kl)
                tick(1)
        changes = {
            key: {"before": float(values[f"{key} {self.scheme}"].mean()), "after": float(values[f"{key} {arm}"].mean()), "n": len(change)}
            | {"low": found.low, "high": found.high, "value": found.value}
            for key in ("question", "kl")
            if len(change := values[f"{key} {arm}"] - values[f"{key} {self.scheme}"]) and (found := statistics.mean(change))
        }
        loop.dir.note(note, made_by=made_by, **changes)

    def controls(self, names: Sequence[str], seeds: int, budgets: Sequence[Budget], test: Sequence[Problem]) -> None:
        """Tune and measure located bullets under every seed, and every control under every seed and budget.

        All are taught without anchors, which would be the same texts for each and most of what it is taught.
        """
        recipe, bullets = self.loop.recipe.restore, self.bullets(self.scheme)
        facts = self.loop.dir.notes().get(f"restore-{Arm(self.scheme).restored()}", {})
        recipe = recipe.model_copy(update={"validation": 0, "anchors": 0, "steps": len(facts.get("losses", [])) or recipe.steps})
        target = tune.tokens_of(self.loop.tokenizer, bullets, recipe)
        for seed in range(seeds):
            self._control("located", "steps", recipe, lambda seed: bullets, seed, test)
        for name in names:
            changed = controls.recipe_of(name, recipe)

            def made(seed: int, name: str = name) -> list[Bullet]:
                return controls.bullets_of(name, bullets, self._both_solved(), recipe, seed)

            for budget in budgets:
                recipes = [changed] * seeds
                if budget == "tokens":
                    own = [tune.tokens_of(self.loop.tokenizer, made(seed), changed) for seed in range(seeds)]
                    recipes = [changed.model_copy(update={"steps": max(1, round(changed.steps * target / each))}) for each in own]
                    if "steps" in budgets and recipes == [changed] * seeds:
                        continue  # equal steps were equal tokens already
                for seed, matched in enumerate(recipes):
                    self._control(name, budget, matched, made, seed, test)

    def _control(
        self, name: str, budget: Budget, recipe: Restore, made: Callable[[int], list[Bullet]], seed: int, test: Sequence[Problem]
    ) -> None:
        loop, arm = self.loop, str(Arm(self.scheme, variant=name, budget=budget, seed=seed))
        note, bullets = f"control-{arm}", made(seed)
        base = FULL if name == "full-tuned" else self.scheme
        made_by = digest(
            "control", loop.digest(base), recipe.model_dump(), tune.rate_of(recipe), seed, [b.model_dump() for b in bullets],
            [p.id for p in test],
        )  # fmt: skip
        if loop.dir.notes().get(note, {}).get("made_by") == made_by:
            return
        rates = loop.dir.notes().get(f"restore-{Arm(self.scheme).restored()}", {}).get("rates")
        same = recipe.objective == loop.recipe.restore.objective and recipe.tune == loop.recipe.restore.tune
        self.restore(base, arm, bullets, recipe, seed, rates=rates if same else None)
        loop.solve(arm, test, "test")
        kept = loop.dir.notes()[f"restore-{arm}"]
        facts = {key: kept[key] for key in ("seconds", "tokens", "bullets")}
        loop.dir.note(note, made_by=made_by, scheme=self.scheme, control=name, budget=budget, seed=seed, steps=recipe.steps, **facts)
        loop.keep(FULL)
        shutil.rmtree(loop.folder(arm), ignore_errors=True)

    def _both_solved(self) -> Iterator[Solved]:
        """Curate problems that full precision and the low-bit model both solve, in their order."""
        for part in self.rounds(self.scheme):
            problems = [solved.problem for solved in part.values()]
            both = self.loop.outcomes(problems, FULL) & self.loop.outcomes(problems, self.scheme)
            yield from (part[p.id] for p, right in zip(problems, both, strict=True) if right)
