"""Bullets in, a restored checkpoint out. Seeded, and it continues from its last saved state."""

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count, zip_longest
from pathlib import Path
from typing import Any

import torch

from stepmend.formats.tensors import copy
from stepmend.keys import Restore
from stepmend.models.forward import head_of, hidden_of
from stepmend.models.load import checkpoint_digest, free, load_model, load_tokenizer, placement
from stepmend.records import Bullet, InputError, digest
from stepmend.restore import adapter, codes, exported, memory, objectives, scales
from stepmend.restore.losses import Loss
from stepmend.restore.training import Batches, Group, Trained, check, direction, put, train
from stepmend.restore.validation import LEAST, Solution, Validation, Verdict, from_to, range_test, verdict
from stepmend.rundir import make_folder, replace

VERSION = "restore-5"
"""Changes whenever the same bullets may give another checkpoint."""
RATES = {"distill": 3e-3, "sft": 1e-3, "dpo": 3e-4}
"""Peak learning rates of scales and norms, as relative changes in a step, if nothing is held out to find them on."""
LORA_RATES = {"distill": 2e-3, "sft": 2e-4, "dpo": 6e-5}
"""Peak learning rates of an adapter."""
SAY_EVERY = 30.0
"""Seconds between progress messages."""
TRIAL = 6
"""Steps whose gradients the range test looks at."""
BULLET = 2.0
"""Weight of a bullet's token in solving codes, relative to a token of another solution."""


@dataclass(frozen=True)
class Tuned:
    """What a tuning did.

    The loss of every step; how far the exported checkpoint's logits are from the trained model's, and may be; the tokens it was supervised
    on, in all; for DPO by how much the chosen text's log-probability changed, a token (negative: the preference was won at its cost); the
    peak rate of every kind, and the (rate, validation KL) pairs that chose it; the share of codes that moved; validation KL by step; and
    held-out KL before and after, on mathematics (``verdict``) and on prose (``other``). ``kept`` is False if the restored state was not
    better: the checkpoint written is the quantized one, unchanged. ``layers`` counts the linear layers with changed codes (``solved``) and
    scales (``rescaled``), with an adapter, and with codes that nothing tunes (``untuned``), and changed norms.
    """

    losses: list[float]
    export_error: float
    export_tolerance: float
    tokens: int
    chosen_change: float | None = None
    rates: dict[str, float] = field(default_factory=dict)
    tested: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    moved: float = 0.0
    solved: tuple[float, float] | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    verdict: Verdict | None = None
    other: tuple[float, float] | None = None
    kept: bool = True
    layers: dict[str, int] = field(default_factory=dict)


def rate_of(recipe: Restore) -> float:
    """The peak learning rate where no range test finds it: the recipe's, or what suits its objective and what is tuned."""
    return recipe.learning_rate or (LORA_RATES if recipe.tune == "lora" else RATES)[recipe.objective]


def tokens_of(tokenizer: Any, bullets: list[Bullet], recipe: Restore) -> float:
    """Tokens that one bullet supervises, on average: what makes budgets of different spans comparable."""
    return sum(sum(objectives.chosen_row(tokenizer, bullet, recipe.trained, recipe.prefix).targets) for bullet in bullets) / len(bullets)


def restore(
    parent: str,
    quantized: Path,
    bullets: list[Bullet],
    recipe: Restore,
    out: Path,
    *,
    seed: int,
    anchors: Sequence[Solution] = (),
    held_out: Sequence[Solution] = (),
    rates: dict[str, float] | None = None,
    tick: Callable[[int], None] = lambda done: None,
    say: Callable[[str], None] = lambda line: None,
) -> Tuned:
    """Restore the checkpoint ``quantized`` on bullets and write ``out``, whole or not at all; continues from ``<out>.state``.

    Args:
        parent: the folder of the full-precision model.
        quantized: the folder of the low-bit checkpoint.
        bullets: what is taught.
        recipe: what is restored, and how.
        out: the folder of the restored checkpoint.
        seed: decides the order of texts.
        anchors: further solutions that ``distill`` is taught on, and codes are solved on.
        held_out: solutions of other problems, which choose rates and states and must show that the result is better; without them
            ``rates``, or the recipe's, hold for all steps.
        rates: peak learning rate of every kind, instead of a range test.
        tick: called with the number of steps done.
        say: called with one-line messages: the memory needed, and the results.

    Raises:
        InputError: if there are no bullets or no gradients, if memory is short, or if values are not finite.
    """
    if not bullets:
        raise InputError("restore: there are no bullets to tune on")
    torch.manual_seed(seed)
    work = _Work(parent, quantized, bullets, recipe, out, seed, anchors, held_out, say)
    with scales.straight_through():
        return work.run(rates, tick)


