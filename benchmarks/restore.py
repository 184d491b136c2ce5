"""Restoring beside its peers: the same model, scheme, bullets and seeds, in one run. Writes its sections of docs/results/restore.md.

python benchmarks/restore.py                                     # both reasoners, all schemes; a stopped run continues
python benchmarks/restore.py --family qwen2 --scheme rtn-w3a16   # this section alone; the others stay as they are
python benchmarks/restore.py --problems 1200                     # four times the problems of each level: small differences are shown
python benchmarks/restore.py --quick                             # to see that it works; written beside the runs, not to docs

Peers: the paper's recipe (TRL's DPOTrainer with a PEFT adapter), EfficientQAT's end-to-end idea (scales by likelihood on generic traces),
QAD (what stepmend tunes, by plain distillation on generic traces), both of as many supervised tokens; and recalibration (GPTQ in place of
rounding, on plain questions and on the model's own traces). Last, what stepmend's default does: recalibrated on own traces, then mended on
bullets of its own. Each arm is made in a process of its own, whose time and peak memory are its. Needs trl: pip install trl.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import arms
import numpy as np
import sections
from pydantic import BaseModel
from rich.console import Console

from stepmend import Bullet, Problem, pipeline
from stepmend.arms import FULL, Arm
from stepmend.context import Context
from stepmend.curate import Solved, leakage, rounds
from stepmend.facts import Curated, Fact
from stepmend.keys import Restore
from stepmend.measure import solve as solving
from stepmend.measure import statistics
from stepmend.models import load
from stepmend.progress import Stages
from stepmend.quantize import schemes
from stepmend.recipe import QUICK, Recipe, merge
from stepmend.records import digest
from stepmend.report.summary import percent, points
from stepmend.restore import tune

ROOT = Path(__file__).parents[1]
FAMILIES = ("qwen2", "llama")
SCHEMES = ("rtn-w3a16", "rtn-w3a16-g128", "rtn-w4a16")
"""One scale a row: what loses most at either width, so that there is something to restore; and at 3 bits the usual groups of 128."""
PROBLEMS = 300
"""Held-out problems of each level."""
SEEDS = 3
RATES = {"EfficientQAT": (1e-4, 3e-4, 1e-3, 5e-3), "the paper's recipe": (1e-5, 3e-5, 1e-4, 3e-4)}
"""Rates that a peer is tried at under the first seed; the best on other problems is taken. Others have stepmend's own."""
CURATE, DEV = 3600, 900
"""Problems that bullets are looked for in, and further ones of the same split, which rates are chosen on."""
VERSION = "peers-2"
"""Changes whenever the same arm may be tuned otherwise."""
TIMED = 64
"""Solutions that are generated to time a model."""

OWN, BOTH = "GPTQ on own traces", "GPTQ on own traces, then stepmend"

Make = partial[None]
"""What writes a checkpoint: of parent, folder, bullets, recipe, seed and, for the paper's, a rate."""
Made = Callable[[int, float | None], Make]
"""What writes the checkpoint of a seed and a rate."""


def recipe_of(family: str, scheme: str, problems: int, quick: bool) -> Recipe:
    measure = {"noise_floor": False, "problems": problems}
    values: dict[str, Any] = {"model": f"builtin:{family}", "schemes": [scheme], "measure": measure}
    values |= {"curate": {"problems": CURATE}, "restore": {"within_noise": True}}
    return Recipe.make(merge(values, {**QUICK, "restore": {"steps": 5, "within_noise": True}}) if quick else values)


