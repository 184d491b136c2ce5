"""Controls for the claim that located steps matter: the same number of examples, from the same or other problems, built without using the
located step."""

import random
from collections.abc import Callable, Iterable, Sequence

from stepmend.curate import Solved, place
from stepmend.keys import Restore
from stepmend.locate import steps
from stepmend.records import Bullet, InputError

Pick = Callable[[Sequence[int]], int | None]
"""Chooses one of the available steps; None if none is suitable."""
CONTROLS: dict[str, str] = {
    "random-step": "the same bullets, each at another step, drawn at random; for dpo, of those in which the two texts differ",
    "shuffled-step": "the same bullets, each about as far along as another one's located step, and never at its own",
    "whole-response": "preference between whole responses, full precision's and the low-bit model's (QDPO, 2407.03051)",
    "whole-trace": "the same bullets and objective, over the whole trace",
    "solved-problems": "the same objective on as many problems that both models solve, at a step drawn at random",
    "sft-chosen": "plain likelihood of the same tokens of the located bullets",
    "full-tuned": "the full-precision model tuned on the same bullets (LoRA, plain likelihood): what they teach beyond mending",
}


def parse(text: str) -> tuple[str, ...]:
    """Names of controls from a comma-separated list. Raises InputError, which lists the allowed names."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if unknown := [name for name in names if name not in CONTROLS] or (["nothing"] if not names else []):
        raise InputError(f"controls: unknown {', '.join(unknown)}; allowed: {', '.join(CONTROLS)}")
    return names


def check(names: Sequence[str], restore: Restore) -> None:
    """Raises InputError for controls that this recipe would tune exactly like the located bullets."""
    idle = {"random-step", "shuffled-step", "whole-trace"} if restore.trained == "whole" else set[str]()
    idle |= {"sft-chosen"} if restore.objective == "sft" else set()
    if same := [name for name in names if name in idle]:
        how = f"{restore.objective} on span {restore.trained}"
        hint = "; a run with --set restore.span=prefix tells steps apart" if same != ["sft-chosen"] else ""
        raise InputError(f"controls: {', '.join(same)} would be tuned exactly like the located bullets ({how}){hint}")


def recipe_of(control: str, restore: Restore) -> Restore:
    """The settings that a control is tuned with: those of the located bullets, except what the control changes; another objective has its
    own learning rate."""
    same = {"objective": "sft", "span": restore.trained}  # on the same tokens, though plain likelihood has a span of its own
    changes = {
        "whole-response": {"objective": "dpo", "span": "whole"},
        "whole-trace": {"span": "whole"},
        "sft-chosen": same,
        "full-tuned": {**same, "tune": "lora", "learning_rate": None},
    }
    update = changes.get(control, {})
    if update.get("objective", restore.objective) != restore.objective:
        update = {**update, "learning_rate": None}
    return restore.model_copy(update=update)


def bullets_of(control: str, bullets: Sequence[Bullet], solved: Iterable[Solved], restore: Restore, seed: int) -> list[Bullet]:
    """A control's bullets, at most as many as the located ones.

    ``solved`` are the curate problems that both models solve, in order. Raises InputError if a control has nothing to tune on.
    """
    rng, differing = random.Random(f"control {control} {seed}"), restore.objective == "dpo"
    if control == "random-step":
        found = [_at_other_step(bullet, _another(bullet, rng), differing) for bullet in bullets]
    elif control == "shuffled-step":
        shares = [(bullet.step + 0.5) / len(steps.split(_texts(bullet)[0])) for bullet in bullets]
        rng.shuffle(shares)
        found = [
            _at_other_step(bullet, _nearest_share(share, bullet, rng), differing) for share, bullet in zip(shares, bullets, strict=True)
        ]
    elif control == "whole-response":
        found = [_whole(bullet) for bullet in bullets]
    elif control == "solved-problems":
        made = (_of_solved(one, rng.choice, bullets[0].made_by, differing) for one in solved)
        found = [bullet for _, bullet in zip(bullets, (b for b in made if b), strict=False)]
    else:
        found = list(bullets)
    kept = [bullet for bullet in found if bullet]
    if not kept:
        raise InputError(f"controls: {control} has nothing to tune on here")
    return kept


def _texts(bullet: Bullet) -> tuple[str, str]:
    """The whole correct solution, and the whole wrong one."""
    return bullet.prefix + bullet.chosen + bullet.continuation, bullet.prefix + bullet.rejected + bullet.rejected_rest


def _another(bullet: Bullet, rng: random.Random) -> Pick:
    """Picks any step but the located one."""

    def pick(usable: Sequence[int]) -> int | None:
        others = [k for k in usable if k != bullet.step]
        return rng.choice(others) if others else None

    return pick


def _nearest_share(share: float, bullet: Bullet, rng: random.Random) -> Pick:
    """Picks the step whose middle is nearest to ``share`` of the solution's steps, at random among ties; never the located one."""
    count = len(steps.split(_texts(bullet)[0]))

    def pick(usable: Sequence[int]) -> int | None:
        others = [k for k in usable if k != bullet.step]
        return min(others, key=lambda k: (round(abs((k + 0.5) / count - share), 6), rng.random()), default=None)

    return pick


def _at_other_step(bullet: Bullet, pick: Pick, differing: bool) -> Bullet | None:
    """The bullet's two texts at another step; a preference needs a step at which they differ."""
    return _moved(bullet, *_texts(bullet), pick, differing)


def _of_solved(one: Solved, pick: Pick, made_by: str, differing: bool) -> Bullet | None:
    bullet = Bullet(
        problem=one.problem.id, arm=one.quantized.arm, made_by=made_by, prompt=one.prompt, prefix="", chosen=one.full.text,
        rejected=one.quantized.text, continuation="", rejected_rest="", solution=one.full.text, place=(0, 0), step=0, error_class=None,
        cut=one.quantized.finish == "length",
    )  # fmt: skip
    return _moved(bullet, one.full.text, one.quantized.text, pick, differing)


def _moved(bullet: Bullet, chosen: str, rejected: str, pick: Pick, differing: bool) -> Bullet | None:
    ours, theirs = steps.split(chosen), steps.split(rejected)
    usable = [k for k in range(min(len(ours), len(theirs))) if not differing or chosen[slice(*ours[k])] != rejected[slice(*theirs[k])]]
    step = pick(usable) if usable else None
    if step is None:
        return None
    (start, end), (from_, to) = ours[step], theirs[step]
    return bullet.model_copy(
        update={
            "prompt": bullet.question + chosen[:start],
            "prefix": chosen[:start],
            "chosen": chosen[start:end],
            "continuation": chosen[end:],
            "rejected": rejected[from_:to],
            "rejected_rest": rejected[to:],
            "step": step,
            "place": place(bullet.solution, step),
            "error_class": None,
        }
    )


def _whole(bullet: Bullet) -> Bullet:
    """Both models' whole responses, nothing shared."""
    update = {"prompt": bullet.question, "prefix": "", "chosen": bullet.solution, "continuation": ""}
    update |= {"rejected": bullet.prefix + bullet.rejected + bullet.rejected_rest, "rejected_rest": ""}
    return bullet.model_copy(update={**update, "step": 0, "place": (0, len(bullet.solution))})