class _Work:
    """One restoration: the low-bit model, what is taught, and what is held out."""

    def __init__(
        self, parent: str, quantized: Path, bullets: list[Bullet], recipe: Restore, out: Path, seed: int, anchors: Sequence[Solution],
        held_out: Sequence[Solution], say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.parent, self.quantized, self.recipe, self.out, self._tell, self.said = parent, quantized, recipe, out, say, time.monotonic()
        self.tokenizer = load_tokenizer(parent)
        self.kind = adapter if recipe.tune == "lora" else scales
        self.model = self.kind.attach(str(quantized), recipe, str(placement(parent)[1]).removeprefix("torch."))
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.kinds = sorted({_kind(name, recipe) for name, p in self.model.named_parameters() if p.requires_grad})
        solvable = scales.solvable(self.model) if "codes" in recipe.kinds else []
        if not (self.kinds or solvable):
            why = "; its codes stay as they are, so take scales+norms" if recipe.kinds == {"codes"} else ""
            raise InputError(f"restore: restore.tune = {recipe.tune}: {quantized} has no such parameters{why}")
        rows = [solution.row(self.tokenizer) for solution in anchors]
        seen = max(0, recipe.steps * recipe.batch_size - len(bullets))  # further texts would be read by full precision in vain
        self.loss = Loss(recipe, self.model, self.tokenizer, bullets, rows[:seen])
        self.batches = Batches(len(self.loss.rows), recipe.batch_size, seed)
        self.texts = self._texts(bullets, rows)
        self.held_out = held_out
        kept = recipe.model_dump(), seed, checkpoint_digest(quantized), [bullet.model_dump() for bullet in bullets]
        self.made_by = digest(VERSION, *kept, [row.ids for row in rows], [(one.problem, one.tokens) for one in held_out])
        texts = [(text.ids, text.weight, text.question) for text in self.texts]
        self.solved_by = digest(VERSION, "codes", "scales" in recipe.kinds, checkpoint_digest(quantized), texts)  # the seed has no part
        self.state_file, self.codes_file = (out.with_name(out.name + end) for end in (".state", ".codes.state"))

    def say(self, line: str) -> None:
        """Tell the caller."""
        self._tell(line)
        self.said = time.monotonic()

    def run(self, rates: dict[str, float] | None, tick: Callable[[int], None]) -> Tuned:
        """All of it, in order."""
        left = scales.untuned(self.model) if self.kind is scales else []
        if left:
            self.say(f"  codes and scales of {len(left)} quantized layers stay as they are ({left[0]} is one)")
        _ensure_memory(self.loss, self.parameters, self.recipe.batch_size, self.say)
        teacher = load_model(self.parent) if self.recipe.objective == "distill" or "codes" in self.recipe.kinds or self.held_out else None
        validation = Validation(teacher, self.held_out, self.tokenizer) if self.held_out else None
        before = (validation.judge(self.model), validation.other(self.model)) if validation else None
        moved, solved = self._solve(teacher, validation)
        tuned = bool(self.parameters) and self.recipe.steps > 0
        if tuned:
            self.loss.read(teacher)
        del teacher
        free()
        _check_head(self.model, self.loss.rows[0])
        trained, tested = Trained(), {}
        if tuned:
            _preflight(self.backward, self.loss, self.recipe, self.kinds)
            rates, tested = self._rates(rates, validation)
            trained = self._train(rates, validation, tick)
        else:
            tick(self.recipe.steps)
        tokens = sum(self.loss.targets[i] for number in range(len(trained.losses)) for i in self.batches[number])
        change = _chosen_change(self.loss) if self.recipe.objective == "dpo" else None
        judged = verdict(before[0], validation.judge(self.model)) if validation and before else None
        other = (before[1], validation.other(self.model)) if validation and before else None
        self._say_result(trained, judged, other)
        kept = judged is None or judged.better
        error, allowed = self._export(kept)
        for file in (self.state_file, self.codes_file):
            file.unlink(missing_ok=True)
        return Tuned(
            trained.losses, error, allowed, tokens, change, rates or {}, tested, moved, solved, trained.curve, judged, other, kept,
            self.kind.changed(self.model) | {"untuned": len(left)},
        )  # fmt: skip

    def backward(self, batch: Sequence[int]) -> float:
        """Add the gradients of one batch, and give its loss."""
        loss = self.loss(batch)
        loss.backward()
        return loss.item()

    def _texts(self, bullets: Sequence[Bullet], anchors: Sequence[objectives.Row]) -> list[codes.Text]:
        """The texts that codes are solved on, up to the recipe's number of tokens: bullets and anchors in turn."""
        rows = [objectives.chosen_row(self.tokenizer, bullet, "whole", self.recipe.prefix) for bullet in bullets]
        own = [codes.Text(row.ids, BULLET, row.question) for row in rows]
        mixed = [one for pair in zip_longest(own, [codes.Text(row.ids, 1.0, row.question) for row in anchors]) for one in pair if one]
        ends = accumulate(len(text.ids) for text in mixed)
        return [text for text, end in zip(mixed, ends, strict=True) if end <= self.recipe.solve_tokens] or mixed[:1]

    def _solve(self, teacher: Any, validation: Validation | None) -> tuple[float, tuple[float, float] | None]:
        """Solve the codes, if the recipe says so and validation KL falls: the share that moved, and validation KL before and after."""
        layers = {name: layer for name, layer in scales.scales(self.model).items() if not layer.frozen}
        if "codes" not in self.recipe.kinds:
            return 0.0, None
        if frozen := [name for name in scales.scales(self.model) if name not in layers]:
            self.say(f"  codes of {len(frozen)} quantized layers stay as they are ({frozen[0]} is one)")
        if not layers:
            return 0.0, None
        start = validation.choose(self.model) if validation else 0.0
        before = {name: (layer.codes(), layer.scale().detach().clone()) for name, layer in layers.items()}
        moved = self._resume_codes()
        if moved is None:
            self.say(f"  codes: solving on {len(self.texts)} solutions ({sum(len(text.ids) for text in self.texts):,} tokens)")
            rescaled, pad = "scales" in self.recipe.kinds, self.tokenizer.pad_token_id
            total, done = self.model.config.get_text_config().num_hidden_layers, count(1)
            moved = codes.solve(
                self.model, teacher, self.texts, pad, rescaled=rescaled,
                tick=lambda _: self._say_now_and_then(f"  codes: {next(done)} of {total} layers solved"),
            )  # fmt: skip
            self._save_codes(moved)
        if not validation:
            return moved, None
        after = validation.choose(self.model)
        if after >= start:
            self.say(f"  codes: validation KL {from_to(start, after)}: not better, so the quantized codes are kept")
            for name, layer in layers.items():
                layer.set_codes(before[name][0])
                layer.set_scale(before[name][1])
                layer.solved = layer.rescaled = False
            return 0.0, (start, after)
        self.say(f"  codes: {100 * moved:.1f} % moved; validation KL {from_to(start, after)}")
        return moved, (start, after)

    def _say_now_and_then(self, text: str) -> None:
        """Report the progress of a long computation, unless a message was printed shortly before."""
        if time.monotonic() - self.said >= SAY_EVERY:
            self.say(text)

    def _save_codes(self, moved: float) -> None:
        buffer = io.BytesIO()
        solved = {name: (layer.codes(), layer.stored.start) for name, layer in scales.scales(self.model).items() if layer.solved}
        torch.save({"made_by": self.solved_by, "moved": moved, "codes": solved}, buffer)
        replace(self.codes_file, lambda part: part.write_bytes(buffer.getvalue()))

    def _resume_codes(self) -> float | None:
        """Codes that a stopped restoration has solved already; the share that moved, None if there are none."""
        if not self.codes_file.exists():
            return None
        state: dict[str, Any] = torch.load(self.codes_file, weights_only=True, map_location=self.model.device)
        if state["made_by"] != self.solved_by:
            return None
        layers = scales.scales(self.model)
        for name, (codes_MN, scale_MG) in state["codes"].items():
            layers[name].set_codes(codes_MN)
            layers[name].solved = True
            if "scales" in self.recipe.kinds:
                layers[name].set_scale(scale_MG)
        return float(state["moved"])

    def _groups(self, rates: dict[str, float]) -> list[Group]:
        """The parameters of every kind at its rate; kinds without one are not tuned."""
        kinds: dict[str, list[torch.nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                kinds.setdefault(_kind(name, self.recipe), []).append(parameter)
        return [Group(parameters, rates[kind]) for kind, parameters in kinds.items() if kind in rates]

    def _rates(
        self, given: dict[str, float] | None, validation: Validation | None
    ) -> tuple[dict[str, float], dict[str, list[tuple[float, float]]]]:
        """The peak rate of every kind: given, the recipe's, or by a range test; and what the test tried."""
        if given is not None:
            return given, {}
        if not validation or self.recipe.learning_rate or self.recipe.objective != "distill":
            return dict.fromkeys(self.kinds, rate_of(self.recipe)), {}
        found, tested, start = dict[str, float](), dict[str, list[tuple[float, float]]](), validation.choose(self.model)
        towards = direction(self.parameters, lambda number: self.backward(self.batches[number]), TRIAL)
        for kind in self.kinds:
            rate, tested[kind] = range_test(start, lambda rate, kind=kind: self._attempt(kind, rate, towards, validation))
            if rate is not None:
                found[kind] = rate
        worse = "not tuned (no rate lowers validation KL)"
        said = (f"{kind} at {found[kind]:.2g}" if kind in found else f"{kind} {worse}" for kind in self.kinds)
        self.say(f"  range test: {'; '.join(said)}")
        return found, tested

    def _attempt(self, kind: str, rate: float, towards: Sequence[torch.Tensor], validation: Validation) -> float:
        """Validation KL after the first steps at a rate, for one kind of parameter, before rounding; the start is restored."""
        (group,) = self._groups({kind: rate})
        of = {id(parameter): change for parameter, change in zip(self.parameters, towards, strict=True)}
        before = [p.detach().clone() for p in group.parameters]
        put(group.parameters, [start + rate * of[id(p)] for p, start in zip(group.parameters, before, strict=True)])
        with scales.unrounded(self.model):
            value = validation.choose(self.model)
        put(group.parameters, before)
        self._say_now_and_then(f"  range test: {kind} at {rate:.2g}, validation KL {value:.3g}")
        return value

    def _train(self, rates: dict[str, float], validation: Validation | None, tick: Callable[[int], None]) -> Trained:
        groups = self._groups(rates)
        if not groups:
            return Trained()
        chosen = validation if self.recipe.objective == "distill" else None
        return train(
            groups,
            lambda number: self.backward(self.batches[number]),
            steps=self.recipe.steps,
            state_file=self.state_file,
            made_by=digest(self.made_by, rates),
            validate=(lambda: chosen.choose(self.model)) if chosen else None,
            tick=tick,
        )

    def _say_result(self, trained: Trained, judged: Verdict | None, other: tuple[float, float] | None) -> None:
        """How many steps were taken, and what held-out problems and prose say of the result."""
        if trained.curve:
            at, best = min(trained.curve, key=lambda point: point[1])
            steps = f"{len(trained.losses)} of {self.recipe.steps} steps, state of step {at} kept"
            self.say(f"  tuning: {steps}; validation KL {from_to(trained.curve[0][1], best)}")
        if judged and other:
            change = f"change {judged.after - judged.before:+.2g} ({judged.low:+.2g} to {judged.high:+.2g}, 95 %)"
            self.say(f"  {judged.problems} further held-out problems: KL {from_to(judged.before, judged.after)}; {change}")
            self.say(f"  plain prose: KL {from_to(*other)}")
            if judged.problems < LEAST:
                self.say(f"  too few held-out problems to show that it is better: {LEAST} are needed, which is half of restore.validation")

    def _export(self, kept: bool) -> tuple[float, float]:
        """Write the restored checkpoint, or if it is not better the quantized one; the error of its logits, and what is allowed."""
        if kept:
            self.kind.export(self.model, self.quantized, self.out)
            return exported.compare(self.model, self.out, self.loss.rows[0].ids)
        make_folder(self.out, lambda part: copy(self.quantized, part))
        return 0.0, 0.0


def _check_head(model: Any, row: objectives.Row) -> None:
    """Logits are made from hidden states by the head alone. Raises InputError for an architecture that does more (caps or scales them)."""
    ids_BT = torch.tensor([row.ids], device=model.device)
    with torch.no_grad():
        whole_V, ours_V = (
            model(input_ids=ids_BT).logits[0, -1].float(),
            head_of(model, hidden_of(model, ids_BT, [(0, len(row.ids) - 1)]))[0],
        )
    if (whole_V - ours_V).abs().max() > 1e-2 * whole_V.abs().max():
        raise InputError("restore: this architecture changes its head's logits, and what is tuned here would not be what is served")


def _ensure_memory(loss_of: Loss, parameters: list[torch.nn.Parameter], size: int, say: Callable[[str], None]) -> None:
    """Enable gradient checkpointing if memory is short, and report the memory needed."""
    free, model = memory.room(), loss_of.student
    if not memory.fits(memory.estimate(model, parameters, loss_of, size), free) and model.supports_gradient_checkpointing:
        loss_of.checkpoint_gradients()
    say(memory.text(memory.estimate(model, parameters, loss_of, size), free, loss_of.checkpointing))


def _preflight(backward: Callable[[Sequence[int]], float], loss_of: Loss, recipe: Restore, kinds: Sequence[str]) -> None:
    """The longest batch that may come, before any step.

    Raises InputError if memory is short, if the loss or a gradient is not finite, or if a kind of parameter gets no gradient.
    """
    lengths, model = loss_of.lengths, loss_of.student
    try:
        check(backward(sorted(range(len(lengths)), key=lambda i: lengths[i])[-recipe.batch_size :]))
    except torch.OutOfMemoryError:
        raise InputError("restore: the longest bullets do not fit into memory; lower restore.batch_size") from None
    reached: dict[str, float] = dict.fromkeys(kinds, 0.0)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            reached[_kind(name, recipe)] += float(parameter.grad.abs().sum())
            parameter.grad = None
    for kind, total in reached.items():
        if not math.isfinite(total):
            raise InputError(f"restore: the gradient of {kind} is {total}; look for infinities in the checkpoint")
        if not total:
            what = f"restore.tune = {recipe.tune}, objective = {recipe.objective}"
            raise InputError(f"restore: no gradient reaches the {kind} ({what}): on these bullets there is nothing to learn")


def _kind(name: str, recipe: Restore) -> str:
    """Which of the kinds that a recipe tunes a parameter is of."""
    if recipe.tune == "lora":
        return "lora"
    return "scales" if name.endswith(".change") else "norms"


def _chosen_change(loss_of: Loss) -> float:
    """By how much the chosen text's log-probability rose (fell, where negative), a token; natural log."""
    return float((loss_of.preferences() - loss_of.reference_B2)[:, 0].sum()) / max(1, sum(loss_of.targets))