class Peers:
    """The arms of one reasoner and scheme."""

    def __init__(self, context: Context, scheme: str, seeds: int) -> None:
        self.context, self.scheme, self.seeds = context, scheme, seeds
        self.test, self.bullets = context.problems("test"), rounds.bullets(context, scheme)
        self.recipe = context.recipe.restore
        self.dev = context.tuned.problems("curate", CURATE + DEV, context.recipe.seed)[CURATE:]
        self.parts = context.parent, context.folder(scheme)
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def run(self) -> None:
        """Every arm under every seed."""
        own = tune.tokens_of(self.context.tokenizer, self.bullets, self.recipe)
        generics = {
            "EfficientQAT": Restore(tune="scales", objective="sft", steps=self.recipe.steps),
            "QAD": Restore(features=0, question=0, steps=self.recipe.steps),
        }
        self.arm("stepmend", lambda seed, rate: partial(arms.ours, *self.parts, self.bullets, self.recipe, seed))
        for name, recipe in generics.items():

            def made(seed: int, rate: float | None, recipe: Restore = recipe) -> Make:
                generic = self.generic(seed)
                steps = max(1, round(recipe.steps * own / tune.tokens_of(self.context.tokenizer, generic, recipe)))
                return partial(arms.ours, *self.parts, generic, recipe.model_copy(update={"steps": steps, "learning_rate": rate}), seed)

            self.arm(name, made)
        self.arm("the paper's recipe", lambda seed, rate: partial(arms.paper, *self.parts, self.bullets, self.recipe, seed, rate))
        scheme = self.scheme.replace("rtn", "gptq")
        for name, seeds in ((OWN, self.seeds), ("GPTQ on plain questions", 1)):

            def again(seed: int, rate: float | None, own: bool = name == OWN) -> Make:
                return partial(arms.recalibrated, *self.parts, self.calibration(seed, own), scheme, seed)

            self.arm(name, again, seeds)
        self.arm(BOTH, self.both)
        for note, base in zip(self.rows[BOTH], self.rows[OWN], strict=True):
            note["seconds"] += base["seconds"]

    def both(self, seed: int, rate: float | None) -> Make:
        """A recalibrated model mended on the bullets at its own faults."""
        base = self.rows[OWN][seed]["arm"]
        bullets = rounds.bullets(self.context, base)
        self.context.release(base)
        return partial(arms.ours, self.context.parent, self.context.folder(base), bullets, self.recipe, seed)

    def arm(self, name: str, made: Made, seeds: int | None = None) -> None:
        """One peer under every seed, or as many as said, at the rate that does best on ``dev`` under the first."""
        rates = RATES.get(name, (None,))
        scores = {rate: self.add(name, 0, rate, made, self.dev if len(rates) > 1 else ()) for rate in rates}
        rate = max(scores, key=lambda rate: scores[rate])
        self.rows[name] = [self.measure(name, seed, rate, made) for seed in range(seeds or self.seeds)]

    def add(self, name: str, seed: int, rate: float | None, made: Made, dev: Sequence[Problem]) -> float:
        """Make one checkpoint, timed; its share of right answers on ``dev``."""
        context, arm = self.context, self.name(name, seed, rate)
        make = made(seed, rate)

        def tuned() -> dict[str, Any]:
            context.stages.say(f"  {arm}: tuning")
            shutil.rmtree(context.folder(arm), ignore_errors=True)
            seconds, peak = arms.in_child(arms.measured, make, context.folder(arm))
            return {"seconds": seconds, "peak": peak, "bytes": _size(context.folder(arm)), "rate": rate}

        once(self.context, f"peer-{arm}", _made_by(make), tuned)
        solving.solve(context, arm, dev, "dev")
        return float(solving.outcomes(context, dev, arm).mean()) if dev else 0.0

    def measure(self, name: str, seed: int, rate: float | None, made: Made) -> dict[str, Any]:
        """The test problems, solved by one checkpoint, and under the first seed its speed."""
        context, arm = self.context, self.name(name, seed, rate)
        self.add(name, seed, rate, made, ())
        solving.solve(context, arm, self.test, "test")
        of = {} if seed else once(self.context, f"speed-{arm}", _made_by(made(seed, rate)), lambda: {"speed": self.speed(arm)})
        context.release(arm)
        peer = context.dir.latest(Found, f"peer-{arm}")
        return {**(peer.values if peer else {}), **of, "arm": arm}

    def name(self, name: str, seed: int, rate: float | None) -> str:
        return str(Arm(self.scheme, variant=name.replace(" ", "-") + ("" if rate is None else f"-{rate:g}"), seed=seed))

    def speed(self, arm: str) -> float:
        """Tokens per second of an arm over the quantized model's: each first in turn; the median of four turns, after one to warm up."""
        texts, ratios = [self.context.prompt_of(p) for p in self.test[:TIMED]], []
        for turn in range(5):
            rates = {}
            for name in (arm, self.scheme) if turn % 2 else (self.scheme, arm):
                begin = time.perf_counter()
                made = self.context.engine(name).complete(texts)
                rates[name] = sum(len(c.tokens) for c in made) / (time.perf_counter() - begin)
            ratios.append(rates[arm] / rates[self.scheme])
        return float(np.median(ratios[1:]))

    def generic(self, seed: int) -> list[Bullet]:
        """Whole traces of full precision on curate problems that it solves, whatever the low-bit model does: as many as bullets."""
        context, found = self.context, []
        for part in rounds.rounds(self.context, self.scheme):
            problems = [solved.problem for solved in part.values()]
            right = solving.outcomes(context, problems, FULL)
            found += [part[p.id] for p, good in zip(problems, right, strict=True) if good]
            if len(found) >= 2 * len(self.bullets):
                break
        chosen = np.random.default_rng(seed).choice(len(found), min(len(self.bullets), len(found)), replace=False)
        return [_whole(found[i]) for i in chosen]

    def calibration(self, seed: int, own: bool) -> list[str]:
        """Calibration problems of a seed that leak nothing: their plain questions, or full precision's own traces of them."""
        context = self.context
        found, _ = leakage.kept(context.tuned.problems("calibration", context.recipe.quantize.calibration, seed), context.held_out)
        if not own:
            return [problem.question for problem in found]
        traces = solving.solve(context, FULL, found, f"calibration {seed}")
        return [context.prompt_of(p) + traces[p.id].text + context.tokenizer.eos_token for p in found]

    def step_times(self) -> dict[str, float]:
        """Seconds a step on the same batches, side by side in one process: the median over steps."""
        timed = partial(arms.step_times, *self.parts, self.bullets, self.recipe)
        return once(self.context, "step-times", _made_by(timed), lambda: {"times": arms.in_child(timed, self.context.dir.path / "timed")})[
            "times"
        ]


def _whole(solved: Solved) -> Bullet:
    text = solved.full.text
    return Bullet(
        problem=solved.problem.id, arm=solved.quantized.arm, made_by="generic", prompt=solved.prompt, prefix="", chosen=text,
        rejected=solved.quantized.text, continuation="", rejected_rest="", solution=text, place=(0, len(text)), step=0, error_class=None,
    )  # fmt: skip


class Found(Fact):
    """What a comparison has found: ``values`` by name. ``arm`` holds what it is of."""

    fact: str = "found"
    values: dict[str, Any]


def once(context: Context, note: str, made_by: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was found under a name with the inputs of this digest; found now where it was not."""
    if not (kept := context.dir.fact(Found, note, made_by)):
        context.dir.keep(kept := Found(arm=note, made_by=made_by, values=find()))
    return kept.values


def _made_by(make: partial[Any]) -> str:
    """The digest of what decides an arm's result."""
    parent, folder, texts, how, *others = make.args
    given = [_plain(text) for text in texts], _plain(how), others
    return digest(VERSION, tune.VERSION, make.func.__name__, load.checkpoint_digest(parent), load.checkpoint_digest(folder), *given)


def _plain(given: Any) -> Any:
    return given.model_dump() if isinstance(given, BaseModel) else given


def outcomes(peers: Peers, name: str) -> statistics.Shares:
    """Right or not, [problems, seeds]."""
    return np.stack([solving.outcomes(peers.context, peers.test, note["arm"]) for note in peers.rows[name]], axis=1)


def row_of(peers: Peers, name: str, p: float | None) -> str:
    """A line of the table; ``p``: of stepmend against this peer."""
    context, test, notes, size = peers.context, peers.test, peers.rows[name], _size(peers.context.folder(peers.scheme))
    full, low, own = solving.outcomes(context, test, FULL), solving.outcomes(context, test, peers.scheme), outcomes(peers, name)
    ahead = statistics.difference(outcomes(peers, "stepmend"), own)
    recovery, loss = statistics.recovery(full, low, own), statistics.difference(own, full)
    rate = "" if notes[0]["rate"] is None else f" (rate {notes[0]['rate']:g})"
    cells = [
        name + rate, _accuracy(own), f"{_span(loss)}, p = {statistics.permutation(own, full):.2g}",
        "undefined" if recovery.value is None else f"{percent(recovery.value)} ({percent(recovery.low)} to {percent(recovery.high)})",
        "" if p is None else f"{_span(ahead)}, p = {p:.2g}", f"{np.mean([note['seconds'] for note in notes]):.0f}",
        f"{max(note['peak'] for note in notes):.1f}", f"{notes[0]['bytes'] / size:.2f}", f"{notes[0]['speed']:.2f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _accuracy(own: statistics.Shares) -> str:
    """The mean over seeds, and beside it each seed's."""
    each = f" ({', '.join(f'{100 * one:.1f}' for one in own.mean(axis=0))})" if own.shape[1] > 1 else ""
    return percent(statistics.average_at(own)) + each


def _span(found: statistics.Interval) -> str:
    return f"{points(found.value)} ({points(found.low)} to {points(found.high)})"


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*.safetensors"))


def section(peers: Peers, family: str) -> str:
    """What was measured of one reasoner and scheme, in Markdown."""
    context, test, scheme = peers.context, peers.test, peers.scheme
    full, low = solving.outcomes(context, test, FULL), solving.outcomes(context, test, scheme)
    pair, change, times = statistics.paired(full, low), statistics.difference(low, full), peers.step_times()
    trl = times["TRL, dpo on an adapter"]
    p = _p_values(peers, "stepmend")
    lines = [
        f"## {family}, {scheme}", "",
        f"{len(test):,} held-out `story` problems, {peers.seeds} seeds. Full precision {percent(full.mean())}, quantized "
        f"{percent(low.mean())}: {_span(change)} points, McNemar p = {pair.p:.2g}; {len(peers.bullets)} bullets. Checkpoint "
        f"{load.checkpoint_digest(context.parent)}.", "",
        "| arm | accuracy | against full | recovery | stepmend ahead by | seconds | peak GiB | bytes | tokens/s |",
        "|---|---|---|---|---|---|---|---|---|",
        *[row_of(peers, name, p.get(name)) for name in peers.rows], "", _both(peers), "",
        "Seconds a step on the same eight bullets, over TRL's: "
        + ", ".join(f"{name} {seconds / trl:.2f}" for name, seconds in times.items() if seconds != trl)
        + f" (TRL's: {trl:.2f} s).", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _p_values(peers: Peers, ours: str) -> dict[str, float]:
    """One of ours against every peer, adjusted."""
    names = [name for name in peers.rows if name not in ("stepmend", BOTH)]
    found = [statistics.permutation(outcomes(peers, ours), outcomes(peers, name)) for name in names]
    return dict(zip(names, statistics.holm(found), strict=True))


def _both(peers: Peers) -> str:
    """What mending adds to recalibration, in a sentence."""
    done, p = outcomes(peers, BOTH), _p_values(peers, BOTH)
    curated = [peers.context.dir.fact(Curated, row["arm"]) for row in peers.rows[OWN]]
    counts = ", ".join(str(of.bullets) for of in curated if of)
    ahead = "; ".join(f"{name} {_span(statistics.difference(done, outcomes(peers, name)))}, p = {p[name]:.2g}" for name in p)
    return f"{BOTH} on its own bullets ({counts}), is ahead of: {ahead}."


HEAD = """# Restoring beside its peers

`python benchmarks/restore.py` wrote this page, section by section (those of 3,600 problems with `--problems 1200`). The same bullets for
stepmend and the paper's recipe, which has no end of text behind a step that others follow (TRL would add one). EfficientQAT and QAD have
as many supervised tokens of whole traces that were not chosen by their faults; what stepmend distils of the questions, at a tenth, is not
counted. GPTQ quantizes anew, in the same bits and groups, on three draws of calibration problems (plain questions: one); its recovery is
what it does not lose of rounding's loss, also where stepmend has mended it, whose seconds are both's. Rates of the paper's recipe and of
EfficientQAT were chosen on {dev} other problems. Accuracies: the mean, at 3 bits with each seed's or draw's. Intervals: 95 % paired
bootstrap over problems; p of differences: paired sign flips, against peers adjusted by Holm's method. Both keep the seeds together: they
speak of other problems, and not of other seeds or draws, which stand beside each other for that. Seconds and peak memory are those of an
arm's own process, in one thread; step times are side by side. (At 4 bits the paper's recipe was tuned in busier hours.) Bytes and
tokens/s, of the texts that each model writes, are over the quantized model's, side by side.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="few problems, one seed")
    size.add_argument("--problems", type=int, default=PROBLEMS, help=f"held-out problems of each level (default {PROBLEMS})")
    parser.add_argument("--family", choices=FAMILIES, action="append", help="only this reasoner (may be given again)")
    parser.add_argument("--scheme", choices=SCHEMES, action="append", help="only this scheme (may be given again)")
    args = parser.parse_args()
    runs = ROOT / "runs" / ("restore-quick" if args.quick else "restore")
    for family in args.family or FAMILIES:
        for scheme in args.scheme or SCHEMES:
            recipe = recipe_of(family, scheme, args.problems, args.quick)
            with Context(recipe, runs / f"{family}-{scheme}-{args.problems}", Stages(Console(stderr=True))) as context:
                test = context.problems("test")
                solving.solve(context, FULL, test, "test")
                pipeline.quantize(context, schemes.parse(scheme))
                solving.solve(context, scheme, test, "test")
                peers = Peers(context, scheme, 1 if args.quick else SEEDS)
                peers.run()
                text = section(peers, family)
            sections.write(runs / "restore.md" if args.quick else ROOT / "docs/results/restore.md", HEAD.format(dev=DEV), text)
            print(text)


if __name__ == "__main__":
    main()
